"""Pushes a model or a Space to the Hub, in one commit, after a check that the token may write there."""

import os
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    SpaceCard,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from rednet.configuration_rednet import REMOTE_CODE
from rednet.hub.cards import set_repository
from rednet.hub.folder import check_hub_folder, is_weights
from yaml import YAMLError


# The files that are pushed. A folder may have more: logs, checkpoints, the state of an optimizer.
MODEL_FILES = ["README.md", "*.json", "*.safetensors", "*.png", *REMOTE_CODE]
SPACE_FILES = ["*.py", "requirements.txt", "examples/*"]


def check_token(repo_id: str, repo_type: str = "model") -> None:
    """
    Checks that the token of this machine may write to a repository, or may create it.

    Args:
        repo_id: `owner/name`, or a name in the account of the token.
        repo_type: `model` or `space`.

    Raises:
        PermissionError: no token is set, the token is invalid, or it has no permission to write there.
        ValueError: `repo_id` is not a valid name of a repository.
        ConnectionError: the Hub cannot be reached, or failed.
    """
    if get_token() is None:
        raise PermissionError("there is no Hub token: run `hf auth login`, or set HF_TOKEN")
    try:
        account = HfApi().whoami()
        token = account.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise PermissionError("this Hub token may only read: run `hf auth login` with a token that may write")
        if "/" not in repo_id:
            repo_id = f"{account['name']}/{repo_id}"
        validate_repo_id(repo_id)
        try:
            HfApi().auth_check(repo_id, repo_type=repo_type, write=True)
            return
        except RepositoryNotFoundError:  # the push creates it
            writable = _writable_namespaces(account, token)
    except (PermissionError, HFValidationError):
        raise
    except Exception as error:  # the class for a broken connection differs between releases of huggingface_hub
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == 401:
            raise PermissionError("this Hub token is invalid: run `hf auth login`, or set HF_TOKEN") from error
        if status == 403:
            raise PermissionError(f"this Hub token may not write to {repo_id}: {error}") from error
        raise ConnectionError(f"the Hub cannot be reached: {error}") from error
    if repo_id.split("/")[0] not in writable:
        allowed = ", ".join(writable) or "no account"
        raise PermissionError(f"this Hub token may not create {repo_id}: it may only create repositories of {allowed}")


def _writable_namespaces(account: dict, token: dict) -> list[str]:
    """Returns the accounts and organizations in which a token may create repositories.

    Args:
        account, token: as `whoami` describes them.
    """
    if "fineGrained" in token:
        scopes = token["fineGrained"].get("scoped", [])
        return [scope["entity"].get("name") for scope in scopes if "repo.write" in scope.get("permissions", [])]
    orgs = [org["name"] for org in account.get("orgs", []) if org.get("roleInOrg") != "read"]
    return [account["name"], *orgs]


def push_hub_folder(
    folder: str | os.PathLike, repo_id: str, private: bool | None = None, commit_message: str | None = None
) -> CommitInfo:
    """
    Pushes a folder that `save_hub_folder` wrote, in one commit: a push that fails changes nothing in the repository.

    Creates the repository if it does not exist. The examples of the card load `repo_id` afterwards, in the repository
    and in `folder`. If a push fails, the same call can be repeated: complete uploads of weights are not sent again.

    Files that the repository has and the folder does not have stay, except for weights of the previous model at the
    root (`model.safetensors`, shards and their index), which are deleted.

    Args:
        folder: of its files, those of a model are pushed; logs and checkpoints are not.
        repo_id: `owner/name`, or a name in the account of the token.
        private: whether to create the repository as a private one.

    Raises:
        PermissionError: no token is set, the token is invalid, or it has no permission to write to `repo_id`.
        ConnectionError: the Hub cannot be reached.
        ValueError: the folder is not a complete model, or the Hub rejects the metadata of its card.
        HfHubHTTPError: the Hub failed. The folder does not change.
    """
    check_hub_folder(folder)
    check_token(repo_id)
    readme = Path(folder) / "README.md"
    try:
        card = ModelCard.load(readme)
        card.validate()
    except (ValueError, YAMLError) as error:
        raise ValueError(f"{readme} has invalid metadata: {error}") from error
    api = HfApi(library_name="rednet")
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    set_repository(card, repo_id)
    files: dict[str, Path | bytes] = {path.name: path for name in MODEL_FILES for path in Path(folder).glob(name)}
    files["README.md"] = str(card).encode()
    stale = [name for name in api.list_repo_files(repo_id) if is_weights(name) and name not in files]
    # Not `upload_folder`, which divides a large upload into several commits.
    commit = api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(name, files[name]) for name in sorted(files)),
            *(CommitOperationDelete(name) for name in stale),
        ],
        commit_message=commit_message or f"Upload {card.data.model_name or 'RedNet'}",
    )
    temporary = readme.with_name(f".{readme.name}.{os.getpid()}")
    card.save(temporary)
    os.replace(temporary, readme)
    return commit


def push_space(
    folder: Path, repo_id: str, model_id: str, private: bool | None = None, commit_message: str | None = None
) -> CommitInfo:
    """
    Pushes the app as a Space, in one commit. Files that the Space has and the folder does not have stay.

    Args:
        folder: the app: `app.py`, other Python files, `requirements.txt`, `README.md` and `examples`.
        repo_id: `owner/name`, or a name in the account of the token.
        model_id: the model on the Hub that the Space loads. The `README.md` of the Space names it.
        private: whether to create the Space as a private one.

    Raises:
        PermissionError: no token is set, the token is invalid, or it has no permission to write to `repo_id`.
        ConnectionError: the Hub cannot be reached.
        ValueError: the Hub has no such model, or rejects the metadata of `README.md`.
        HfHubHTTPError: the Hub failed.
    """
    check_token(repo_id, "space")
    api = HfApi(library_name="rednet")
    try:
        api.model_info(model_id)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(f"there is no model {model_id} on the Hub: push it before the Space") from error
    card = SpaceCard.load(folder / "README.md")
    card.data.models = [model_id]
    card.validate()
    space = api.create_repo(repo_id, repo_type="space", space_sdk=card.data.sdk, private=private, exist_ok=True)
    paths = sorted(path for pattern in SPACE_FILES for path in folder.glob(pattern))
    contents = {path.relative_to(folder).as_posix(): path for path in paths} | {"README.md": str(card).encode()}
    return api.create_commit(
        space.repo_id,
        [CommitOperationAdd(name, content) for name, content in contents.items()],
        repo_type="space",
        commit_message=commit_message or f"Show {model_id}",
    )
