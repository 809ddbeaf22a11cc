"""Settings and options of all tests.

`make test` runs the files in three workers, one more than CI has cores, because some tests wait for processes of their
own. The workers take the files in the order below.
"""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings


ROOT = Path(__file__).parent.parent

# The files that take longest, first, so that no worker has such a file at the end. Two files that compile the same
# library are apart, because one worker would wait for the other one.
LONGEST = [
    "involution/test_doctor.py",  # compiles the kernels for this machine, which most other tests use
    "test_wheel.py",
    "involution/test_cuda.py",
    "modeling/export/test_export.py",
    "test_package.py",
    "training/engine/test_machines.py",
    "modeling/test_remote_code.py",
    "training/test_train.py",
    "involution/kernel_hub/test_kernelize.py",
    "training/engine/test_parallel.py",
    "modeling/export/test_variants.py",
    "training/engine/test_resume.py",
    "training/test_evaluate_model.py",
    "modeling/test_convert_rednet_to_hf.py",
    "modeling/test_detection.py",
    "modeling/modeling_rednet/transformers_suite/test_transformers_suite.py",
    "involution/test_self_check.py",
    "modeling/export/test_aoti_cpp.py",
    "training/test_ablate.py",
    "involution/kernel_hub/test_write.py",
]

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
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--gpu"):
        reasons = {item: [mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")] for item in items}
        items[:] = [item for item in items if any("GPU" in reason for reason in reasons[item])]
    if not config.getoption("--slow"):
        for item in items:
            if mark := item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason=f"needs --slow: {mark.kwargs['reason']}"))
    order = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
