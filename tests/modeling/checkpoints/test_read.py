"""Files that paddle.save of PaddlePaddle 3.3.1 wrote."""

from pathlib import Path

import pytest
import torch
from rednet.checkpoints.read import read_checkpoint


@pytest.mark.parametrize("name", [*(f"state_dict_protocol_{n}" for n in (2, 3, 4)), "nested"])
def test_files_of_paddle(root: Path, name: str):
    """A linear layer, whose weight Paddle stores as (in, out), and the statistics of a BatchNorm."""
    weights = read_checkpoint(root / f"tests/data/paddle/{name}.pdparams").weights
    expected = {
        "fc.weight": torch.tensor([[0.0, 3], [1, 4], [2, 5]]),
        "bn.running_mean": torch.zeros(2),
        "bn.running_var": torch.tensor([0.5, 1.5]),
        "bn.num_batches_tracked": torch.tensor(0),
    }
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(weights[key], value)
