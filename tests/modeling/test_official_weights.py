"""RedNet-26 has the structure of the authors' model: with their weights it gives their logits."""

import json
import math
import re
import zlib

import pytest
import torch

from rednet import RedNetConfig, RedNetForImageClassification


# From their names to ours, applied one after the other.
RENAMES = [
    (r"^backbone\.stem\.0\.", "rednet.embedder.layers.0."),
    (r"^backbone\.stem\.1\.", "rednet.embedder.layers.1.involution."),
    (r"^backbone\.stem\.2\.", "rednet.embedder.layers.1.normalization."),
    (r"^backbone\.stem\.4\.", "rednet.embedder.layers.2."),
    *[(rf"^backbone\.layer{n}\.(\d+)\.", rf"rednet.encoder.stages.{n - 1}.layers.\1.") for n in range(1, 5)],
    (r"(layers\.\d+)\.conv2\.", r"\1.layer.1.involution."),
    (r"involution\.conv1\.", "involution.reduce."),
    (r"involution\.conv2\.conv\.", "involution.span."),
    (r"(layers\.\d+)\.conv1\.", r"\1.layer.0.convolution."),
    (r"(layers\.\d+)\.conv3\.", r"\1.layer.2.convolution."),
    *[(rf"(layers\.\d+)\.bn{n}\.", rf"\1.layer.{n - 1}.normalization.") for n in range(1, 4)],
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"\.conv\.", ".convolution."),
    (r"\.bn\.", ".normalization."),
    (r"^head\.fc\.", "classifier."),
]


def rename(key: str) -> str:
    for pattern, name in RENAMES:
        key = re.sub(pattern, name, key)
    return key


def fill(key: str, shape: list[int]) -> torch.Tensor:
    """The weights as the file describes them."""
    r = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())), dtype=torch.float64)
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    if key.endswith("running_var"):
        return 0.5 + (0.2 * r).abs()
    if key.endswith("running_mean"):
        return 0.1 * r
    if len(shape) == 1:
        return (0.3 if ".bn3." in key else 1) * (1 + 0.1 * r) if key.endswith("weight") else 0.05 * r
    small = 0.1 if ".conv2.conv.weight" in key or "stem.1.conv2" in key else 1
    return r * math.sqrt(1 / math.prod(shape[1:])) * small


@pytest.fixture(scope="module")
def official(root) -> dict:
    return json.loads((root / "tests/data/rednet26_mmcls.json").read_text())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gives_the_authors_logits(official, memory_format):
    config = RedNetConfig(depths=[1, 2, 4, 1], num_labels=1000)
    model = RedNetForImageClassification(config).double().eval().to(memory_format=memory_format)
    assert sum(p.numel() for p in model.parameters()) == official["parameters"]
    model.load_state_dict({rename(key): fill(key, shape) for key, shape in official["keys"].items()})  # strict

    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        logits = model(image.to(memory_format=memory_format)).logits
    expected = torch.tensor(official["logits_first8"], dtype=torch.float64)
    torch.testing.assert_close(logits[:, :8], expected, rtol=0, atol=1e-9)
    assert logits.argmax(1).tolist() == official["logits_argmax"]
    assert abs(logits.abs().mean().item() - official["logits_mean_abs"]) < 1e-9
