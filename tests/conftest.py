import os
from pathlib import Path

import pytest
from hypothesis import settings


ROOT = Path(__file__).parent.parent

# Tests fetch nothing.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The same examples on every machine: a failure in CI is a failure at home.
settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
