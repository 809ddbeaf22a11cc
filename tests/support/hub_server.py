"""A Hugging Face Hub on this machine for tests. Unmodified clients work with it:

with HubServer() as hub:
    subprocess.run([sys.executable, "upload.py"], env=hub.environment(tmp_path / "home"))
    assert hub.files("user/model")["config.json"] == ...
"""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import hub_collections  # noqa: F401  # registers its answers
from hub_api import Commit, Hub, Refusal, Request


class Logged(NamedTuple):
    method: str
    path: str


class HubServer(Hub):
    """The server runs in its `with` block. `log` has the requests in the order of their arrival."""

    def __init__(self, user: str = "user", token: str = "hf_secret"):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        super().__init__(f"http://127.0.0.1:{self._server.server_port}", user, token)
        self.log: list[Logged] = []
        self.failing: str | None = None

    def __enter__(self) -> "HubServer":
        # The interval is how long the end of the block may have to wait.
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: str | os.PathLike[str], token: str | None = None) -> dict[str, str]:
        """All environment variables for a client's process, whose HF_HOME is `home`. An empty `token` means none."""
        others = ("HF_", "HUGGING", "TRANSFORMERS_")
        token = self.token if token is None else token
        return {name: value for name, value in os.environ.items() if not name.startswith(others)} | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            **({"HF_TOKEN": token} if token else {}),
            # A client with hf_xet uploads to Xet storage without asking whether the server has it.
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def commits(self, repo: str, revision: str = "main") -> list[Commit]:
        """The history, oldest first. It begins with the commit that creates the repository."""
        with self.lock:
            return self.repos[repo].at(revision).history()[::-1]

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The contents by path, with the `.gitattributes` that every repository has."""
        return {path: file.data for path, file in self.commits(repo, revision)[-1].tree.items()}

    def fail(self, path: str) -> None:
        """From now on, requests with `path` in their path are not executed, but answered with an error."""
        self.failing = path

    def recover(self) -> None:
        self.failing = None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open
    disable_nagle_algorithm = True  # which would delay the body until the client has acknowledged the headers

    def handle_request(self) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.log.append(Logged(self.command, address.path))
        if hub.failing is not None and hub.failing in address.path:
            answer = Refusal(500, "This failure was requested").answer
        else:
            answer = hub.answer(
                Request(self.command, address.path, dict(parse_qsl(address.query)), self.headers, body)
            )
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def log_message(self, format: str, *args: Any) -> None:
        pass
