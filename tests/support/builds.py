"""Processes that compile and load stand-ins for the libraries of the operator, which compile in a second.

A server process imports torch once and forks for each of them.
"""

import contextlib
import io
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.utils.cpp_extension  # noqa: F401, for the forked processes

from involution import build, extension, hosts, libraries


# A stand-in for the operator's source, which takes a minute, to test when it is compiled and loaded. It registers a
# kernel that does nothing, through functions of torch's C interface, because the headers that declare them take seconds.
SOURCE = """
#include <cstdint>

extern "C" int aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t, void**);
extern "C" int aoti_torch_library_impl(void*, const char*, void (*)(uint64_t*, uint64_t, uint64_t));

static void* library;
static const bool registered =
    aoti_torch_library_init_impl("involution", "CPU", __FILE__, __LINE__, &library) == 0 &&
    aoti_torch_library_impl(library, "involution2d", [](uint64_t*, uint64_t, uint64_t) {}) == 0;
"""


@dataclass
class Outcome:
    loaded: Path | None
    warnings: list[str]
    config: str


class Forked:
    """Calls `function(*arguments)` in its own process, with these environment variables; None removes a variable."""

    def __init__(self, function: Callable, *arguments: object, **environment: str | None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["builds"])
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, sys.path)
        )  # the server does not get sys.path by itself
        multiprocessing.forkserver.ensure_running()
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_send, args=(sender, function, arguments, environment))
        self.process.start()
        sender.close()

    def outcome(self, timeout: float = 120) -> Any:
        assert self.receiver.poll(timeout), "no answer"
        outcome = self.receiver.recv()
        self.process.join()
        return outcome


class Load(Forked):
    """Calls `extension.load("cpu")`."""

    def __init__(self, sources: Path, **environment: str | None):
        sources.mkdir(exist_ok=True)
        source = sources / "involution2d_cpu.cpp"
        if not source.exists() or source.read_text() != SOURCE:  # an earlier process may read it now
            source.write_text(SOURCE)
        super().__init__(_load, str(sources), **environment)


class FindOrBuild(Forked):
    """Calls `extension.find_or_build` for a runtime. The outcome is the path of the library, or the error.

    `modules` are replaced, as if Python had imported these.
    """

    def __init__(self, runtime: str, sources: Path, modules: dict | None = None, **environment: str | None):
        super().__init__(_find_or_build, runtime, str(sources), modules or {}, **environment)


class Command(Forked):
    """Runs `python -m involution.build` with these arguments. The outcome is its status and its errors."""

    def __init__(self, *arguments: str, modules: dict | None = None, **environment: str | None):
        super().__init__(_command, arguments, modules or {}, **environment)


def _send(sender, function: Callable, arguments: tuple, environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    sender.send(function(*arguments))


def _load(sources: str) -> Outcome:
    libraries.CSRC = Path(sources)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extension.load("cpu")
    messages = [str(warning.message) for warning in caught]
    return Outcome(extension._loaded.get("cpu"), messages, extension.show_config())


def _find_or_build(runtime: str, sources: str, modules: dict) -> Path | Exception:
    hosts.SOURCES = libraries.CSRC = Path(sources)
    sys.modules.update(modules)
    try:
        return extension.find_or_build(runtime)
    except Exception as error:
        return error


def _command(arguments: tuple[str, ...], modules: dict) -> tuple[int, str]:
    sys.modules.update(modules)
    sys.argv[1:] = arguments
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        return build.main(), errors.getvalue()
