"""The part of the Hugging Face Hub that pushes and pulls need: repositories in memory, and the answers to requests.

There are models, Spaces (named spaces/owner/name; they do not run) and kernels (kernels/owner/name), the permissions of tokens, branches and pull
requests, uploads (preupload, LFS, commit), downloads, and the check of cards. There are no tags, ranges or Xet storage.
`hub_collections` adds collections, and `hub_server` serves all of it over HTTP.
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

    @property
    def is_lfs(self) -> bool:
        return b"\0" in self.data[:512]  # of which a client sends a sample

    @property
    def oid(self) -> str:
        """The name of the content: that of LFS, or that of git for a file that is not in LFS."""
        return self.sha256 if self.is_lfs else hashlib.sha1(b"blob %d\0%s" % (len(self.data), self.data)).hexdigest()


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
    heads: dict[str, Commit]  # of branches, by name, and of pull requests: refs/pr/1, refs/pr/2 ...
    objects: dict[str, bytes] = field(default_factory=dict)  # uploaded through LFS, committed or not

    def at(self, revision: str) -> Commit:
        if revision in self.heads:
            return self.heads[revision]
        for commit in (commit for head in self.heads.values() for commit in head.history()):
            if revision == commit.sha:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass
class Request:
    method: str
    path: str
    query: Mapping[str, str]
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
    """Lets the decorated method answer requests. In the pattern, {repo} is two parts of a path (three for a Space or a
    kernel), {slug} two, {path} is its rest, and every other name is one part."""
    parts = {"repo": "(?:(?:spaces|kernels)/)?[^/]+/[^/]+", "slug": "[^/]+/[^/]+", "path": ".+"}
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
        self.collections: dict[str, dict[str, Any]] = {}  # by slug
        self.lock = threading.RLock()

    def answer(self, request: Request) -> Answer:
        """Executes one request at a time, so that others see all of a commit or nothing of it."""
        method = "GET" if request.method == "HEAD" else request.method
        path = re.sub("^/api/(spaces|kernels)/", r"/api/models/\1/", request.path)
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
        if not self.may_write(request, name.split("/")[-2]):
            raise Refusal(403, "Authorization error: this token cannot write to this repository")
        return repo

    def _pushable(self, request: Request, name: str, revision: str | None) -> Repo:
        """The repository, if a commit may be made: those who may only read it can open pull requests, and push to them."""
        opens_pull_request = revision is None or "create_pr" in request.query
        if request.user and (opens_pull_request or revision.startswith("refs/pr/")):
            return self._readable(request, name)
        return self._writable(request, name)

    def may_write(self, request: Request, namespace: str, permission: str = "repo.write") -> bool:
        if isinstance(request.permissions, dict):
            return permission in request.permissions.get(namespace, [])
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

    @route("GET", "/api/models/{repo}/auth-check")
    def _auth_check(self, request: Request, repo: str) -> Answer:
        self._readable(request, repo)
        return to_json({})

    @route("GET", "/api/models/{repo}/auth-check/write")
    def _auth_check_write(self, request: Request, repo: str) -> Answer:
        self._writable(request, repo)
        return to_json({})

    @route("POST", "/api/repos/create")
    def _create(self, request: Request) -> Answer:
        """Creates a repository. As on the Hub, its first commit has `.gitattributes`."""
        asked = request.json()
        owner, kind = asked.get("organization") or self.user, asked.get("type", "model")
        if not self.may_write(request, owner):
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if kind == "space" and asked.get("sdk") not in card_metadata.SPACE_SDKS:
            raise Refusal(400, f'"sdk" must be one of {card_metadata.SPACE_SDKS}')
        name = ("" if kind == "model" else f"{kind}s/") + f"{owner}/{asked['name']}"
        if name in self.repos:
            # A client that accepts an existing repository takes the address from the refusal.
            raise Refusal(409, "You already created this model repo", url=f"{self.url}/{name}")
        first = Commit.make(None, "initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n")})
        self.repos[name] = Repo(asked.get("visibility") == "private", {"main": first})
        return to_json({"name": name, "url": f"{self.url}/{name}"})

    @route("POST", "/api/models/{repo}/branch/{branch}")
    def _create_branch(self, request: Request, repo: str, branch: str) -> Answer:
        heads = self._writable(request, repo).heads
        if branch.startswith("refs/"):
            raise Refusal(400, f"Invalid reference for a branch: {branch}")
        if branch in heads:
            raise Refusal(409, "Reference already exists")
        heads[branch] = heads["main"]
        return to_json({})

    # Downloads

    @route("GET", "/api/models/{repo}(/revision/{revision})?")
    def _info(self, request: Request, repo: str, revision: str) -> Answer:
        found = self._readable(request, repo)
        commit = found.at(revision or "main")
        siblings = [{"rfilename": path} for path in commit.tree]
        return to_json({"id": repo, "private": found.private, "sha": commit.sha, "siblings": siblings, "tags": []})

    @route("GET", "/api/models/{repo}/refs")
    def _refs(self, request: Request, repo: str) -> Answer:
        heads = self._readable(request, repo).heads.items()
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": head.sha}
            for name, head in heads
            if not name.startswith("refs/")
        ]
        return to_json({"branches": branches, "converts": [], "tags": []})

    @route("GET", "/api/models/{repo}/tree/{revision}(/{path})?")
    def _tree(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        """The recursive list of all files, or what is directly in the folder `path`."""
        tree = self._readable(request, repo).at(revision).tree
        if path:
            inside = [name.removeprefix(f"{path}/").split("/") for name in tree if name.startswith(f"{path}/")]
            folders = {f"{path}/{parts[0]}" for parts in inside if len(parts) > 1}
            files = {name: file for name, file in tree.items() if name.rpartition("/")[0] == path}
        else:
            folders, files = set(), dict(tree)
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest()} for name in folders
        ]
        for path, file in files.items():
            size = len(file.data)
            lfs = {"lfs": {"oid": file.sha256, "size": size, "pointerSize": 134}} if file.is_lfs else {}
            entries.append({"type": "file", "path": path, "oid": file.oid, "size": size, **lfs})
        return to_json(entries)

    @route("GET", "/{repo}/resolve/{revision}/{path}")
    def _resolve(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        commit = self._readable(request, repo).at(revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.tree:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        file = commit.tree[path]
        return Answer(200, file.data, headers | {"ETag": f'"{file.sha256}"'})

    # An upload: how each file has to be sent, the large files, the commit

    @route("POST", "/api/models/{repo}/preupload/{revision}")
    def _preupload(self, request: Request, repo: str, revision: str) -> Answer:
        """The client leaves out of its commit what has the same `oid`."""
        tree, files = self._pushable(request, repo, revision).at(revision).tree, []
        for asked in request.json()["files"]:
            mode = "lfs" if File(base64.b64decode(asked["sample"])).is_lfs else "regular"
            oid = {"oid": tree[asked["path"]].oid} if asked["path"] in tree else {}
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return to_json({"files": files})

    @route("POST", "/{repo}.git/info/lfs/objects/batch")
    def _lfs_batch(self, request: Request, repo: str) -> Answer:
        """Gives the address for each file, unless the repository already has its content."""
        asked, objects = request.json(), request.json()["objects"]
        uploaded = self._pushable(request, repo, asked.get("ref", {}).get("name")).objects
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

    @route("POST", "/api/models/{repo}/commit/{revision}")
    def _commit(self, request: Request, repo: str, revision: str) -> Answer:
        """Executes the operations in the body, one line of JSON each, as one commit, or none of them."""
        found = self._pushable(request, repo, revision)
        if revision not in found.heads:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        parent = found.heads[revision]
        header, *operations = [json.loads(line) for line in request.body.splitlines()]
        tree = dict(parent.tree)
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
        commit, pull_request = Commit.make(parent, header["value"]["summary"], tree), {}
        if "create_pr" in request.query:
            number = sum(name.startswith("refs/pr/") for name in found.heads) + 1
            revision, pull_request = f"refs/pr/{number}", {"pullRequestUrl": f"{self.url}/{repo}/discussions/{number}"}
        found.heads[revision] = commit
        address = f"{self.url}/{repo}/commit/{commit.sha}"
        return to_json(
            {"success": True, "commitOid": commit.sha, "commitUrl": address, "hookOutput": "", **pull_request}
        )

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
