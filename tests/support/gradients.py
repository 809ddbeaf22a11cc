"""One step of `train_step` by all processes that run this, and its weights before and after, in float64.

BatchNorm is in evaluation mode. In training mode each process has the statistics of its own batch, so that two processes
differ from one by design, without `--sync_batch_norm`.
"""

import json
from functools import partial
from pathlib import Path

import torch
from rednet.training.data.batches import training_loader
from rednet.training.data.sources import class_names, load_images
from rednet.training.engine.launch import make_accelerator
from rednet.training.engine.optimization import train_step
from rednet.training.engine.optimizers import parameter_groups
from rednet.training.options.scripts import TrainingConfig
from rednet.training.train import compute_loss, make_model


class InFloat64(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model.double().eval()

    def forward(self, images):
        return self.model(images.double())


def main(arguments: list[str]) -> None:
    """`arguments`: a JSON file with the options of the training, and the file to write."""
    config = TrainingConfig(**json.loads(Path(arguments[0]).read_text()))
    accelerator = make_accelerator(config)
    images, _ = load_images(config)
    torch.manual_seed(config.seed)
    model = make_model(config, class_names(images))
    # Zero as they start, these scales would keep all other gradients of their blocks at zero.
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.2, 0.5)
    loader = training_loader(images, config, 10, accelerator.process_index, accelerator.num_processes)
    before = {name: value.double() for name, value in model.state_dict().items()}
    groups = parameter_groups(model.parameters(), config.weight_decay, config.no_decay_on_norm_and_bias)
    model = accelerator.prepare(InFloat64(model))
    optimizer = accelerator.prepare(torch.optim.SGD(groups, 1.0))
    loss_function = partial(compute_loss, config=config)
    loss, _ = train_step(accelerator, model, optimizer, loader, len(loader), config, loss_function)
    loss = accelerator.reduce(loss, "mean")
    if accelerator.is_main_process:
        state = accelerator.unwrap_model(model).model.state_dict()
        found = {"processes": accelerator.num_processes, "loss": loss, "before": before, "after": state}
        torch.save(found, arguments[1])
    accelerator.end_training()
