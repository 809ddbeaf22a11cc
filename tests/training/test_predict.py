"""training/predict.py: its rows against the model itself, and runs that are killed or shared by processes."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from datasets import Image as ImageFeature
from datasets import load_dataset
from PIL import Image
from rednet import RedNetForImageClassification
from rednet.training.engine.models import fingerprint
from rednet.training.predict import main
from rednet.training.utils.files import locked
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from processes import Training, together
from small_models import small_config


BAD = {
    "b/damaged.jpg": "OSError: image file is truncated",
    "b/empty.png": "UnidentifiedImageError: the file is not a picture",
    "broken.png": "FileNotFoundError",
    "deep/bits.png": "ValueError: its pixels are of the mode I;16",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of several modes and depths, and files that are damaged or no pictures."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in ("a", "a/x/y/z", "b", "deep"):
        (root / name).mkdir(parents=True, exist_ok=True)

    def picture(mode: str) -> Image.Image:
        return Image.fromarray(random.integers(0, 256, (14, 10, 3), np.uint8)).convert(mode)

    modes = {"a.png": "RGB", "a/x/y/z/1.png": "L", "a/2.jpg": "RGB", "a/10.png": "P", "b/cmyk.jpg": "CMYK"}
    for name, mode in (modes | {"deep/alpha.png": "RGBA", "deep/binary.png": "1", "Z.JPG": "RGB"}).items():
        picture(mode).save(root / name)
    picture("RGB").resize((40, 40)).save(root / "b/damaged.jpg")
    content = (root / "b/damaged.jpg").read_bytes()
    (root / "b/damaged.jpg").write_bytes(content[: len(content) * 2 // 3])
    Image.fromarray(random.integers(0, 2**16, (9, 9), np.uint16)).save(root / "deep/bits.png")
    (root / "b/empty.png").touch()
    (root / "broken.png").symlink_to("nowhere.png")
    for name in ("notes.txt", ".hidden.png"):
        (root / name).write_text("not a picture")
    (root / "linked").symlink_to(root / "a/x")
    return root


def predicted(model, input, output, *options) -> pandas.DataFrame:
    main(arguments(model, input, output, *options))
    return pandas.read_parquet(output)


def arguments(model, input, output, *options) -> list[str]:
    given = ["--model_name_or_path", str(model), "--input", str(input), "--output", str(output)]
    return [*given, "--dataloader_num_workers", "0", *map(str, options)]


def direct(folder, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Probabilities, pooled features and names of classes, by the Auto classes."""
    processor, model = (c.from_pretrained(folder) for c in (AutoImageProcessor, AutoModelForImageClassification))
    pixels = processor([image.convert("RGB") for image in images], return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**pixels).logits.double()
        features = model.rednet(**pixels).pooler_output.flatten(1)
    return logits.softmax(1).numpy(), features.numpy(), model.config.id2label


def test_a_folder_of_any_pictures(start, pictures, tmp_path, capsys):
    """All rows in the order of the paths; the labels are the model's, and each bad picture has its reason."""
    table = predicted(
        start, pictures, tmp_path, "--top_k", 3, "--per_device_eval_batch_size", 5, "--rows_per_shard", 6
    )
    suffixes = {".png", ".jpg"}
    files = [path for folder in (pictures, pictures / "linked") for path in folder.rglob("*")]
    files = [path.relative_to(pictures) for path in files if path.suffix.lower() in suffixes and path.name[0] != "."]
    files = sorted(files, key=lambda path: path.parts)
    assert list(table["path"]) == [str(path) for path in files] and "linked/y/z/1.png" in set(table["path"])
    assert list(table["row"]) == list(range(13)) and list(table) == ["row", "path", "labels", "probabilities", "error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"part-00000{n}.parquet" for n in range(3)]
    errors = table[table["error"].notna()].set_index("path")
    assert (
        errors.index.tolist() == list(BAD) and errors["labels"].isna().all() and errors["probabilities"].isna().all()
    )
    assert all(text in errors["error"][path] for path, text in BAD.items())
    good = table[table["error"].isna()]
    probabilities, _, names = direct(start, [Image.open(pictures / path) for path in good["path"]])
    order = np.argsort(-probabilities)[:, :3]
    assert [list(labels) for labels in good["labels"]] == [[names[n] for n in ranked] for ranked in order]
    expected = np.take_along_axis(probabilities, order, 1)
    assert np.allclose(np.stack(good["probabilities"]), expected, rtol=0, atol=1e-6)
    assert f"13 pictures, of which 4 could not be read -> {tmp_path}" in capsys.readouterr().out


def test_probabilities_and_embeddings_of_a_data_set(start, digits, tmp_path):
    """A stream has the same rows. top_k may exceed the number of classes."""
    data = ["--split", "test", "--image_column_name", "picture", "--rows_per_shard", 150]
    images = load_dataset(str(digits))["test"]["picture"]
    probabilities, features, names = direct(start, list(images))
    table = predicted(start, digits, tmp_path / "probabilities", *data, "--output_type", "probabilities", "--top_k", 9)
    assert np.allclose(np.stack(table["probabilities"]), probabilities, rtol=0, atol=1e-6)
    assert list(table["label"]) == [names[n] for n in probabilities.argmax(1)]
    data += ["--output_type", "embeddings"]
    table = predicted(start, digits, tmp_path / "embeddings", *data)
    assert np.allclose(np.stack(table["embedding"]), features, rtol=1e-4, atol=1e-5) and features.shape == (397, 128)
    assert list(table["row"]) == list(range(397)) and len(list((tmp_path / "embeddings").iterdir())) == 3
    stream = predicted(start, digits, tmp_path / "stream", *data, "--streaming")
    pandas.testing.assert_frame_equal(stream, table)


def test_pictures_that_a_data_set_lacks(start, digits, tmp_path):
    """A row without a picture, and one whose bytes are no picture."""
    images = load_dataset(str(digits))["test"].select_columns("picture").select(range(5))
    rows = list(images.cast_column("picture", ImageFeature(decode=False)))
    rows[1], rows[3] = {"picture": None}, {"picture": {"bytes": b"GIF89a", "path": "a.gif"}}
    (tmp_path / "data").mkdir()
    type(images).from_list(rows, images.features).to_parquet(tmp_path / "data/test.parquet")
    table = predicted(start, tmp_path / "data", tmp_path / "rows", "--split", "test", "--image_column_name", "picture")
    assert list(table["error"].notna()) == [False, True, False, True, False]
    assert table["error"][1] == "ValueError: there is no picture" and table["path"][3] == "a.gif"


def test_a_killed_run_resumes_with_two_processes(root, start, digits, tmp_path):
    """The files of the killed run stay as they are; all rows are those of a run that was not killed, up to rounding."""
    options = ["--split", "test", "--image_column_name", "picture", "--rows_per_shard", 16]
    options += ["--output_type", "embeddings", "--per_device_eval_batch_size", 4]
    whole = predicted(start, digits, tmp_path / "whole", *options)
    output = tmp_path / "killed"
    command = arguments(start, digits, output, *options)
    training = Training(root, tmp_path / "output.txt", command, "rednet.training.predict", OMP_NUM_THREADS="1")
    training.kill_when(lambda: len(list(output.glob("part-*.parquet"))) >= 3)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.glob("part-*.parquet")}
    assert 3 <= len(before) < 25
    text = together(root, tmp_path / "together.txt", command, "rednet.training.predict")
    assert "397 pictures, of which 0 could not be read" in text
    assert before.items() <= {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in output.iterdir()}.items()
    assert sorted(path.name for path in output.iterdir()) == [f"part-{n:06}.parquet" for n in range(25)]
    resumed = pandas.read_parquet(output)
    assert list(resumed["row"]) == list(range(397))
    assert np.allclose(np.stack(resumed["embedding"]), np.stack(whole["embedding"]), rtol=1e-5, atol=1e-6)


def test_a_finished_run_has_nothing_to_do(start, pictures, tmp_path):
    predicted(start, pictures, tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns, path.stat().st_ino
    predicted(start, pictures, tmp_path, "--per_device_eval_batch_size", 3)  # an option that changes no row
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_classes_that_are_not_counted_from_zero_are_named(start, pictures, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(start)
    model.config.id2label = {number + 1: name for number, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match=r"id2label for the classes \[1, 2, 3, 4, 5\] of 5, expected 0 to 4"):
        main(arguments(tmp_path / "model", pictures, tmp_path / "rows"))
    assert not (tmp_path / "rows").exists()


def test_a_second_run_at_the_same_time_is_refused(start, pictures, tmp_path):
    with locked(tmp_path), pytest.raises(SystemExit, match=f"another process writes to {tmp_path}"):
        main(arguments(start, pictures, tmp_path))


def test_a_folder_of_another_run_is_refused(start, pictures, tmp_path, monkeypatch):
    """Other options, other weights under the same name, other pictures, or files that are not of this script."""
    model, folder, output = tmp_path / "model", tmp_path / "pictures", tmp_path / "output"
    classifier = AutoModelForImageClassification.from_pretrained(start)
    AutoImageProcessor.from_pretrained(start).save_pretrained(model)
    classifier.save_pretrained(model)
    folder.mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    predicted(model, folder, output)
    with pytest.raises(SystemExit, match=r"part-000000.parquet belongs to a run with other options \(top_k 5 -> 2\)"):
        predicted(model, folder, output, "--top_k", 2)
    (folder / "2.png").rename(folder / "3.png")
    with pytest.raises(SystemExit, match=r"\(pictures '2 files, \w+' -> '2 files, \w+'\)"):
        predicted(model, folder, output)
    (folder / "3.png").rename(folder / "2.png")
    weights = fingerprint(classifier)
    with torch.no_grad():
        classifier.classifier.bias[0] += 1e-3
    assert fingerprint(classifier) != weights == fingerprint(AutoModelForImageClassification.from_pretrained(model))
    classifier.save_pretrained(model)
    with pytest.raises(SystemExit, match=rf"\(weights '{weights}' -> "):
        predicted(model, folder, output)
    pandas.DataFrame({"row": [0]}).to_parquet(tmp_path / "part-1.parquet")
    with pytest.raises(SystemExit, match="part-1.parquet was not written by predict.py"):
        predicted(model, folder, tmp_path)
    (output / "part-000000.parquet").write_text("half")
    with pytest.raises(SystemExit, match="part-000000.parquet cannot be read as parquet"):
        predicted(model, folder, output)


@pytest.mark.parametrize(
    "given, words",
    [
        ([], "give --model_name_or_path"),
        (["--model_name_or_path", "a", "--output", "b"], "give --input"),
        (["--model_name_or_path", "a", "--input", "nowhere", "--output", "b"], "A data set needs --split"),
        (["--model_name_or_path", "a", "--input", ".", "--output", "b", "--streaming"], "--streaming needs --split"),
        (["--top_k", "0"], "--top_k is 0, expected an integer of at least 1"),
        (["--model_name_or_path", "MODEL", "--input", "EMPTY", "--output", "b"], "has no pictures"),
        (["--model_name_or_path", "MODEL", "--input", "LOOP", "--output", "b"], "loop, which contains it"),
        (
            ["--model_name_or_path", "MODEL", "--input", "ONE", "--output", "one/1.png"],
            "1.png is not a folder",
        ),
        (["--model_name_or_path", "PLAIN", "--input", "ONE", "--output", "b"], "plain has no classes"),
        (["--model_name_or_path", "TRUNCATED", "--input", "ONE", "--output", "b"], "weights of truncated are damaged"),
        (
            ["--model_name_or_path", "MODEL", "--input", "ONE", "--output", "one/1.png/deep"],
            "1.png is not a folder",
        ),
        (
            ["--model_name_or_path", "MODEL", "--input", "BYTES", "--output", "b"],
            r"\udcff.png' has a name that is not UTF-8",
        ),
        (["--model_name_or_path", "MODEL", "--input", "DIGITS", "--split", "x", "--output", "b"], "['test', 'train']"),
        (
            ["--model_name_or_path", "MODEL", "--input", "DIGITS", "--split", "test", "--output", "b"],
            "has the columns ['digit', 'picture']",
        ),
        (
            "--model_name_or_path MODEL --input DIGITS --split test --image_column_name digit --output b".split(),
            "expected an Image",
        ),
        (
            ["--model_name_or_path", "VIT", "--input", "DIGITS", "--output_type", "embeddings", "--output", "b"],
            "vit has no pooled features",
        ),
    ],
)
def test_wrong_options_are_named(given, words, start, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop/again").symlink_to("..")
    (tmp_path / "loop/again/loop.png").write_text("")
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8)
    config.patch_size = 4
    ViTForImageClassification(config).save_pretrained("vit")
    AutoImageProcessor.from_pretrained(start).save_pretrained("vit")
    (tmp_path / "one").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one/1.png")
    (tmp_path / "bytes").mkdir()
    if "BYTES" in given:
        Path(os.fsdecode(b"bytes/\xff.png")).touch()
    names = {"MODEL": start, "DIGITS": digits, "EMPTY": "empty", "LOOP": "loop", "ONE": "one", "VIT": "vit"}
    RedNetForImageClassification(small_config(num_labels=0)).save_pretrained("plain")
    AutoImageProcessor.from_pretrained(start).save_pretrained("plain")
    shutil.copytree("plain", "truncated")
    os.truncate("truncated/model.safetensors", 5000)
    names |= {"BYTES": "bytes", "PLAIN": "plain", "TRUNCATED": "truncated"}
    with pytest.raises(SystemExit) as stopped:
        main([str(names.get(word, word)) for word in given])
    assert words in f"{stopped.value} {capsys.readouterr().err}" and not (tmp_path / "b").exists()
