"""Checkpoints in the two public layouts: converted, they give the logits of the authors' and of PaddleClas's code."""

import argparse
import hashlib
import json
import math
import os
import pickle
import re
import subprocess
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import rednet
import skimage.data
import torch
from huggingface_hub import ModelCard
from PIL import Image
from rednet import RedNetBackbone, RedNetConfig, RedNetForImageClassification
from rednet.checkpoints import read
from rednet.checkpoints.download import PUBLISHED
from rednet.checkpoints.layouts import checkpoint_name, find_config
from rednet.configuration_rednet import REMOTE_CODE
from rednet.convert_rednet_to_hf import convert, main, read_config
from rednet.hub import check_hub_folder
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from checkpoint_files import authors_weights, paddle_weights, write_pickle, write_to_cache
from file_server import FileServer
from interpreter import python


@pytest.fixture(scope="module")
def official(root) -> dict:
    return json.loads((root / "tests/data/rednet26.json").read_text())


def authors_fill(key: str, shape: list[int]) -> torch.Tensor:
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


def paddle_fill(key: str, shape: list[int]) -> np.ndarray:
    r = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("_variance"):
        r = 0.5 + np.abs(0.2 * r)
    elif key.endswith("_mean"):
        r = 0.1 * r
    elif len(shape) == 1:
        r = (0.3 if ".bn3." in key else 1) * (1 + 0.1 * r) if key.endswith("weight") else 0.05 * r
    elif len(shape) == 2:
        r = r / math.sqrt(shape[0])
    else:
        r = r / math.sqrt(math.prod(shape[1:])) * (0.1 if ".conv2.conv.weight" in key else 1)
    return r.astype(np.float32)


@pytest.fixture(scope="module")
def authors_rednet26(official) -> dict[str, torch.Tensor]:
    return {key: authors_fill(key, shape) for key, shape in official["mmcls"]["keys"].items()}


@pytest.fixture(scope="module")
def paddle_rednet26(official) -> dict[str, np.ndarray]:
    weights = {key: paddle_fill(key, shape) for key, shape in official["paddleclas"]["keys"].items()}
    return {**weights, "StructuredToParameterName@@": {key: f"parameter of {key}" for key in weights}}


def check_logits(logits: torch.Tensor, expected: dict, tolerance: float) -> None:
    first = torch.tensor(expected["logits_first8"], dtype=torch.float64)
    torch.testing.assert_close(logits[:, :8].double(), first, rtol=0, atol=tolerance)
    assert logits.argmax(1).tolist() == expected["logits_argmax"]
    assert abs(logits.abs().mean().item() - expected["logits_mean_abs"]) < tolerance


@pytest.mark.parametrize("bare", [False, True])
def test_authors_checkpoint(official, authors_rednet26, tmp_path, bare):
    content = authors_rednet26 if bare else {"meta": {"epoch": 130}, "state_dict": authors_rednet26, "optimizer": None}
    torch.save(content, tmp_path / "rednet26.pth")
    convert(tmp_path / "rednet26.pth", tmp_path / "rednet-26")

    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "rednet-26")
    assert rednet.count_parameters(model) == official["mmcls"]["parameters"]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad():
            logits = model.to(memory_format=memory_format)(image.to(memory_format=memory_format)).logits
        check_logits(logits, official["mmcls"], 1e-9)


def test_paddle_checkpoint(official, paddle_rednet26, tmp_path):
    convert(write_pickle(tmp_path / "RedNet26_pretrained.pdparams", paddle_rednet26), tmp_path / "rednet-26")
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype("float32"))
    with torch.no_grad():
        model = AutoModelForImageClassification.from_pretrained(tmp_path / "rednet-26").double()
        logits = model(image.double()).logits
    check_logits(logits, official["paddleclas"], 1e-4)  # what is expected was computed in float32
    card = ModelCard.load(tmp_path / "rednet-26/README.md")
    assert [result.metric_value for result in card.data.eval_results] == [0.7595, 0.9319]
    assert "PaddleClas" in card.data.eval_results[0].source_name


def test_writes_a_complete_folder(authors_rednet26, tmp_path):
    torch.save(authors_rednet26, tmp_path / "rednet26.pth")
    convert(tmp_path / "rednet26.pth", tmp_path / "rednet-26")
    names = ["LICENSE", "README.md", "config.json", "involution.png", "model.safetensors", "notebook.ipynb"]
    names += ["preprocessor_config.json"]
    assert sorted(os.listdir(tmp_path / "rednet-26")) == sorted([*REMOTE_CODE, *names])
    check_hub_folder(tmp_path / "rednet-26")
    config = json.loads((tmp_path / "rednet-26/config.json").read_text())
    assert config["depths"] == [1, 2, 4, 1] and config["stem_kernel_size"] == 3
    names = [config["id2label"][str(n)] for n in range(1000)]
    assert [names[n] for n in (0, 134, 517)] == ["tench, Tinca tinca", "crane", "crane"]
    assert config["label2id"]["toilet tissue, toilet paper, bathroom tissue"] == 999
    processor = AutoImageProcessor.from_pretrained(tmp_path / "rednet-26")
    assert (processor.size["shortest_edge"], processor.crop_pct) == (224, 0.875)
    for mode in ("RGB", "L", "LA", "RGBA", "P", "CMYK", "1", "I;16"):  # as pictures come from the web
        pixel_values = processor(Image.new(mode, (300, 240)), return_tensors="pt")["pixel_values"]
        assert pixel_values.shape == (1, 3, 224, 224), mode
    card = ModelCard.load(tmp_path / "rednet-26/README.md")
    assert [result.metric_value for result in card.data.eval_results] == [0.7596, 0.9319]
    assert card.data.eval_results[0].source_url == "https://github.com/d-li14/involution"


def test_detector_with_a_stem_of_seven(authors_rednet26, tmp_path):
    """Of a detector the backbone is taken: its features are those of the same weights in the backbone class."""
    weights = {key: value.float() for key, value in authors_rednet26.items() if not key.startswith("head.")}
    torch.manual_seed(0)
    weights["backbone.stem.1.conv2.conv.weight"] = torch.randn(98, 8, 1, 1) / 10
    weights["backbone.stem.1.conv2.conv.bias"] = torch.zeros(98)
    parts = {"neck.lateral_convs.0.conv.weight": torch.zeros(3), "roi_head.bbox_head.fc_cls.bias": torch.zeros(2)}
    torch.save({"state_dict": {**weights, **parts}}, tmp_path / "faster_rcnn.pth")
    convert(tmp_path / "faster_rcnn.pth", tmp_path / "detector", backbone_only=True)
    bare = {key.removeprefix("backbone."): value for key, value in weights.items()}
    torch.save(bare, tmp_path / "backbone.pth")
    convert(tmp_path / "backbone.pth", tmp_path / "bare")

    model = AutoModel.from_pretrained(tmp_path / "detector").double()
    assert model.config.stem_kernel_size == 7 and model.config.architectures == ["RedNetModel"]
    backbone = RedNetBackbone.from_pretrained(tmp_path / "bare", out_features=["stage4"]).double()
    image = torch.randn(1, 3, 65, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image).feature_maps[0], model(image).last_hidden_state)
    torch.testing.assert_close(
        model.state_dict()["embedder.layers.1.involution.span.weight"].float(),
        weights["backbone.stem.1.conv2.conv.weight"],
    )
    card = ModelCard.load(tmp_path / "detector/README.md")
    assert card.data.pipeline_tag == "image-feature-extraction" and not card.data.eval_results


def small_classifier(seed: int = 0) -> RedNetForImageClassification:
    torch.manual_seed(seed)
    return RedNetForImageClassification(RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[1], num_labels=5))


def small(seed: int = 0) -> dict[str, torch.Tensor]:
    return authors_weights(small_classifier(seed))


def trained(layout: str) -> dict:
    """What training scripts save: the weights `small()`, and much beside them."""
    weights, other = small(), small(1)
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "momentum_buffer": None}}, "param_groups": [{"lr": 0.1}]}
    beside = {"optimizer": optimizer, "epoch": 3, "best_acc": np.float64(0.5), "args": argparse.Namespace(lr=0.1)}

    def add(prefix: str, weights: dict) -> dict:
        return {f"{prefix}{key}": value for key, value in weights.items()}

    return {
        "DDP": lambda: add("module.", weights),
        "torch.compile": lambda: {"model": add("_orig_mod.", weights), **beside},
        "DDP of torch.compile": lambda: {"state_dict": add("module._orig_mod.", weights), **beside},
        "a compiled part": lambda: {
            "state_dict": {key.replace("backbone.", "backbone._orig_mod."): value for key, value in weights.items()}
        },
        "averaged by torch": lambda: {
            "model": other, "model_ema": {"n_averaged": torch.tensor(7), **add("module.", weights)}, **beside
        },
        "averaged": lambda: {"ema": {"state_dict": weights, "updates": 3}, "model": other, **beside},
        "timm": lambda: {"arch": "rednet", "state_dict": other, "state_dict_ema": weights, "metric": 0.5, **beside},
        "Lightning": lambda: {"state_dict": add("model.", weights), "hyper_parameters": {"lr": 0.1}},
        "net": lambda: {"net": weights, "acc": 50.0},
        "options of averaging": lambda: {"ema": {"decay": 0.99}, "model": weights},
        "only weights": lambda: weights,
        "mmcls, unfinished": lambda: {"meta": {"epoch": 3}, "state_dict": weights, "optimizer": optimizer},
    }[layout]()  # fmt: skip


LAYOUTS = ["DDP", "torch.compile", "DDP of torch.compile", "a compiled part", "averaged by torch", "averaged", "timm"]
LAYOUTS += ["Lightning", "net", "options of averaging", "only weights", "mmcls, unfinished"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_ones_own_training(tmp_path, layout):
    torch.save(trained(layout), tmp_path / "mine.pth")
    convert(tmp_path / "mine.pth", tmp_path / "mine")
    state = AutoModelForImageClassification.from_pretrained(tmp_path / "mine").state_dict()
    for key, value in small().items():
        names = [name for name in state if checkpoint_name(name) == key.split(".", 1)[1]]
        assert len(names) == 1 and torch.equal(state[names[0]], value)
    assert "authors' release" not in ModelCard.load(tmp_path / "mine/README.md").text


def test_accuracies_are_not_claimed_of_ones_own_training(authors_rednet26, tmp_path):
    """Also where depths and classes are those of a published model."""
    torch.save({"model": authors_rednet26, "optimizer": {}}, tmp_path / "mine.pth")
    convert(tmp_path / "mine.pth", tmp_path / "mine")
    card = ModelCard.load(tmp_path / "mine/README.md")
    assert not card.data.eval_results and not card.data.datasets and "75.96" not in card.text
    assert "authors' release" not in card.text and "Comparison with ResNet" not in card.text


def test_accuracies_are_claimed_only_of_published_file_names(paddle_rednet26, tmp_path):
    convert(write_pickle(tmp_path / "best_model.pdparams", paddle_rednet26), tmp_path / "mine")
    card = ModelCard.load(tmp_path / "mine/README.md")
    assert not card.data.eval_results and "PaddleClas" not in card.text


def test_what_the_weights_do_not_show_comes_from_the_configuration(tmp_path):
    """And what they show is checked."""
    shown = {"embedding_size": 32, "hidden_sizes": [64], "depths": [1], "num_labels": 5, "reduction_ratio": 2}
    given = RedNetConfig(**shown, group_channels=8, hidden_act="silu", stem_stride=2, drop_path_rate=0.1)
    torch.save(authors_weights(RedNetForImageClassification(given)), tmp_path / "mine.pth")
    convert(tmp_path / "mine.pth", tmp_path / "mine", given)
    found = RedNetConfig.from_pretrained(tmp_path / "mine")
    for name in (*shown, "group_channels", "hidden_act", "stem_stride", "drop_path_rate"):
        assert getattr(found, name) == getattr(given, name), name
    for change, message in (
        ({"reduction_ratio": 4}, "reduction_ratio is 4 in the configuration, 2 in the checkpoint"),
        ({"kernel_generation": "linear"}, "kernel_generation is 'linear' in the configuration, 'bottleneck' in"),
        ({"num_channels": 1}, "num_channels is 1 in the configuration, 3 in the checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(
                tmp_path / "mine.pth", tmp_path / "other", RedNetConfig(**{**shown, "group_channels": 8, **change})
            )


def test_weights_for_other_images_than_rgb_are_refused(tmp_path):
    config = RedNetConfig(num_channels=4, num_labels=2, depths=[1, 1, 1, 1])
    torch.save(authors_weights(RedNetForImageClassification(config)), tmp_path / "infrared.pth")
    with pytest.raises(ValueError, match="infrared.pth is a model for images of 4 channels, expected 3"):
        convert(tmp_path / "infrared.pth", tmp_path / "infrared")
    assert not (tmp_path / "infrared").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json is damaged: Expecting"),
        ("[1]", "config.json is damaged: it contains a list, expected an object"),
        ('{"model_type": "resnet"}', "config.json has model_type 'resnet', expected 'rednet'"),
        ('{"model_type": "rednet", "stem_stride": 3}', "config.json is not a valid configuration of a RedNet"),
    ],
)
def test_bad_configurations_are_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "config.json")


HOLDS_ITSELF: dict = {"epoch": 3}
HOLDS_ITSELF["model"] = HOLDS_ITSELF


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "weights": {}}, "has no weights: its entries are 'epoch', 'weights', expected one of"),
        ({"model": {"module.a": torch.zeros(1), "a": torch.zeros(1)}}, "some weights twice"),
        ({0: torch.zeros(1)}, "has weights under 0, expected names"),
        (HOLDS_ITSELF, "has no weights: its entries are 'epoch'"),
        ({"model": [1, 2]}, "has no weights: its entries are 'model'"),
        ({"model": {"stem.0.conv.weight": torch.zeros(1), "epoch": 3}}, "'epoch' is int, expected Tensor"),
        (torch.nn.Linear(1, 1), "asks for torch.nn.modules.linear.Linear, and only tensors are read"),
        ({"model": torch.nn.Linear(1, 1)}, "asks for torch.nn.modules.linear.Linear, and only tensors are read"),
    ],
)
def test_files_without_weights_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(tmp_path / "bad.pth", tmp_path / "folder")


class Malicious:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (0, 0, 0, 0), (1, 1, 1, 1), (3, 5, 1, 1)], ids=str)
def test_weights_of_any_shape_give_a_configuration_or_an_error(shape):
    """Each weight in turn. Which of them decide is not known here."""
    weights = {re.sub(r"^(backbone|head)\.", "", key): weight for key, weight in small().items()}
    assert find_config(weights).num_labels == 5
    refused = []
    for key in weights:
        try:
            find_config(weights | {key: torch.zeros(shape)})
        except ValueError as error:
            refused.append(key)
            assert "the checkpoint is not that of a RedNet: " in str(error)
    assert "layer1.0.conv3.weight" in refused


def damage(kind: str, weights: dict) -> dict:
    weights, key = dict(weights), "backbone.layer3.1.conv3.weight"
    if kind == "missing":
        del weights[key]
    elif kind == "surplus":
        weights["backbone.layer3.1.conv4.weight"] = torch.zeros(3)
    elif kind == "shape":
        weights[key] = torch.zeros(1024, 255, 1, 1)
    elif kind == "kernel":
        weights["backbone.layer1.0.conv2.conv2.conv.weight"] = torch.zeros(197, 16, 1, 1)
    elif kind == "other":
        weights = {"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)}
    elif kind == "malicious":
        weights[key] = Malicious()
    elif kind == "not tensors":
        weights[key] = [1.0, 2.0]
    elif kind == "not finite":
        weights[key] = weights[key].clone()
        weights[key][3, 5] = float("nan")
    elif kind in ("negative", "zero"):
        weights["backbone.layer3.1.bn3.running_var"] = torch.zeros(1024) - (kind == "negative") * torch.arange(1024)
    elif kind == "expanded":
        weights[key] = torch.zeros(1).expand(1 << 31)
    return weights


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no 'layer3.1.conv3.weight'"),
        ("surplus", "'layer3.1.conv4.weight'"),
        ("shape", r"'layer3.1.conv3.weight' .* \[1024, 255, 1, 1\], expected \[1024, 256, 1, 1\]"),
        ("kernel", r"'layer1.0.conv2.conv2.conv.weight' has shape \[197, 16, 1, 1\]"),
        ("other", "'layer1.0.conv3.weight' is missing"),
        ("malicious", r"asks for (posix|nt)\.system"),
        ("not tensors", "'backbone.layer3.1.conv3.weight' is list, expected Tensor"),
        ("not finite", r"'layer3.1.conv3.weight' with 1 of 262,144 values NaN or infinite"),
        ("negative", r"'layer3.1.bn3.running_var' with values from -1.02e\+03 to 0, expected positive variances"),
        ("zero", r"'layer3.1.bn3.running_var' with values from 0 to 0, expected positive variances"),
        ("expanded", r"has weights of 8,[\d,]+ bytes, expected at most 4,294,967,296"),
    ],
)
def test_bad_checkpoints_are_refused(authors_rednet26, tmp_path, monkeypatch, kind, message):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": damage(kind, authors_rednet26)}, "bad.pth")
    with pytest.raises(ValueError, match=message):
        convert("bad.pth", "folder")
    assert os.listdir() == ["bad.pth"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"stem.0.conv.weight": Malicious()}, r"asks for (posix|nt)\.system"),
        ({"stem.0.conv.weight": np.array([Malicious()], dtype=object)}, r"asks for (posix|nt)\.system"),
        ({"stem.0.conv.weight": np.array(["text"])}, "'stem.0.conv.weight' is ndarray, expected ndarray of numbers"),
        ({"stem.0.conv.weight": 3}, "'stem.0.conv.weight' is int"),
        ([1, 2], "holds list"),
        ({"fc.weight": np.zeros((2, 3))}, "is missing"),
    ],
)
def test_bad_pickles_are_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    write_pickle(tmp_path / "bad.pdparams", content)
    with pytest.raises(ValueError, match=message):
        convert("bad.pdparams", "folder")
    assert os.listdir() == ["bad.pdparams"]


@pytest.mark.parametrize("place", ["args", "optimizer", "scalar", "model"])
def test_nothing_beside_the_weights_is_executed(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    bad = argparse.Namespace(model=Malicious()) if place == "args" else {"state": [Malicious()]}
    if place == "scalar":
        bad = (Malicious(), np.float64(1))
    torch.save({"model": small(), place: bad}, "bad.pth")
    with pytest.raises(ValueError, match=r"asks for (posix|nt)\.system"):
        convert("bad.pth", "folder")
    assert os.listdir() == ["bad.pth"]


@pytest.mark.parametrize("suffix", [".pth", ".pdparams"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(authors_rednet26, paddle_rednet26, tmp_path, suffix, part):
    whole = tmp_path / f"whole{suffix}"
    torch.save(authors_rednet26, whole) if suffix == ".pth" else write_pickle(whole, paddle_rednet26)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * part)])
    with pytest.raises(ValueError, match=f"cut{suffix} cannot be read as a checkpoint"):
        convert(cut, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_archives_that_unpack_to_more_than_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "MAX_BYTES", 1_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data/0", bytes(2_000_000))
    assert (tmp_path / "bomb.pth").stat().st_size < 10_000
    with pytest.raises(ValueError, match="bomb.pth cannot be read as a checkpoint: it has 2,000,000 bytes, expected"):
        convert(tmp_path / "bomb.pth", tmp_path / "folder")


def test_an_html_page_is_named(tmp_path):
    (tmp_path / "RedNet50_pretrained.pdparams").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(ValueError, match="RedNet50_pretrained.pdparams cannot be read .*: it is an HTML page"):
        convert(tmp_path / "RedNet50_pretrained.pdparams", tmp_path / "folder")


def run(folder: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return python("-m", "rednet.convert_rednet_to_hf", *arguments, cwd=folder, env=os.environ | environment)


def test_command(root, authors_rednet26, tmp_path, monkeypatch):
    torch.save({key: value.float() for key, value in authors_rednet26.items()}, tmp_path / "rednet26.pth")
    arguments = ["--checkpoint", "rednet26.pth", "--output_dir"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("keep")
    other = str(root / "configs/models/rednet-50.json")
    monkeypatch.chdir(tmp_path)
    for more, message in (
        (["out", "--config", other], "depths is [3, 4, 6, 3] in the configuration, [1, 2, 4, 1] in"),
        (["mine"], "not a folder of a saved RedNet, but has README.md"),
    ):
        monkeypatch.setattr("sys.argv", ["convert", *arguments, *more])
        with pytest.raises(SystemExit, match=re.escape(message)):
            main()
    assert (tmp_path / "mine/README.md").read_text() == "keep"
    result = run(tmp_path, *arguments, "out", "--config", root / "configs/models/rednet-26.json", "--check")
    assert result.returncode == 0, result.stderr
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = model(**processor(Image.fromarray(skimage.data.coffee()), return_tensors="pt")).logits[0]
    labels = [model.config.id2label[n] for n in logits.topk(5).indices.tolist()]
    *_, title, top_5 = result.stdout.splitlines()
    assert title == "a cup of coffee (expected: espresso, cup, coffee mug)"
    assert [re.sub(r" \d+\.\d %$", "", row) for row in top_5.strip().split("; ")] == labels


def test_command_with_a_url(official, paddle_rednet26, tmp_path):
    """From the published file on a server to logits."""
    content = pickle.dumps(paddle_rednet26, protocol=4)
    with FileServer({"/dygraph/RedNet26_pretrained.pdparams": content, "/a.pdparams": content[:-1]}) as server:
        url = f"{server.url}/dygraph/RedNet26_pretrained.pdparams"
        environment = {"TORCH_HOME": str(tmp_path / "torch"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        result = run(tmp_path, "--checkpoint", url, "--output_dir", "rednet-26", **environment)
        damaged = run(tmp_path, "--checkpoint", f"{server.url}/a.pdparams", "--output_dir", "damaged", **environment)
    assert re.search(r"a.pdparams cannot be read .*To download it again, delete this file\n$", damaged.stderr)
    assert result.returncode == 0, result.stderr
    sha256 = hashlib.sha256(content).hexdigest()
    card = (tmp_path / "rednet-26/README.md").read_text()
    assert sha256 in result.stdout and sha256 in card and url in card and "75.95" in card
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype("float32"))
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "rednet-26").double()
    with torch.no_grad():
        check_logits(model(image.double()).logits, official["paddleclas"], 1e-4)


def test_command_with_names(tmp_path):
    """`--all` takes the five files from the cache, here with small models."""
    for n, url in enumerate(PUBLISHED.values()):
        write_to_cache(tmp_path / "torch", url, paddle_weights(small_classifier(n)))
    result = run(tmp_path, "--all", "--output_dir", "models", TORCH_HOME=str(tmp_path / "torch"))
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(tmp_path / "models")) == sorted(PUBLISHED)
    for n, (name, url) in enumerate(PUBLISHED.items()):
        state = AutoModelForImageClassification.from_pretrained(tmp_path / "models" / name).state_dict()
        torch.testing.assert_close(state["classifier.weight"], small(n)["head.fc.weight"], rtol=0, atol=0)
        assert url in (tmp_path / "models" / name / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of the arguments --checkpoint --all is required"),
        (("--all", "--config", "a.json"), "--config is for one checkpoint"),
        (("--checkpoint", "rednet-51"), "the checkpoint is rednet-51, expected one of rednet-26, "),
        (("--checkpoint", "rednet-50", "--push_to_hub", "me/rednet-50"), "expected an account or an organization"),
        (("--checkpoint", "rednet-50", "--create_pr"), "need --push_to_hub"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["convert", *arguments, "--output_dir", "out"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert message in f"{stopped.value.code} {capsys.readouterr().err}" and not os.listdir(tmp_path)
