"""Shows what runs on this machine, and the cure of each problem: `python -m involution.doctor`.

It prints the environment, compiles what is missing for the CPU and for CUDA if there is a GPU, has the CUDA kernels
checked, and compares the operators with their definition on each device. The status is 0 if all is well, and 1 if not.
`--output FILE` also writes the report as Markdown, for a bug report.
"""

import argparse
import logging
import os
import platform
import shutil
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path

import torch

from . import (
    compilation,
    compiler,
    conflicts,
    extension,
    families,
    hosts,
    libraries,
    reference,
    self_check,
    timing,
    verification,
)
from ._ops import ops


VARIABLES = (
    *("INVOLUTION_COMPILE", "INVOLUTION_TENSOR_CORES", "TORCH_EXTENSIONS_DIR", "TORCH_CUDA_ARCH_LIST"),
    *("CUDA_HOME", "CUDA_VISIBLE_DEVICES", "CXX", "CC"),
)
ABSENT = "not installed"
# Channels-last and contiguous tensors of this size are computed on each device in each dtype.
GEOMETRY = self_check.Geometry(16, (17, 11), (7, 7), (1, 1), (3, 3))


class Report:
    """Prints Markdown, and keeps it. Paths below the home folder begin with ~."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.problems: list[str] = []

    def add(self, line: str = "") -> None:
        home = os.path.expanduser("~")
        self.lines.append(line.replace(home, "~") if home not in ("", "/", "~") else line)
        print(self.lines[-1], flush=True)

    def section(self, title: str) -> None:
        self.add()
        self.add(f"## {title}")
        self.add()

    def facts(self, facts: dict[str, str]) -> None:
        for name, value in facts.items():
            self.add(f"- {name}: {value}")


def environment() -> dict[str, str]:
    """Machine, devices and versions."""
    toolkit = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    build = " ".join(f"{name} {release}" for name, release in toolkit.items() if release) or "the CPU"
    facts = {
        "system": platform.platform(),
        "Python": platform.python_version(),
        "torch": f"{torch.__version__} for {build}",
        "CPU": timing.device_name("cpu"),
    }
    names = [f"{name} {_installed(name)}" for name in ("rednet", "triton", "numpy")]
    facts["packages"] = ", ".join([*names, *(f"{runtime} {_runtime(runtime)}" for runtime in hosts.RUNTIMES)])
    facts["NVIDIA driver"] = verification.driver_version() or "not found"
    facts["GPU"] = "none that torch can use"
    for n in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(n)
        facts["GPU" if n == 0 else f"GPU {n}"] = (
            f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
        )
    facts["variables"] = ", ".join(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ) or "none"
    return facts


def tools() -> dict[str, str]:
    """The compilers, and where libraries are kept."""
    facts = {"C++ compiler": _program(compiler.command()), "ninja": _program(["ninja"])}
    device_compiler = compiler.device_compiler()
    facts[os.path.basename(device_compiler)] = _program([device_compiler], "release")
    try:
        facts["folder of libraries"] = _state_of(libraries.cache_directory())
    except RuntimeError as error:
        facts["folder of libraries"] = str(error)
    for runtime in hosts.RUNTIMES:
        if _runtime(runtime) != ABSENT:
            facts[f"operator for {runtime}"] = _forecast(runtime)
    return facts


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT


def _runtime(runtime: str) -> str:
    try:
        return hosts.version(runtime)
    except ModuleNotFoundError:
        return ABSENT
    except Exception as error:  # of an installation that is damaged
        return f"cannot be imported ({error})"


def _program(command: list[str], word: str = "") -> str:
    """A program, and the first line with `word` of what it prints for `--version`."""
    text = compiler.version_text(command)
    if text is None:
        return f"{command[0]} not found"
    lines = [line for line in text.splitlines() if word in line] or ["unknown version"]
    return f"{' '.join(command)} ({lines[0].strip()})"


def _state_of(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        state = "cannot be written"
    elif compilation.forbids_execution(existing):
        state = "on a file system that is mounted noexec"
    else:
        state = f"{shutil.disk_usage(existing).free / 2**30:.1f} GiB free"
    return f"{folder} ({state}{'' if folder.exists() else ', does not exist yet'})"


def _forecast(runtime: str) -> str:
    try:
        return extension.forecast(runtime)
    except RuntimeError as error:
        return f"cannot be compiled, because {error}"


def load(report: Report) -> list[str]:
    """Loads the libraries, which compiles and checks them if necessary. Returns the device types to compare."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device_type in devices:
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = extension.load(device_type)
        messages = [str(warning.message) for warning in caught if str(warning.message).startswith("involution")]
        report.problems += messages
        for message in messages:
            report.add(f"- {device_type}: {message}")
        if loaded:
            report.add(f"- {device_type}: loaded in {time.perf_counter() - start:.0f} s")
    if "cuda" not in devices and (reason := _unusable_gpu()):
        report.problems.append(reason)
    return devices


def _unusable_gpu() -> str | None:
    """Why torch does not use the NVIDIA GPU of this machine, with the cure; None if there is none."""
    if not Path("/dev/nvidia0").exists() and verification.driver_version() is None:
        return None
    if torch.version.cuda is None:
        return f"there is an NVIDIA GPU, but {compiler.obstacle('cuda')}"
    try:
        torch.cuda.init()
        return "there is an NVIDIA GPU, but torch finds none. Check CUDA_VISIBLE_DEVICES and the output of nvidia-smi"
    except (RuntimeError, AssertionError) as error:
        return f"there is an NVIDIA GPU, but torch cannot use it: {str(error).splitlines()[0]}"


def compare(device: str) -> tuple[int, list[str]]:
    """Compares the operators, as users call them, with their definition in float64.

    Returns the number of comparisons, and the problems.
    """
    problems, count = [], 0
    cases = product(families.OPERATORS, self_check.TOLERANCES, self_check.FORMATS)
    for count, (operator, dtype, memory_format) in enumerate(cases, 1):
        check = self_check.Check(operator, families.GENERAL, dtype, memory_format, GEOMETRY)
        try:
            if not (difference := _difference(check, device)) <= check.tolerance:
                raise ValueError(f"relative difference {difference:.2g}, expected at most {check.tolerance:.2g}")
        except Exception as error:  # an error of the device concerns the operator as well
            problems.append(f"{operator} on {device} disagrees with its definition ({check}): {error}")
    return count, problems


def _difference(check: self_check.Check, device: str) -> float:
    arguments = self_check.make_arguments(check)
    # Tensor cores spread infinities and NaN (csrc/cuda/tensor_cores.cuh); their own check allows for that.
    arguments = [a.nan_to_num(1, 1, 1) if isinstance(a, torch.Tensor) else a for a in arguments]
    on_device = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
    exact = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    result = getattr(ops, check.operator)(*on_device)
    return self_check.largest_difference(result.cpu().double(), getattr(reference, check.operator)(*exact), 0)


def verdict(report: Report, devices: list[str]) -> None:
    """What runs where, and the problems with their cures."""
    report.section("Verdict")
    for line in extension.show_config().splitlines()[1:]:
        report.add(f"- {line.strip()}")
    report.add()
    if not report.problems:
        report.add(f"All is well: the compiled kernels run on {' and '.join(devices)}.")
        return
    report.add(f"{len(report.problems)} problem{'s' if len(report.problems) > 1 else ''}:")
    report.add()
    for number, problem in enumerate(report.problems, 1):
        report.add(f"{number}. {problem}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m involution.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, metavar="FILE", help="writes the report to this file as well")
    output = parser.parse_args().output
    if output and (output.is_dir() or not output.absolute().parent.is_dir()):
        parser.error(f"--output is {output}, expected a file in a folder that exists")

    logging.basicConfig(format="%(message)s")
    report = Report()
    report.add("# The involution operator on this machine")
    report.section("Environment")
    report.facts(environment())
    report.problems += conflicts.problems()
    report.section("Compilers")
    report.facts(tools())
    report.section("Libraries")
    devices = load(report)
    report.section("Comparison with the definition")
    for device in devices:
        count, problems = compare(device)
        report.add(f"- {device}: {count - len(problems)} of {count} results agree")
        report.problems += problems
    verdict(report, devices)
    if output:
        libraries.write_text(output, "\n".join(report.lines) + "\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
