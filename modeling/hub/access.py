"""What the Hub token of this machine may do, checked before anything is computed or pushed."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id


def check_token(repo_id: str, repo_type: str = "model", revision: str | None = None, create_pr: bool = False) -> None:
    """
    Checks that the token of this machine may push to a repository, or may create it.

    A push to a branch needs write access. A pull request needs read access only.

    Args:
        repo_id: `owner/name`, or a name in the account of the token.
        repo_type: `model` or `space`.
        revision, create_pr: as for the push, see `push_hub_folder`.

    Raises:
        PermissionError: no token is set, the token is invalid, or it has no permission for this push.
        ValueError: `repo_id` is not a valid name of a repository, or `revision` does not exist and the push would not
            create it.
        ConnectionError: the Hub cannot be reached, or failed.
    """
    is_pull_request = create_pr or (revision or "").startswith("refs/pr/")
    api, has_revision = HfApi(), revision in (None, "main")  # a repository that the push creates has only `main`
    with _clear_errors(repo_id):
        account, token = _whoami(api)
        if token.get("role") == "read" and not is_pull_request:
            raise PermissionError("this Hub token may only read: run `hf auth login` with a token that may write")
        if "/" not in repo_id:
            repo_id = f"{account['name']}/{repo_id}"
        validate_repo_id(repo_id)
        try:
            api.auth_check(repo_id, repo_type=repo_type, write=not is_pull_request)
        except GatedRepoError:  # a kind of RepositoryNotFoundError
            raise
        except RepositoryNotFoundError:  # the push creates it
            _check_namespace(repo_id.split("/")[0], f"create {repo_id}", account, token, "repo")
        else:
            if is_pull_request and revision is not None:
                has_revision = api.revision_exists(repo_id, revision, repo_type=repo_type)
    if is_pull_request and not has_revision:
        raise ValueError(f"{repo_id} has no revision {revision!r}, expected an existing one for a pull request")


def check_collection_token(namespace: str) -> None:
    """
    Checks that the token of this machine may create a Collection.

    Args:
        namespace: the user or organization that the Collection belongs to.

    Raises:
        PermissionError: no token is set, the token is invalid, or it may not write Collections in `namespace`.
        ConnectionError: the Hub cannot be reached, or failed.
    """
    with _clear_errors(namespace):
        account, token = _whoami(HfApi())
        _check_namespace(namespace, f"write a Collection of {namespace}", account, token, "collection")


def _whoami(api: HfApi) -> tuple[dict, dict]:
    """Returns the account of the token, and what the Hub says about the token (role, permissions)."""
    if get_token() is None:
        raise PermissionError("there is no Hub token: run `hf auth login`, or set HF_TOKEN")
    account = api.whoami()
    return account, account.get("auth", {}).get("accessToken", {})


def _check_namespace(namespace: str, action: str, account: dict, token: dict, kind: str) -> None:
    """
    Checks that a token may write in a namespace.

    Args:
        namespace: a user or an organization.
        action: what needs the permission, for the message.
        account, token: as `whoami` describes them.
        kind: `repo` or `collection`. The permissions of a fine-grained token have names such as `repo.write`.

    Raises:
        PermissionError: it may not.
    """

    def may_write(permissions: list[str]) -> bool:
        # There is more than one such permission: a token may be limited to repositories that it created.
        return any(name.startswith(f"{kind}.") and not name.endswith(".read") for name in permissions)

    if token.get("role") == "read":
        writable = []
    elif "fineGrained" in token:
        scopes = token["fineGrained"].get("scoped", [])
        writable = [scope["entity"].get("name") for scope in scopes if may_write(scope.get("permissions", []))]
    else:
        orgs = [org["name"] for org in account.get("orgs", []) if org.get("roleInOrg") != "read"]
        writable = [account["name"], *orgs]
    if namespace not in writable:
        allowed = f"it may only write to {', '.join(writable)}" if writable else "it may not write to any account"
        raise PermissionError(f"this Hub token may not {action}: {allowed}")


@contextmanager
def _clear_errors(target: str) -> Iterator[None]:
    """Raises the errors of the Hub as PermissionError and ConnectionError with a cure."""
    try:
        yield
    except (PermissionError, HFValidationError):
        raise
    except Exception as error:  # the class for a broken connection differs between releases of huggingface_hub
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == 401:
            raise PermissionError("this Hub token is invalid: run `hf auth login`, or set HF_TOKEN") from error
        if status == 403:
            raise PermissionError(f"this Hub token may not push to {target}: {error}") from error
        raise ConnectionError(f"the Hub cannot be reached: {error}") from error
