"""A script for `accelerate launch` that prints the number of threads of a training."""

import torch
from accelerate import Accelerator
from rednet.training.engine.launch import set_threads


set_threads(Accelerator().device)
print(torch.get_num_threads())
