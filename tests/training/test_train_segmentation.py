"""training/train_segmentation.py on real pictures: coins, a flower and sky."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from huggingface_hub import ModelCard
from PIL import Image
from rednet import RedNetConfig, RedNetForImageClassification, count_parameters
from rednet.training import train_segmentation
from rednet.training.data.segmentation import load_pairs, segmentation_loaders
from rednet.training.options.scripts import SegmentationConfig
from sklearn.metrics import jaccard_score
from transformers import AutoConfig, AutoImageProcessor, pipeline

from pictures import COIN, coins, flower_and_sky
from pixel_gradients import InFloat64, crops
from processes import Training, together
from runs import assert_same
from segmentation_files import CLASSES, small_pairs


NAMES = ["background", "coin", "flower", "sky"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Six pictures of about 100 x 80 in the layout that is read; a border of each is not labeled."""
    folder = tmp_path_factory.mktemp("pairs")
    pictures, classes = flower_and_sky()
    picture, numbers = coins()
    for name in ("images", "annotations"):
        (folder / name).mkdir()
    for n, (picture, kind) in enumerate(zip([*pictures, picture], [*classes, COIN * (numbers > 0)])):
        height, width = kind.shape
        for side, part in (("left", slice(None, width // 2)), ("right", slice(width // 2, None))):
            size = (height // 4, width // 8)
            pixels = F.interpolate(picture[None, :, :, part], size, mode="bilinear", antialias=True)[0]
            mask = F.interpolate(kind[None, None, :, part].float(), size, mode="nearest")[0, 0].byte()
            mask[:2] = 255
            pixels = (pixels.permute(1, 2, 0) * 255).byte().numpy()
            Image.fromarray(pixels).save(folder / f"images/{n}-{side}.jpg", quality=95)
            Image.fromarray(mask.numpy()).save(folder / f"annotations/{n}-{side}.png")
    return folder


@pytest.fixture(scope="module")
def options(pairs, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("options")
    model = {"model_type": "rednet", "embedding_size": 32, "hidden_sizes": [64, 64, 128, 128], "depths": [1] * 4}
    model |= {"stem_stride": 2, "neck_hidden_size": 32, "decoder_hidden_size": 32, "neck_type": "involution"}
    model |= {"id2label": dict(enumerate(NAMES)), "label2id": {name: n for n, name in enumerate(NAMES)}}
    (folder / "model.json").write_text(json.dumps(model))
    return {
        "config_name": str(folder / "model.json"),
        "train_dir": str(pairs),
        "validation_dir": str(pairs),
        "dataloader_num_workers": 0,
        "random_scale": [0.8, 1.25],
        "crop_size": [64, 64],
        "per_device_train_batch_size": 3,
        "learning_rate": 0.1,
        "num_warmup_steps": 5,
        "max_grad_norm": 1.0,
        "num_train_epochs": 30,
        "eval_epochs": 14,
        "checkpointing_steps": "9",
        "logging_steps": 10,
    }


@pytest.fixture(scope="module")
def trained(root, options, tmp_path_factory) -> tuple[list[str], Path]:
    """Arguments of a training, and the folder of one that ran to its end."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "options.yaml").write_text(json.dumps(options))
    arguments = ["--config", str(folder / "options.yaml"), "--output_dir"]
    training = Training(
        root, folder / "run.txt", [*arguments, str(folder / "run")], "rednet.training.train_segmentation"
    )
    assert training.wait() == 0, training.text()
    return arguments, folder / "run"


def test_learns_and_the_pipeline_reaches_what_was_reported(trained, pairs):
    """The pipeline, given the files, and scikit-learn find the same intersection over union."""
    results = json.loads((trained[1] / "results.json").read_text())
    assert results["eval_mean_iou"] > 0.45 and results["steps"] == 60 and results["eval_samples"] == 6
    log = [json.loads(line) for line in (trained[1] / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log if "epoch" in entry] == [14, 28, 30]

    segment = pipeline("image-segmentation", model=str(trained[1] / "last"))
    true, found = [], []
    for path in sorted((pairs / "images").iterdir()):
        mask = np.array(Image.open(pairs / f"annotations/{path.stem}.png"))
        prediction = np.zeros_like(mask)
        for part in segment(str(path)):
            prediction[np.array(part["mask"]) > 0] = NAMES.index(part["label"])
        true.append(mask[mask != 255])
        found.append(prediction[mask != 255])
    true, found = np.concatenate(true), np.concatenate(found)
    assert abs(jaccard_score(true, found, average="macro") - results["eval_mean_iou"]) < 1e-3
    assert abs((true == found).mean() - results["eval_overall_accuracy"]) < 1e-3
    of_coins = jaccard_score(true == COIN, found == COIN)
    assert abs(of_coins - results["eval_per_category_iou"]["coin"]) < 1e-3


def test_leaves_a_hub_folder_with_a_card(trained):
    card, results = ModelCard.load(trained[1] / "last/README.md"), (trained[1] / "results.json").read_text()
    config = AutoConfig.from_pretrained(trained[1] / "last")
    assert config.architectures == ["RedNetForSemanticSegmentation"] and config.id2label[1] == "coin"
    assert card.data.pipeline_tag == "image-segmentation" and card.data.metrics == ["accuracy", "mean_iou"]
    mean_iou = json.loads(results)["eval_mean_iou"]
    assert card.data.eval_results[0].metric_value == mean_iou and f"| {100 * mean_iou:.2f} %" in card.text
    assert 'pipeline("image-segmentation"' in card.text and "ImageClassification" not in card.text
    assert "{{" not in card.text and "Multiply-accumulates at 64 x 64" in card.text


def test_killed_in_an_epoch_and_resumed(root, trained, tmp_path):
    """Dropout, scales, crops and distortions are those of the run that was not killed, with loader workers as well."""
    arguments, expected = trained
    folder = tmp_path / "run"
    arguments = [*arguments, str(folder)]
    killed = Training(root, tmp_path / "run.txt", arguments, "rednet.training.train_segmentation")
    killed.kill_when(lambda: (folder / "checkpoints/step_00000027").exists())
    assert not (folder / "last").exists()
    training = Training(
        root, tmp_path / "run.txt", [*arguments, "--dataloader_num_workers", "1"], "rednet.training.train_segmentation"
    )
    assert training.wait() == 0, training.text()
    assert "Resuming from step" in training.text()
    assert_same(folder, expected)


def test_folders_and_columns_are_the_same_data(pairs, options, tmp_path):
    """As files, and as parquet whose masks are in a column `label`; and no order but that of the key."""
    files = {name: sorted(str(path) for path in (pairs / name).iterdir()) for name in ("images", "annotations")}
    columns = {"image": files["images"], "label": files["annotations"]}
    dataset = Dataset.from_dict(columns, Features(dict.fromkeys(columns, ImageColumn())))
    dataset.to_parquet(tmp_path / "train.parquet")
    dataset.select([0]).to_parquet(tmp_path / "validation.parquet")
    other = {"train_dir": None, "validation_dir": None, "dataset_name": str(tmp_path), "label_column_name": "label"}
    batches = []
    for values in (options, {**options, **other}):
        config = SegmentationConfig(**values)
        model_config = AutoConfig.from_pretrained(config.config_name)
        processor = train_segmentation.make_processor(config)
        loader, _ = segmentation_loaders(*load_pairs(config), config, processor, model_config, 0, 1)
        batches.append(list(loader))
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one["pixel_values"], two["pixel_values"]) and torch.equal(one["labels"], two["labels"])
    assert one["pixel_values"].shape == (3, 3, 64, 64) and one["labels"].shape == (3, 64, 64)


def test_the_script_checks_before_the_first_step(root, options, tmp_path, capsys):
    config = small_pairs(tmp_path, CLASSES)
    values = {**options, "train_dir": config.train_dir, "validation_dir": config.train_dir}
    (tmp_path / "options.yaml").write_text(json.dumps(values))
    with pytest.raises(SystemExit, match=r"none is of class 3 \(sky\)"):
        train_segmentation.main(["--config", str(tmp_path / "options.yaml"), "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_the_saved_processor_takes_pictures_of_all_modes(tmp_path, mode):
    """As Pillow converts them to RGB."""
    train_segmentation.make_processor(SegmentationConfig()).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    random = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(random[..., 0].astype(np.uint16))
    else:
        picture = Image.fromarray(random).convert("P" if mode == "PA" else mode).convert(mode)
    found = processor(picture, return_tensors="pt")["pixel_values"][0].double()
    expected = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).double() / 255
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    assert torch.allclose(found, (expected - mean) / std, atol=1e-6)


def test_other_numbers_of_channels_are_refused(options, tmp_path):
    model = json.loads(Path(options["config_name"]).read_text())
    (tmp_path / "gray.json").write_text(json.dumps({**model, "num_channels": 1}))
    with pytest.raises(ValueError, match="gray.json has num_channels 1, expected 3"):
        train_segmentation.make_model(SegmentationConfig(config_name=str(tmp_path / "gray.json")))


@pytest.mark.parametrize("size, processes", [(6, 1), (1, 1), (2, 1), (1, 2), (3, 2)])
def test_every_labeled_pixel_counts_as_much(root, tmp_path, size, processes):
    """In batches and on processes with other numbers of them; against the loss of all crops together."""
    together(root, tmp_path / "output", [str(size), str(tmp_path / "found.pt")], "pixel_gradients", processes)
    found = torch.load(tmp_path / "found.pt")
    model, data = InFloat64(), crops()
    config = SegmentationConfig()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.image_mean, config.image_std))
    logits = model((data["pixel_values"] / 255 - mean) / std).logits
    upsampled = F.interpolate(logits, size=(32, 48), mode="bilinear")
    loss = F.cross_entropy(upsampled, data["labels"], ignore_index=255)
    loss.backward()
    assert torch.allclose(found["loss"], loss, rtol=1e-6)
    for name, parameter in model.named_parameters():
        change = parameter.detach() - found["after"][name]
        assert torch.allclose(change, parameter.grad, rtol=1e-6, atol=1e-7), name


def test_starts_from_a_classifier(options, tmp_path):
    """Its stem and stages, and neck, head and classes of the configuration."""
    torch.manual_seed(0)
    small = {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [1, 2], "num_labels": 10}
    classifier = RedNetForImageClassification(RedNetConfig(**small))
    classifier.save_pretrained(tmp_path)
    config = SegmentationConfig(config_name=options["config_name"], model_name_or_path=str(tmp_path))
    model = train_segmentation.make_model(config)
    for name, value in classifier.rednet.state_dict().items():
        assert torch.equal(model.rednet.state_dict()[name], value), name
    assert model.config.depths == [1, 2] and model.config.neck_type == "involution"
    assert model.config.id2label == dict(enumerate(NAMES)) and model.decode_head.classifier.out_channels == 4
    with pytest.raises(ValueError, match="is not a segmentation model .*RedNetForImageClassification"):
        train_segmentation.make_model(SegmentationConfig(model_name_or_path=str(tmp_path)))


def test_upernet_is_not_what_it_trains(root):
    config = SegmentationConfig(config_name=str(root / "configs/models/upernet-rednet-50-cityscapes.json"))
    with pytest.raises(ValueError, match="type 'upernet', expected 'rednet'"):
        train_segmentation.make_model(config)


@pytest.mark.parametrize("suffix, neck", [("", "convolution"), ("_involution", "involution")])
def test_recipes_build_the_rows_of_the_table(root, pairs, monkeypatch, suffix, neck):
    monkeypatch.chdir(root)
    recipe = f"configs/training/cityscapes_rednet50_fpn{suffix}.yaml"
    arguments = ["--config", recipe, "--train_dir", str(pairs), "--validation_dir", str(pairs)]
    config = train_segmentation.parse_config(arguments)
    assert (config.crop_size, config.max_train_steps, config.sync_batch_norm) == ([512, 1024], 80_000, True)
    config.model_name_or_path = None
    with torch.device("meta"):
        model = train_segmentation.make_model(config)
    row = f"| Semantic FPN | {neck} | convolution | {count_parameters(model) / 1e6:.3f} |"
    assert row in (root / "benchmarks/results/dense-costs.md").read_text()


@pytest.mark.parametrize(
    "more, words",
    [
        (["--crop_size", "64"], "--crop_size is 64, expected a height and a width"),
        (["--random_scale", "2", "1"], "--random_scale is 2 1,"),
        (["--train_dir", "nowhere"], "--train_dir nowhere: there is no such folder"),
        (["--eval_epochs", "0"], "--eval_epochs is 0, expected an integer of at least 1"),
        (["--lr_scheduler_type", "poly"], "cosine, polynomial"),
    ],
)
def test_bad_options_are_named(trained, tmp_path, capsys, more, words):
    with pytest.raises(SystemExit):
        train_segmentation.parse_config([*trained[0], str(tmp_path), *more])
    assert words in capsys.readouterr().err
