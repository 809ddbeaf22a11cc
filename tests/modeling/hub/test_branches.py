"""Pushes to branches and as pull requests, by the command and unmodified clients."""

import re
from pathlib import Path

import pytest
import torch
from rednet.hub import make_card
from safetensors.torch import load_file, save_file
from transformers import ConvNextImageProcessor

from hub_api import Hub
from hub_client import PUSH


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def change_weights(folder: Path, amount: float) -> bytes:
    path = folder / "model.safetensors"
    save_file({name: value + amount for name, value in load_file(path).items()}, path, {"format": "pt"})
    return path.read_bytes()


def titles(hub: Hub, repo: str, revision: str = "main") -> list[str]:
    return [commit.title for commit in hub.commits(repo, revision)]


LOAD = """
import sys
from rednet import RedNetForImageClassification
model = RedNetForImageClassification.from_pretrained("user/branches", revision="dev/shards")
model.save_pretrained(sys.argv[1])
"""


def test_a_push_to_a_branch(hub, client, model, write_folder, tmp_path):
    """To a new one, which begins at main, twice to the same one, and back to main. Each keeps and replaces its own files."""
    folder, shards = write_folder(tmp_path / "folder"), tmp_path / "shards"
    client.output(PUSH, folder, "user/branches", "--commit_message", "one")
    before = hub.files("user/branches")
    model.save_pretrained(shards, max_shard_size="20KB")
    ConvNextImageProcessor().save_pretrained(shards)
    make_card(model.config, "RedNet", "x", "A test.", "None.").save(shards / "README.md")

    arguments = [shards, "user/branches", "--revision", "dev/shards", "--commit_message", "two"]
    assert client.output(PUSH, *arguments).splitlines()[-1] == f"{hub.url}/user/branches/tree/dev%2Fshards"
    assert hub.files("user/branches") == before
    assert titles(hub, "user/branches", "dev/shards") == ["initial commit", "one", "two"]
    files = hub.files("user/branches", "dev/shards")
    assert "model.safetensors" not in files and "LICENSE" in files and '"user/branches"' in files["README.md"].decode()
    client.output(LOAD, tmp_path / "loaded")
    state, loaded = model.state_dict(), load_file(tmp_path / "loaded/model.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in state.items())

    client.output(PUSH, *arguments)  # no file differs
    assert titles(hub, "user/branches", "dev/shards") == ["initial commit", "one", "two"]
    readme = shards / "README.md"
    readme.write_text(readme.read_text().replace("A test.", "My own words."))
    client.output(PUSH, *arguments[:-1], "three")
    assert titles(hub, "user/branches", "dev/shards") == ["initial commit", "one", "two", "three"]
    assert hub.files("user/branches", "dev/shards")["README.md"] == readme.read_bytes()

    assert client.output(PUSH, folder, "user/branches", "--revision", "main").endswith("/user/branches/tree/main\n")
    assert hub.files("user/branches") == before


def test_a_pull_request_by_a_token_that_may_only_read(hub, client, write_folder, tmp_path):
    """Each push with --create_pr opens one. A push to its revision adds to it."""
    hub.tokens["hf_read"] = "read"
    folder = write_folder(tmp_path / "folder")
    client.output(PUSH, folder, "user/asked")
    before = hub.files("user/asked")
    (folder / "README.md").write_bytes((folder / "README.md").read_bytes().replace(b'"user/asked"', b'"your-name/x"'))
    weights = change_weights(folder, 1)

    output = client.output(PUSH, folder, "user/asked", "--create_pr", token="hf_read")
    assert output.splitlines()[-1] == f"{hub.url}/user/asked/discussions/1"
    assert hub.files("user/asked") == before and hub.files("user/asked", "refs/pr/1")["model.safetensors"] == weights
    refused = client.run(PUSH, folder, "user/asked", token="hf_read")
    assert refused.status == 1 and "may only read" in refused.output and hub.files("user/asked") == before

    weights = change_weights(folder, 1)
    output = client.output(PUSH, folder, "user/asked", "--revision", "refs/pr/1", token="hf_read")
    assert output.splitlines()[-1] == f"{hub.url}/user/asked/tree/refs%2Fpr%2F1"
    assert hub.files("user/asked", "refs/pr/1")["model.safetensors"] == weights
    assert len(hub.commits("user/asked", "refs/pr/1")) == 4
    assert client.output(PUSH, folder, "user/asked", "--create_pr", token="hf_read").endswith("/discussions/2\n")
    assert hub.files("user/asked") == before


def test_a_pull_request_against_a_branch(hub, client, write_folder, tmp_path):
    folder = write_folder(tmp_path / "folder")
    client.output(PUSH, folder, "user/based", "--commit_message", "one")
    missing = client.run(PUSH, folder, "user/based", "--revision", "dev", "--create_pr")
    assert missing.status == 1 and missing.output.startswith("error: user/based has no revision 'dev'")
    change_weights(folder, 1)
    client.output(PUSH, folder, "user/based", "--revision", "dev", "--commit_message", "two")
    change_weights(folder, 1)
    arguments = ["--revision", "dev", "--create_pr", "--commit_message", "three"]
    assert client.output(PUSH, folder, "user/based", *arguments).endswith("/user/based/discussions/1\n")
    assert titles(hub, "user/based", "refs/pr/1") == ["initial commit", "one", "two", "three"]
    assert titles(hub, "user/based", "dev") == ["initial commit", "one", "two"]

    # Without a difference there is nothing to ask for: the client does not open a pull request.
    arguments = ["--revision", "refs/pr/1", "--create_pr"]
    assert client.output(PUSH, folder, "user/based", *arguments).endswith("/user/based/tree/refs%2Fpr%2F1\n")
    assert "refs/pr/2" not in hub.repos["user/based"].heads


@pytest.mark.parametrize("options", [["--revision", "dev"], ["--create_pr"]])
def test_a_failed_push_can_be_repeated(hub, client, write_folder, tmp_path, options):
    repo = f"user/failed-{options[0].strip('-')}"
    folder = write_folder(tmp_path / "folder")
    before = contents(folder)
    hub.fail(f"/{repo}/commit/")
    failed = client.run(PUSH, folder, repo, "--private", *options)
    hub.recover()
    assert failed.status == 1 and "repeat the command" in failed.output and contents(folder) == before
    client.output(PUSH, folder, repo, "--private", *options)
    revision = "dev" if "dev" in options else "refs/pr/1"
    assert hub.repos[repo].private and set(hub.repos[repo].heads) == {"main", revision}
    assert len(hub.commits(repo, revision)) == 2 and len(hub.commits(repo)) == 1
    assert f'"{repo}"' in (folder / "README.md").read_text()


def test_a_space(hub, client, write_folder, tmp_path):
    client.output(PUSH, write_folder(tmp_path / "folder"), "user/shown")
    (tmp_path / "app").mkdir()
    (tmp_path / "app/app.py").write_text("print(1)\n")
    (tmp_path / "app/README.md").write_text("---\ntitle: Shown\nsdk: gradio\ncolorFrom: red\ncolorTo: red\n---\n")
    arguments = [tmp_path / "app", "user/app", "--model", "user/shown"]
    assert client.output(PUSH, *arguments, "--revision", "dev").endswith("/spaces/user/app/tree/dev\n")
    assert client.output(PUSH, *arguments, "--create_pr").endswith("/spaces/user/app/discussions/1\n")
    heads = hub.repos["spaces/user/app"].heads
    assert {name: "app.py" in head.tree for name, head in heads.items()} == {
        "main": False,
        "dev": True,
        "refs/pr/1": True,
    }
    assert re.search("models:\n- user/shown", heads["refs/pr/1"].tree["README.md"].data.decode())
