"""Trainings in their own processes, which can be killed, without the ten seconds of the imports.

A server process imports `train` once and forks for every training. Each is a real process with its own loader workers.
"""

import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


class Training:
    """`main(arguments)` of a module in its own process group, with its output in a file."""

    def __init__(
        self, root: Path, output: Path, arguments: list[str], module: str = "rednet.training.train", **environment: str
    ):
        self.output = output
        self.process = _server().Process(target=_run, args=(str(root), str(output), module, arguments, environment))
        self.process.start()

    def wait(self, timeout: float = 300) -> int:
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s: {self.text()}"
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL to the training and all its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def kill_when(self, condition: Callable[[], bool], timeout: float = 300) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.is_alive() and time.monotonic() < deadline, self.text()
            time.sleep(0.0005)  # some moments are short
        self.kill()

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def _server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rednet.training.train"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # the server does not get sys.path by itself
    multiprocessing.forkserver.ensure_running()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    return context


def together(
    root: Path, output: Path, arguments: list[str], module: str = "rednet.training.train", processes: int = 2
) -> str:
    """Runs several processes as torchrun would start them on one machine; returns the output of the first one."""
    started = start_together(root, output, arguments, module, processes, ACCELERATE_USE_CPU="true")
    for training in started:
        assert training.wait() == 0, training.text()
    return started[0].text()


def start_together(
    root: Path,
    output: Path,
    arguments: list[str],
    module: str = "rednet.training.train",
    processes: int = 2,
    **environment: str,
) -> list[Training]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    started = []
    for rank in map(str, range(processes)):
        file = output.with_name(f"{output.name}.{rank}")
        started.append(Training(root, file, arguments, module, **environment, RANK=rank, LOCAL_RANK=rank))
    return started


def _run(root: str, output: str, module: str, arguments: list[str], environment: dict[str, str]) -> None:
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers, as in any other process
    os.setsid()
    os.chdir(root)
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        importlib.import_module(module).main(arguments)
        code = 0
    except SystemExit as error:
        print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)
