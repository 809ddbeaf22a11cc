"""Processes that load a stand-in for the operator on the CPU, which compiles in a second.

A server process imports torch once and forks for each of them.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch.utils.cpp_extension  # noqa: F401, for the forked processes

from involution import extension, libraries


# A stand-in for the operator's source, which takes a minute, to test when it is compiled.
SOURCE = 'extern "C" int stand_in() { return 0; }\n'


@dataclass
class Outcome:
    loaded: Path | None
    warnings: list[str]
    config: str


class Load:
    """Calls `extension.load("cpu")` in its own process, with these environment variables; None removes a variable."""

    def __init__(self, sources: Path, **environment: str | None):
        sources.mkdir(exist_ok=True)
        source = sources / "involution2d_cpu.cpp"
        if not source.exists() or source.read_text() != SOURCE:  # an earlier process may read it now
            source.write_text(SOURCE)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["builds"])
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, sys.path)
        )  # the server does not get sys.path by itself
        multiprocessing.forkserver.ensure_running()
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_load, args=(sender, str(sources), environment))
        self.process.start()
        sender.close()

    def outcome(self, timeout: float = 120) -> Outcome:
        assert self.receiver.poll(timeout), "no answer"
        outcome = self.receiver.recv()
        self.process.join()
        return outcome


def _load(sender, sources: str, environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    libraries.CSRC = Path(sources)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extension.load("cpu")
    messages = [str(warning.message) for warning in caught]
    sender.send(Outcome(extension._loaded.get("cpu"), messages, extension.show_config()))
