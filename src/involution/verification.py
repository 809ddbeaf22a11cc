"""Checks a library for CUDA on the GPUs of this machine, and keeps the results next to the library.

Each family of kernels (families.py) is compared with the definition, once for each library, model of GPU and driver,
which may compile the kernels from PTX. This happens in another process (self_check.py), so that a kernel that crashes
or hangs does no harm here. Such a kernel disagrees with the definition too. `extension.load` forbids the families that
disagree.
"""

import functools
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from . import families, libraries
from ._ops import ops


logger = logging.getLogger(__name__)

# The process is stopped if it prints nothing for this many seconds. The first limit applies until the end of the first
# check: the process imports torch, and the driver may have to compile PTX. Every later check takes milliseconds.
FIRST_TIMEOUT, TIMEOUT = 300.0, 60.0
# The process imports from the path of this one, and loads this very package from its file, because a kernel of the
# Kernel Hub is not on the path.
_COMMAND = """
import sys
sys.path[:] = sys.argv.pop(1).split(":")
import importlib.util
spec = importlib.util.spec_from_file_location("involution", sys.argv.pop(1))
sys.modules["involution"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["involution"])
from involution import self_check
sys.exit(self_check.main())
"""


def describe(device: str) -> tuple[str, list[int] | None]:
    """The name of a device and its compute capability."""
    if device == "cpu":  # where the tests run the kernels
        return platform.machine(), None
    return torch.cuda.get_device_name(device), list(torch.cuda.get_device_capability(device))


def supported_families(library: Path, device: str) -> tuple[str, ...]:
    """The families whose kernels a device runs. This process has loaded the library."""
    if torch.version.hip is not None:
        return families.GENERAL, families.CONVOLUTION
    with ExitStack() as stack:
        if device != "cpu":
            stack.enter_context(torch.cuda.device(device))
        tensor_cores = families.has_tensor_cores(library)
    return tuple(family for family in families.FAMILIES if tensor_cores or family != families.TENSOR_CORES)


def driver_version() -> str | None:
    """What nvidia-smi prints, or None if there is no such program."""
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return lines[0] if lines else None


@functools.cache
def driver_of(device: str) -> str | None:
    """The release of the driver of a device, or None if it is unknown."""
    if device == "cpu":
        return None
    with suppress(OSError):  # faster than nvidia-smi, which every process would start
        if match := re.search(r"\b\d+\.\d+(\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text()):
            return match[0]
    return driver_version()


def models() -> list[str]:
    """The first device of each model of GPU in this machine."""
    names: dict[str, str] = {}
    for n in range(torch.cuda.device_count()):
        names.setdefault(str(describe(f"cuda:{n}")), f"cuda:{n}")
    return list(names.values())


def records(library: Path, devices: Sequence[str] | None = None, namespace: str = ops.name) -> list[dict]:
    """The results of the check for each model of GPU. Runs the check, which takes seconds, where there is no record.

    Any number of processes may call this at the same time: one checks, the others wait. If the folder of the library
    cannot be written, the record is not kept.

    Args:
        library: a library for CUDA. This process does not have to load it.
        devices: those to check, as "cuda:0". The default is one of each model of GPU.
        namespace: that of the operators.

    Raises:
        RuntimeError: the check cannot run; the message gives the reason and the cure.
    """
    return [_record(library, device, namespace) for device in (models() if devices is None else devices)]


def existing(library: Path, device: str) -> dict | None:
    """The record for a device, or None if there is none for this library, driver and version of the check."""
    try:
        record = json.loads(record_path(library, device).read_text())
        return record if record["key"] == _key(library) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def record_path(library: Path, device: str) -> Path:
    """Where the record of a library is for the model and the driver of a device."""
    name, capability = describe(device)
    parts = ["check", name, *map(str, capability or []), driver_of(device) or ""]
    return library.with_name(re.sub(r"\W+", "_", "_".join(filter(None, parts))) + ".json")


def refused(records: Sequence[dict]) -> list[dict]:
    """The families that disagree, each with "device", "operator", "family" and "problem"."""
    return [
        {"device": record["device"], **{key: result[key] for key in ("operator", "family", "problem")}}
        for record in records
        for result in record["results"]
        if not result["agrees"]
    ]


def describe_refusal(refusal: dict) -> str:
    return "{device}, {operator}, kernels of the family {family!r}: {problem}".format(**refusal)


def summary(record: dict) -> list[str]:
    """Lines for people: when and where the check ran, and which families agree with the definition."""
    driver = f" with driver {record['driver']}" if record["driver"] else ""
    agree: dict[str, list[bool]] = {family: [] for family in families.FAMILIES}
    for result in record["results"]:
        agree[result["family"]].append(result["agrees"])
    used = ", ".join(family for family, results in agree.items() if results and all(results))
    lines = [f"{record['device']}: checked {record['checked']}{driver}; as defined: {used or 'none'}"]
    return lines + [f"refused: {describe_refusal(refusal)}" for refusal in refused([record])]


def _record(library: Path, device: str, namespace: str) -> dict:
    if record := existing(library, device):  # without the lock, because the folder may be read-only
        return record
    with ExitStack() as stack:
        # A folder of another user, read-only, or on a file system without locks: the check runs all the same.
        with suppress(OSError, NotImplementedError):
            stack.enter_context(FileLock(library.with_name("check.lock")))
        if record := existing(library, device):  # by the process that this one waited for
            return record
        logger.warning("Checking the CUDA kernels of involution on %s, once", describe(device)[0])
        record = check(library, device, namespace)
        with suppress(OSError):
            libraries.write_text(record_path(library, device), json.dumps(record, indent=2) + "\n")
    return record


def _key(library: Path) -> str:
    """A digest of the library and of the check."""
    digest = hashlib.sha256(Path(__file__).with_name("self_check.py").read_bytes())
    digest.update(library.read_bytes())
    return digest.hexdigest()[:16]


def check(library: Path, device: str, namespace: str = ops.name) -> dict:
    """Runs the check in as many processes as it takes, and returns the record.

    Raises:
        RuntimeError: the check cannot run; the message gives the reason and the cure.
    """
    start = time.perf_counter()
    header: dict = {}
    outcomes: dict[int, dict] = {}
    skipped: list[tuple[str, str]] = []
    first = 0
    while not header or first < len(header["checks"]):
        process = _Process(library, device, namespace, first, skipped)
        running = None
        try:
            for message in process.messages():
                if "checks" in message:
                    header = message
                elif "unavailable" in message:
                    raise RuntimeError(_cannot_run(device, message["unavailable"]))
                elif "start" in message:
                    running = message["start"]
                else:
                    outcomes[message["end"]] = message
        except OSError as error:  # there is no such program, or no memory for a process
            raise RuntimeError(_cannot_run(device, str(error))) from error
        if process.status == 0:
            break
        if running is None:
            raise RuntimeError(_cannot_run(device, process.ending()))
        outcomes.setdefault(running, {"difference": None, "problem": process.ending()})
        operator, family, _ = header["checks"][running]
        if family == families.GENERAL and outcomes[running]["problem"]:
            break  # the library cannot be used: do not wait for others that may hang
        skipped.append((operator, family))
        first = running + 1
    listed = header.pop("checks")
    results = _results(listed, outcomes)
    return {"key": _key(library), **header, "seconds": round(time.perf_counter() - start, 1), "results": results}


def _results(listed: list[list[str]], outcomes: dict[int, dict]) -> list[dict]:
    """One result for each operator and family of which anything ran."""
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for n, outcome in sorted(outcomes.items()):
        operator, family, description = listed[n]
        result = results.setdefault(
            (operator, family),
            {
                "operator": operator,
                "family": family,
                "agrees": True,
                "problem": None,
                "differences": {},
                "cases": [],
            },
        )
        result["cases"].append(description)
        if outcome["difference"] is not None:
            dtype = description.split(",")[0]
            result["differences"][dtype] = max(outcome["difference"], result["differences"].get(dtype, 0))
        if outcome["problem"] and result["agrees"]:
            result.update(agrees=False, problem=f"{description}: {outcome['problem']}")
    return list(results.values())


def _cannot_run(device: str, reason: str) -> str:
    cure = "Run `python -m involution.build cuda` when the GPU is free" if ops.name == "involution" else "Start again"
    return f"they could not be compared with the definition on {describe(device)[0]} ({reason}). {cure}"


class _Process:
    """A process of `self_check`. Its status is None until `messages` has ended."""

    def __init__(self, library: Path, device: str, namespace: str, first: int, skipped: list[tuple[str, str]]):
        options = ["--device", device, "--namespace", namespace, "--start", str(first)]
        options += [part for pair in skipped for part in ("--skip", *pair)]
        package = str(Path(__file__).with_name("__init__.py"))
        self.command = [sys.executable, "-c", _COMMAND, ":".join(sys.path), package, os.fspath(library), *options]
        self.status: int | None = None
        self.timed_out = False
        self.output: deque[str] = deque(maxlen=20)  # the last lines that are not messages

    def messages(self) -> Iterator[dict]:
        """What the process prints, until it ends, or is silent for too long and is killed."""
        environment = {**os.environ, "INVOLUTION_TENSOR_CORES": "1"}
        with subprocess.Popen(
            self.command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            try:
                ended = False
                while line := self._line(process, TIMEOUT if ended else FIRST_TIMEOUT):
                    if message := _parsed(line):
                        ended |= "end" in message
                        yield message
                    else:
                        self.output.append(line.strip())
                with suppress(subprocess.TimeoutExpired):
                    process.wait(TIMEOUT)
            finally:
                process.kill()  # does nothing if it has ended
                self.status = process.wait()

    def _line(self, process: subprocess.Popen, timeout: float) -> str:
        def stop() -> None:
            self.timed_out = True
            process.kill()

        timer = threading.Timer(timeout, stop)
        timer.start()
        try:
            return process.stdout.readline() if process.stdout else ""
        finally:
            timer.cancel()

    def ending(self) -> str:
        """How the process ended."""
        if self.timed_out:
            return "the process did not answer and was stopped"
        last = f": {self.output[-1]}" if self.output else ""
        if self.status is not None and self.status < 0:
            return f"the process was ended by {signal.Signals(-self.status).name}{last}"
        return f"the process ended with status {self.status}{last}"


def _parsed(line: str) -> dict | None:
    with suppress(ValueError):
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    return None
