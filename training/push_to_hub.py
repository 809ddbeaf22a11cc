"""Pushes a Hub folder, as the training scripts and the converter write it, in one commit; or the app, as a Space.

    python training/push_to_hub.py outputs/demo/last my-name/rednet-fashion-mnist
    python training/push_to_hub.py app my-name/what-involution-sees --model my-name/rednet-fashion-mnist

Needs a token: `hf auth login`, or HF_TOKEN. After a failure the same command goes on where it was.
"""

import argparse
import sys
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, SpaceCard
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from rednet.hub import check_token, push_hub_folder


SPACE_FILES = ["*.py", "requirements.txt", "examples/*"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what is pushed")
    parser.add_argument("repo", help="where to: name/repository, or a repository of the account that is logged in")
    parser.add_argument("--model", help="of a Space: the id of the Hub repository that it loads")
    parser.add_argument("--private", action="store_true", default=None, help="create it as a private repository")
    parser.add_argument("--commit_message")
    options = parser.parse_args()
    space = (options.folder / "app.py").is_file()
    if space != (options.model is not None):
        parser.error(
            f"{options.folder} is a Space: say with --model which model of the Hub it loads"
            if space
            else f"--model is for a Space, and {options.folder} has no app.py"
        )
    try:
        if space:
            commit = push_space(options.folder, options.repo, options.model, options.private, options.commit_message)
        else:
            commit = push_hub_folder(options.folder, options.repo, options.private, options.commit_message)
    except (PermissionError, ValueError) as error:  # the token, the folder or its metadata: nothing has begun
        sys.exit(f"error: {error}")
    except Exception as error:  # what a broken connection raises is another class in every release of huggingface_hub
        sys.exit(f"error: {type(error).__name__}: {error}\n{options.folder} is whole; the same command tries again.")
    print(commit.repo_url)


def push_space(
    folder: Path, repo_id: str, model_id: str, private: bool | None = None, commit_message: str | None = None
) -> CommitInfo:
    """
    Pushes the files of a Space in one commit, with `model_id` as the model that its README.md names. Files that the
    Space has and the folder has not stay.

    Raises:
        PermissionError: there is no token, the Hub does not accept it, or it may not write to `repo_id`.
        ValueError: the model is not on the Hub, or the Hub does not accept the metadata of README.md.
        HfHubHTTPError: the Hub failed.
    """
    check_token(repo_id, "space")
    api = HfApi(library_name="rednet")
    try:
        api.model_info(model_id)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(f"there is no model {model_id} on the Hub for the Space to load: push it first") from error
    card = SpaceCard.load(folder / "README.md")
    card.data.models = [model_id]
    card.validate()
    repo_id = api.create_repo(
        repo_id, repo_type="space", space_sdk=card.data.sdk, private=private, exist_ok=True
    ).repo_id
    paths = sorted(path for pattern in SPACE_FILES for path in folder.glob(pattern))
    contents = {path.relative_to(folder).as_posix(): path for path in paths} | {"README.md": str(card).encode()}
    return api.create_commit(
        repo_id,
        [CommitOperationAdd(name, content) for name, content in contents.items()],
        repo_type="space",
        commit_message=commit_message or f"Show {model_id}",
    )


if __name__ == "__main__":
    main()
