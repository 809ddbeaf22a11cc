"""The tuner, `python -m involution.profile`, in its own processes."""

import os
import re
import subprocess
import sys

import pytest

from involution import profile, timing


SMALL = ["--shape", "1,32,6,7", "--kernel_size", "3,1", "--repeats", "2", "--device", "cpu", "--threads", "1"]


def run(*arguments: str, **environment: str) -> tuple[str, list[dict[str, str]]]:
    """What the command prints, and its table."""
    command = [sys.executable, "-m", "involution.profile", *SMALL, *arguments]
    environment = {**os.environ, **timing.ALLOCATOR, **environment}  # so that it does not have to start again
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    *_, table = result.stdout.split("\n\n")
    header, *lines = table.strip().splitlines()
    starts = [match.start() for match in re.finditer(r"(?:^|(?<=  ))\S", header)]
    cells = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None])] for line in [header, *lines]]
    return result.stdout, [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def test_times_every_implementation():
    text, rows = run("--backward", "--memory_format", "contiguous", "--stride", "2", "--group_channels", "8")
    assert "1 x 32 x 6 x 7, K 3 x 1, 4 groups, stride 2 x 2, padding 1 x 0, dilation 1 x 1, 8 hidden" in text
    assert re.search(r"reads and writes [1-9][\d.]* GB/s", text) and re.search(r"reaches [1-9]\d* GFLOP/s", text)
    assert tuple(rows[0]) == profile.COLUMNS
    plain = [profile.LOOP, profile.COMPILED_LOOP, profile.UNFOLD]
    implementations = {row["pass"]: [] for row in rows}
    for row in rows:
        implementations[row["pass"]].append(row["implementation"])
        assert float(row["ms"]) > 0 and float(row["/ floor"]) > 0 and float(row["/ limit"]) > 0
        assert (row["used"] == "yes") == (row["implementation"] == "compiled kernel")
    assert implementations == {
        "forward": ["compiled kernel", *plain],
        "generation and forward": ["compiled kernel", profile.SEPARATE],
        "input gradient": ["compiled kernel", *plain],
        "kernel gradient": ["compiled kernel", *plain],
        "generation, all gradients": ["compiled kernel", profile.SEPARATE_GRADIENTS],
    }


def test_names_the_gradients_that_autograd_uses():
    """With many hidden channels, those of the separate operators."""
    _, rows = run("--backward", "--hidden_channels", "65")
    used = {row["pass"]: row["implementation"] for row in rows if row["used"]}
    assert used["generation, all gradients"] == profile.SEPARATE_GRADIENTS
    assert used["generation and forward"] == "compiled kernel"


def test_names_what_runs_without_a_compiler(tmp_path):
    """The operator runs the loop over the taps, and `torch.compile` fails. The others are timed all the same."""
    _, rows = run(CXX="/bin/false", INVOLUTION_COMPILE="1", TORCH_EXTENSIONS_DIR=str(tmp_path / "extensions"),
                  TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"))  # fmt: skip
    times = {(row["pass"], row["implementation"]): row["ms"] for row in rows}
    used = [(row["pass"], row["implementation"]) for row in rows if row["used"]]
    assert used == [("forward", profile.LOOP), ("generation and forward", f"1x1 convolution + {profile.LOOP}")]
    assert times.pop(("forward", profile.COMPILED_LOOP)).startswith("failed: ")
    assert all(float(time) > 0 for time in times.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "1,32,6"], "--shape is 1,32,6, expected four numbers B,C,H,W of at least 1"),
        (["--shape", "1,32,six,7"], "'1,32,six,7' is not a list of integers such as 3 or 3,5"),
        (["--kernel_size", "4"], "padding is None, which requires odd kernel sizes, but the kernel size is 4 x 4"),
        (["--groups", "5"], "input has 32 channels, expected a multiple of the number of groups, 5"),
        (["--group_channels", "5"], "--group_channels is 5, expected a divisor of the 32 channels"),
        (["--stride", "1,2,3"], "stride is [1, 2, 3], expected an int >= 1 and < 2**31, or a pair of them"),
        (["--dilation", "9"], "input has height 8 with its padding, expected at least 19, the height of the window"),
        (["--hidden_channels", "0"], "--hidden_channels is 0, expected at least 1"),
    ],
)
def test_wrong_arguments_are_named(capsys, arguments, message):
    window = ["--padding", "1"] if "--dilation" in arguments else []
    with pytest.raises(SystemExit) as stop:
        profile.parse([*SMALL, *arguments, *window])
    assert stop.value.code == 2 and message in capsys.readouterr().err
