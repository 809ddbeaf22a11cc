"""Model cards: every number in them is that of the model, of a committed record, or of the source it names."""

import copy
import csv
import difflib
import json
import subprocess
import sys

import pytest
from huggingface_hub import EvalResult, ModelCard
from rednet import RedNetConfig
from rednet.hub.cards import add_results, imagenet_card, known_checkpoints, make_card, set_repository


# Parameters and MACs as published, and the authors' released top-1 and top-5.
PUBLISHED = {
    "rednet-26": (9_233_166, 1.685, 75.96, 93.19),
    "rednet-38": (12_386_986, 2.167, 77.48, 93.57),
    "rednet-50": (15_540_806, 2.649, 78.35, 94.13),
    "rednet-101": (25_652_950, 4.659, 78.92, 94.35),
    "rednet-152": (33_984_582, 6.679, 79.12, 94.38),
}


@pytest.fixture(scope="module")
def cards(tmp_path_factory) -> dict[str, ModelCard]:
    folder = tmp_path_factory.mktemp("cards")
    command = [sys.executable, "-m", "rednet.hub", "cards", "--output_dir", str(folder), "--namespace", "me"]
    subprocess.run(command, check=True)
    assert {path.name for path in folder.iterdir()} == set(PUBLISHED)
    assert all((folder / name / "involution.png").is_file() for name in PUBLISHED)
    return {name: ModelCard.load(folder / name / "README.md") for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers(cards, root, name):
    parameters, macs, top_1, top_5 = PUBLISHED[name]
    text = cards[name].text
    for row in (
        f"| Parameters | {parameters:,} |",
        f"| Multiply-accumulates at 224 x 224 | {macs:.3f} G |",
        f"| Top-1 on ImageNet-1k | {top_1:.2f} % (as published with the authors' release) |",
        f"| Top-5 on ImageNet-1k | {top_5:.2f} % (as published with the authors' release) |",
    ):
        assert row in text
    assert "{{" not in text and "None" not in text
    config = json.loads((root / f"configs/models/{name}.json").read_text())
    assert known_checkpoints()[name]["depths"] == config["depths"]


def test_speed_is_that_of_the_record(cards, root):
    speed = known_checkpoints()["rednet-50"]["speed"]
    with open(root / f"benchmarks/results/{speed['record']}.csv") as file:
        record = [row for row in csv.DictReader(file) if row["peer"].startswith("ResNet-50")]
    for row in speed["rows"]:
        measured = next(r for r in record if r["what"] == row["what"] and int(r["batch"]) == row["batch"])
        assert row["rednet"] == measured["RedNet-50"]
        assert f"{row['beside_resnet']:.2f} x as fast" == measured["beside the peer"]
        assert f"| {row['rednet']} | {row['beside_resnet']:.2f} x as fast |" in cards["rednet-50"].text
    assert "was not measured" in cards["rednet-26"].text


def test_metadata(cards):
    for name, card in cards.items():
        data = card.data.to_dict()
        assert data["license"] == "apache-2.0" and data["library_name"] == "transformers"
        assert data["pipeline_tag"] == "image-classification" and data["datasets"] == ["ILSVRC/imagenet-1k"]
        (result,) = data["model-index"][0]["results"]
        assert result["source"]["url"] == "https://github.com/d-li14/involution"
        values = [metric["value"] for metric in result["metrics"]]
        assert values == pytest.approx([value / 100 for value in PUBLISHED[name][2:]])


def test_an_unpublished_depth_claims_nothing():
    card = imagenet_card(RedNetConfig(depths=[1, 1, 1, 1], num_labels=1000), "x", "authors")
    assert not card.data.eval_results and "Top-1" not in card.text and "Beside ResNet" not in card.text


def test_examples_follow_the_repository(cards):
    card = cards["rednet-26"]
    set_repository(card, "you/other")
    assert card.text.count('"you/other"') == 5 and "me/rednet-26" not in card.text


def test_a_folder_may_have_the_name_of_what_stands_in_the_examples(cards):
    """Only what is loaded from is renamed."""
    card = copy.deepcopy(cards["rednet-50"])
    original = card.text
    set_repository(card, "train")
    set_repository(card, "you/other")
    set_repository(card, "me/rednet-50")
    assert card.text == original and '"train"' in original


def test_unknown_names_are_refused(tmp_path):
    command = [sys.executable, "-m", "rednet.hub", "cards", "rednet-34", "--output_dir", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "rednet-34" in result.stderr and "rednet-152" in result.stderr
    assert not (tmp_path / "out").exists()


def test_new_results_leave_what_somebody_wrote():
    def result(value: float) -> EvalResult:
        return EvalResult("image-classification", "me/things", "things", "accuracy", value, metric_name="Top-1")

    card = make_card(RedNetConfig(num_labels=2), "RedNet", "x", "A test.", "None.", results=[result(0.5)])
    own = "\n## My notes\n\n| Top-1 on things | 50.00 % | on my pictures |\n"
    text = str(card).replace("license:", "my_key: 5\nlicense:") + own
    card = ModelCard(text)
    add_results(card, [result(0.75)])
    changed = {line for line in difflib.ndiff(text.splitlines(), str(card).splitlines()) if line[0] in "+-"}
    assert changed == {
        "-       value: 0.5",
        "+       value: 0.75",
        "- | Top-1 on things | 50.00 % (measured with this repository's weights) |",
        "+ | Top-1 on things | 75.00 % (measured with this repository's weights) |",
    }
