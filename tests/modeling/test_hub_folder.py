"""Folders as the Hub takes them, on the disk alone; tests/hub pushes and pulls them."""

import json
import subprocess
import sys

import pytest
from transformers import ConvNextImageProcessor

from rednet import RedNetConfig, RedNetForImageClassification
from rednet.hub import check_hub_folder, save_hub_folder
from rednet.hub_cards import make_card


@pytest.fixture
def write(tmp_path):
    def write(name: str):
        config = RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[1], num_labels=2)
        card = make_card(config, "RedNet of things", "things", "A test.", "None.")
        save_hub_folder(tmp_path / name, RedNetForImageClassification(config), ConvNextImageProcessor(), card)
        return tmp_path / name

    return write


def test_a_folder_is_replaced_and_its_neighbours_stay(write, tmp_path):
    for backup in ("things.old", "things.new"):
        (tmp_path / backup).mkdir()
        (tmp_path / backup / "precious").touch()
    folder = write("things")
    (folder / "from_before").touch()
    write("things")
    check_hub_folder(folder)
    assert not (folder / "from_before").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["things", "things.new", "things.old"]
    assert all((tmp_path / backup / "precious").exists() for backup in ("things.old", "things.new"))


def test_an_impossible_configuration_is_named(write):
    folder = write("things")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "stem_stride": 3}))
    with pytest.raises(ValueError, match="things/config.json is no configuration of a RedNet: (?s:.*)stem_stride=3"):
        check_hub_folder(folder)


def test_a_configuration_is_not_pushed_without_its_code(tmp_path):
    with pytest.raises(ValueError, match="config.push_to_hub"):
        RedNetConfig().save_pretrained(tmp_path / "config", push_to_hub=True)
    assert not (tmp_path / "config").exists()


def test_where_the_hub_cannot_be_reached(tmp_path):
    """Said in a line, before anything is converted."""
    (tmp_path / "some.pth").touch()
    command = ["--checkpoint_path", "some.pth", "--output_dir", "out", "--push_to_hub", "me/rednet-50"]
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_some", "HF_HUB_OFFLINE": "0"}
    result = subprocess.run(
        [sys.executable, "-m", "rednet.convert_rednet_to_hf", *command],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and not (tmp_path / "out").exists()
    assert "error: the Hub cannot be reached" in result.stderr and "Traceback" not in result.stderr
