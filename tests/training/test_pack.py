"""training/pack.py as a command, and what trains on its files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image
from rednet.training import pack
from rednet.training.data.batches import epoch_length, training_loader
from rednet.training.data.sources import load_images
from rednet.training.options.scripts import TrainingConfig
from rednet.training.utils.files import locked
from sklearn.datasets import load_sample_images

from processes import Training


NUM_TRAINED = 42  # pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Class folders: 30 cats and 12 dogs to train on, 3 and 2 to evaluate on. Their first pixels tell which they are."""
    folder = tmp_path_factory.mktemp("pictures")
    photograph = Image.fromarray(load_sample_images().images[0])
    for split, name, number in (("train", "cat", 30), ("train", "dog", 12), ("val", "cat", 3), ("val", "dog", 2)):
        (folder / split / name).mkdir(parents=True)
        for n in range(number):
            picture = photograph.resize((90 + 8 * n, 60 + 6 * n))
            picture.save(folder / split / name / f"{n:02}.jpg", quality=95)
    return folder


def command(pictures: Path, output: Path, *more: str) -> list[str]:
    folders = ["--train_dir", str(pictures / "train"), "--validation_dir", str(pictures / "val")]
    options = ["--shortest_edge", "100", "--pictures_per_shard", "4", "--preprocessing_num_workers", "0"]
    return [*folders, *options, "--output_dir", str(output), *more]


@pytest.fixture(scope="module")
def packed(pictures, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("packed") / "output"
    pack.main(command(pictures, output))
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def config_for(folder: Path, **more) -> TrainingConfig:
    values = {"dataset_name": str(folder), "image_size": 32, "per_device_train_batch_size": 21}
    return TrainingConfig(**values, dataloader_num_workers=0, **more)


def test_datasets_loads_it(pictures, packed):
    splits = load_dataset(str(packed))
    for split, folder in (("train", "train"), ("validation", "val")):
        files = sorted((pictures / folder).rglob("*.jpg"))
        assert splits[split].features["label"] == ClassLabel(names=["cat", "dog"])
        assert [path.parent.name for path in files] == [["cat", "dog"][label] for label in splits[split]["label"]]
        for path, picture in zip(files, splits[split]["image"], strict=True):
            with Image.open(path) as original:
                scale = min(100 / min(original.size), 1)
                expected = original.resize([round(side * scale) for side in original.size], Image.Resampling.LANCZOS)
            assert picture.size == expected.size
            assert np.abs(np.asarray(picture, int) - np.asarray(expected, int)).mean() < 4
    assert len(list(packed.glob("data/*.parquet"))) == 16 + 2


def test_small_pictures_give_the_same_batches(pictures, tmp_path):
    """Copied byte for byte, they are augmented to the same pixels."""
    pack.main([*command(pictures, tmp_path / "output"), "--shortest_edge", "500"])
    folders = {"train_dir": str(pictures / "train"), "validation_dir": str(pictures / "val"), "dataset_name": ""}
    batches = []
    for values in ({}, folders):
        config = TrainingConfig(**{**vars(config_for(tmp_path / "output")), **values})
        batches.append(list(training_loader(load_images(config)[0], config, 2, 0, 1)))
    assert len(batches[0]) == 2
    for one, other in zip(*batches, strict=True):
        assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_a_stream_knows_its_length(packed):
    config = config_for(packed, streaming=True)
    images, _ = load_images(config)
    assert epoch_length(images, config) == NUM_TRAINED and images.num_shards == 16
    loader = training_loader(images, config, 2, 0, 1)
    labels = [label for batch in loader for label in batch["labels"].tolist()]
    assert sorted(labels) == [0] * 30 + [1] * 12


def test_workers_make_no_difference(pictures, packed, tmp_path):
    pack.main([*command(pictures, tmp_path / "output"), "--preprocessing_num_workers", "2"])
    assert contents(tmp_path / "output") == contents(packed)


def test_a_killed_run_resumes(root, pictures, packed, tmp_path):
    output = tmp_path / "output"
    shards = output / ".unfinished"
    more = ["--preprocessing_num_workers", "1"]
    run = Training(root, tmp_path / "log", command(pictures, output, *more), "rednet.training.pack")
    run.kill_when(lambda: len(list(shards.glob("[a-z]*.parquet"))) >= 3)
    assert not (output / "data").exists()
    with pytest.raises(FileNotFoundError, match="doesn't contain any data files"):
        load_dataset(str(output))

    finished = sorted(shards.glob("[a-z]*.parquet"))
    assert 3 <= len(finished) < 18
    damaged = bytearray(finished[0].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    finished[0].write_bytes(damaged)
    (shards / ".train-00009.parquet.123").write_bytes(b"of a process that was killed")
    times = {path.name: path.stat().st_mtime_ns for path in finished}
    pack.main(command(pictures, output))
    assert contents(output) == contents(packed)
    kept = [name for name in times if (output / "data" / name).stat().st_mtime_ns == times[name]]
    assert kept == [path.name for path in finished[1:]], "complete shards are not written again"


def test_a_finished_data_set_is_checked_and_repaired(pictures, packed, tmp_path, capsys):
    output = tmp_path / "output"
    shutil.copytree(packed, output)
    path = output / "data" / "train-00005.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    pack.main(command(pictures, output))
    assert contents(output) == contents(packed)
    assert f"train: {NUM_TRAINED} pictures" in (printed := capsys.readouterr().out)
    assert printed.endswith(f"-> --dataset_name {output}\n")


def test_a_missing_shard_is_an_error_of_datasets(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "output")
    (tmp_path / "output" / "data" / "train-00005.parquet").unlink()
    with pytest.raises(DatasetsError):
        load_dataset(str(tmp_path / "output"), cache_dir=str(tmp_path / "cache"))


def test_damaged_pictures_are_left_out_and_listed(pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "pictures")
    for name in ("cat/02.jpg", "dog/11.jpg"):
        path = tmp_path / "pictures" / "train" / name
        path.write_bytes(path.read_bytes()[:1500])  # the header is complete
    pack.main(command(tmp_path / "pictures", tmp_path / "output"))
    assert f"{NUM_TRAINED - 2} pictures, without 2 damaged ones" in capsys.readouterr().out
    header, *lines = (tmp_path / "output" / "damaged.csv").read_text().splitlines()
    assert header == "split,row,path,error"
    for line, row, name in zip(lines, (2, 41), ("cat/02.jpg", "dog/11.jpg"), strict=True):
        assert line.startswith(f"train,{row},{tmp_path}/pictures/train/{name},OSError: ") and "truncated" in line
    assert len(load_dataset(str(tmp_path / "output"), split="train")) == NUM_TRAINED - 2


def test_a_split_without_pictures(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "pictures")
    for path in (tmp_path / "pictures" / "val").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(SystemExit, match="'validation' of .* has no pictures"):
        pack.main(command(tmp_path / "pictures", tmp_path / "output"))
    assert not (tmp_path / "output" / "data").exists()


def test_pictures_are_checked_before_they_are_packed(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "train" / "cat" / "02.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=r"has 1 problem:\n- .*cat/02.jpg: it cannot be read"):
        pack.main(command(tmp_path / "pictures", tmp_path / "output"))


def test_other_sources(digits, digit_archives, tmp_path):
    """Splits keep their names, columns become `image` and `label`, and PNG files of 8 x 8 pixels are unchanged."""
    columns = ["--image_column_name", "picture", "--label_column_name", "digit", "--validation_split", "test"]
    options = ["--preprocessing_num_workers", "0", "--max_train_samples", "50", "--max_eval_samples", "10"]
    pack.main(["--dataset_name", str(digits), *columns, *options, "--output_dir", str(tmp_path / "digits")])
    values = {"dataset_name": str(digits), "image_column_name": "picture", "label_column_name": "digit"}
    limits = {"validation_split": "test", "max_train_samples": 50, "max_eval_samples": 10}
    expected = load_images(TrainingConfig(**values, **limits))
    for one, other in zip(load_images(TrainingConfig(dataset_name=str(tmp_path / "digits"), **limits)), expected):
        assert sorted(one["label"]) == sorted(other["label"]) and one.features["label"] == other.features["label"]
        pixels = [sorted(np.asarray(image).tobytes() for image in images["image"]) for images in (one, other)]
        assert pixels[0] == pixels[1]

    columns = ["--image_column_name", "png", "--label_column_name", "cls", "--validation_split", "test"]
    more = ["--streaming", "--pictures_per_shard", "40", "--output_dir", str(tmp_path / "stream")]
    for _ in range(2):  # the second time, all shards are there
        pack.main(["--dataset_name", str(digit_archives), *columns, *options, *more])
    splits = load_dataset(str(tmp_path / "stream"))
    stream = load_dataset(str(digit_archives), split="train", streaming=True).take(50)
    assert [row["cls"] for row in stream] == splits["train"]["label"][:] and len(splits["test"]) == 10


def test_shuffled_by_seed(pictures, packed, tmp_path):
    plain = load_dataset(str(packed), split="train")["label"][:]
    orders = []
    for seed in ("1", "2"):  # in the same folder: `datasets` caches both
        shutil.rmtree(tmp_path / "output", ignore_errors=True)
        pack.main([*command(pictures, tmp_path / "output"), "--shuffle", "--seed", seed])
        orders.append(load_dataset(str(tmp_path / "output"), split="train")["label"][:])
    one, two = orders
    assert sorted(one) == sorted(two) == plain and one != plain != two and one != two


def test_errors(pictures, packed, tmp_path, capsys):
    def error(arguments: list[str]) -> str:
        with pytest.raises(SystemExit) as failure:
            pack.main(arguments)
        return str(failure.value.code) + capsys.readouterr().err

    before = contents(packed)
    with locked(packed):
        assert f"another process writes to {packed}" in error(command(pictures, packed))
    for name in ("", "a/b", "a b", "tr*"):
        assert f"--train_split is {name!r}, expected letters" in error(
            [*command(pictures, packed), "--train_split", name]
        )
    assert "jpeg_quality 90 -> 80" in error([*command(pictures, packed), "--jpeg_quality", "80"])
    shutil.copytree(pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "train" / "cat" / "02.jpg").rename(tmp_path / "pictures" / "train" / "dog" / "02b.jpg")
    assert "other pictures or labels" in error(command(tmp_path / "pictures", packed))
    assert contents(packed) == before

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    assert f"{mine} exists and has no packed data set" in error(command(pictures, mine))
    assert contents(mine) == {"file": b"mine"}
    assert "give one of --dataset_name" in error(["--output_dir", str(tmp_path / "new")])
    assert "expected an integer from 1 to 95" in error([*command(pictures, tmp_path / "new"), "--jpeg_quality", "96"])
    assert "excludes --streaming" in error([*command(pictures, tmp_path / "new"), "--streaming", "--shuffle"])
    assert "train_split is 'x'" in error(
        ["--dataset_name", str(packed), "--train_split", "x", "--validation_split", "y"]
    )
    assert not (tmp_path / "new").exists()


def test_a_picture_that_cannot_be_read_ends_the_run(pictures, tmp_path, monkeypatch):
    """The disk may be at fault: the run does not go on without the picture."""
    shutil.copytree(pictures, tmp_path / "pictures")
    missing = tmp_path / "pictures" / "train" / "dog" / "03.jpg"
    monkeypatch.setattr(pack, "check_images", lambda *_: missing.unlink())  # after it was listed
    with pytest.raises(SystemExit, match="No such file.*03.jpg"):
        pack.main([*command(tmp_path / "pictures", tmp_path / "output"), "--preprocessing_num_workers", "1"])
