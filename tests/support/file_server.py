"""A web server for files on this machine, which also answers as broken servers do.

with FileServer({"/a.pth": content}) as server:
    download(f"{server.url}/a.pth")
"""

import hashlib
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Logged(NamedTuple):
    method: str
    address: str  # a path, or for a proxy a URL
    range: str | None


class FileServer:
    """
    `files` has the contents by path, `statuses` answers other than 200. `cuts` has the numbers of bytes after which the
    next answers for a path end, as if the connection broke. A path in `without_head` refuses the method HEAD. The server
    runs in its `with` block. `log` has the requests in the order of their arrival.
    """

    def __init__(self, files: Mapping[str, bytes], types: Mapping[str, str] = {}):
        self.files = dict(files)
        self.types = dict(types)
        self.statuses: dict[str, int] = {}
        self.cuts: dict[str, list[int]] = {}
        self.redirects: dict[str, str] = {}
        self.without_head: set[str] = set()
        self.without_etag: set[str] = set()
        self.log: list[Logged] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.files = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FileServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client was killed
            pass

    def answer(self) -> None:
        server: FileServer = self.server.files  # type: ignore[attr-defined]
        path, wanted = urlsplit(self.path).path, self.headers.get("Range")
        server.log.append(Logged(self.command, self.path, wanted))
        status = server.statuses.get(path, 200 if path in server.files else 302 if path in server.redirects else 404)
        if self.command == "HEAD" and path in server.without_head:
            status = 405
        body = server.files.get(path, b"") if status == 200 else b""
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        if status == 200 and wanted and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status, whole, body = 206, len(body), body[start:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", server.types.get(path, "application/octet-stream"))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if status == 302:
            self.send_header("Location", server.redirects[path])
        if path not in server.without_etag:
            self.send_header("ETag", etag)
        self.end_headers()
        if self.command == "HEAD":
            return
        if server.cuts.get(path):
            body, self.close_connection = body[: server.cuts[path].pop(0)], True
        self.wfile.write(body)

    do_GET = do_HEAD = answer

    def log_message(self, format: str, *args: Any) -> None:
        pass
