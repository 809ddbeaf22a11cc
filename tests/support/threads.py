"""A script for `accelerate launch`: prints with how many threads it would train."""

import torch
from accelerate import Accelerator
from rednet.training.engine.launch import set_threads


set_threads(Accelerator().device)
print(torch.get_num_threads())
