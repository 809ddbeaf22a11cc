"""The notebook of a Hub folder: executed in a kernel of Jupyter, where RedNet is remote code, and after a push."""

import os
from pathlib import Path

import nbformat
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from nbclient import NotebookClient
from PIL import Image
from rednet import RedNetForSemanticSegmentation
from rednet.hub import make_card, save_hub_folder
from rednet.hub.cards import EXAMPLE_PICTURE
from rednet.hub.notebook import DATASET, NOTEBOOK, PICTURES
from transformers import ConvNextImageProcessor, SegformerImageProcessor

from remote import WITHOUT_PACKAGES
from small_models import model_without_zeros, small_config


COLORS = ("blue", "green", "red")


def write_data(folder: Path) -> None:
    """One color for each class, in place of the data set of the Hub."""
    (folder / DATASET).mkdir(parents=True)
    features = Features({"image": ImageFeature(), "labels": ClassLabel(names=list(COLORS))})
    for split, count in (("train", PICTURES), ("validation", 9)):
        images = [Image.new("RGB", (40, 40), COLORS[n % 3]) for n in range(count)]
        rows = {"image": images, "labels": [n % 3 for n in range(count)]}
        Dataset.from_dict(rows, features).to_parquet(folder / DATASET / f"{split}.parquet")


def write_models(folder: Path) -> list[nbformat.NotebookNode]:
    """A classifier and a segmentation model, and their notebooks."""
    classifier = model_without_zeros(num_labels=3)
    segmenter = RedNetForSemanticSegmentation(small_config(neck_type="involution", neck_hidden_size=32))
    processors = ConvNextImageProcessor(size={"shortest_edge": 64}), SegformerImageProcessor(size=[64, 64])
    notebooks = []
    for model, processor, name in zip((classifier, segmenter), processors, ("classifier", "segmenter"), strict=True):
        model.config.architectures = [type(model).__name__]
        card = make_card(model.config, f"A {name}", f"me/{name}", "A test.", "None.")
        save_hub_folder(folder / f"me/{name}", model, processor, card)
        notebooks.append(nbformat.read(folder / f"me/{name}/{NOTEBOOK}", as_version=4))
    return notebooks


def test_all_cells_run(tmp_path, picture_url):
    write_data(tmp_path)
    classification, segmentation = write_models(tmp_path)
    for notebook in (classification, segmentation):
        nbformat.validate(notebook)
    # One kernel executes both: the second one after its installation.
    other = [cell for cell in segmentation.cells if "%pip" not in cell.source]
    for number, cell in enumerate(other):
        cell.id = f"segmentation-{number}"
    classification.cells += other
    loads = [cell for cell in classification.cells if EXAMPLE_PICTURE in cell.source]
    assert len(loads) == 2
    for cell in loads:
        cell.source = cell.source.replace(EXAMPLE_PICTURE, picture_url)
    (tmp_path / "start").mkdir()
    (tmp_path / "start/sitecustomize.py").write_text(WITHOUT_PACKAGES)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "start"), "HF_HOME": str(tmp_path / "home")}
    client = NotebookClient(classification, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)

    cells = {cell.source.splitlines()[0]: cell for cell in classification.cells if cell.cell_type == "code"}
    guesses = printed(cells["classify = pipeline("].outputs if "classify = pipeline(" in cells else [])
    assert guesses is not None


def printed(outputs: list) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
