"""A small model and its Hub folder, which all tests of publishing share."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import EvalResult
from PIL import Image
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.hub import make_card, save_hub_folder
from transformers import ConvNextImageProcessor

from hub_client import HubClient
from hub_server import HubServer


@pytest.fixture(scope="package")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def picture_url(tmp_path_factory) -> Iterator[str]:
    """A picture on a server of this machine, in place of the one that the examples of cards load."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (80, 60), "red").save(folder / "picture.jpg")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/picture.jpg"
        server.shutdown()


@pytest.fixture(scope="package")
def client(hub, tmp_path_factory):
    with HubClient(hub, tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture(scope="package")
def model() -> RedNetForImageClassification:
    torch.manual_seed(0)
    labels = ["cat", "dog", "red"]
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
    config = RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[2], **names)
    model = RedNetForImageClassification(config).eval()
    torch.nn.init.ones_(model.rednet.encoder.stages[0].layers[1].layer[2].normalization.weight)
    torch.nn.init.normal_(model.classifier.weight)
    return model


@pytest.fixture(scope="package")
def write_folder(model) -> Callable[..., Path]:
    def write(folder: Path, license: str = "apache-2.0") -> Path:
        result = EvalResult("image-classification", "user/things", "things", "accuracy", 0.5, metric_name="Top-1")
        card = make_card(model.config, "RedNet of things", "rednet-tiny", "A test.", "None.", results=[result])
        card.data.license = license
        model.config.architectures = ["RedNetForImageClassification"]
        save_hub_folder(folder, model, ConvNextImageProcessor(size={"shortest_edge": 64}), card)
        return folder

    return write
