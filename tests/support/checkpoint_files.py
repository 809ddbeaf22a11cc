"""Models as the files that others publish: weights under the names of the authors (mmcls) and of PaddleClas."""

import hashlib
import pickle
import re
from pathlib import Path

import numpy as np
from rednet import RedNetForImageClassification
from rednet.checkpoints.layouts import checkpoint_name
from torch import Tensor


def authors_weights(model: RedNetForImageClassification) -> dict[str, Tensor]:
    weights = {checkpoint_name(name): value for name, value in model.state_dict().items()}
    return {("head." if name.startswith("fc.") else "backbone.") + name: value for name, value in weights.items()}


def paddle_weights(model: RedNetForImageClassification) -> dict[str, np.ndarray]:
    names = {"running_mean": "_mean", "running_var": "_variance"}
    return {
        re.sub(r"running_\w+$", lambda name: names[name[0]], key.split(".", 1)[1]): (
            value.numpy().T if key == "head.fc.weight" else value.numpy()
        )
        for key, value in authors_weights(model).items()
        if not key.endswith("num_batches_tracked")
    }


def write_pickle(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def write_to_cache(torch_home: Path, url: str, content: object) -> None:
    """Writes a pickle to where a download of `url` would be."""
    folder = torch_home / "hub/checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    write_pickle(folder / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{url.split('/')[-1]}", content)
