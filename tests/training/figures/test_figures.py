"""The contents of the figures, and the kernels that they show."""

import json
import shutil
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
import rednet
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from rednet.training.figures.__main__ import main
from rednet.training.figures.confusion_matrix import draw_confusion_matrix
from rednet.training.figures.curves import draw_curves
from rednet.training.figures.demo import draw_demo
from rednet.training.figures.kernels import draw_kernels
from rednet.training.figures.trade_off import draw_trade_offs
from transformers import ConvNextImageProcessor

from small_models import check_close, model_without_zeros


SVG = "{http://www.w3.org/2000/svg}"
SIZES = {"embedding_size": 32, "hidden_sizes": [128, 384], "depths": [2, 1], "stem_stride": 2, "num_labels": 3}


@pytest.fixture(scope="module")
def published(root) -> dict:
    return yaml.safe_load((root / "training/figures/trade_off.yaml").read_text())


@pytest.fixture(scope="module")
def model():
    return model_without_zeros(**SIZES)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A model's folder, and a picture that is brighter on the right."""
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder / "last")
    processor = ConvNextImageProcessor(
        size={"shortest_edge": 36}, crop_pct=0.9, image_mean=[0.4] * 3, image_std=[0.3] * 3
    )
    processor.save_pretrained(folder / "last")
    pixels = np.random.default_rng(0).integers(0, 100, (50, 70, 3)) + np.linspace(0, 150, 70)[:, None]
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "picture.png")
    return folder


def write_run(folder, dataset="ILSVRC/imagenet-1k", samples=50000, **more):
    folder.mkdir(parents=True)
    results = {"eval_accuracy": 0.75, "eval_samples": samples, "parameters": 15_500_000, **more}
    options = {"dataset_name": dataset, "validation_split": "validation", "image_size": 36}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "options.json").write_text(json.dumps(options))
    return folder / "results.json"


def points(figure) -> dict[str, list]:
    """What the lines of a figure show, by their id."""
    return {line.get_gid(): line.get_xydata().tolist() for axes in figure.axes for line in axes.lines}


# Kernels


def enlarged(values: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, by NumPy: pixels are squares, and values are constant beyond the outermost centers."""
    for axis in (0, 1):
        centers = (np.arange(values.shape[axis]) + 0.5) * size / values.shape[axis] - 0.5
        values = np.apply_along_axis(lambda line: np.interp(np.arange(size), centers, line), axis, values)
    return values


def test_heat_maps_are_the_sums_of_the_kernels(model, saved):
    figure = draw_kernels(str(saved / "last"), saved / "picture.png")
    shown = {axes.get_title(): axes.images for axes in figure.axes if axes.images}
    expected_titles = ["stage 1, 18 x 18", "group 1 of 2", "group 2 of 2"]
    expected_titles += ["stage 2, 9 x 9", "group 1 of 6", "group 3 of 6", "group 4 of 6", "group 6 of 6"]
    assert list(shown) == expected_titles

    # What the model sees of a picture of 70 x 50: 40 pixels high, of which it takes the middle 36 x 36.
    picture = np.asarray(shown["stage 2, 9 x 9"][0].get_array())
    with Image.open(saved / "picture.png") as image:
        expected = np.asarray(image.resize((56, 40)).crop((10, 2, 46, 38))) / 255
    assert picture.shape == (36, 36, 3) and abs(picture - expected).mean() < 0.03

    # The sum over the window of what a 1x1 convolution generates, as one product with the sum of its weights.
    pixel_values = torch.from_numpy((picture - 0.4) / 0.3).permute(2, 0, 1)[None].float()
    module, inputs = model.rednet.encoder.stages[1].layers[0].layer[1].involution, []
    hook = module.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    with torch.no_grad():
        model(pixel_values)
        hook.remove()
        (hidden_state,) = inputs
        features = module.reduce(F.avg_pool2d(hidden_state, 2))[0].flatten(1)
        weight, bias = module.span.weight.view(6, 49, -1).sum(1), module.span.bias.view(6, 49).sum(1)
        sums = (weight @ features + bias[:, None]).view(6, 9, 9).numpy()
    for group in (0, 2, 3, 5):
        underneath, heat_map = shown[f"group {group + 1} of 6"]
        check_close(torch.tensor(heat_map.get_array()), torch.tensor(enlarged(sums[group], 36)))
        assert underneath.get_array().ndim == 2 and heat_map.get_clim() == shown["group 1 of 6"][1].get_clim()


def test_one_stage_by_command(saved, tmp_path, capsys):
    command = ["kernels", str(saved / "last"), str(saved / "picture.png"), "--output_dir", str(tmp_path)]
    main([*command, "--stage", "2"])
    paths = [tmp_path / f"kernels_picture_stage_2.{suffix}" for suffix in ("svg", "png")]
    assert capsys.readouterr().out.split() == list(map(str, paths)) and sorted(tmp_path.iterdir()) == sorted(paths)
    with Image.open(paths[1]) as image:
        assert image.width > 4 * image.height and len(image.convert("RGB").getcolors(1 << 24)) > 500
    for stage in ("0", "3", "-1"):
        with pytest.raises(SystemExit, match=f"error: stage is {stage}, but .* has stages 1 to 2"):
            main([*command, "--stage", stage])


# Trade-off


def test_the_published_models_are_those_of_the_cards(published):
    """A second source in the repository: what the model cards say the paper says."""
    from rednet.hub.cards import known_checkpoints

    series = {one["name"]: {model.get("name"): model for model in one["models"]} for one in published["series"]}
    for checkpoint, facts in known_checkpoints().items():
        depth = checkpoint.split("-")[1]
        for name in ("RedNet", "ResNet"):
            expected, model = facts["paper"][name.lower()], series[name][depth]
            assert f"{model['parameters']} M" == expected["parameters"]
            assert f"{model['macs']} G" == expected["operations"] and model["top_1"] == expected["top_1"]


def svg_points(path) -> dict[str, np.ndarray]:
    """Where the markers of an .svg are, by the id of their line."""
    groups = ET.parse(path).iter(f"{SVG}g")
    uses = {group.get("id"): group.findall(f".//{SVG}use") for group in groups}
    return {
        name: np.array([[float(u.get("x")), float(u.get("y"))] for u in found])
        for name, found in uses.items()
        if " " in (name or "")
    }


def test_trade_off_shows_the_data_file_and_the_results(published, saved, tmp_path, capsys):
    counted = write_run(tmp_path / "with_model")
    shutil.copytree(saved / "last", tmp_path / "with_model/last")
    given = write_run(tmp_path / "with_macs", dataset="/data/imagenet/train", macs=2_000_000_000)
    main(["trade_off", "--results", str(counted), str(given), "--output_dir", str(tmp_path / "out")])
    paths = [tmp_path / "out/trade_off.svg", tmp_path / "out/trade_off.png"]
    assert capsys.readouterr().out.split() == list(map(str, paths))
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)

    on_paper = svg_points(paths[0])
    model = rednet.RedNetForImageClassification.from_pretrained(saved / "last")
    macs = {"with_model": rednet.count_macs(model, 36, 36) / 1e9, "with_macs": 2}
    for key in ("parameters", "macs"):
        data = {f"{s['name']} {key}": [(m[key], m["top_1"]) for m in s["models"]] for s in published["series"]}
        for name, count in macs.items():
            data[f"{name} {key}"] = [(15.5 if key == "parameters" else count, 75)]
        # The positions on the page are one linear map of the data, upwards and to the right.
        values, positions = np.concatenate(list(data.values())), np.concatenate([on_paper[name] for name in data])
        for column, sign in ((0, 1), (1, -1)):
            slope, offset = np.polyfit(values[:, column], positions[:, column], 1)
            assert slope * sign > 0
            np.testing.assert_allclose(slope * values[:, column] + offset, positions[:, column], atol=1e-3)


def test_markers_lines_and_brightness_tell_series_apart(published):
    lines = draw_trade_offs([])["trade_off"].axes[0].lines
    assert len({line.get_marker() for line in lines}) == len(lines) == len(published["series"])
    assert len({str(line._dash_pattern) for line in lines}) == len(lines)
    assert {line.get_label() for line in lines} == {one["name"] for one in published["series"]}


def test_no_label_lies_on_another(published):
    figure = draw_trade_offs([])["trade_off"]
    figure.draw_without_rendering()
    renderer = figure._get_renderer()
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert len(boxes) == 10
        frame = axes.get_window_extent(renderer)
        for n, box in enumerate(boxes):
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            assert not any(box.overlaps(other) for other in boxes[:n])


def test_other_data_sets_are_drawn_apart(tmp_path, capsys):
    same = write_run(tmp_path / "a/run", macs=10**9)
    part = write_run(tmp_path / "b/run", samples=1000, macs=10**9)  # an accuracy on some of the images
    other = write_run(tmp_path / "c/run", "zalando-datasets/fashion_mnist", 10000)
    drawn = draw_trade_offs([same, part, other])
    assert list(drawn) == [
        "trade_off",
        "trade_off_imagenet_1k_validation_1000_images",
        "trade_off_fashion_mnist_validation_10000_images",
    ]
    published, alone, without_macs = drawn.values()
    assert points(published)[f"{tmp_path}/a/run macs"] == [[1, 75]] and len(points(published)) == 2 * 8
    assert points(alone) == {f"{tmp_path}/b/run {key}": [[x, 75]] for key, x in (("parameters", 15.5), ("macs", 1))}
    assert points(without_macs) == {f"{tmp_path}/c/run parameters": [[15.5, 75]]}
    said = capsys.readouterr().out
    assert "not on the 50000 images of ImageNet-1k validation" in said and f"{tmp_path}/c/run has no model" in said


# Learning curves


LOG = [
    {"step": 10, "loss": 2.0, "learning_rate": 0.3, "images_per_second": 100.0},
    {"step": 20, "loss": 1.5, "learning_rate": 0.2, "images_per_second": 110.0},
    {"step": 25, "epoch": 1, "eval_accuracy": 0.5, "eval_top_5_accuracy": 0.75, "eval_loss": 1.25},
]


def write_log(folder, entries: list[dict], more: str = ""):
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + more)
    return folder


def test_curves_show_the_log(tmp_path, capsys):
    runs = [write_log(tmp_path / "one", LOG, '{"step": 30, "lo'), write_log(tmp_path / "two", LOG[:1])]
    one, two = (points(draw_curves(given)) for given in ([runs[0]], [runs[1]]))
    assert two == {"loss": [[10, 2]], "learning_rate": [[10, 0.3]], "images_per_second": [[10, 100]]}
    assert one == {
        "loss": [[10, 2], [20, 1.5]],
        "eval_loss": [[25, 1.25]],
        "eval_accuracy": [[25, 50]],
        "eval_top_5_accuracy": [[25, 75]],
        "learning_rate": [[10, 0.3], [20, 0.2]],
        "images_per_second": [[10, 100], [20, 110]],
    }
    both = draw_curves(runs)
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["one", "two"]
    losses = [line for line in both.axes[0].lines if line.get_gid() == "loss"]
    assert len(losses) == 2 and losses[0].get_linestyle() != losses[1].get_linestyle()

    main(["curves", *map(str, runs), "--output_dir", str(tmp_path / "out")])
    before = (tmp_path / "out/learning_curves.svg").read_bytes()
    assert ET.fromstring(before).tag == f"{SVG}svg" and (tmp_path / "out/learning_curves.png").is_file()
    main(["curves", *map(str, runs), "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out/learning_curves.svg").read_bytes() == before


@pytest.mark.parametrize("key, name", [("eval_mean_iou", "mIoU"), ("eval_box_ap", "box AP")])
def test_curves_of_segmentation_and_detection(tmp_path, key, name):
    """In per cent; a legend has what is drawn, and neither a loss nor a top-1 that the run did not evaluate."""
    run = write_log(tmp_path / "run", [*LOG[:2], {"step": 25, "epoch": 1, key: 0.375, "eval_samples": 7}])
    figure = draw_curves([run])
    assert points(figure)[key] == [[25, 37.5]]
    loss, accuracy = figure.axes[:2]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training"]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == [name]
    assert not accuracy.texts  # that nothing is logged yet


@pytest.mark.parametrize("number", [1, 9])
def test_a_demo_of_few_pictures(number):
    """Each has its prediction; what is left of the last row is blank."""
    rows = [{"image": Image.new("L", (4, 4)), "label": 0}] * number
    results = {"eval_accuracy": 1.0, "parameters": 5}
    figure = draw_demo(rows, torch.tensor([[0.75, 0.25]] * number), ["cat", "dog"], LOG, results)
    titles = [axes.get_title() for axes in figure.axes if not axes.axison]
    assert titles[:number] == ["cat 75 %"] * number and not any(titles[number:]) and len(titles) % 8 == 0


def test_what_is_missing_is_named(saved, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "none").mkdir()
    write_log(tmp_path / "empty", [])
    write_log(tmp_path / "broken", LOG, "what\n")
    write_run(tmp_path / "old")
    (tmp_path / "old/options.json").unlink()
    (write_run(tmp_path / "odd")).write_text('{"eval_samples": 1}')
    model, picture = str(saved / "last"), str(saved / "picture.png")
    cases = [
        (["curves", "nowhere"], "no such folder: nowhere"),
        (["curves", f"{tmp_path}/none"], "none has no log.jsonl"),
        (["curves", f"{tmp_path}/empty"], "log.jsonl is empty"),
        (["curves", f"{tmp_path}/broken"], "log.jsonl, line 4 is not an entry with a step: what"),
        (["kernels", model, "nowhere.png"], "no such image: nowhere.png"),
        (["kernels", model, f"{tmp_path}/bad.png"], "bad.png cannot be read as an image"),
        (["kernels", f"{tmp_path}/none", picture], "none"),
        (["trade_off", "--results", f"{tmp_path}/none/results.json"], "none/results.json does not exist"),
        (["trade_off", "--results", f"{tmp_path}/old/results.json"], "old/options.json does not exist"),
        (["trade_off", "--results", f"{tmp_path}/odd/results.json"], "odd/results.json .*'parameters'"),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_settings_of_matplotlib_stay_as_they_are():
    """In the figures, not in the process."""
    figure = draw_confusion_matrix(np.eye(2, dtype=int), ["cat", "dog"])
    assert figure.axes[0].xaxis.label.get_size() == 15 and figure.get_layout_engine() is not None
    own = {"font.size", "axes.titlesize", "axes.grid", "figure.figsize", "svg.hashsalt", "lines.linewidth"}
    assert {name: matplotlib.rcParams[name] for name in own} == {name: matplotlib.rcParamsOrig[name] for name in own}
