"""The part of the Hugging Face Hub that pushes and pulls need: repositories in memory, and the answers to requests.

There are models and Spaces (named spaces/owner/name; they do not run), the permissions of tokens, uploads (preupload, LFS,
commit), downloads, and the check of cards. There are no branches, tags, pull requests, ranges or Xet storage.
`hub_server` serves this over HTTP.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import card_metadata


@dataclass(frozen=True)
class File:
    data: bytes

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: "Commit | None"
    title: str
    tree: Mapping[str, File]

    @classmethod
    def make(cls, parent: "Commit | None", title: str, tree: Mapping[str, File]) -> "Commit":
        contents = [parent and parent.sha, title, {path: tree[path].sha256 for path in sorted(tree)}]
        return cls(hashlib.sha1(json.dumps(contents).encode()).hexdigest(), parent, title, tree)

    def history(self) -> list["Commit"]:
        """This commit and all before it, the newest first."""
        return [self, *(self.parent.history() if self.parent else [])]


@dataclass
class Repo:
    private: bool
    head: Commit
    objects: dict[str, bytes] = field(default_factory=dict)  # uploaded through LFS, committed or not

    def at(self, revision: str) -> Commit:
        for commit in self.head.history():
            if revision in ("main", commit.sha):
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    user: str | None = None
    permissions: str | dict[str, list[str]] | None = None  # see `Hub.tokens`

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def to_json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


class Refusal(Exception):
    """The answer to a request that is not executed. The client chooses its exception by `code`."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] = {}, **body: str):
        super().__init__(message)
        self.answer = to_json({"error": message, **body}, status)
        # A header is one line of Latin-1.
        line = " ".join(message.split()).encode("latin-1", "replace").decode("latin-1")
        self.answer.headers |= {"X-Error-Message": line, **({"X-Error-Code": code} if code else {}), **headers}


Action = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Action]] = []


def route(method: str, pattern: str) -> Callable[[Action], Action]:
    """Lets the decorated method answer requests. In the pattern, {repo} is two parts of a path (three for a Space), {path}
    is its rest, and every other name is one part."""
    parts = {"repo": "(?:spaces/)?[^/]+/[^/]+", "path": ".+"}
    expression = re.sub(r"\{(\w+)\}", lambda name: f"(?P<{name[1]}>{parts.get(name[1], '[^/]+')})", pattern)

    def register(action: Action) -> Action:
        ROUTES.append((method, re.compile(expression), action))
        return action

    return register


class Hub:
    """
    `tokens` are those of the user, each with its permissions: read, write, or for a fine-grained token its permissions
    in each namespace. `orgs` are the organizations of the user, with the user's role in each.
    """

    def __init__(self, url: str, user: str, token: str):
        self.url = url
        self.user = user
        self.token = token
        self.tokens: dict[str, str | dict[str, list[str]]] = {token: "write"}
        self.orgs: dict[str, str] = {}
        self.repos: dict[str, Repo] = {}
        self.lock = threading.RLock()

    def answer(self, request: Request) -> Answer:
        """Executes one request at a time, so that others see all of a commit or nothing of it."""
        method = "GET" if request.method == "HEAD" else request.method
        path = re.sub("^/api/spaces/", "/api/models/spaces/", request.path)
        try:
            if authorization := request.headers.get("Authorization"):
                request.permissions = self.tokens.get(authorization.removeprefix("Bearer "))
                if request.permissions is None:
                    raise Refusal(401, "Invalid credentials in Authorization header")
                request.user = self.user
            for route_method, pattern, action in ROUTES:
                if route_method == method and (match := pattern.fullmatch(path)):
                    names = {name: unquote(text) for name, text in match.groupdict(default="").items()}
                    with self.lock:
                        return action(self, request, **names)
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        except Refusal as refusal:
            return refusal.answer
        except (ValueError, KeyError, TypeError) as error:
            return Refusal(400, f"Malformed request: {error!r}").answer

    def _readable(self, request: Request, name: str) -> Repo:
        repo = self.repos.get(name)
        if repo is None and request.user:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if request.user is None and (repo is None or repo.private):
            # The Hub sends no code here. Its client recognizes this 401 by an address that begins with https://.
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        return repo

    def _writable(self, request: Request, name: str) -> Repo:
        if request.user is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        repo = self._readable(request, name)
        if not self._may_write(request, name.split("/")[-2]):
            raise Refusal(403, "Authorization error: this token cannot write to this repository")
        return repo

    def _may_write(self, request: Request, namespace: str) -> bool:
        if isinstance(request.permissions, dict):
            return "repo.write" in request.permissions.get(namespace, [])
        belongs = namespace == self.user or self.orgs.get(namespace) in ("admin", "write", "contributor")
        return request.permissions == "write" and belongs

    # The account and its repositories

    @route("GET", "/api/whoami-v2")
    def _whoami(self, request: Request) -> Answer:
        if request.user is None:
            raise Refusal(401, "Invalid username or password.")
        token: dict[str, Any] = {"displayName": "test", "role": request.permissions}
        if isinstance(request.permissions, dict):
            permissions = request.permissions.items()
            scoped = [{"entity": {"type": "user", "name": name}, "permissions": given} for name, given in permissions]
            token["role"] = "fineGrained"
            token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
        auth = {"type": "access_token", "accessToken": token}
        orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in self.orgs.items()]
        return to_json({"type": "user", "name": request.user, "orgs": orgs, "auth": auth})

    @route("GET", "/api/models/{repo}/auth-check/write")
    def _auth_check(self, request: Request, repo: str) -> Answer:
        self._writable(request, repo)
        return to_json({})

    @route("POST", "/api/repos/create")
    def _create(self, request: Request) -> Answer:
        """Creates a repository. As on the Hub, its first commit has `.gitattributes`."""
        asked = request.json()
        owner, kind = asked.get("organization") or self.user, asked.get("type", "model")
        if not self._may_write(request, owner):
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if kind == "space" and asked.get("sdk") not in card_metadata.SPACE_SDKS:
            raise Refusal(400, f'"sdk" must be one of {card_metadata.SPACE_SDKS}')
        name = ("spaces/" if kind == "space" else "") + f"{owner}/{asked['name']}"
        if name in self.repos:
            # A client that accepts an existing repository takes the address from the refusal.
            raise Refusal(409, "You already created this model repo", url=f"{self.url}/{name}")
        first = Commit.make(None, "initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n")})
        self.repos[name] = Repo(asked.get("visibility") == "private", first)
        return to_json({"name": name, "url": f"{self.url}/{name}"})

    # Downloads

    @route("GET", "/api/models/{repo}(/revision/{revision})?")
    def _info(self, request: Request, repo: str, revision: str) -> Answer:
        found = self._readable(request, repo)
        commit = found.at(revision or "main")
        siblings = [{"rfilename": path} for path in commit.tree]
        return to_json({"id": repo, "private": found.private, "sha": commit.sha, "siblings": siblings, "tags": []})

    @route("GET", "/api/models/{repo}/tree/{revision}")
    def _tree(self, request: Request, repo: str, revision: str) -> Answer:
        """The recursive list of all files."""
        tree = self._readable(request, repo).at(revision).tree
        return to_json([
            {"type": "file", "path": path, "oid": file.sha256, "size": len(file.data)} for path, file in tree.items()
        ])  # fmt: skip

    @route("GET", "/{repo}/resolve/{revision}/{path}")
    def _resolve(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        commit = self._readable(request, repo).at(revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.tree:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        file = commit.tree[path]
        return Answer(200, file.data, headers | {"ETag": f'"{file.sha256}"'})

    # An upload: how each file has to be sent, the large files, the commit

    @route("POST", "/api/models/{repo}/preupload/main")
    def _preupload(self, request: Request, repo: str) -> Answer:
        self._writable(request, repo)
        files = [
            {"path": asked["path"], "uploadMode": "lfs" if b"\0" in base64.b64decode(asked["sample"]) else "regular"}
            for asked in request.json()["files"]
        ]
        return to_json({"files": [{**file, "shouldIgnore": False} for file in files]})

    @route("POST", "/{repo}.git/info/lfs/objects/batch")
    def _lfs_batch(self, request: Request, repo: str) -> Answer:
        """Gives the address for each file, unless the repository already has its content."""
        uploaded, objects = self._writable(request, repo).objects, request.json()["objects"]
        for asked in objects:
            if asked["oid"] not in uploaded:
                asked["actions"] = {"upload": {"href": f"{self.url}/lfs/{repo}/{asked['oid']}"}}
        return to_json({"transfer": "basic", "objects": objects})

    @route("PUT", "/lfs/{repo}/{oid}")
    def _lfs_upload(self, request: Request, repo: str, oid: str) -> Answer:
        """Accepts a file without a token: on the Hub this address is signed."""
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "The content does not have this checksum")
        self.repos[repo].objects[oid] = request.body
        return to_json({})

    @route("POST", "/api/models/{repo}/commit/main")
    def _commit(self, request: Request, repo: str) -> Answer:
        """Executes the operations in the body, one line of JSON each, as one commit, or none of them."""
        found = self._writable(request, repo)
        header, *operations = [json.loads(line) for line in request.body.splitlines()]
        tree = dict(found.head.tree)
        for operation in operations:
            path = operation["value"]["path"]
            if operation["key"] == "file":
                tree[path] = File(base64.b64decode(operation["value"]["content"]))
            elif operation["key"] == "lfsFile":
                tree[path] = File(found.objects[operation["value"]["oid"]])
            elif operation["key"] == "deletedFile":
                del tree[path]
            else:
                raise Refusal(400, f"Unknown operation {operation['key']}")
        if "README.md" in tree:
            errors, _ = card_metadata.check(tree["README.md"].data.decode(), space=repo.startswith("spaces/"))
            if errors:
                raise Refusal(400, "\n".join(errors))
        found.head = Commit.make(found.head, header["value"]["summary"], tree)
        address = f"{self.url}/{repo}/commit/{found.head.sha}"
        return to_json({"success": True, "commitOid": found.head.sha, "commitUrl": address, "hookOutput": ""})

    @route("POST", "/api/validate-yaml")
    def _validate(self, request: Request) -> Answer:
        asked = request.json()
        errors, warnings = card_metadata.check(asked["content"], space=asked.get("repoType") == "space")
        status = 400 if errors else 200
        if request.headers.get("Accept") == "text/plain":  # of `card.validate()`; an upload expects JSON
            lines = [f"- Error: {error}" for error in errors] + [f"- Warning: {warning}" for warning in warnings]
            return Answer(status, "\n".join(lines).encode(), {"Content-Type": "text/plain; charset=utf-8"})
        kinds = {"errors": errors, "warnings": warnings}
        return to_json({kind: [{"message": text} for text in texts] for kind, texts in kinds.items()}, status)
