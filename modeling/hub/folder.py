"""A complete Hub repository: written into a folder, checked, and pushed in one commit."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from rednet import modeling_rednet
from rednet.configuration_rednet import AUTO_MAP, REMOTE_CODE, RedNetConfig
from rednet.modeling_rednet import RedNetPreTrainedModel
from safetensors import SafetensorError, safe_open
from transformers import BaseImageProcessor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from yaml import YAMLError

from .cards import PICTURE, name_repository


# What is pushed of a folder. A folder may hold more: logs, checkpoints, the state of an optimizer.
FILES = ["README.md", "*.json", "*.safetensors", "*.png", *REMOTE_CODE]
# What is written into a folder beside the weights.
WRITTEN = ("README.md", "config.json", "preprocessor_config.json", PICTURE.name, *REMOTE_CODE)
# Inside of the folder and not beside it: the folder may be a mount point or a link to another file system.
TEMPORARY = ".rednet-new"


def save_hub_folder(
    folder: str | os.PathLike, model: RedNetPreTrainedModel, processor: BaseImageProcessor, card: ModelCard
) -> None:
    """
    Writes weights, configuration, image processor, card (with the picture it shows) and remote code.

    Of a folder that is there, the files of these names are replaced; `replacing` says what else is guaranteed.

    Raises:
        FileExistsError: `folder` holds files of these names that are not those of a saved RedNet.
        PermissionError: `folder` cannot be written.
    """
    with replacing(Path(folder)) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        card.save(temporary / "README.md")
        shutil.copy(PICTURE, temporary)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """
    A temporary folder to write the files of a model into. At the end of the block they are moved into `folder`, one by
    one, over files of the same name. Weights of the previous model that have no successor (shards, their index) are
    removed. All other files stay, and so does the folder itself: it may be a clone of a repository, a mount point or
    a symbolic link.

    `config.json`, without which no model is loaded, is removed first and moved last. So the folder has the previous
    model, the new model, or (if the process is killed while files are moved) a model that does not load; it is never
    loaded as a mixture of two. The next call completes a folder that was left like this. If the block raises, nothing
    in `folder` has changed.

    Raises:
        FileExistsError: `folder` is not a folder, or holds files of a model's names that are not those of a saved
            RedNet.
        PermissionError: `folder` cannot be written.
    """
    check_replaceable(folder)
    temporary, created = folder / TEMPORARY, not folder.exists()
    interrupted = temporary.exists()  # an earlier call was
    if interrupted:
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        names = sorted(path.name for path in temporary.iterdir())
        for name in names:
            if (folder / name).is_dir():
                raise FileExistsError(f"{folder / name} is a folder, expected a file or nothing")
    except BaseException:
        shutil.rmtree(temporary)
        if interrupted:
            temporary.mkdir()  # what that call left without `config.json` is still to be replaced
        if created:
            with suppress(OSError):  # somebody else has written into it
                folder.rmdir()
        raise
    (folder / "config.json").unlink(missing_ok=True)
    for path in [path for path in folder.iterdir() if _is_weights(path.name) and path.name not in names]:
        path.unlink()
    for name in sorted(names, key=lambda name: name == "config.json"):
        os.replace(temporary / name, folder / name)
    temporary.rmdir()


def check_replaceable(folder: Path) -> None:
    """
    Raises:
        FileExistsError: `folder` is not a folder, or holds files of a model's names that are not those of a saved
            RedNet.
        PermissionError: `folder` cannot be written.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise FileExistsError(f"{folder} is not a folder")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written: this user may not write into {existing}")
    # The temporary folder is made after this check alone.
    if not folder.is_dir() or (folder / TEMPORARY).is_dir() or _is_saved_rednet(folder):
        return
    if foreign := sorted(p.name for p in folder.iterdir() if p.name in WRITTEN or _is_weights(p.name)):
        raise FileExistsError(
            f"{folder} is not a folder of a saved RedNet, but has {', '.join(foreign)}: move what would be replaced, "
            "or give another folder"
        )


def _is_saved_rednet(folder: Path) -> bool:
    """Whether a folder has the configuration of a model of this family, or of a detector on one."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(config, dict):
        return False
    backbone = config.get("backbone") if "detector" in config else config
    return isinstance(backbone, dict) and backbone.get("model_type") == "rednet"


def check_hub_folder(folder: str | os.PathLike) -> None:
    """
    Whether a folder is a complete repository: every file is there, and the weights are those of the configuration.

    Raises:
        ValueError: it is not; the message names the file, and the weight where it is one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    for name in ("config.json", "preprocessor_config.json", "README.md", *REMOTE_CODE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a complete model: {name} is missing")
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "rednet":
        raise ValueError(f"{folder}/config.json has model_type {config.get('model_type')!r}, expected 'rednet'")
    if config.get("auto_map") != AUTO_MAP:
        raise ValueError(f"{folder}/config.json has auto_map {config.get('auto_map')}, expected {AUTO_MAP}")
    names = config.get("architectures") or ["RedNetForImageClassification"]
    if names[0] not in modeling_rednet.__all__:
        raise ValueError(f"{folder}/config.json has architectures {names}, expected one of {modeling_rednet.__all__}")
    try:
        with torch.device("meta"):
            model = getattr(modeling_rednet, names[0])(RedNetConfig.from_dict(config))
    except StrictDataclassError as error:
        raise ValueError(f"{folder}/config.json is no configuration of a RedNet: {error}") from error
    expected, found = {name: list(t.shape) for name, t in model.state_dict().items()}, _shapes(folder)
    if found != expected:
        name = min(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise ValueError(
            f"the weights in {folder} are not those of its config.json: {name} is {found.get(name, 'missing')}, "
            f"expected {expected.get(name, 'not to be there')}"
        )


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Shape of every weight, from the headers of the files alone."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = {SAFE_WEIGHTS_NAME} if not index.is_file() else set(json.loads(index.read_text())["weight_map"].values())
    shapes: dict[str, list[int]] = {}
    for name in sorted(names):
        try:
            with safe_open(folder / name, "pt") as file:
                shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / name} cannot be read: {error}") from error
    return shapes


def check_token(repo_id: str, repo_type: str = "model") -> None:
    """
    Whether the Hub lets the account that is logged in write to a repository, or create it.

    Raises:
        PermissionError: there is no token, the Hub does not accept it, or it may not write there.
        ValueError: the Hub has no such names of repositories.
        ConnectionError: the Hub cannot be reached, or failed.
    """
    if get_token() is None:
        raise PermissionError("there is no Hub token: run `hf auth login`, or set HF_TOKEN")
    try:
        account = HfApi().whoami()
        token = account.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise PermissionError("this Hub token may only read: run `hf auth login` with one that may write")
        if "/" not in repo_id:
            repo_id = f"{account['name']}/{repo_id}"
        validate_repo_id(repo_id)
        try:
            HfApi().auth_check(repo_id, repo_type=repo_type, write=True)
            return
        except RepositoryNotFoundError:  # the push creates it
            owner, writable = repo_id.split("/")[0], _writable_namespaces(account, token)
    except (PermissionError, HFValidationError):
        raise
    except Exception as error:  # what a broken connection raises is another class in every release of huggingface_hub
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == 401:
            raise PermissionError(
                "the Hub does not accept this token: run `hf auth login`, or set HF_TOKEN"
            ) from error
        if status == 403:
            raise PermissionError(f"this Hub token may not write to {repo_id}: {error}") from error
        raise ConnectionError(f"the Hub cannot be reached: {error}") from error
    if owner not in writable:
        raise PermissionError(
            f"this Hub token may not create {repo_id}: it may create repositories of {', '.join(writable) or 'nobody'}"
        )


def _writable_namespaces(account: dict, token: dict) -> list[str]:
    """In which a token may create repositories, as `whoami` describes both."""
    if "fineGrained" in token:
        scopes = token["fineGrained"].get("scoped", [])
        return [one["entity"].get("name") for one in scopes if "repo.write" in one.get("permissions", [])]
    orgs = [org["name"] for org in account.get("orgs", []) if org.get("roleInOrg") != "read"]
    return [account["name"], *orgs]


def push_hub_folder(
    folder: str | os.PathLike, repo_id: str, private: bool | None = None, commit_message: str | None = None
) -> CommitInfo:
    """
    Pushes a folder that `save_hub_folder` wrote, in one commit: the repository has all of it, or what it had before.

    The repository is created where there is none, and the card's examples load it, there and afterwards in the folder.
    After a failure the same call goes on: weights that were uploaded completely are not uploaded again. Of the files
    that the repository has and the folder has not, the weights of a previous model (`model.safetensors`, its parts and
    their index, at the root) are removed; all others stay. Those that both have are replaced, the card as well.

    Args:
        folder: what is pushed of it are the files of a model, not logs or checkpoints.
        repo_id: `user/name`, or a name in the account that the token belongs to.
        private: whether a repository that is created is private.

    Raises:
        PermissionError: there is no token, the Hub does not accept it, or it may not write to `repo_id`.
        ConnectionError: the Hub cannot be reached.
        ValueError: the folder is not a complete model, or the Hub does not accept the metadata of its card.
        HfHubHTTPError: the Hub failed. The folder stays as it is.
    """
    check_hub_folder(folder)
    check_token(repo_id)
    try:
        card = ModelCard.load(Path(folder) / "README.md")
        card.validate()
    except (ValueError, YAMLError) as error:
        raise ValueError(f"{folder}/README.md has metadata that the Hub does not accept: {error}") from error
    api = HfApi(library_name="rednet")
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    name_repository(card, repo_id)
    files = {path.name: path for pattern in FILES for path in Path(folder).glob(pattern)}
    files["README.md"] = str(card).encode()
    stale = [name for name in api.list_repo_files(repo_id) if _is_weights(name) and name not in files]
    # Not upload_folder, which divides what is large among several commits.
    commit = api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(name, files[name]) for name in sorted(files)),
            *(CommitOperationDelete(name) for name in stale),
        ],
        commit_message=commit_message or f"Upload {card.data.model_name or 'RedNet'}",
    )
    readme = Path(folder) / "README.md"
    temporary = readme.with_name(f".{readme.name}.{os.getpid()}")
    card.save(temporary)
    os.replace(temporary, readme)
    return commit


def _is_weights(name: str) -> bool:
    """Whether a file at the root has the name of a model's weights, of one part of them, or of their index."""
    return name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) or bool(
        re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name)
    )


__all__ = [
    "check_hub_folder",
    "check_replaceable",
    "check_token",
    "push_hub_folder",
    "replacing",
    "save_hub_folder",
]
