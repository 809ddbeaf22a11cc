"""Model cards: where their numbers come from, and what an update changes and leaves."""

import csv
import json

import pytest
from huggingface_hub import EvalResult, ModelCard
from rednet import RedNetConfig
from rednet.hub.__main__ import main
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
    main(["cards", "--output_dir", str(folder), "--namespace", "me"])
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
        assert f"{row['relative_speed']:.2f} x as fast" == measured["beside the peer"]
        assert f"| {row['rednet']} | {row['relative_speed']:.2f} x as fast |" in cards["rednet-50"].text
    assert "has not been measured" in cards["rednet-26"].text


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
    assert not card.data.eval_results and "Top-1" not in card.text and "Comparison with ResNet" not in card.text


def test_unknown_names_are_rejected(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["cards", "rednet-34", "--output_dir", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert "rednet-34" in error and "rednet-152" in error and not (tmp_path / "out").exists()


def result(value: float, data_set: str = "things") -> EvalResult:
    return EvalResult("image-classification", f"me/{data_set}", data_set, "accuracy", value, metric_name="Top-1")


def things_card(repository: str = "things", **options) -> ModelCard:
    return make_card(RedNetConfig(num_labels=2), "RedNet", repository, "A test.", "None.", **options)


def test_examples_load_the_repository(cards):
    card = ModelCard(str(cards["rednet-26"]))
    assert card.text.count('"me/rednet-26"') == 5
    set_repository(card, "you/other")
    assert card.text.count('"you/other"') == 5 and "me/rednet-26" not in card.text


def test_only_the_name_of_the_repository_changes():
    """Here it is also a string and a word of the examples. A second push finds what the first one wrote."""
    card = things_card("train")
    text, own = card.text, "\nBefore it was pushed, this was your-name/train.\n"
    card.text = text.replace('"picture.jpg"', '"my cat.jpg"') + own
    edited = card.text
    for repository in ("me/things", "you/things"):
        set_repository(card, repository)
        assert card.text == edited.removesuffix(own).replace("your-name/train", repository) + own
    assert 'split="train"' in card.text and '"my cat.jpg"' in card.text


def test_new_results_keep_what_somebody_wrote():
    """Outside of the block of results, and in the metadata."""
    own = "\n## My notes\n\n| Top-1 on things | 50.00 % | on my pictures |\n"
    text = str(things_card(results=[result(0.5)])).replace("license:", "my_key: 5\nlicense:") + own
    text = text.replace("A test.", "My own words.").replace('"picture.jpg"', '"my cat.jpg"')
    card = ModelCard(text)
    add_results(card, [result(0.75)])
    changed = [pair for pair in zip(text.splitlines(), str(card).splitlines(), strict=True) if pair[0] != pair[1]]
    digests = [line for pair in changed for line in pair if line.startswith("<!-- rednet results ")]
    row = "| Top-1 on things | {} % (measured with this repository's weights) |"
    assert changed == [
        ("      value: 0.5", "      value: 0.75"),
        tuple(digests),
        (row.format("50.00"), row.format("75.00")),
    ]


def test_results_of_a_card_without_any():
    card = ModelCard(str(things_card()))
    assert "The accuracy of these weights has not been measured." in card.text
    add_results(card, [result(0.75)])
    add_results(card, [result(0.5, "others")])
    card = ModelCard(str(card))
    assert "has not been measured" not in card.text.partition("## Use")[0]
    assert [(r.dataset_name, r.metric_value) for r in card.data.eval_results] == [("things", 0.75), ("others", 0.5)]
    assert all(row in card.text for row in ("| Top-1 on things | 75.00 %", "| Top-1 on others | 50.00 %"))


OTHER = "---\nlicense: mit\n---\n# A model of somebody else\n\n| Top-1 on things | 50.00 % |\n"


@pytest.mark.parametrize(
    "text",
    [
        OTHER,
        str(things_card(results=[result(0.5)])).replace("| 50.00 % (", "| 50.00 %, on my own pictures ("),
        str(things_card(results=[result(0.5)])).replace("<!-- end of rednet results -->", ""),
    ],
    ids=["of somebody else", "edited", "without a mark"],
)
def test_results_that_are_not_ours_stay_in_the_text(text):
    card = ModelCard(text)
    card.data.model_name = "RedNet"
    with pytest.warns(UserWarning, match="only the metadata of the card has the new results"):
        add_results(card, [result(0.75)])
    assert card.text == ModelCard(text).text
    assert [(r.dataset_name, r.metric_value) for r in ModelCard(str(card)).data.eval_results] == [("things", 0.75)]
    set_repository(card, "me/things")
    if text == OTHER:
        assert card.text == ModelCard(text).text
