"""A Hugging Face Hub on loopback for tests, with faults on demand. An unmodified client works with it:

    with HubServer() as hub:
        subprocess.run([sys.executable, "upload.py"], env=hub.environment(tmp_path / "home"))
        assert hub.files("user/model")["config.json"] == ...

`hub_api` says what of the Hub is there.
"""

import math
import os
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from hub_api import Answer, Commit, Hub, Refusal, Request


ALWAYS = math.inf


class Logged(NamedTuple):
    method: str
    path: str
    status: int  # 0: the connection broke before an answer


@dataclass
class Fault:
    path: str
    method: str | None
    times: float
    status: int | None = None  # None: the connection is cut
    in_answer: bool = False

    def meets(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in (None, method) and re.search(self.path, path) is not None


class HubServer(Hub):
    """The server runs in its `with` block. `log` has the requests in the order of their answers.

    Faults: `path` is a regular expression, looked for in the path of a request; `times` is how many requests meet the
    fault, perhaps ALWAYS; of several faults the one set first comes first.
    """

    def __init__(self, user: str = "user", token: str = "hf_secret"):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        super().__init__(f"http://127.0.0.1:{self._server.server_port}", user, token)
        self.log: list[Logged] = []
        self._faults: list[Fault] = []

    def __enter__(self) -> "HubServer":
        # The interval is how long the end of the block may have to wait.
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: str | os.PathLike[str], token: str | None = None) -> dict[str, str]:
        """All environment variables for a client's process, whose HF_HOME is `home`. An empty `token`: nobody."""
        others = ("HF_", "HUGGING", "TRANSFORMERS_")
        token = self.token if token is None else token
        return {name: value for name, value in os.environ.items() if not name.startswith(others)} | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            **({"HF_TOKEN": token} if token else {}),
            # A client that has hf_xet uploads to Xet storage without asking whether there is any.
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def commits(self, repo: str, revision: str = "main") -> list[Commit]:
        """The history, the oldest first: it begins with the commit that the creation of the repository makes."""
        with self.lock:
            return self.repos[repo].at(revision).history()[::-1]

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The contents, by path, with the `.gitattributes` that every repository has."""
        return {path: file.data for path, file in self.commits(repo, revision)[-1].tree.items()}

    def fail(self, path: str, status: int = 503, times: float = 1, method: str | None = None) -> None:
        """Has requests answered with a status, and not done."""
        self._faults.append(Fault(path, method, times, status))

    def cut(self, path: str, times: float = 1, method: str | None = None, in_answer: bool = False) -> None:
        """Cuts the connection in the middle of requests' bodies, or of the answers to requests that have been done."""
        self._faults.append(Fault(path, method, times, None, in_answer))

    def recover(self) -> None:
        """Ends all faults."""
        self._faults.clear()

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The fault that a request meets, which counts as one of its times."""
        with self.lock:
            fault = next((fault for fault in self._faults if fault.meets(method, path)), None)
            if fault is not None:
                fault.times -= 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # which keeps connections open
    disable_nagle_algorithm = True  # which would hold the body back until the client has acknowledged the headers

    def handle_request(self) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        address = urlsplit(self.path)
        fault = hub.take_fault(self.command, address.path)
        cut = fault is not None and fault.status is None
        try:
            body = self.receive(half=cut and not fault.in_answer)
        except ConnectionError:
            hub.log.append(Logged(self.command, address.path, 0))
            self.close_connection = True
            return
        if fault is not None and fault.status is not None:
            # Retry-After: clients wait one second before each new attempt, and not longer and longer.
            answer = Refusal(fault.status, "This fault was asked for", headers={"Retry-After": "0"}).answer
        else:
            request = Request(self.command, address.path, parse_qs(address.query), self.headers, body)
            answer = hub.answer(request)
        hub.log.append(Logged(self.command, address.path, answer.status))
        self.send(answer, half=cut)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def receive(self, half: bool) -> bytes:
        """The request's body. ConnectionError where it is not whole, or only half of it is wanted."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while (size := self.rfile.readline()) not in (b"0\r\n", b""):
                body += self.rfile.read(int(size, 16))
                self.rfile.readline()
                if half:
                    break
            whole = size == b"0\r\n" and self.rfile.readline() == b"\r\n"
        else:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length // 2 if half else length)
            whole = len(body) == length
        if half or not whole:
            raise ConnectionAbortedError
        return body

    def send(self, answer: Answer, half: bool) -> None:
        body = b"" if self.command == "HEAD" else answer.body
        try:
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if half else body)
        except ConnectionError:  # the client has gone
            half = True
        self.close_connection = self.close_connection or half

    def log_message(self, format: str, *args: Any) -> None:
        pass
