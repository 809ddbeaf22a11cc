"""One step of `train_step` for segmentation by all processes that run this, and its weights, in float64."""

from functools import partial

import torch
from rednet import RedNetConfig, RedNetForSemanticSegmentation
from rednet.training.engine.launch import make_accelerator
from rednet.training.engine.optimization import train_step
from rednet.training.options.scripts import SegmentationConfig
from rednet.training.train_segmentation import compute_loss, count_labeled

from small_models import randomize_norms


IGNORED = 255


class InFloat64(torch.nn.Module):
    """BatchNorm is in evaluation mode. In training mode each process has the statistics of its own batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        config = {"embedding_size": 32, "hidden_sizes": [64, 64], "depths": [1, 1], "num_labels": 3}
        config |= {"neck_hidden_size": 32, "decoder_hidden_size": 32, "semantic_loss_ignore_index": IGNORED}
        model = RedNetForSemanticSegmentation(RedNetConfig(**config))
        randomize_norms(model)
        self.model = model.double().eval()

    def forward(self, images):
        return self.model(images.double())


def crops() -> dict[str, torch.Tensor]:
    """Six crops: none of the pixels of the first is labeled, an eighth of those of the second, and so on."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (6, 3, 32, 48), dtype=torch.uint8, generator=generator)
    labels = torch.randint(3, (6, 32, 48), generator=generator)
    for number in range(6):
        labels[number, :, 6 * number :] = IGNORED
    return {"pixel_values": images, "labels": labels}


def main(arguments: list[str]) -> None:
    """`arguments`: crops in a batch, and the file to write."""
    config = SegmentationConfig(max_grad_norm=None)
    accelerator = make_accelerator(config)
    size, data = int(arguments[0]), crops()
    batches = [{name: value[n : n + size] for name, value in data.items()} for n in range(0, 6, size)]
    batches = batches[accelerator.process_index :: accelerator.num_processes]
    model = accelerator.prepare(InFloat64())
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), 1.0))
    loss = partial(compute_loss, config=config, ignored=IGNORED)
    count_items = partial(count_labeled, ignored=IGNORED)
    mean, _ = train_step(accelerator, model, optimizer, batches, len(batches), config, loss, count_items=count_items)
    mean = accelerator.reduce(mean, "mean")
    if accelerator.is_main_process:
        torch.save({"loss": mean, "after": accelerator.unwrap_model(model).state_dict()}, arguments[1])
    accelerator.end_training()
