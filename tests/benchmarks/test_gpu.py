"""`make gpu` on a CPU: steps that fail, crash, hang or are interrupted, and the page that tells of them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import gpu
from involution import timing


STEPS = ["--device", "cpu", "--quick", "--steps", "doctor,memcheck"]


def start(root, output, *options: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "benchmarks/gpu.py", "--output", str(output), *(options or STEPS)]
    return subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell that starts the tests in the background makes all processes ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def statuses(output) -> dict[str, str]:
    return {
        name: record["status"] for name, record in json.loads((output / "state.json").read_text())["steps"].items()
    }


def test_a_failed_and_interrupted_run_continues(root, tmp_path):
    output = tmp_path / "records"
    broken = {"CXX": "/bin/false", "INVOLUTION_COMPILE": "1", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    process = start(root, output, **broken)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 1, text
    assert statuses(output) == {"doctor": gpu.FAILED, "memcheck": gpu.SKIPPED}  # the second step was not stopped
    page = (output / "README.md").read_text()
    assert "**1 of 2 steps failed: doctor.** Not run: memcheck." in page
    assert "compilation failed" in page.split("## doctor failed")[1]  # the end of its log
    assert "needs a GPU" in page and "Inference: not measured." in page

    (output / "logs/doctor.log").unlink()
    process = start(root, output)
    while not (output / "logs/doctor.log").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "start the same command again to continue" in text, text
    assert statuses(output)["doctor"] == gpu.FAILED

    process = start(root, output)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert statuses(output) == {"doctor": gpu.PASSED, "memcheck": gpu.SKIPPED}
    assert "**No step failed.** Not run: memcheck." in (output / "README.md").read_text()
    assert "All is well" in (output / "doctor.md").read_text()
    assert "[1/2] doctor: passed before" in start(root, output).communicate(timeout=60)[0]


def test_a_folder_of_another_run_is_not_continued(tmp_path, monkeypatch, capsys):
    (tmp_path / "state.json").write_text(json.dumps({"options": {"device": "cuda"}, "steps": {}}))
    monkeypatch.setattr(sys, "argv", ["gpu.py", *STEPS, "--output", str(tmp_path)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert gpu.main() == 2 and "give another --output" in capsys.readouterr().out
    finally:
        signal.signal(signal.SIGTERM, before)


def test_tests_are_counted(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "test_small.py").write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert False\n"
        "@pytest.mark.skip\n"
        "def test_left_out(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", str(tmp_path), f"--junitxml={tmp_path}/tests.xml"]
    record = gpu.run(gpu.Step("tests", command, 60), tmp_path, time.monotonic() + 100)
    assert (record["status"], record["note"]) == (gpu.FAILED, "1 passed, 1 failed, 1 skipped")


def test_only_tests_that_need_a_gpu_are_selected(root):
    command = [sys.executable, "-m", "pytest", "tests/involution/test_cuda.py", "--gpu", "--collect-only", "-q"]
    lines = subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.splitlines()
    names = {line.split("::")[1].split("[")[0] for line in lines if "::" in line}
    assert {"test_compiled_for_this_gpu", "test_captured_in_a_cuda_graph"} <= names
    assert not any("on_the_host" in name for name in names)


@pytest.mark.parametrize(
    ("code", "status", "note"),
    [
        ("pass", gpu.PASSED, ""),
        ("raise SystemExit(3)", gpu.FAILED, "status 3"),
        ("import os; os.abort()", gpu.FAILED, "ended by SIGABRT"),
        ("import time; time.sleep(60)", gpu.STOPPED, "after 2 s"),
    ],
)
def test_how_a_step_ends(tmp_path, code, status, note):
    (tmp_path / "logs").mkdir()
    step = gpu.Step("operator", [sys.executable, "-c", code], seconds=2)
    record = gpu.run(step, tmp_path, time.monotonic() + 100)
    assert (record["status"], record["note"]) == (status, note)


def test_steps_without_a_program_or_without_time(tmp_path):
    (tmp_path / "logs").mkdir()
    step = gpu.Step("operator", [str(tmp_path / "absent")], seconds=2)
    assert gpu.run(step, tmp_path, time.monotonic() + 100)["status"] == gpu.FAILED
    record = gpu.run(step, tmp_path, time.monotonic())
    assert record["status"] == gpu.SKIPPED and "no time left" in record["note"]


@pytest.mark.parametrize(
    ("line", "status", "result"),
    [
        ("=========     at void involution::tiled_forward_kernel<float, 3, 1>(TileGrid)+0x1c0", 99, gpu.FAILED),
        ("========= Error: Race reported between Write access at void involution::f()+0x1 and Read", 99, gpu.FAILED),
        ("=========     at void cudnn::winograd_nonfused(float*)+0x1c0", 99, gpu.PASSED),
        ("========= Error: Target application terminated before first instrumented API call", 255, gpu.SKIPPED),
        ("Traceback (most recent call last):", 1, gpu.FAILED),
        ("========= ERROR SUMMARY: 0 errors", 0, gpu.PASSED),
    ],
)
def test_only_errors_in_our_kernels_count(tmp_path, line, status, result):
    """What compute-sanitizer prints, from a stand-in: it runs on no machine without a GPU."""
    (tmp_path / "logs").mkdir()
    code = f"print({line!r}); raise SystemExit({status})"
    record = gpu.run(gpu.Step("initcheck", [sys.executable, "-c", code], 20), tmp_path, time.monotonic() + 100)
    assert record["status"] == result


def test_a_sanitizer_among_the_packages_is_found(tmp_path, monkeypatch):
    program = tmp_path / "nvidia/cu13/bin/compute-sanitizer"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    found = gpu.find_sanitizer()
    assert found is not None and found.endswith("compute-sanitizer")


def test_out_of_memory_is_a_row(root, tmp_path):
    """A batch of 60 TB of images does not stop those that follow."""
    command = [
        sys.executable,
        "benchmarks/network_modes.py",
        "--device",
        "cpu",
        "--phase",
        "inference",
        "--repeats",
        "1",
    ]
    command += ["--batches", "100000000,1", "--modes", "eager", "--precisions", "float32"]
    command += ["--output", str(tmp_path / "inference")]
    environment = {**os.environ, **timing.ALLOCATOR}  # so that the script does not have to start again
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    large, small = gpu.read_csv(tmp_path / "inference.csv")
    assert large["RedNet-50, images/s"] == large["peer"] == "out of memory"
    assert float(small["RedNet-50, images/s"]) > 0 and float(small["RedNet-50 / ResNet-50"]) > 0
    assert 0 < float(small["RedNet-50, MiB"]) < float(small["peer, MiB"])
    assert small["peer"].startswith("ResNet-50 of ")
