"""A script for `accelerate launch`: prints with how many threads it would train."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator


sys.path.append(str(Path(__file__).parent.parent.parent / "training"))

from loop import set_threads


set_threads(Accelerator().device)
print(torch.get_num_threads())
