"""Every script starts: its imports are there, and it describes its options."""

import pytest

from interpreter import python
from pages import ROOT


SCRIPTS = [path for path in sorted((ROOT / "benchmarks").glob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_shows_its_options(path):
    done = python(path, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {path.name}")
