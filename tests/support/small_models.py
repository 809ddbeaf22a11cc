"""Small RedNets and images for them."""

import torch
from rednet import RedNetConfig, RedNetForImageClassification


def small_config(**changes) -> RedNetConfig:
    values = {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [1, 2], "num_labels": 5}
    return RedNetConfig(**{**values, **changes})


def small_model(seed: int = 0, **changes) -> RedNetForImageClassification:
    torch.manual_seed(seed)
    model = RedNetForImageClassification(small_config(**changes))
    randomize_norms(model)
    return model


def randomize_norms(model: torch.nn.Module) -> None:
    """Random BatchNorm statistics and weights throughout, so that nothing is multiplied by zero."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)


def random_images(*shape, **options) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), **options)
