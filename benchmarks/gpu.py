"""Tests and measures the operator and RedNet-50 on a GPU, and writes one folder of records with one page.

    python benchmarks/gpu.py          # at most 40 minutes
    python benchmarks/gpu.py --quick  # at most 10 minutes

The steps are the doctor, the tests that need a GPU, compute-sanitizer, and the benchmarks of operator and networks.
Each is a process of its own with a time limit: a step that fails, crashes or hangs does not stop the others. An
interrupted run continues when the same command is started again: steps that passed are kept, the others run again.
"""

import argparse
import csv
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import torch

from involution import compiler, libraries, timing
from tables import comma_separated, table


ROOT = Path(__file__).parents[1]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
ERRORS_FOUND = 99  # the status of compute-sanitizer
NETWORKS = {"inference": "Inference", "training": "Training step"}
PASSED, FAILED, STOPPED, SKIPPED = "passed", "failed", "stopped at its time limit", "skipped"


@dataclass
class Step:
    """A process, or the reason why there is none."""

    name: str
    command: list[str]
    seconds: float  # the limit
    variables: dict[str, str] = field(default_factory=dict)
    skipped: str = ""


def steps(options: argparse.Namespace, output: Path) -> list[Step]:
    quick, cuda = options.quick, options.device == "cuda"
    python = [sys.executable]
    tests = ["tests/involution/test_cuda.py"] if quick else ["tests/involution", "tests/training"]
    test = [*python, "-m", "pytest", *tests, "--gpu", "-q", "-rs", f"--junitxml={output}/tests.xml"]
    every = ["--device", options.device, "--repeats", str(options.repeats)]
    memcheck, *checks = sanitizer_steps(python, 60 if quick else 200, [] if quick else ["--all"])
    result = [
        Step("doctor", [*python, "-m", "involution.doctor", "--output", f"{output}/doctor.md"], 300),
        Step("tests", test, 150 if quick else 600),
        memcheck,
    ]
    choice = [*python, "benchmarks/operator_choice.py", *every, "--output", f"{output}/operator"]
    choice += ["--batch_size", options.batches[0], "--seconds", "80" if quick else "400"]
    choice += ["--shapes", "3", "--dtypes", "bfloat16,float32"] if quick else []
    result.append(Step("operator", choice, 140 if quick else 600))
    for phase in NETWORKS:
        modes = [*python, "benchmarks/network_modes.py", *every, "--phase", phase, "--output", f"{output}/{phase}"]
        modes += ["--batches", ",".join(options.batches), "--seconds", "120" if quick else "500"]
        modes += ["--compile_first", "1"] if quick else ["--with_loop"]
        result.append(Step(phase, modes, 180 if quick else 800))
    result += checks  # last: if the time is too short, they are what starting again adds
    if not cuda:
        for step in result:
            if step.name in TOOLS:
                step.skipped = "needs a GPU"
    unknown = set(options.steps or []) - {step.name for step in result}
    if unknown:
        names = ", ".join(step.name for step in result)
        sys.exit(f"error: --steps has {', '.join(sorted(unknown))}, expected some of {names}")
    return [step for step in result if options.steps is None or step.name in options.steps]


def sanitizer_steps(python: list[str], seconds: float, more: list[str]) -> list[Step]:
    program, result = find_sanitizer(), []
    for tool in TOOLS:
        # initcheck has to see what other kernels write. What it finds in those is no fault of ours.
        names = [] if tool == "initcheck" else ["--kernel-name", "kns=involution"]
        command = [program or "compute-sanitizer", "--tool", tool, "--error-exitcode", str(ERRORS_FOUND), *names]
        command += [*python, "benchmarks/sanitize.py", *more]
        # Each tensor is an allocation of its own, so that memcheck sees its bounds.
        step = Step(tool, command, seconds, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        step.skipped = "" if program else "compute-sanitizer is not on PATH, in CUDA_HOME or among the packages of pip"
        result.append(step)
    return result


def find_sanitizer() -> str | None:
    from torch.utils import cpp_extension

    folders = [Path(cpp_extension.CUDA_HOME or "/", "bin"), Path(cpp_extension.CUDA_HOME or "/", "compute-sanitizer")]
    folders += [path for entry in sys.path for path in Path(entry or ".").glob("nvidia/cu*/bin")]
    found = (shutil.which("compute-sanitizer", path=path) for path in (None, *map(str, folders)))
    return next((path for path in found if path), None)


def run(step: Step, output: Path, deadline: float) -> dict:
    """Runs a step, with its output in logs/NAME.log. Returns its record."""
    if step.skipped:
        return {"status": SKIPPED, "note": step.skipped, "seconds": 0}
    limit = min(step.seconds, deadline - time.monotonic())
    if limit < 1:
        return {"status": SKIPPED, "note": "no time left: start the same command again", "seconds": 0}
    start, log = time.monotonic(), output / "logs" / f"{step.name}.log"
    with compiler.scripts_on_path(), log.open("w") as file:
        file.write(f"{' '.join(step.command)}\n\n")
        file.flush()
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", **step.variables}
        try:
            process = subprocess.Popen(
                step.command, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            file.write(f"{error}\n")
            return {"status": FAILED, "note": str(error), "seconds": 0}
        try:
            status, note = judge(step, process.wait(limit), output)
        except subprocess.TimeoutExpired:
            status, note = STOPPED, f"after {limit:.0f} s"
        finally:
            end(process)
    return {"status": status, "note": note, "seconds": round(time.monotonic() - start, 1)}


def end(process: subprocess.Popen) -> None:
    """Ends a process and those that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def judge(step: Step, status: int, output: Path) -> tuple[str, str]:
    """Whether a process that ended passed, and a note."""
    note = "" if status == 0 else f"ended by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    if step.name == "tests" and (output / "tests.xml").exists():
        suite = ElementTree.parse(output / "tests.xml").getroot().find("testsuite")
        if suite is not None:
            counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
            bad = counts["failures"] + counts["errors"]
            note = f"{counts['tests'] - bad - counts['skipped']} passed, {bad} failed, {counts['skipped']} skipped"
    log = output / "logs" / f"{step.name}.log"
    text = log.read_text(errors="replace") if step.name in TOOLS else ""
    if status not in (0, ERRORS_FOUND) and "before first instrumented API call" in text and "Traceback" not in text:
        return SKIPPED, "compute-sanitizer does not run on this machine, see the log"
    if step.name in TOOLS and status == ERRORS_FOUND:
        ours = re.findall(r"^=+ .*\bat .*involution.*$", text, re.MULTILINE)
        if not ours:
            return PASSED, "errors in kernels of others only, see the log"
        note = f"{len(ours)} errors in kernels of involution"
    return (PASSED if status == 0 else FAILED), note


# --- The page ---


def page(options: argparse.Namespace, output: Path, records: dict[str, dict]) -> str:
    """What a person reads: verdict, steps, networks, settings, failures."""
    bad = [name for name, record in records.items() if record["status"] not in (PASSED, SKIPPED)]
    left_out = [name for name, record in records.items() if record["status"] == SKIPPED]
    verdict = f"**{len(bad)} of {len(records)} steps failed: {', '.join(bad)}.**" if bad else "**No step failed.**"
    if left_out:
        verdict += f" Not run: {', '.join(left_out)}."
    lines = [
        f"# The operator and RedNet-50 on {timing.device_name(options.device)}",
        "",
        f"{datetime.date.today()}, torch {torch.__version__}, {'quick form' if options.quick else 'full form'}, "
        f"written by `python benchmarks/gpu.py`.",
        "",
        verdict,
        "",
        table([{"step": name, "result": record["status"], "note": record["note"], "s": record["seconds"],
                "log": f"[log](logs/{name}.log)" if (output / f"logs/{name}.log").exists() else ""}
               for name, record in records.items()]),
    ]  # fmt: skip
    lines += networks_section(output) + settings_section(output)
    for name in bad:
        lines += ["", f"## {name} {records[name]['status']}", "", "```text", *tail(output / f"logs/{name}.log"), "```"]
    return "\n".join(lines) + "\n"


def networks_section(output: Path) -> list[str]:
    lines = [
        "",
        "## RedNet-50 / ResNet-50",
        "",
        "Images per second relative to the faster ResNet-50, and peak memory.",
    ]
    for name, words in NETWORKS.items():
        if rows := read_csv(output / f"{name}.csv"):
            columns = (
                "precision",
                "batch",
                "mode",
                "RedNet-50, images/s",
                "RedNet-50 / ResNet-50",
                "memory / ResNet-50",
            )
            lines += ["", f"{words} ([all columns]({name}.md)):", ""]
            lines.append(table([{column: row[column] for column in columns} for row in rows]))
        else:
            lines += ["", f"{words}: not measured."]
    return lines


def settings_section(output: Path) -> list[str]:
    lines = ["", "## Recommended settings", ""]
    try:
        settings = json.loads((output / "operator.json").read_text())["settings"]
    except (OSError, ValueError, KeyError):
        return [*lines, "Not measured."]
    lines += [
        "From [operator.md](operator.md), in [operator.json](operator.json). Nothing applies them by itself.",
        "",
    ]
    return [*lines, table(settings) if settings else "None."]


def read_csv(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tail(log: Path, count: int = 20) -> list[str]:
    lines = log.read_text(errors="replace").replace("\r", "\n").splitlines() if log.exists() else []
    return [line.replace("```", "'''") for line in lines if line.strip()][-count:]


# --- The command ---


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="(default: cuda)")
    parser.add_argument("--quick", action="store_true", help="at most 10 minutes instead of 40")
    parser.add_argument("--output", type=Path, help="the folder (default: outputs/gpu/DEVICE-DATE)")
    parser.add_argument("--steps", type=comma_separated, help="only these, as doctor,tests (default: all)")
    parser.add_argument("--batches", type=comma_separated, help="batch sizes (default: 256,1,64; on a CPU 16,1)")
    parser.add_argument("--repeats", type=int, help="(default: 15, quick 5)")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no GPU. `python -m involution.doctor` tells why")
    default = "16,1" if options.device == "cpu" else "256,1" if options.quick else "256,1,64"
    options.batches = options.batches or default.split(",")
    if not all(batch.isdecimal() and int(batch) > 0 for batch in options.batches):
        parser.error(f"--batches is {','.join(options.batches)}, expected numbers of at least 1")
    options.repeats = options.repeats or (5 if options.quick else 15)
    return options


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, interrupt)  # ends the process of the step too
    name = re.sub(r"\W+", "-", timing.device_name(options.device).split(",")[0]).strip("-").lower()
    form = "-quick" if options.quick else ""
    output = (options.output or ROOT / "outputs/gpu" / f"{name}-{datetime.date.today()}{form}").absolute()
    (output / "logs").mkdir(parents=True, exist_ok=True)
    chosen = {key: value for key, value in vars(options).items() if key not in ("output", "steps")}
    state_file = output / "state.json"
    state = json.loads(state_file.read_text()) if state_file.exists() else {"options": chosen, "steps": {}}
    if state["options"] != chosen:
        print(f"error: {output} is of a run with {state['options']}, this is one with {chosen}: give another --output")
        return 2

    deadline = time.monotonic() + (600 if options.quick else 2400)
    todo = steps(options, output)
    interrupted = False
    for number, step in enumerate(todo, 1):
        if state["steps"].get(step.name, {}).get("status") == PASSED:
            print(f"[{number}/{len(todo)}] {step.name}: passed before", flush=True)
            continue
        print(f"[{number}/{len(todo)}] {step.name} ...", end=" ", flush=True)
        try:
            record = run(step, output, deadline)
        except KeyboardInterrupt:
            print("interrupted: start the same command again to continue", flush=True)
            interrupted = True
            break
        print(", ".join(filter(None, (record["status"], record["note"], f"{record['seconds']:.0f} s"))), flush=True)
        state["steps"][step.name] = record
        libraries.write_text(state_file, json.dumps(state, indent=2) + "\n")
        libraries.write_text(output / "README.md", page(options, output, state["steps"]))
    print(f"{output / 'README.md'}", flush=True)
    if interrupted:
        return 130
    return int(any(record["status"] in (FAILED, STOPPED) for record in state["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
