"""What a push does to a repository of the Hub, and what it refuses before it has done anything."""

import json
import re
import shutil

import pytest
import torch
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.checkpoints.layouts import checkpoint_name
from rednet.configuration_rednet import AUTO_MAP, REMOTE_CODE
from rednet.hub import make_card
from safetensors.torch import load_file, save_file
from transformers import ConvNextImageProcessor

from hub_client import PUSH
from hub_server import HubServer


CONVERT = "from rednet.convert_rednet_to_hf import main\nmain()"


def new_commits(hub: HubServer, repo: str) -> int:
    """The number of commits after the one that creates the repository."""
    return len(hub.commits(repo)) - 1


def uploads(hub: HubServer, repo: str) -> int:
    """The number of large files that were sent to a repository."""
    return sum(entry.method == "PUT" and repo in entry.path for entry in hub.log)


def test_a_push_is_one_commit_of_the_model(hub, client, write_folder, tmp_path):
    folder = write_folder(tmp_path / "folder")
    (folder / "events.log").write_text("not for the Hub")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1/config.json").write_text("{}")
    assert "user/one" in client.output(PUSH, folder, "user/one")
    files = hub.files("user/one")
    expected = {".gitattributes", "README.md", "config.json", "preprocessor_config.json", "involution.png", "LICENSE"}
    expected |= {"notebook.ipynb"}
    assert set(files) == expected | {"model.safetensors", *REMOTE_CODE}
    assert new_commits(hub, "user/one") == 1
    assert all(data == (folder / name).read_bytes() for name, data in files.items() if name != ".gitattributes")
    assert 'model="user/one"' in files["README.md"].decode()

    # The same folder in another repository: the examples follow, and what somebody wrote into the card stays.
    readme = folder / "README.md"
    examples = readme.read_text().count('"user/one"')
    readme.write_text(readme.read_text().replace("A test.", "My own words on user/one."))
    client.output(PUSH, folder, "copy", "--private")
    assert hub.files("user/copy")["README.md"] == readme.read_bytes() and hub.repos["user/copy"].private
    text = readme.read_text()
    assert (
        "My own words on user/one." in text and text.count('"user/copy"') == examples > 0 and '"user/one"' not in text
    )


def test_a_failed_push_can_be_repeated(hub, client, write_folder, tmp_path):
    folder = write_folder(tmp_path / "folder")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.fail("/user/unlucky/commit/")
    failed = client.run(PUSH, folder, "user/unlucky")
    hub.recover()
    assert failed.status == 1 and "repeat the command" in failed.output and "Traceback" not in failed.output
    assert uploads(hub, "user/unlucky") == 2 and new_commits(hub, "user/unlucky") == 0
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}

    # Weights and picture were uploaded before the commit failed: they are not sent again.
    client.output(PUSH, folder, "user/unlucky")
    assert uploads(hub, "user/unlucky") == 2 and new_commits(hub, "user/unlucky") == 1


def test_exports_logs_and_the_notebook_are_pushed_with_the_model(hub, client, write_folder, tmp_path):
    """If the weights change, exports of the old ones go. Exports in the folder are refused if they are of old weights."""
    folder = write_folder(tmp_path / "folder")
    pushed = ["onnx/model.onnx", "openvino/model.xml", "runs/train/a/events.out.tfevents.1.host", "notebook.ipynb"]
    others = ["runs/train/hparams.yml", "onnx/.DS_Store", "onnx/cache/model.onnx", "model.onnx"]
    for name in [*pushed, *others]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    client.output(PUSH, folder, "user/exported")
    client.output(UPLOAD, "user/exported", "onnx/model_int8.onnx")
    assert {*pushed, "onnx/model_int8.onnx"} <= set(hub.files("user/exported")) and not set(others) & set(
        hub.files("user/exported")
    )

    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace("A test.", "My own words."))
    shutil.rmtree(folder / "openvino")
    client.output(PUSH, folder, "user/exported")  # of the same weights
    assert {*pushed, "onnx/model_int8.onnx"} <= set(hub.files("user/exported"))

    state = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})
    refused = client.run(PUSH, folder, "user/exported")
    assert refused.status == 1 and "exports that are older than its weights: onnx/model.onnx." in refused.output
    (folder / "onnx/model.onnx").write_text("exported again")
    client.output(PUSH, folder, "user/exported")
    files = hub.files("user/exported")
    assert [name for name in files if "/" in name] == ["onnx/model.onnx", "runs/train/a/events.out.tfevents.1.host"]
    assert files["onnx/model.onnx"] == b"exported again"


UPLOAD = """
import sys
from huggingface_hub import CommitOperationAdd, create_commit
repo, *names = sys.argv[1:]
create_commit(repo, [CommitOperationAdd(name, name.encode()) for name in names], commit_message="By hand")
"""


def test_a_second_push_replaces_only_the_model(hub, client, model, write_folder, tmp_path):
    """The weights are first one file, then shards. Files that somebody else added stay."""
    folder = write_folder(tmp_path / "folder")
    client.output(PUSH, folder, "user/twice", "--commit_message", "The first")
    foreign = {name: name.encode() for name in ("notes.txt", "adapter_model.safetensors", "lora/model.safetensors")}
    client.output(UPLOAD, "user/twice", *foreign)
    shutil.rmtree(folder)
    model.save_pretrained(folder, max_shard_size="20KB")
    ConvNextImageProcessor().save_pretrained(folder)
    make_card(model.config, "RedNet", "x", "A test.", "None.").save(folder / "README.md")
    client.output(PUSH, folder, "user/twice")
    files = hub.files("user/twice")
    assert new_commits(hub, "user/twice") == 3 and hub.commits("user/twice")[1].title == "The first"
    assert foreign.items() <= files.items() and "model.safetensors" not in files
    for name, data in files.items():
        if "/" not in name:
            (tmp_path / name).write_bytes(data)
    state = RedNetForImageClassification.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_the_converter_pushes(hub, client, model, tmp_path):
    state = model.rednet.state_dict()
    torch.save({f"backbone.{checkpoint_name(key)}": value for key, value in state.items()}, tmp_path / "a.pth")
    arguments = ["--checkpoint", tmp_path / "a.pth", "--output_dir", tmp_path / "converted"]
    refused = client.run(CONVERT, *arguments, "--push_to_hub", "user", token="")
    assert refused == (1, "error: there is no Hub token: run `hf auth login`, or set HF_TOKEN\n")
    assert not (tmp_path / "converted").exists()
    assert "/user/converted" in client.output(CONVERT, *arguments, "--push_to_hub", "user")
    files = hub.files("user/converted")
    assert new_commits(hub, "user/converted") == 1 and '"user/converted"' in files["README.md"].decode()
    assert files["model.safetensors"] == (tmp_path / "converted/model.safetensors").read_bytes()


PUSH_MODEL = """
import sys
from rednet import RedNetForImageClassification
model = RedNetForImageClassification.from_pretrained(sys.argv[1]).eval()
model.push_to_hub("user/by-method")
try:
    model.fuse().push_to_hub("user/fused")
except ValueError as error:
    print(error)
"""


def test_the_method_of_a_model_pushes_its_code(hub, client, write_folder, tmp_path):
    """A fused model is refused before its repository is created."""
    assert "fused for inference" in client.output(PUSH_MODEL, write_folder(tmp_path / "folder"))
    assert {"config.json", "model.safetensors", *REMOTE_CODE} <= set(hub.files("user/by-method"))
    assert json.loads(hub.files("user/by-method")["config.json"])["auto_map"] == AUTO_MAP
    assert "user/fused" not in hub.repos


@pytest.mark.parametrize(
    ("folder", "token", "message"),
    [
        ("good", "", "error: there is no Hub token: run `hf auth login`"),
        ("good", "hf_wrong", "error: this Hub token is invalid"),
        ("incomplete", None, "error: .*preprocessor_config.json is missing"),
        ("license", None, "error: .*README.md has invalid metadata.*license"),
    ],
)
def test_a_refused_push_changes_nothing(hub, client, write_folder, tmp_path, folder, token, message):
    write_folder(tmp_path / folder, license="my own" if folder == "license" else "apache-2.0")
    if folder == "incomplete":
        (tmp_path / folder / "preprocessor_config.json").unlink()
    result = client.run(PUSH, tmp_path / folder, "user/refused", token=token)
    assert result.status == 1 and re.match(message, result.output) and "user/refused" not in hub.repos


def test_a_configuration_is_not_pushed_without_its_code(tmp_path):
    with pytest.raises(ValueError, match="config.push_to_hub"):
        RedNetConfig().save_pretrained(tmp_path / "config", push_to_hub=True)
    assert not (tmp_path / "config").exists()
