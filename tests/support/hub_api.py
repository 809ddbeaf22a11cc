"""What the Hugging Face Hub does: repositories, in memory, and the answers to requests about them.

Model repositories of one user, and Spaces (here named spaces/user/name; they do not run), public or private, with branches, tags and history; uploads through preupload, LFS and
commit; downloads, also by range; the errors by which the client chooses its exceptions; the check of model cards. Not
there: Xet storage, pull requests, gated repositories and data sets. `hub_server` brings it onto
the network.
"""

import base64
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

import card_metadata


# The Hub keeps files with these names, binary files and large ones outside of git, as LFS.
LFS_NAMES = """
*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot
*.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors *.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst
*tfevents*
""".split()
LFS_SIZE = 10_000_000


@dataclass(frozen=True)
class File:
    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """The name in git: of the content, or of the pointer that stands for an LFS file."""
        blob = f"oid sha256:{self.sha256}\nsize {len(self.data)}\n".encode() if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id

    def described(self, lfs_name: str) -> dict[str, Any]:
        """Size and, for an LFS file, what it is there. Listings differ in the word for its checksum."""
        lfs = {lfs_name: self.sha256, "size": len(self.data), "pointerSize": 134}
        return {"size": len(self.data), **({"lfs": lfs} if self.lfs else {})}


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: "Commit | None"
    title: str
    message: str
    date: str
    tree: Mapping[str, File]

    @classmethod
    def make(cls, parent: "Commit | None", title: str, message: str, tree: Mapping[str, File]) -> "Commit":
        contents = [parent and parent.sha, title, message, {path: tree[path].etag for path in sorted(tree)}]
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return cls(hashlib.sha1(json.dumps(contents).encode()).hexdigest(), parent, title, message, date, tree)

    def history(self) -> list["Commit"]:
        """This commit and all before it, the newest first."""
        return [self, *(self.parent.history() if self.parent else [])]


@dataclass
class Repo:
    private: bool
    branches: dict[str, Commit]
    tags: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # what came through LFS, committed or not

    def at(self, revision: str) -> Commit:
        for names in (self.branches, self.tags, self.commits):
            if revision in names:
                return names[revision]
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass
class Request:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    user: str | None = None
    may: str | dict[str, list[str]] | None = None  # see `Hub.tokens`

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def to_json(value: Any, status: int = 200) -> Answer:
    # str: dates, which YAML has and JSON has not.
    return Answer(status, json.dumps(value, default=str).encode(), {"Content-Type": "application/json"})


class Refusal(Exception):
    """The answer to a request that is not done. `code` is what the client chooses its exception by."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] = {}, **body: str):
        super().__init__(message)
        self.answer = to_json({"error": message, **body}, status)
        # A header is one line of Latin-1.
        line = " ".join(message.split()).encode("latin-1", "replace").decode("latin-1")
        self.answer.headers |= {"X-Error-Message": line, **({"X-Error-Code": code} if code else {}), **headers}


Action = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Action]] = []


def route(method: str, pattern: str) -> Callable[[Action], Action]:
    """Has the decorated method answer requests. {repo} is two parts of the path, of a Space three, {path} the rest, another name one."""
    parts = {"repo": "(?:spaces/)?[^/]+/[^/]+", "path": ".+", "kind": "branch|tag"}
    expression = re.sub(r"\{(\w+)\}", lambda name: f"(?P<{name[1]}>{parts.get(name[1], '[^/]+')})", pattern)

    def register(action: Action) -> Action:
        ROUTES.append((method, re.compile(expression), action))
        return action

    return register


class Hub:
    """
    `warnings` are what the check of model cards said of those that it let pass. `tokens` are those of the user, with
    what each may do: read, write, or the permissions of a fine-grained one by namespace. `orgs` are the organizations
    of the user, with the role in each.
    """

    def __init__(self, url: str, user: str, token: str):
        self.url = url
        self.user = user
        self.token = token
        self.tokens: dict[str, str | dict[str, list[str]]] = {token: "write"}
        self.orgs: dict[str, str] = {}
        self.warnings: list[str] = []
        self.repos: dict[str, Repo] = {}
        self.lock = threading.RLock()

    def answer(self, request: Request) -> Answer:
        """Does one request, and one at a time: for all others a commit is there whole or not at all."""
        method = "GET" if request.method == "HEAD" else request.method
        path = re.sub("^/api/spaces/", "/api/models/spaces/", request.path)
        try:
            authorization = request.headers.get("Authorization")
            if authorization:
                request.may = self.tokens.get(authorization.removeprefix("Bearer "))
                if request.may is None:
                    raise Refusal(401, "Invalid credentials in Authorization header")
                request.user = self.user
            for of_method, pattern, action in ROUTES:
                if of_method == method and (found := pattern.fullmatch(path)):
                    names = {name: text and unquote(text) for name, text in found.groupdict().items()}
                    with self.lock:
                        return action(self, request, **names)
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        except Refusal as refusal:
            return refusal.answer
        except (ValueError, KeyError, TypeError) as error:
            return Refusal(400, f"Malformed request: {error!r}").answer

    def _writer(self, request: Request) -> str:
        if request.user is None:
            raise Refusal(401, "Invalid username or password.")
        return request.user

    def _readable(self, request: Request, name: str) -> Repo:
        repo = self.repos.get(name)
        if repo is None and request.user:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if request.user is None and (repo is None or repo.private):
            # The Hub sends no code here: its client knows this 401 by the address, https:// and that of a repository.
            # This one begins with http://.
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
        if isinstance(request.may, dict):
            return "repo.write" in request.may.get(namespace, [])
        belongs = namespace == self.user or self.orgs.get(namespace) in ("admin", "write", "contributor")
        return request.may == "write" and belongs

    # The account, its repositories, their branches and tags

    @route("GET", "/api/whoami-v2")
    def _whoami(self, request: Request) -> Answer:
        token: dict[str, Any] = {"displayName": "test", "role": request.may}
        if isinstance(request.may, dict):
            scoped = [{"entity": {"type": "user", "name": n}, "permissions": p} for n, p in request.may.items()]
            token["role"] = "fineGrained"
            token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
        auth = {"type": "access_token", "accessToken": token}
        orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in self.orgs.items()]
        return to_json({"type": "user", "name": self._writer(request), "orgs": orgs, "auth": auth})

    @route("GET", "/api/models/{repo}/auth-check(/write)?")
    def _auth_check(self, request: Request, repo: str) -> Answer:
        (self._writable if request.path.endswith("/write") else self._readable)(request, repo)
        return to_json({})

    @route("POST", "/api/repos/create")
    def _create(self, request: Request) -> Answer:
        """A new repository. As on the Hub, its first commit has the names of LFS files, in `.gitattributes`."""
        asked, user = request.json(), self._writer(request)
        owner = asked.get("organization") or user
        if not self._may_write(request, owner):
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        kind = asked.get("type", "model")
        if kind not in ("model", "space"):
            raise Refusal(400, "There are only models and Spaces here")
        if kind == "space" and asked.get("sdk") not in card_metadata.SPACE_SDKS:
            raise Refusal(400, f'"sdk" must be one of {card_metadata.SPACE_SDKS}')
        name = ("spaces/" if kind == "space" else "") + f"{owner}/{asked['name']}"
        if name in self.repos:
            # A client that does not mind takes the address from the refusal.
            raise Refusal(409, "You already created this model repo", url=f"{self.url}/{name}")
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_NAMES)
        first = Commit.make(None, "initial commit", "", {".gitattributes": File(attributes.encode(), lfs=False)})
        private = asked.get("visibility") == "private"
        self.repos[name] = Repo(private, branches={"main": first}, commits={first.sha: first})
        return to_json({"name": name, "url": f"{self.url}/{name}"})

    @route("POST", "/api/models/{repo}/{kind}/{name}")
    def _create_reference(self, request: Request, repo: str, kind: str, name: str) -> Answer:
        """Makes the branch in the path at the revision in the body, or the tag in the body at the one in the path."""
        found, asked = self._writable(request, repo), request.json()
        name, start = (name, asked.get("startingPoint", "main")) if kind == "branch" else (asked["tag"], name)
        references = found.branches if kind == "branch" else found.tags
        if name in references:
            raise Refusal(409, f"Reference already exists: {name}")
        references[name] = found.at(start)
        return to_json({})

    # What is in a repository

    @route("GET", "/api/models/{repo}(/revision/{revision})?")
    def _info(self, request: Request, repo: str, revision: str | None) -> Answer:
        found = self._readable(request, repo)
        commit = found.at(revision or "main")
        contents = {path: file.data for path, file in commit.tree.items()}
        config = json.loads(contents.get("config.json", "{}"))
        card = card_metadata.metadata(contents.get("README.md", b"").decode()) or {}
        tags = {card.get("library_name"), card.get("pipeline_tag"), *card.get("tags", [])} - {None}
        siblings = [
            {"rfilename": path, "blobId": file.blob_id, **file.described("sha256")}
            for path, file in commit.tree.items()
        ]
        info = {"id": repo, "author": self.user, "private": found.private, "gated": False, "disabled": False}
        info |= {"sha": commit.sha, "lastModified": commit.date, "createdAt": commit.history()[-1].date}
        info |= {"config": {key: config[key] for key in ("architectures", "auto_map", "model_type") if key in config}}
        info |= {"cardData": card, "tags": sorted(tags), "siblings": siblings}
        info |= {key: card[key] for key in ("library_name", "pipeline_tag", "model-index") if key in card}
        return to_json(info)

    @route("GET", "/api/models/{repo}/refs")
    def _references(self, request: Request, repo: str) -> Answer:
        found = self._readable(request, repo)
        answer: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for kind, folder, references in (("branches", "heads", found.branches), ("tags", "tags", found.tags)):
            for name, commit in references.items():
                answer[kind].append({"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit.sha})
        return to_json(answer)

    @route("GET", "/api/models/{repo}/commits/{revision}")
    def _commits(self, request: Request, repo: str, revision: str) -> Answer:
        commits = self._readable(request, repo).at(revision).history()
        common = {"authors": [{"user": self.user}]}
        return to_json(
            [{"id": c.sha, "title": c.title, "message": c.message, "date": c.date, **common} for c in commits]
        )

    @route("GET", "/api/models/{repo}/tree/{revision}(/{path})?")
    def _tree(self, request: Request, repo: str, revision: str, path: str | None) -> Answer:
        entries = _entries(self._readable(request, repo).at(revision))
        folder = f"{path}/" if path else ""
        entries = {name: entry for name, entry in entries.items() if name.startswith(folder)}
        if folder and not entries:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        deep = request.query.get("recursive") == ["true"]
        return to_json([entry for name, entry in entries.items() if deep or "/" not in name.removeprefix(folder)])

    @route("POST", "/api/models/{repo}/paths-info/{revision}")
    def _paths_info(self, request: Request, repo: str, revision: str) -> Answer:
        entries = _entries(self._readable(request, repo).at(revision))
        paths = parse_qs(request.body.decode()).get("paths", [])
        return to_json([entries[path] for path in paths if path in entries])

    @route("GET", "/{repo}/resolve/{revision}/{path}")
    def _resolve(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        """One file, or the range asked for. The Hub redirects to the storage of LFS files; here it is the same."""
        commit = self._readable(request, repo).at(revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.tree:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        file = commit.tree[path]
        size = len(file.data)
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(size)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if not asked:
            return Answer(200, file.data, headers)
        start, end = int(asked[1]), min(int(asked[2] or size), size - 1)
        if start > end:
            raise Refusal(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
        return Answer(206, file.data[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{size}"})

    # An upload: how each file is to come, the large ones, the commit

    @route("POST", "/api/models/{repo}/preupload/{revision}")
    def _preupload(self, request: Request, repo: str, revision: str) -> Answer:
        tree = self._writable(request, repo).at(revision).tree
        files = []
        for asked in request.json()["files"]:
            path, binary = asked["path"], b"\0" in base64.b64decode(asked["sample"])
            named = any(fnmatch.fnmatch(PurePosixPath(path).name, pattern) for pattern in LFS_NAMES)
            mode = "lfs" if named or binary or asked["size"] > LFS_SIZE else "regular"
            there = {"oid": tree[path].etag} if path in tree else {}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **there})
        return to_json({"files": files})

    @route("POST", "/{repo}.git/info/lfs/objects/batch")
    def _lfs_batch(self, request: Request, repo: str) -> Answer:
        """Where each LFS file is to be brought. No word on where, if the repository has its content already."""
        there, objects = self._writable(request, repo).objects, request.json()["objects"]
        for asked in objects:
            if asked["oid"] not in there:
                address = f"{self.url}/lfs/{repo}/{asked['oid']}"
                asked["actions"] = {"upload": {"href": address}, "verify": {"href": f"{address}/verify"}}
        return to_json({"transfer": "basic", "objects": objects})

    @route("PUT", "/lfs/{repo}/{oid}")
    def _lfs_upload(self, request: Request, repo: str, oid: str) -> Answer:
        """Takes an LFS file, and from anybody: the Hub's address of the storage is signed, the client sends no token."""
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "The content does not have this checksum")
        self.repos[repo].objects[oid] = request.body
        return to_json({})

    @route("POST", "/lfs/{repo}/{oid}/verify")
    def _lfs_verify(self, request: Request, repo: str, oid: str) -> Answer:
        data = self._writable(request, repo).objects.get(oid)
        if data is None or len(data) != request.json()["size"]:
            raise Refusal(404, "The object was not uploaded")
        return to_json({})

    @route("POST", "/api/models/{repo}/commit/{branch}")
    def _commit(self, request: Request, repo: str, branch: str) -> Answer:
        """Does the operations in the body, a line of JSON each, as one commit; none of them if one cannot be done."""
        found = self._writable(request, repo)
        if branch not in found.branches:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        parent = found.branches[branch]
        header, *operations = [json.loads(line) for line in request.body.splitlines()]
        if header["key"] != "header" or not header["value"]["summary"]:
            raise Refusal(400, "A commit begins with a header that has a summary")
        title, message = header["value"]["summary"], header["value"].get("description", "")
        if header["value"].get("parentCommit", parent.sha) != parent.sha:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(parent.tree)
        for operation in operations:
            _apply(tree, found.objects, operation["key"], operation["value"])
        if "README.md" in tree:
            errors, _ = card_metadata.check(tree["README.md"].data.decode(), space=repo.startswith("spaces/"))
            if errors:
                raise Refusal(400, "\n".join(errors))
        commit = Commit.make(parent, title, message, tree)
        found.commits[commit.sha] = found.branches[branch] = commit
        address = f"{self.url}/{repo}/commit/{commit.sha}"
        return to_json({"success": True, "commitOid": commit.sha, "commitUrl": address, "hookOutput": ""})

    @route("POST", "/api/validate-yaml")
    def _validate(self, request: Request) -> Answer:
        asked = request.json()
        errors, warnings = card_metadata.check(asked["content"], space=asked.get("repoType") == "space")
        self.warnings += warnings
        status = 400 if errors else 200
        if request.headers.get("Accept") == "text/plain":
            lines = [f"- Error: {error}" for error in errors] + [f"- Warning: {warning}" for warning in warnings]
            return Answer(status, "\n".join(lines).encode(), {"Content-Type": "text/plain; charset=utf-8"})
        kinds = {"errors": errors, "warnings": warnings}
        return to_json({kind: [{"message": text} for text in texts] for kind, texts in kinds.items()}, status)


def _entries(commit: Commit) -> dict[str, dict[str, Any]]:
    """The files and folders of a commit, by path, as the Hub lists them."""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in sorted(commit.tree.items()):
        for folder in map(str, list(PurePosixPath(path).parents)[-2::-1]):
            oid = hashlib.sha1(f"{commit.sha} {folder}".encode()).hexdigest()
            entries.setdefault(folder, {"type": "directory", "path": folder, "oid": oid, "size": 0})
        entries[path] = {"type": "file", "path": path, "oid": file.blob_id, **file.described("oid")}
    return entries


def _apply(tree: dict[str, File], objects: Mapping[str, bytes], key: str, value: Mapping[str, str]) -> None:
    """Does one operation of a commit to the tree."""
    path = value["path"]
    if key == "file":
        tree[path] = File(base64.b64decode(value["content"]), lfs=False)
    elif key == "lfsFile":
        if value["oid"] not in objects:
            raise Refusal(400, f"{path}: the LFS object was not uploaded")
        tree[path] = File(objects[value["oid"]], lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        folder = path.rstrip("/") + "/"
        gone = [path] if key == "deletedFile" else [name for name in tree if name.startswith(folder)]
        if not gone or gone[0] not in tree:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in gone:
            del tree[name]
    else:
        raise Refusal(400, f"Unknown operation {key}")
