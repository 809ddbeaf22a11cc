"""Model cards: where their numbers come from, and what an update changes and leaves."""

import csv
import json
import os
import re
import sys

import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard
from rednet import (
    RedNetConfig,
    RedNetForImageClassification,
    RedNetForSemanticSegmentation,
    RedNetModel,
    count_activations,
    count_macs,
    count_parameters,
)
from rednet.hub import __main__ as command_line
from rednet.hub import save_hub_folder
from rednet.hub.__main__ import main
from rednet.hub.cards import (
    EXAMPLE_PICTURE,
    add_results,
    imagenet_card,
    known_checkpoints,
    make_card,
    set_repository,
)
from torchvision.models import regnet_y_3_2gf, resnet50
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    SegformerImageProcessor,
)

import card_metadata
from interpreter import python
from remote import WITHOUT_PACKAGES
from small_models import small_config


# Parameters and MACs as published, activations, and the authors' released top-1 and top-5.
PUBLISHED = {
    "rednet-26": (9_233_166, 1.685, 9.8, 75.96, 93.19),
    "rednet-38": (12_386_986, 2.167, 13.3, 77.48, 93.57),
    "rednet-50": (15_540_806, 2.649, 16.8, 78.35, 94.13),
    "rednet-101": (25_652_950, 4.659, 24.8, 78.92, 94.35),
    "rednet-152": (33_984_582, 6.679, 34.6, 79.12, 94.38),
}


@pytest.fixture(scope="module")
def cards(tmp_path_factory) -> dict[str, ModelCard]:
    folder = tmp_path_factory.mktemp("cards")
    main(["cards", "--output_dir", str(folder), "--namespace", "me", "--weights", "authors"])
    assert {path.name for path in folder.iterdir()} == set(PUBLISHED)
    assert all((folder / name / "involution.png").is_file() for name in PUBLISHED)
    for name in PUBLISHED:
        assert f'repository = \\"me/{name}\\"' in (folder / name / "notebook.ipynb").read_text()
    return {name: ModelCard.load(folder / name / "README.md") for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers(cards, root, name):
    parameters, macs, activations, top_1, top_5 = PUBLISHED[name]
    text = cards[name].text
    for row in (
        f"| Parameters | {parameters:,} |",
        f"| Multiply-accumulates at 224 x 224 | {macs:.3f} G |",
        f"| Activations at 224 x 224 | {activations} M |",
        f"| Top-1 on ImageNet-1k | {top_1:.2f} % (as published with the authors' release) |",
        f"| Top-5 on ImageNet-1k | {top_5:.2f} % (as published with the authors' release) |",
    ):
        assert row in text
    assert "{{" not in text and "None" not in text
    config = json.loads((root / f"configs/models/{name}.json").read_text())
    assert known_checkpoints()[name]["depths"] == config["depths"]


def test_numbers_of_a_small_model(root):
    config = RedNetConfig.from_pretrained(root / "configs/models/rednet-fashion-mnist.json")
    text = make_card(config, "RedNet", "things", "A test.", "None.", image_size=28).text
    assert "| Multiply-accumulates at 28 x 28 | 4.38 M |" in text


def counts(model: torch.nn.Module) -> dict[str, int]:
    return {
        "parameters": count_parameters(model),
        "macs": count_macs(model),
        "activations": count_activations(model),
    }


def test_the_family_and_its_peers_are_counted_in_the_same_way(cards, root):
    """The numbers of the table, with those that each card has of its own model, and of models of other libraries."""
    for name, data in known_checkpoints().items():
        counted = data["counted"]
        assert f"| Parameters | {counted['parameters']:,} |" in cards[name].text
        assert f"| Multiply-accumulates at 224 x 224 | {counted['macs'] / 1e9:.3f} G |" in cards[name].text
        assert f"| Activations at 224 x 224 | {counted['activations'] / 1e6:.1f} M |" in cards[name].text
    nano = ConvNextConfig(depths=[2, 2, 8, 2], hidden_sizes=[80, 160, 320, 640], num_labels=1000)
    peers = {
        "ConvNeXt-Nano": counts(ConvNextForImageClassification(nano)),
        "RegNetY-3.2GF": counts(regnet_y_3_2gf()),
        "ResNet-50": counts(resnet50()),
    }
    for row in yaml.safe_load((root / "hub_cards/peers.yaml").read_text()):
        assert {key: row[key] for key in ("parameters", "macs", "activations")} == peers[row["name"].split(",")[0]]


def test_the_comparison_has_the_results_of_one_publisher(cards):
    text = cards["rednet-50"].text
    rows = [f"{top_1:.2f} % | {top_5:.2f} % |" for *_, top_1, top_5 in PUBLISHED.values()]
    assert all(row in text for row in rows) and "| **RedNet-50** | 15.5 M | 2.65 G | 16.8 M | 78.35 % |" in text
    assert "| ResNet-50, timm A1 | 25.6 M | 4.09 G | 11.1 M | 80.4 % | |" in text and "recipes of 2021" in text
    config = RedNetConfig(depths=[3, 4, 6, 3], num_labels=1000)
    text = imagenet_card(config, "x", "paddleclas").text
    assert "| **RedNet-50** | 15.5 M | 2.65 G | 16.8 M | 78.33 % | 94.17 % |" in text and "78.35" not in text


def test_speed_is_that_of_the_record(cards, root):
    compiled = known_checkpoints()["rednet-50"]["speed"]
    for speed in (compiled, compiled["plain"]) if "plain" in compiled else (compiled,):
        with open(root / f"benchmarks/results/{speed['record']}.csv") as file:
            record = [row for row in csv.DictReader(file) if row["peer"].startswith("ResNet-50")]
        for row in speed["rows"]:
            measured = next(r for r in record if r["what"] == row["what"] and int(r["batch"]) == row["batch"])
            assert row["rednet"] == measured["RedNet-50"]
            assert f"{row['relative_speed']:.2f} x as fast" == measured["against the peer"]
            assert f"| {row['rednet']} | {row['relative_speed']:.2f} x as fast |" in cards["rednet-50"].text
    assert "has not been measured" in cards["rednet-26"].text


def test_speed_without_the_package():
    """A record of it is optional."""
    rows = [{"what": "inference, eager", "batch": 1, "rednet": "12.0 images/s", "relative_speed": 0.8}]
    speed = {"machine": "one machine", "rows": rows, "plain": {"machine": "another machine", "rows": rows}}
    text = make_card(small_config(), "RedNet", "things", "A test.", "None.", speed=speed).text
    assert text.count("| inference, eager | 1 | 12.0 images/s | 0.80 x as fast |") == 2
    assert "in plain PyTorch, without the package:\n\n| another machine |" in text
    del speed["plain"]
    assert "another machine" not in make_card(small_config(), "R", "things", "A test.", "None.", speed=speed).text


def test_metadata(cards):
    for name, card in cards.items():
        data = card.data.to_dict()
        assert card_metadata.check(str(card)) == ([], [])
        assert data["license"] == "mit" and data["library_name"] == "transformers" and "base_model" not in data
        assert data["pipeline_tag"] == "image-classification" and data["datasets"] == ["ILSVRC/imagenet-1k"]
        (result,) = data["model-index"][0]["results"]
        assert result["source"]["url"] == "https://github.com/d-li14/involution"
        values = [metric["value"] for metric in result["metrics"]]
        assert values == pytest.approx([value / 100 for value in PUBLISHED[name][3:]])


@pytest.mark.parametrize(
    ("publisher", "license", "sentence"),
    [
        ("authors", "mit", "The weights are those of the authors' release, licensed under the MIT license."),
        ("paddleclas", "apache-2.0", "The weights are those of the release of PaddleClas, licensed under Apache-2.0."),
        (None, None, "The license of the weights is that of their publisher."),
    ],
)
def test_license_and_origin(publisher, license, sentence):
    card = imagenet_card(
        RedNetConfig(num_labels=1000), "x", publisher, source="https://example.com/50.pdparams", sha256="0123abcd"
    )
    assert card.data.license == license and card_metadata.check(str(card)) == ([], [])
    words = " ".join(card.text.split())
    assert f"{sentence} The code in this repository is licensed under Apache-2.0" in words
    assert "converted file is https://example.com/50.pdparams, SHA-256 `0123abcd`." in words
    card = imagenet_card(RedNetConfig(), "x", publisher, source="mine.pth")
    assert "converted file is `mine.pth`." in card.text and "SHA-256" not in card.text
    assert "converted file" not in imagenet_card(RedNetConfig(), "x", publisher).text


VARIANTS = {
    "segmentation": (RedNetForSemanticSegmentation, {"neck_type": "involution", "neck_hidden_size": 32}),
    "features": (RedNetModel, {}),
    "convolution": (RedNetForImageClassification, {"operator_type": "convolution"}),
    "two-classes": (RedNetForImageClassification, {"num_labels": 2}),
}


EXAMPLES = """
import json
from huggingface_hub import HfApi
for repo, folder, blocks in json.loads(sys.argv[1]):
    HfApi().create_repo(repo)
    HfApi().upload_folder(repo_id=repo, folder_path=folder)
    names = {}
    for block in blocks:
        exec(block, names)
    shapes = [names["embedding"].shape, *(feature_map.shape for feature_map in names["feature_maps"])]
    sizes = [(15, 20), (8, 10)] if "segment" in names else [(16, 16), (8, 8)]
    assert shapes == [(1, 128), (1, 64, *sizes[0]), (1, 128, *sizes[1])], shapes
    print("done", repo, [name for name in ("classify", "segment") if name in names])
"""


def test_cards_of_other_models(hub, tmp_path, picture_url):
    """Their metadata are valid, their text does not speak of what they lack, and their examples run as remote code."""
    runs = []
    for variant, (model_class, changes) in VARIANTS.items():
        config = small_config(architectures=[model_class.__name__], **changes)
        details = {"Trained at": "64 x 64", "Hardware": "1 x abacus"}
        repo = f"user/{variant}"
        card = make_card(config, "RedNet", repo, "A test.", "None.", details=details, base_model="me/other")
        assert card_metadata.check(str(card)) == ([], []) and "| Hardware | 1 x abacus |" in card.text
        assert card.data.to_dict()["base_model_relation"] == "finetune" and "{{" not in card.text
        assert ("compiled" in card.text) == ("shows the generated kernels" in card.text) == (variant != "convolution")
        assert ("fine-tunes it" in card.text) == (variant != "segmentation")
        processor = ConvNextImageProcessor(size={"shortest_edge": 64})
        if variant == "segmentation":  # the picture has 80 x 60 pixels
            processor = SegformerImageProcessor(do_resize=False)
        save_hub_folder(tmp_path / variant, model_class(config), processor, card)
        blocks = [
            block for block in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL) if "Trainer" not in block
        ]
        assert all(EXAMPLE_PICTURE in block for block in blocks)
        runs.append((repo, str(tmp_path / variant), [block.replace(EXAMPLE_PICTURE, picture_url) for block in blocks]))
    environment = hub.environment(tmp_path / "home")
    result = python("-c", WITHOUT_PACKAGES + EXAMPLES, json.dumps(runs), cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("done")] == [
        "done user/segmentation ['segment']",
        "done user/features []",
        "done user/convolution ['classify']",
        "done user/two-classes ['classify']",
    ]


def test_an_unpublished_depth_claims_nothing():
    card = imagenet_card(RedNetConfig(depths=[1, 1, 1, 1], num_labels=1000), "x", "authors")
    assert not card.data.eval_results and "Top-1" not in card.text and "## Comparison" not in card.text


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"hidden_sizes": [64, 128, 256, 512]}, "RedNet with stages of 3, 4, 6, 3 bottlenecks"),
        ({"stem_kernel_size": 7}, "RedNet-50"),
        ({"hidden_act": "silu"}, "RedNet-50"),
        ({"architectures": ["RedNetForSemanticSegmentation"]}, "RedNet-50"),
    ],
)
def test_another_network_of_a_published_depth_claims_nothing(changes, name):
    """Neither accuracies nor speeds."""
    card = imagenet_card(RedNetConfig(num_labels=1000, **changes), "x", "authors")
    assert card.data.model_name == name and not card.data.eval_results
    assert "Top-1" not in card.text and "x as fast" not in card.text and "## Comparison" not in card.text


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
    link = "https://colab.research.google.com/#fileId=https%3A//huggingface.co/{}/blob/main/notebook.ipynb"
    assert card.text.count('"me/rednet-26"') == 11 and link.format("me/rednet-26") in card.text
    set_repository(card, "you/other")
    assert card.text.count('"you/other"') == 11 and link.format("you/other") in card.text
    assert "me/rednet-26" not in card.text


def test_only_the_name_of_the_repository_changes():
    """Here it is also a string and a word of the examples. A second push finds what the first one wrote."""
    card = things_card("train")
    text, own = card.text, "\nBefore it was pushed, this was your-name/train.\n"
    card.text = text.replace(EXAMPLE_PICTURE, "my cat.jpg") + own
    edited = card.text
    for repository in ("me/things", "you/things"):
        set_repository(card, repository)
        assert card.text == edited.removesuffix(own).replace("your-name/train", repository) + own
    assert 'split="train"' in card.text and '"my cat.jpg"' in card.text


def test_new_results_keep_what_somebody_wrote():
    """Outside of the block of results, and in the metadata."""
    own = "\n## My notes\n\n| Top-1 on things | 50.00 % | on my pictures |\n"
    text = str(things_card(results=[result(0.5)])).replace("license:", "my_key: 5\nlicense:") + own
    text = text.replace("A test.", "My own words.").replace(EXAMPLE_PICTURE, "my cat.jpg")
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


def test_another_readme_is_not_overwritten(tmp_path, capsys):
    command = ["cards", "rednet-26", "rednet-50", "--output_dir", str(tmp_path)]
    readme = tmp_path / "rednet-50/README.md"
    readme.parent.mkdir()
    readme.write_text("My notes")
    with pytest.raises(SystemExit):
        main(command)
    assert f"{readme} is no model card of a RedNet" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cards", "--output_dir", str(readme)])
    assert f"{readme} is not a folder" in capsys.readouterr().err
    assert readme.read_text() == "My notes" and [path.name for path in tmp_path.iterdir()] == ["rednet-50"]
    readme.unlink()
    main(command)
    main(command)  # its own cards are written again
    assert len(readme.read_text()) > 1000
    assert not [path.name for path in readme.parent.iterdir() if path.name[0] == "."]


def test_a_killed_command_leaves_no_part_of_a_card(tmp_path, monkeypatch):
    """A part would not be known as a card, and the command would refuse to repeat itself."""
    monkeypatch.setattr(command_line, "imagenet_card", lambda *_: ModelCard("---\ntags:\n- rednet\n---\nA model"))
    monkeypatch.setattr(command_line, "make_notebook", lambda *_: "{}")
    command = ["cards", "rednet-26", "--output_dir", str(tmp_path)]
    readme = tmp_path / "rednet-26/README.md"
    if (process := os.fork()) == 0:
        sys.addaudithook(lambda event, arguments: event == "os.rename" and os._exit(9))
        main(command)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9 and not readme.exists()
    main(command)
    assert readme.read_text().endswith("A model")
