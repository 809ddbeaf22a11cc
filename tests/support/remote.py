"""Interpreters in which RedNet is remote code: `rednet` and `involution` cannot be imported."""

import os
from pathlib import Path

from interpreter import python


WITHOUT_PACKAGES = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rednet", "involution"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(code: str, *arguments: object, **environment: str) -> tuple[str, str]:
    """Output and errors of an interpreter that can import from this folder."""
    path = [str(Path(__file__).parent), environment.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))]
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment, "PYTHONPATH": os.pathsep.join(path)}
    result = python("-c", code, *arguments, env=variables)
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr
