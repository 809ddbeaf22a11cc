"""The notebook of a Hub folder: executed in a kernel of Jupyter, where RedNet is remote code, and after a push."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from nbclient import NotebookClient
from PIL import Image
from rednet import RedNetForImageClassification, RedNetForSemanticSegmentation
from rednet.hub import make_card, save_hub_folder
from rednet.hub.cards import EXAMPLE_PICTURE
from rednet.hub.notebook import DATASET, NOTEBOOK, PICTURES, make_notebook, set_notebook_repository
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
    processors = ConvNextImageProcessor(size={"shortest_edge": 64}), SegformerImageProcessor(do_resize=False)
    notebooks = []
    for model, processor, name in zip((classifier, segmenter), processors, ("classifier", "segmenter"), strict=True):
        model.config.architectures = [type(model).__name__]
        card = make_card(model.config, f"A {name}", f"me/{name}", "A test.", "None.")
        save_hub_folder(folder / f"me/{name}", model, processor, card)
        notebooks.append(nbformat.read(folder / f"me/{name}/{NOTEBOOK}", as_version=4))
    return notebooks


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Runs all cells in `folder`, with an empty cache, in a kernel that can import neither rednet nor involution."""
    (folder / "start").mkdir()
    (folder / "start/sitecustomize.py").write_text(WITHOUT_PACKAGES)
    environment = {**os.environ, "PYTHONPATH": str(folder / "start"), "HF_HOME": str(folder / "home")}
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)


def outputs(notebook: nbformat.NotebookNode, code: str) -> tuple[str, set[str]]:
    """What the only cell with this code prints or has as its value, and the types of all that it shows."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and code in cell.source]
    texts, types = [], set()
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            texts.append(output.text)
        elif output.output_type in ("execute_result", "display_data"):
            types |= set(output.data)
            texts.append(output.data["text/plain"] if output.output_type == "execute_result" else "")
    return "".join(texts), types


def test_all_cells_run(tmp_path, picture_url):
    write_data(tmp_path)
    notebook, segmentation = write_models(tmp_path)
    for each in (notebook, segmentation):
        nbformat.validate(each)
    # One kernel executes both notebooks: what is special in the second one comes after the cells of the first one.
    special = [cell for cell in segmentation.cells if "me/segmenter" in cell.source or "segment =" in cell.source]
    for number, cell in enumerate(special):
        cell.id = f"segmentation-{number}"
    notebook.cells += special
    for cell in notebook.cells:
        cell.source = cell.source.replace(EXAMPLE_PICTURE, picture_url)
    execute(notebook, tmp_path)

    model = RedNetForImageClassification.from_pretrained(tmp_path / "me/classifier")
    processor = ConvNextImageProcessor.from_pretrained(tmp_path / "me/classifier")
    with torch.no_grad():
        logits = model(**processor(Image.new("RGB", (80, 60), "red"), return_tensors="pt")).logits
    guesses, _ = outputs(notebook, "classify =")
    assert guesses.splitlines()[0].split()[1] == model.config.id2label[logits.argmax().item()]
    assert "torch.Size([1, 128])" in outputs(notebook, "embeddings =")[0]
    assert "image/png" in outputs(notebook, "involution_kernels")[1]
    assert float(outputs(notebook, "trainer.train()")[0].splitlines()[-1]) > 0.5  # three classes
    assert "blue, classified as " in outputs(notebook, "picture = test_pictures[0]")[0]
    masks, types = outputs(notebook, "segment =")
    assert "LABEL_" in masks and "image/png" in types


def test_versions_are_those_of_the_package(root):
    """The installation asks for the oldest releases that the package is installed with."""
    text = make_notebook(small_config(), "RedNet", "me/model")
    dependencies = (root / "pyproject.toml").read_text()
    for name in ("torch", "transformers"):
        needed = re.search(rf'"{name}>=([\d.]+)"', dependencies)[1]
        assert f"{name} {needed} or newer" in " ".join(text.split())
    assert f'\\"transformers>={needed}\\"' in text


def test_a_model_of_convolutions_has_no_kernels():
    sections = {
        operator: re.findall(
            r'"## ([\w -]+)', make_notebook(small_config(operator_type=operator), "RedNet", "me/model")
        )
        for operator in ("convolution", "involution")
    }
    assert "Look at the kernels" in sections["involution"]
    assert sections["convolution"] == [name for name in sections["involution"] if name != "Look at the kernels"]


def test_only_the_name_of_the_repository_changes():
    """In a notebook that somebody ran, edited and saved with other programs."""
    notebook = nbformat.reads(make_notebook(small_config(), "RedNet", "your-name/train"), as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell('print("your-name/training", "train")'))
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="your-name/training\n")]
    before = nbformat.writes(notebook)
    for repository in ("me/things", "you/things"):
        after = set_notebook_repository(before, repository)
        nbformat.validate(nbformat.reads(after, as_version=4))
        expected = before.replace("your-name/training", "OTHER").replace("your-name/train", repository)
        assert json.loads(after) == json.loads(expected.replace("OTHER", "your-name/training"))
    assert set_notebook_repository(set_notebook_repository(before, "me/things"), "you/things") == after


@pytest.mark.parametrize("content", ["", "[]", '{"cells": [], "metadata": {}, "nbformat": 4}', '"your-name/train"'])
def test_a_notebook_of_somebody_else_stays(content):
    assert set_notebook_repository(content, "me/things") == content
