"""Pushes a model or a Space to the Hub, in one commit, and groups models in a Collection."""

from os import PathLike
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import (
    Collection,
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    SpaceCard,
)
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from rednet.hub.access import check_token
from rednet.hub.cards import read_card, set_repository
from rednet.hub.folder import MODEL_FILES, check_hub_folder, is_export, is_weights, matching_files, write_text
from rednet.hub.notebook import NOTEBOOK, set_notebook_repository


SPACE_FILES = ["*.py", "requirements.txt", "examples/*"]


def push_hub_folder(
    folder: str | PathLike,
    repo_id: str,
    private: bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """
    Pushes a folder that `save_hub_folder` wrote, in one commit: a push that fails changes no file of the repository.

    Creates the repository if it does not exist. The examples of the card and the notebook load `repo_id` afterwards, in
    the repository and in `folder`. If a push fails, the same call can be repeated: complete uploads of weights are not
    sent again.

    Files that the repository has and the folder does not have stay, with two exceptions: weights of the previous model
    at the root (`model.safetensors`, shards and their index) are deleted, and so are its exports (in `onnx` and
    `openvino`) if the push changes the weights.

    Args:
        folder: of its files, those of a model are pushed, with its exports (`onnx`, `openvino`), TensorBoard logs
            (`runs`), `notebook.ipynb` and LICENSE. Other logs and checkpoints are not.
        repo_id: `owner/name`, or a name in the account of the token.
        private: whether to create the repository as a private one. A repository that exists stays as it is.
        revision: the branch to push to, by default `main`. A new branch begins at `main`. `refs/pr/N` pushes to pull
            request N.
        create_pr: whether to open a pull request in place of a change of `revision`, which must exist then.

    Raises:
        PermissionError: no token is set, the token is invalid, or it has no permission for this push.
        ConnectionError: the Hub cannot be reached.
        ValueError: the folder is not a complete model, the Hub rejects the metadata of its card, or a pull request is
            asked for a `revision` that does not exist.
        HfHubHTTPError: the Hub failed. The folder does not change.
    """
    check_hub_folder(folder)
    check_token(repo_id, "model", revision, create_pr)
    readme = Path(folder) / "README.md"
    card = read_card(readme)
    try:
        card.validate()
    except ValueError as error:
        raise ValueError(f"{readme} has invalid metadata: {error}") from error
    api = HfApi(library_name="rednet")
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    set_repository(card, repo_id)
    changed = {"README.md": str(card)}
    if (Path(folder) / NOTEBOOK).is_file():
        notebook = (Path(folder) / NOTEBOOK).read_text(encoding="utf-8")
        changed[NOTEBOOK] = set_notebook_repository(notebook, repo_id)
    files = matching_files(Path(folder), MODEL_FILES) | {name: text.encode() for name, text in changed.items()}
    _create_branch(api, repo_id, "model", revision, create_pr)
    additions = [CommitOperationAdd(name, files[name]) for name in sorted(files)]
    # Not `upload_folder`, which divides a large upload into several commits.
    commit = api.create_commit(
        repo_id,
        [*additions, *(CommitOperationDelete(name) for name in _stale(api, repo_id, revision, additions))],
        commit_message=commit_message or f"Upload {card.data.model_name or 'RedNet'}",
        revision=revision,
        create_pr=create_pr,
    )
    for name, content in changed.items():
        write_text(Path(folder) / name, content)
    return commit


def push_space(
    folder: Path,
    repo_id: str,
    model_id: str,
    private: bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """
    Pushes the app as a Space, in one commit. Files that the Space has and the folder does not have stay.

    Args:
        folder: the app: `app.py`, other Python files, `requirements.txt`, `README.md` and `examples`.
        repo_id: `owner/name`, or a name in the account of the token.
        model_id: the model on the Hub that the Space loads. The `README.md` of the Space names it.
        private, revision, create_pr: see `push_hub_folder`.

    Raises:
        PermissionError: no token is set, the token is invalid, or it has no permission for this push.
        ConnectionError: the Hub cannot be reached.
        ValueError: the Hub has no such model, it rejects the metadata of `README.md`, or a pull request is asked for a
            `revision` that does not exist.
        HfHubHTTPError: the Hub failed.
    """
    check_token(repo_id, "space", revision, create_pr)
    api = HfApi(library_name="rednet")
    try:
        api.model_info(model_id)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(f"there is no model {model_id} on the Hub: push it before the Space") from error
    card = SpaceCard.load(folder / "README.md")
    card.data.models = [model_id]
    card.validate()
    space = api.create_repo(repo_id, repo_type="space", space_sdk=card.data.sdk, private=private, exist_ok=True)
    _create_branch(api, space.repo_id, "space", revision, create_pr)
    files = matching_files(folder, SPACE_FILES) | {"README.md": str(card).encode()}
    return api.create_commit(
        space.repo_id,
        [CommitOperationAdd(name, files[name]) for name in sorted(files)],
        repo_type="space",
        commit_message=commit_message or f"Show {model_id}",
        revision=revision,
        create_pr=create_pr,
    )


def push_collection(
    namespace: str, title: str, description: str, repo_ids: list[str], private: bool = False
) -> Collection:
    """
    Adds models to a Collection of the Hub, in this order. Models that it already has stay where they are.

    The call can be repeated, and extends a Collection that somebody edited.

    Args:
        namespace: the user or organization that the Collection belongs to.
        title: identifies the Collection in its namespace. A Collection that does not exist is created.
        description, private: only of a new Collection. The Hub accepts 150 characters.
        repo_ids: ids `owner/name` of models on the Hub.

    Returns:
        The Collection. Its `url` is the page on the Hub.

    Raises:
        HfHubHTTPError: the token may not write Collections in `namespace` (see `check_collection_token`), the Hub has
            no such model, or it failed.
    """
    api = HfApi(library_name="rednet")
    collection = api.create_collection(
        title, namespace=namespace, description=description, private=private, exists_ok=True
    )
    for repo_id in repo_ids:
        collection = api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True)
    return collection


def pushed_url(commit: CommitInfo, revision: str | None = None) -> str:
    """
    Returns the page that shows a push: the pull request, the branch, or the repository.

    Args:
        commit: what the push returned.
        revision: what it pushed to.
    """
    if commit.pr_url is not None:
        return commit.pr_url
    return str(commit.repo_url) + ("" if revision is None else f"/tree/{quote(revision, safe='')}")


def _create_branch(api: HfApi, repo_id: str, repo_type: str, revision: str | None, create_pr: bool) -> None:
    """Creates the branch that a push goes to, if it does not exist."""
    if revision is not None and not create_pr and not api.revision_exists(repo_id, revision, repo_type=repo_type):
        api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)


def _stale(api: HfApi, repo_id: str, revision: str | None, additions: list[CommitOperationAdd]) -> list[str]:
    """Returns the weights and exports in a repository that do not belong to the model that is pushed."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    existing = {entry.path: entry.lfs and entry.lfs.sha256 for entry in tree if isinstance(entry, RepoFile)}
    pushed = {addition.path_in_repo: addition.upload_info for addition in additions}
    weights = [name for name in existing if is_weights(name) and name not in pushed]
    exports = [name for name in existing if is_export(name) and name not in pushed]
    shards = [name for name in pushed if is_weights(name) and name.endswith(".safetensors")]
    if exports and all(existing.get(name) == pushed[name].sha256.hex() for name in shards):
        exports = []  # of these weights
    return weights + exports
