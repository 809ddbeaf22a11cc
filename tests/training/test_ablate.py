"""training/ablate.py: the architectures that it compares, its runs and its summary."""

import csv
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from rednet import RedNetConfig, RedNetForImageClassification, count_macs, count_parameters
from rednet.training import ablate
from rednet.training.engine.study import group_by_axis, table
from transformers import AutoModelForImageClassification


@pytest.fixture
def study(options, tmp_path):
    """A function that writes a study of the digits and returns its arguments."""

    def write(**values):
        path = tmp_path / "study.yaml"
        defaults = {"training": str(options[0]), "axes": ["kernel_size=3,7"], "seeds": [0], "time_batch_size": 2}
        path.write_text(json.dumps({**defaults, "output_dir": str(tmp_path / "study"), **values}))
        return ["--config", str(path)]

    return write


def read(path) -> list[dict]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_trains_every_variant_once(study, tmp_path, capfd):
    short = ["num_train_epochs=1", "max_train_samples=200"]
    ablate.main(study(options=short))
    base, small = read(tmp_path / "study/runs.csv")
    assert (base["axis"], small["axis"], small["value"]) == ("base", "kernel_size", "3")
    for row, name in ((base, "base"), (small, "kernel_size=3")):
        run = tmp_path / "study" / name / "seed_0"
        results = json.loads((run / "results.json").read_text())
        model = AutoModelForImageClassification.from_pretrained(run / "last")
        assert float(row["top_1"]) == results["eval_accuracy"]
        assert int(row["parameters"]) == sum(p.numel() for p in model.parameters()) == results["parameters"]
        assert model.config.kernel_size == (7 if name == "base" else 3)
    capfd.readouterr()
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("results.json"))]
    ablate.main(study(options=short))  # all runs are finished
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("results.json"))] == times
    with pytest.raises(SystemExit, match="another recipe"):
        ablate.main(study(options=["num_train_epochs=2"]))


def test_summary(study, tmp_path):
    """Of finished runs, whose results are written by hand."""
    values = {"base": [0.5, 0.6, 0.9], "kernel_size=3": [0.25, 0.5, 0.5], "group_channels=all": [0.125, 0.25, 0.5]}
    values |= {"operator_type=convolution": [0.75, 0.75, 0.75], "model=small": [0.0, 0.1, 0.2]}
    for name, accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            folder = tmp_path / "study" / name / f"seed_{seed}"
            folder.mkdir(parents=True)
            results = {"eval_accuracy": accuracy, "eval_loss": 1.0, "train_seconds": 3.0}
            (folder / "results.json").write_text(json.dumps(results))
    axes = ["kernel_size=3,7", "group_channels=16,null", "operator_type=convolution"]
    ablate.main(study(axes=axes, models=["small kernel_size=3 reduction_ratio=16"], seeds=[0, 1, 2]))

    for row in read(tmp_path / "study/summary.csv"):
        name = "base" if row["axis"] == "base" else f"{row['axis']}={row['value']}"
        assert float(row["top_1_mean"]) == pytest.approx(np.mean(values[name]))
        assert float(row["top_1_error"]) == pytest.approx(np.std(values[name], ddof=1) / 3**0.5, abs=1e-12)
        assert int(row["runs"]) == 3 and float(row["inference_ms"]) > 0 and float(row["training_ms"]) > 0
        if name != "base":
            assert float(row["difference"]) == pytest.approx(np.mean(values[name]) - np.mean(values["base"]))
            variance = (np.var(values[name], ddof=1) + np.var(values["base"], ddof=1)) / 3
            assert float(row["difference_error"]) == pytest.approx(variance**0.5)
    lines = (tmp_path / "study/summary.md").read_text().splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ") and "parameters" not in line]
    assert names == [
        *("kernel_size 3", "kernel_size 7 (base)"),
        *("group_channels 16 (base)", "group_channels all"),
        *("operator_type involution (base)", "operator_type convolution"),
        *("base", "small"),
    ]
    base, small = [line for line in lines if line.startswith(("| base", "| small"))]
    assert "| 66.67 ± 12.02 |" in base  # of 50, 60 and 90
    # -56.67 is more than two standard errors, the root of 12.02 squared and 5.77 squared
    assert small.endswith("| 10.00 ± 5.77 | **-56.67 ± 13.33** |")
    assert any(line.startswith("| kernel_size 3 ") and line.endswith("| -25.00 ± 14.62 |") for line in lines)
    drawing = ET.parse(tmp_path / "study/ablation.svg")
    assert {"kernel_size top-1", "group_channels top-1"} <= {element.get("id") for element in drawing.iter()}
    assert (tmp_path / "study/ablation.png").stat().st_size > 10_000


def test_variants_differ_from_the_base_in_one_value():
    axes = {"kernel_size": [3, 7], "reduction_ratio": [1, 4, 16], "group_channels": [1, None]}
    base, *others = ablate.make_variants({}, axes)
    assert base.config.to_dict() == RedNetConfig().to_dict()
    changes = [
        {name: value for name, value in other.config.to_dict().items() if value != base.config.to_dict()[name]}
        for other in others
    ]
    assert changes == [
        *({"kernel_size": 3}, {"reduction_ratio": 1}, {"reduction_ratio": 16}),
        *({"group_channels": 1}, {"group_channels": None}),
    ]


def test_models_differ_from_the_base_in_several_values():
    models = ablate.read_models(["ResNet operator_type=convolution depths=[1,2,2,1]", "all group_channels=null"])
    assert models == {
        "ResNet": {"operator_type": "convolution", "depths": [1, 2, 2, 1]},
        "all": {"group_channels": None},
    }
    _, resnet, _ = ablate.make_variants({}, {}, models)
    assert (resnet.name, resnet.config.operator_type, resnet.config.depths) == (
        "model=ResNet",
        "convolution",
        [1, 2, 2, 1],
    )


def test_costs_are_those_of_the_definition():
    """One bottleneck of RedNet-50, by hand: w = 64 channels at 56 x 56, in it kernels of K x K for C / 16 groups."""
    base, small = ablate.make_variants({}, {"kernel_size": [3]})
    with torch.device("meta"):
        models = [RedNetForImageClassification(variant.config) for variant in (base, small)]
    for stage, (depth, width) in enumerate(zip([3, 4, 6, 3], [64, 128, 256, 512])):
        parameters = depth * (49 - 9) * width // 16 * (width // 4 + 1)
        stages = [model.rednet.encoder.stages[stage] for model in models]
        assert count_parameters(stages[0]) - count_parameters(stages[1]) == parameters
    pixels = [(56 // 2**stage) ** 2 for stage in range(4)]
    macs = sum(
        depth * (49 - 9) * (width // 16 * width // 4 + width) * area
        for depth, width, area in zip([3, 4, 6, 3], [64, 128, 256, 512], pixels)
    )
    assert count_macs(models[0]) - count_macs(models[1]) == macs
    costs = [ablate.cost(variant.config, 224) for variant in (base, small)]
    assert costs[0]["macs"] - costs[1]["macs"] == macs and costs[0]["parameters"] == count_parameters(models[0])


@pytest.mark.parametrize(
    "values, words",
    [
        ({"axes": ["kernel_sice=3"]}, "kernel_size"),
        ({"axes": ["kernel_size"]}, "kernel_size=3,5,7"),
        ({"axes": ["kernel_size=4"]}, "odd"),
        ({"axes": ["kernel_size="]}, "kernel_size=3,5,7"),
        ({"axes": ["kernel_size=3,[5"]}, "axis 'kernel_size=3,[5': its values are not YAML"),
        ({"axes": ["kernel_size=3,7", "kernel_size=5"]}, "kernel_size is an axis already"),
        ({"axes": ["kernel_size=3,7,3"]}, "different values"),
        ({"seeds": [1, 1]}, "different integers"),
        ({"models": ["small depths=[1]", "small depths=[2]"]}, "another model 'small'"),
        ({"axes": []}, "axes and models are empty"),
        ({"models": ["depths=[1]"]}, "expected a name and options"),
        ({"models": ["small kernel_sice=3"]}, "kernel_size"),
        ({"models": ["small kernel_size=3,5"]}, "2 values, expected one"),
        ({"models": ["small kernel_size=4"]}, "model 'small'"),
        ({"options": ["learning_rte=1"]}, "learning_rate"),
        ({"training": "nowhere.yaml"}, "nowhere.yaml"),
        ({"seds": [1]}, "seeds"),
    ],
)
def test_mistakes_are_named_before_anything_runs(study, tmp_path, capsys, values, words):
    with pytest.raises(SystemExit) as stopped:
        ablate.main(study(**values))
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "study, architecture",
    [
        ("fashion_mnist_models", "rednet-fashion-mnist"),
        ("open_clip_art_models", "rednet-open-clip-art"),
        ("fashion_mnist_ablation", "rednet-fashion-mnist"),
    ],
)
def test_the_documented_studies_are_what_was_recorded(root, study, architecture):
    folder = root / "benchmarks/results" / study
    runs, summary = read(folder / "runs.csv"), read(folder / "summary.csv")
    for row in summary:
        mine = [float(run["top_1"]) for run in runs if (run["axis"], run["value"]) == (row["axis"], row["value"])]
        assert len(mine) == int(row["runs"]) > 1
        assert float(row["top_1_mean"]) == pytest.approx(np.mean(mine))
        assert float(row["top_1_error"]) == pytest.approx(np.std(mine, ddof=1) / len(mine) ** 0.5)
        for name in row.keys() - {"axis", "value"}:
            row[name] = None if row[name] == "" else float(row[name]) if "." in row[name] else int(row[name])
    base = RedNetConfig(**json.loads((root / f"configs/models/{architecture}.json").read_text()))
    assert table(group_by_axis(summary, base)) in (root / "docs/evidence.md").read_text()


def test_recorded_runs_are_what_was_logged(root):
    logs = list((root / "benchmarks/results").glob("*/*/seed_*/results.json"))
    assert {path.parents[2].name for path in logs} >= {"fashion_mnist_models", "fashion_mnist_models_adamw"}
    for path in logs:
        (axis, _, value), seed = path.parents[1].name.partition("="), path.parent.name.removeprefix("seed_")
        runs = read(path.parents[2] / "runs.csv")
        (run,) = [run for run in runs if (run["axis"], run["value"], run["seed"]) == (axis, value, seed)]
        assert float(run["top_1"]) == json.loads(path.read_text())["eval_accuracy"]


def test_gray_variants_are_refused():
    with pytest.raises(ValueError, match=r"axis num_channels=1 has num_channels 1, expected 3"):
        ablate.make_variants({}, {"num_channels": [3, 1]})
