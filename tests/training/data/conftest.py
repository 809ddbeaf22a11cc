import numpy as np
import pytest
from PIL import Image as PILImage


@pytest.fixture
def folders(tmp_path):
    """Images in a folder for each class: 12 cats and 4 dogs to train on, one of each to evaluate on."""
    for split, name, number in (("train", "cat", 12), ("train", "dog", 4), ("val", "cat", 1), ("val", "dog", 1)):
        (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
        for n in range(number):
            picture = np.full((9, 9, 3), 10 * n + (name == "dog"), np.uint8)
            PILImage.fromarray(picture).save(tmp_path / split / name / f"{n}.png")
    return tmp_path
