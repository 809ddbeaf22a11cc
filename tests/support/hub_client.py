"""A client of a `HubServer`: one process with unmodified libraries, in which tests run code without a new start."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

from hub_server import HubServer


PUSH = "import sys\nfrom rednet.hub.__main__ import main\nmain(['push', *sys.argv[1:]])"  # for `HubClient.run`

LOOP = """
import contextlib, io, json, os, sys, traceback
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    code, sys.argv, os.environ["HF_TOKEN"] = json.loads(line)
    status, output = 0, io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            exec(code, {"__name__": "__main__"})
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else 1
            print(stopped.code)
        except BaseException:
            status = 1
            traceback.print_exc()
    print(json.dumps([status, output.getvalue()]), file=answers, flush=True)
"""


class Result(NamedTuple):
    status: int
    output: str


class HubClient:
    """The process runs in the `with` block. Its runs share the cache in `home`."""

    def __init__(self, hub: HubServer, home: str | os.PathLike[str]):
        self.token = hub.token
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOOP], env=hub.environment(home), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def __enter__(self) -> "HubClient":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, code: str, *arguments: object, token: str | None = None) -> Result:
        """Runs Python code with command-line arguments. An empty `token` means that there is none."""
        request = [code, ["-c", *map(str, arguments)], self.token if token is None else token]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Result(*json.loads(self._process.stdout.readline()))

    def output(self, code: str, *arguments: object, token: str | None = None) -> str:
        """What the code prints. The code must succeed."""
        result = self.run(code, *arguments, token=token)
        assert result.status == 0, result.output
        return result.output
