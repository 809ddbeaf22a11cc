"""Several models that are pushed together, and their Collection."""

import json
import os

import pytest
import torch
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.checkpoints.download import PUBLISHED

from checkpoint_files import paddle_weights, write_to_cache
from hub_client import PUSH


COLLECT = """
import sys
from rednet.hub import push_collection
private, *names = sys.argv[1:]
print(push_collection("user", "RedNet: five depths", "Five models.", names, private == "True").url)
"""
CONVERT = """
import os
import sys
os.environ["TORCH_HOME"] = sys.argv.pop()
from rednet.convert_rednet_to_hf import main
main()
"""
NAMES = [f"user/rednet-{depth}" for depth in (26, 38, 50, 101, 152)]


@pytest.mark.parametrize("private", [False, True])
def test_a_collection_of_five_models_after_a_failure(hub, client, write_folder, tmp_path, private):
    hub.collections.clear()
    folder = write_folder(tmp_path / "folder")
    for name in NAMES:
        hub.repos.pop(name, None)
    for name in NAMES[:3]:
        client.output(PUSH, folder, name)
    failed = client.run(COLLECT, private, *NAMES)  # the fourth does not exist
    assert failed.status == 1 and "404" in failed.output
    for name in NAMES:
        client.output(PUSH, folder, name)
    url = client.output(COLLECT, private, *NAMES)
    [(slug, collection)] = hub.collections.items()
    assert url == f"{hub.url}/collections/{slug}\n" and collection["private"] == private
    assert [item["id"] for item in collection["items"]] == NAMES and collection["description"] == "Five models."

    # What somebody edited stays.
    collection["items"].reverse()
    collection["description"] = "My own words."
    assert client.output(COLLECT, private, *NAMES) == url and len(hub.collections) == 1
    assert [item["id"] for item in collection["items"]] == NAMES[::-1]
    assert collection["description"] == "My own words."


def test_a_collection_of_others_is_refused(hub, client):
    hub.tokens["hf_read"] = "read"
    hub.collections.clear()
    assert "403" in client.run(COLLECT, False, token="hf_read").output and not hub.collections


def test_the_converter_pushes_five_models_and_a_collection(hub, client, tmp_path):
    """Here with small models in the cache. The push of the third one fails at first."""
    hub.collections.clear()
    for name in NAMES:
        hub.repos.pop(name, None)
    torch.manual_seed(0)
    config = RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[1], num_labels=5)
    for url in PUBLISHED.values():
        write_to_cache(tmp_path / "torch", url, paddle_weights(RedNetForImageClassification(config)))
    arguments = ["--all", "--output_dir", tmp_path / "models", "--push_to_hub", "user", "--revision", "paddle"]

    hub.fail("rednet-50/commit")
    failed = client.run(CONVERT, *arguments, tmp_path / "torch")
    hub.recover()
    assert failed.status == 1 and f"{tmp_path}/models is complete: repeat the command" in failed.output
    assert sorted(os.listdir(tmp_path / "models")) == sorted(PUBLISHED) and not hub.collections

    *_, fifth, page = client.output(CONVERT, *arguments, tmp_path / "torch").splitlines()
    [(slug, collection)] = hub.collections.items()
    assert page == f"{hub.url}/collections/{slug}" and fifth == f"{hub.url}/user/rednet-152/tree/paddle"
    assert [item["id"] for item in collection["items"]] == NAMES
    for name in NAMES:
        tree = hub.repos[name].at("paddle").tree
        weights = tmp_path / "models" / name.split("/")[1] / "model.safetensors"
        assert tree["model.safetensors"].data == weights.read_bytes()
        assert json.loads(tree["config.json"].data)["depths"] == [1]

    hub.collections.clear()
    requests = client.output(CONVERT, *arguments[:-2], "--create_pr", tmp_path / "torch").splitlines()[-5:]
    assert [url.rsplit("/", 2)[1] for url in requests] == ["discussions"] * 5 and not hub.collections
