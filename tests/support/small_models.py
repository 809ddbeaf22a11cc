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


def model_without_zeros(**changes) -> RedNetForImageClassification:
    """In evaluation mode, as if it were trained: no scale is 1, no bias or running mean is 0."""
    torch.manual_seed(0)
    model = RedNetForImageClassification(small_config(**changes))
    for values in [*model.parameters(), *model.buffers()]:
        if values.ndim == 1:
            values.data.uniform_(0.2, 0.6)
    return model.eval()


def check_close(result: torch.Tensor, expected: torch.Tensor) -> None:
    """Asserts that results of several layers are equal up to rounding, relative to the largest value."""
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= 2e-5 * expected.abs().max()


def randomize_norms(model: torch.nn.Module) -> None:
    """Random BatchNorm statistics and weights throughout, so that nothing is multiplied by zero."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)


def random_images(*shape, **options) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), **options)
