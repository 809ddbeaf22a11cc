import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings


ROOT = Path(__file__).parent.parent

# Test processes run side by side. Threads of several of them on the same cores would spin waiting for each other; the
# tests that are about threads ask for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Inductor of torch 2.15 takes a compiled graph from its cache without asking for which instructions and how many threads
# it was made: with others it computes wrong values, or crashes.
made_for = f"{os.environ.get('ATEN_CPU_CAPABILITY', 'native')}_{os.environ['OMP_NUM_THREADS']}"
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), f"torchinductor_{os.getuid()}_{made_for}"))
)

# Tests fetch nothing.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The same examples on every machine: a failure in CI is a failure at home.
settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-snippets", action="store_true", help="run every snippet and command of the documentation")
    parser.addoption("--gpu", action="store_true", help="run only the tests that need a GPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--gpu"):
        reasons = {item: [mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")] for item in items}
        items[:] = [item for item in items if any("GPU" in reason for reason in reasons[item])]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
