import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings


ROOT = Path(__file__).parent.parent

# Test processes run side by side. Threads of several of them on the same cores would spin waiting for each other; the
# tests that are about threads ask for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Inductor of torch 2.15 finds a compiled graph again without asking for which instructions it was made.
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
    folder = Path(tempfile.gettempdir(), f"torchinductor_{os.getuid()}_{capability}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))

# Tests fetch nothing.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The same examples on every machine: a failure in CI is a failure at home.
settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
