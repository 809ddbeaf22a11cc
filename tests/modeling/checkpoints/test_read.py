"""Files that paddle.save of PaddlePaddle 3.3.1 wrote, and files that are too large."""

from pathlib import Path

import pytest
import torch
from rednet.checkpoints.read import read_checkpoint
from rednet.convert_rednet_to_hf import convert


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


def test_a_file_larger_than_the_limit_is_not_read(tmp_path: Path):
    """A sparse file of 1 TiB, which would not fit into memory."""
    with open(tmp_path / "large.pth", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="it has 1,099,511,627,776 bytes, expected at most 4,294,967,296"):
        convert(tmp_path / "large.pth", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
