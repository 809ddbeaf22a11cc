"""Pushes a repository for the Kernel Hub that `write` wrote, and the builds that kernel-builder added to it.

The conventions are those of `kernel-builder upload`: the Hub has repositories of the type `kernel`, their branch
`main` has the card, and the branch `v<version>` has the builds and benchmarks, which `kernels` loads by
`version=<version>`. Unlike there, `main` also gets the sources, so that anybody can build them.
"""

import json
import sys
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import RevisionNotFoundError


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_SOURCES = ("CARD.md", "build.toml", "flake.nix", "flake.lock", "torch-ext/**/*", "tests/**/*", "benchmarks/**/*")
_BUILDS = ("build/*/**/*", "benchmarks/**/*")


def push(
    folder: Path, revision: str | None = None, create_pr: bool = False, private: bool | None = None
) -> list[CommitInfo]:
    """Pushes `folder` to the repository that its `build.toml` names, with one commit for each branch.

    Creates the repository and the branch of the version if they do not exist. In a branch, the pushed builds replace
    those of the same name, and the others stay: several machines can push their builds. If a push fails, the same call
    can be repeated: complete uploads are not sent again.

    Args:
        folder: what `write` wrote.
        revision: push everything to this branch, and nothing to others. By default, the builds go to the branch of the
            version, and card and sources to `main`.
        create_pr: open a pull request for each branch instead of changing it. The branches must exist then.
        private: whether to create the repository as a private one. A repository that exists stays as it is.

    Returns:
        The commits, that of the builds first.

    Raises:
        ValueError: `folder` has no `build.toml` or no builds, it is for no repository, the builds have another
            version, or a pull request is asked for a branch that does not exist.
        PermissionError: no token is set.
        HfHubHTTPError: the token may not write there, or the Hub failed.
    """
    repo_id, version = _check(folder)
    if get_token() is None:
        raise PermissionError("there is no Hub token: run `hf auth login`, or set HF_TOKEN")
    sources, builds = _matching(folder, _SOURCES), _matching(folder, _BUILDS)
    card = {"README.md": folder / "build" / "CARD.md"}
    parts = {f"v{version}": builds, "main": card | sources}
    if revision is not None:
        parts = {revision: card | sources | builds}

    api = HfApi(library_name="involution")
    repo_id = api.create_repo(repo_id, repo_type="kernel", private=private, exist_ok=True).repo_id
    return [_commit(api, repo_id, branch, files, create_pr) for branch, files in parts.items()]


def _check(folder: Path) -> tuple[str, int]:
    """Returns the repository and the version of a folder."""
    if not (folder / "build.toml").is_file():
        raise ValueError(f"FOLDER is {folder}, which has no build.toml, expected what `write` wrote")
    general = tomllib.loads((folder / "build.toml").read_text())["general"]
    repo_id = general.get("hub", {}).get("repo-id")
    if repo_id is None:
        raise ValueError(f"{folder / 'build.toml'} has no repo-id, expected OWNER/NAME in the section [general.hub]")
    builds = sorted(folder.glob("build/*/metadata.json"))
    if not builds or not (folder / "build" / "CARD.md").is_file():
        raise ValueError(f"FOLDER is {folder}, whose folder build is not complete: write it again")
    for metadata in builds:
        if (version := json.loads(metadata.read_text())["version"]) != general["version"]:
            raise ValueError(f"{metadata} has version {version}, expected {general['version']} as in build.toml")
    return repo_id, general["version"]


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    paths = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths if "__pycache__" not in path.parts}


def _commit(api: HfApi, repo_id: str, branch: str, files: dict[str, Path], create_pr: bool) -> CommitInfo:
    try:
        existing = api.list_repo_files(repo_id, repo_type="kernel", revision=branch)
    except RevisionNotFoundError as error:
        if create_pr:
            raise ValueError(f"{repo_id} has no branch {branch}: a pull request needs one that exists") from error
        api.create_branch(repo_id, repo_type="kernel", branch=branch, exist_ok=True)
        existing = api.list_repo_files(repo_id, repo_type="kernel", revision=branch)
    folders = {_folder(name) for name in files if "/" in name}
    stale = [name for name in existing if "/" in name and _folder(name) in folders and name not in files]
    # Not `upload_folder`, which divides a large upload into several commits.
    return api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(name, files[name]) for name in sorted(files)),
            *(CommitOperationDelete(name) for name in stale),
        ],
        commit_message="Upload the involution kernel",
        repo_type="kernel",
        revision=branch,
        create_pr=create_pr,
    )


def _folder(name: str) -> str:
    """The folder whose files a push replaces: that of one build, or one at the root."""
    parts = name.split("/")
    return "/".join(parts[: 2 if parts[0] == "build" else 1])
