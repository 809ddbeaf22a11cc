"""`python ...` in processes of their own, without the seconds in which torch is imported.

A server process, one for each worker of pytest, imports torch and other packages that RedNet and Transformers import. It
forks for every command. Not among these packages is what reads environment variables while it is imported (Hugging Face's
packages and torch.utils.cpp_extension), and what is tested. Commands for another executable, with other variables for
torch's threads, or whose imports are tested, use `subprocess.run` instead.
"""

import atexit
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import NoReturn


PRELOADED = (
    ("torch", "torch._dynamo", "torch._functorch.aot_autograd", "torch.distributed.tensor", "torch.export")
    + ("torchvision.transforms.v2", "PIL.Image", "numpy", "scipy.stats", "sympy", "pandas", "pyarrow", "triton")
    + ("httpx", "jinja2")
)

_server: socket.socket | None = None
_lock = threading.Lock()  # tests may call from several threads


def python(*arguments: object, cwd: Path | str | None = None, env: dict | None = None) -> subprocess.CompletedProcess:
    """Runs `python *arguments`, which start with -c, -m or the path of a script, and returns what it printed.

    Args:
        cwd: the working directory, by default that of this process.
        env: all environment variables, by default those of this process.
    """
    words = list(map(str, arguments))
    request = {"arguments": words, "cwd": str(cwd or Path.cwd()), "env": {**(os.environ if env is None else env)}}
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors, ours:
        with theirs, tempfile.TemporaryFile("w+") as file:
            json.dump(request, file)
            file.flush()
            socket.send_fds(_connection(), [b"!"], [file.fileno(), output.fileno(), errors.fileno(), theirs.fileno()])
        status = ours.makefile().readline()
        output.seek(0)
        errors.seek(0)
        if not status:
            raise RuntimeError(f"the server of interpreters has ended: {errors.read()}")
        return subprocess.CompletedProcess([sys.executable, *words], int(status), output.read(), errors.read())


def _connection() -> socket.socket:
    global _server
    with _lock:
        if _server is not None:
            return _server
        _server, theirs = socket.socketpair()
        # As any interpreter that a test starts, but without what only its tests import from.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        atexit.register(lambda: (_server.close(), process.wait()))
        return _server


def _next_command(connection: socket.socket) -> dict | None:
    """Returns in a new process with the next command, or in the server with None after the last one."""
    while True:
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
        if not descriptors:
            return None
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
        os.wait()
    # The first process, which the server waits for, leaves the others to themselves: commands may overlap.
    if os.fork() != 0:
        os._exit(0)
    connection.close()
    file, output, errors, done = descriptors
    if (command := os.fork()) != 0:
        status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        os.write(done, f"{status}\n".encode())
        os._exit(0)
    os.close(done)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    with open(file) as request:
        request.seek(0)
        return json.load(request)


def _run(arguments: list[str], cwd: str, env: dict[str, str]) -> NoReturn:
    """Runs a command and ends the process, without the seconds in which an interpreter frees all modules."""
    status = 0
    try:
        _execute(arguments, cwd, env)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if status != stop.code and stop.code is not None:
            print(stop.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _execute(arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    start, *rest = arguments
    if start == "-m":
        sys.path.insert(0, cwd)
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif start == "-c":
        sys.path.insert(0, "")
        sys.argv[:] = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        assert not start.startswith("-"), start
        sys.path.insert(0, os.path.dirname(os.path.abspath(start)))
        sys.argv[:] = arguments
        runpy.run_path(start, run_name="__main__")


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file
    for name in PRELOADED:
        __import__(name)
    if (command := _next_command(socket.socket(fileno=int(sys.argv[1])))) is not None:
        _run(**command)
