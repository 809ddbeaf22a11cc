"""What a token may do is checked before a push."""

import pytest

from hub_api import Commit, Repo


CHECK = """
import sys
from rednet.hub import check_token
name, kind, revision, create_pr = sys.argv[1:]
try:
    check_token(name, kind, revision or None, create_pr == "True")
except (PermissionError, ValueError) as error:
    print(error)
"""


@pytest.fixture
def tokens(hub):
    """The permissions of the tokens, in the account of the user and in two organizations, and two repositories."""
    hub.orgs = {"lab": "write", "club": "read"}
    fine = {"lab": ["repo.write"], "user": ["repo.content.read", "collection.write"]}
    hub.tokens |= {"hf_read": "read", "hf_fine": fine, "hf_own": {"user": ["repo.create"]}}
    for owner in ("lab", "somebody"):
        hub.repos[f"{owner}/there"] = Repo(False, {"main": Commit.make(None, "initial commit", {})})
    hub.repos["somebody/secret"] = Repo(True, {"main": Commit.make(None, "initial commit", {})})


@pytest.mark.parametrize(
    ("token", "name", "kind", "message"),
    [
        ("hf_secret", "user/new", "model", None),
        ("hf_secret", "new", "model", None),
        ("hf_secret", "new", "space", None),
        ("hf_secret", "lab/there", "model", None),
        ("hf_secret", "lab/new", "model", None),
        ("hf_secret", "club/new", "model", "may not create club/new: it may only write to user, lab"),
        ("hf_secret", "somebody/new", "space", "may not create somebody/new"),
        ("hf_secret", "somebody/there", "model", "may not push to somebody/there"),
        ("hf_secret", "a b", "model", "a b"),
        ("hf_read", "user/new", "model", "may only read"),
        ("hf_own", "user/new", "model", None),
        ("hf_own", "lab/there", "model", "may not push to lab/there"),
        ("hf_fine", "lab/new", "model", None),
        ("hf_fine", "lab/there", "model", None),
        ("hf_fine", "new", "model", "may not create user/new: it may only write to lab"),
        ("hf_wrong", "new", "model", "this Hub token is invalid"),
    ],
)
def test_a_token_is_checked_before_a_push(client, tokens, token, name, kind, message):
    """For repositories that exist and for those that a push would create, of models and Spaces."""
    answer = client.output(CHECK, name, kind, "", False, token=token)
    assert answer == "" if message is None else message in answer


@pytest.mark.parametrize(
    ("token", "name", "revision", "create_pr", "message"),
    [
        ("hf_read", "somebody/there", "", True, None),
        ("hf_read", "somebody/there", "main", True, None),
        ("hf_fine", "somebody/there", "", True, None),
        ("hf_secret", "user/new", "", True, None),
        ("hf_secret", "user/new", "dev", False, None),
        ("hf_secret", "lab/there", "dev", False, None),
        ("hf_read", "lab/there", "dev", False, "may only read"),
        ("hf_read", "user/new", "", True, "may not create user/new: it may not write to any account"),
        ("hf_secret", "somebody/new", "", True, "may not create somebody/new"),
        ("hf_secret", "user/new", "dev", True, "user/new has no revision 'dev'"),
        (
            "hf_secret",
            "lab/there",
            "dev",
            True,
            "lab/there has no revision 'dev', expected an existing one for a pull",
        ),
        ("hf_read", "somebody/there", "refs/pr/1", False, "somebody/there has no revision 'refs/pr/1'"),
    ],
)
def test_a_pull_request_needs_no_permission_to_write(client, tokens, token, name, revision, create_pr, message):
    """But a repository, and a branch that it is for."""
    answer = client.output(CHECK, name, "model", revision, create_pr, token=token)
    assert answer == "" if message is None else message in answer


CHECK_COLLECTION = """
import sys
from rednet.hub import check_collection_token
try:
    check_collection_token(sys.argv[1])
except PermissionError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("token", "namespace", "message"),
    [
        ("hf_secret", "user", None),
        ("hf_secret", "lab", None),
        ("hf_fine", "user", None),
        ("hf_secret", "club", "may not write a Collection of club: it may only write to user, lab"),
        ("hf_fine", "lab", "may not write a Collection of lab: it may only write to user"),
        ("hf_read", "user", "may not write to any account"),
        ("", "user", "there is no Hub token"),
        ("hf_wrong", "user", "this Hub token is invalid"),
    ],
)
def test_a_token_is_checked_before_a_collection(client, tokens, token, namespace, message):
    answer = client.output(CHECK_COLLECTION, namespace, token=token)
    assert answer == "" if message is None else message in answer
