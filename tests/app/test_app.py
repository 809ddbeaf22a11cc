"""The app: what it computes, its push as a Space, and the Space in a browser, where `rednet` is not installed."""

import asyncio
import copy
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
import yaml
from gradio.state_holder import SessionState
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from rednet import RedNetConfig, RedNetForImageClassification, RedNetModel
from rednet.hub import make_card, save_hub_folder
from rednet.hub.__main__ import main as push_command
from rednet.modeling_rednet import RedNetInvolution
from transformers import ConvNextImageProcessor

import app
import views
from cases import plain_involution
from hub_server import HubServer
from pictures import coins
from remote import WITHOUT_PACKAGES


LABELS = ["cat", "dog", "red", "crane", "coin", "sky", "crane"]
MODEL, SPACE = "user/rednet-tiny", "user/what-involution-sees"
PUSH = """
import sys
from rednet.hub.__main__ import main
for arguments in sys.argv[1:]:
    try:
        main(["push", *arguments.split("|")])
    except SystemExit as error:
        print(error)
"""
START = WITHOUT_PACKAGES + "import runpy\nrunpy.run_path('app.py', run_name='__main__')"


@pytest.fixture(scope="module")
def model() -> RedNetForImageClassification:
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: n for n, label in enumerate(LABELS)}}
    config = RedNetConfig(embedding_size=32, hidden_sizes=[128, 192], depths=[2, 1], stem_stride=2, **names)
    model = RedNetForImageClassification(config).eval()
    for values in [*model.parameters(), *model.buffers()]:  # as if trained: no scale is 1, no bias 0
        if values.ndim == 1:
            values.data.uniform_(0.2, 0.6)
    torch.nn.init.normal_(model.classifier.weight, std=0.002)
    return model


@pytest.fixture(scope="module")
def processor() -> ConvNextImageProcessor:
    return ConvNextImageProcessor(size={"shortest_edge": 56}, crop_pct=0.875, do_convert_rgb=True)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray((255 * coins()[0].permute(1, 2, 0).numpy()).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "last"
    model.config.architectures = ["RedNetForImageClassification"]
    save_hub_folder(folder, model, processor, make_card(model.config, "RedNet of things", MODEL, "A test.", "None."))
    return folder


@pytest.fixture(scope="module")
def seen(model, processor, picture) -> views.Analysis:
    return views.analyze(model, processor, picture)


def inputs_in_double(model, pixel_values) -> dict[str, tuple[RedNetInvolution, torch.Tensor]]:
    """Every involution of the model in float64, by name, with its input (C, H, W)."""
    model, inputs = copy.deepcopy(model).double(), {}
    for name, module in model.named_modules():
        if isinstance(module, RedNetInvolution):
            module.register_forward_pre_hook(
                lambda module, args, name=name: inputs.update({name: (module, args[0][0])})
            )
    with torch.no_grad():
        model(pixel_values.double())
    return inputs


@torch.no_grad()
def defined_kernels(involution: RedNetInvolution, hidden_state: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """Equation 6 of the paper, W1 relu(batch norm(W0 x)), for one pixel: (G, K, K)."""
    stride, norm = involution.stride, involution.reduce.normalization
    x = hidden_state[:, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride].mean((1, 2))
    x = involution.reduce.convolution.weight.flatten(1) @ x
    x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    x = involution.span.weight.flatten(1) @ x.clamp(min=0) + involution.span.bias
    return x.view(-1, involution.kernel_size, involution.kernel_size)


def by_stage(names) -> dict[int, list[str]]:
    """The names of the involutions of each stage; 0 is the stem."""
    stages: dict[int, list[str]] = {}
    for name in names:
        found = re.search(r"stages\.(\d+)\.", name)
        stages.setdefault(int(found[1]) + 1 if found else 0, []).append(name)
    return stages


# What is computed


def test_kernels_are_those_of_the_definition(model, processor, picture, seen):
    inputs = inputs_in_double(model, processor(picture, return_tensors="pt")["pixel_values"])
    stages = by_stage(inputs)
    assert {stage: len(kernels) for stage, kernels in seen.kernels.items()} == {0: 1, 1: 2, 2: 1}
    for stage, names in stages.items():
        for name, kernels, stride in zip(names, seen.kernels[stage], seen.strides[stage]):
            height, width = kernels.shape[-2:]
            for row, column in ((0, 0), (height // 2, width - 1), (height - 1, 1)):
                expected, point = (
                    defined_kernels(*inputs[name], row, column),
                    ((column + 0.5) / width, (row + 0.5) / height),
                )
                for group in range(len(kernels)):
                    found = views.kernel_at(kernels, stride, group, point)
                    assert (found.row, found.column, found.size) == (row, column, (height, width))
                    assert (found.kernel - expected[group]).abs().max() <= 1e-4 * expected.abs().max()
                    sums = views.kernel_sums(kernels, group)
                    assert abs(sums[row, column] - expected[group].sum()) <= 1e-4 * expected.abs().sum()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_window_is_what_the_kernel_is_applied_to(stride):
    torch.manual_seed(0)
    image, kernels = torch.randn(1, 4, 12, 16), torch.rand(1, 2, 3, 3, 12 // stride, 16 // stride) + 0.1
    for point in ((0.4, 0.6), (0.0, 0.999)):
        place = views.kernel_at(kernels[0], stride, 1, point)
        left, top, right, bottom = (round(part * side) for part, side in zip(place.window, (16, 12, 16, 12)))
        touched = torch.zeros(12, 16, dtype=torch.bool)
        for y in range(12):
            for x in range(16):
                other = image.clone()
                other[:, 2:, y, x] += 1
                change = plain_involution(other - image, kernels, [stride] * 2, [1, 1], [1, 1])
                touched[y, x] = bool(change[0, 2, place.row, place.column])
        expected = torch.zeros(12, 16, dtype=torch.bool)
        expected[max(top, 0) : bottom, max(left, 0) : right] = True
        assert torch.equal(touched, expected)


def test_top_5_are_the_most_probable_classes(model, processor, picture, seen):
    with torch.no_grad():
        logits = model(**processor(picture, return_tensors="pt")).logits[0].double().numpy()
    odds = np.exp(logits - logits.max())
    order = np.argsort(-odds)[:5]
    names = [f"crane ({n})" if LABELS[n] == "crane" else LABELS[n] for n in order]
    assert list(seen.classes) == names
    assert np.allclose(list(seen.classes.values()), odds[order] / odds.sum(), atol=1e-5)


def test_a_heat_map_has_the_aspect_of_the_picture_and_a_color_for_every_cell():
    sums = np.arange(24, dtype=np.float32).reshape(4, 6) ** 2
    place = views.kernel_at(torch.zeros(1, 3, 3, 4, 6), 1, 0, (0, 0))
    image = np.asarray(views.heat_map(np.full((40, 60, 3), 0.5), sums, place)) / 255
    assert image.shape[0] / image.shape[1] == pytest.approx(40 / 60, rel=0.005)
    bar = views.heat_over(0.6, np.linspace(0, 1, 1001))
    for row, column in np.ndindex(4, 6):
        if max(row, column) > 1:  # the others are outlined
            y, x = int((row + 0.5) / 4 * image.shape[0]), int((column + 0.5) / 6 * image.shape[1])
            nearest = np.abs(bar - image[y, x]).sum(1).argmin() / 1000
            assert nearest == pytest.approx(sums[row, column] / sums.max(), abs=0.02)


def cells(html: str) -> list[list[ET.Element]]:
    table = ET.fromstring(re.search("<table.*</table>", html)[0])
    return [row.findall("td") for row in table]


@pytest.mark.parametrize("scale", [1, 1e-4])
def test_the_colors_of_a_kernel_are_symmetric_about_zero(scale):
    kernel = torch.tensor([[-2.0, 0, 2], [1, -1, 0.5], [0, 0, 0]]) * scale
    table = cells(views.kernel_table(kernel))
    values = [[float(cell.get("title")) for cell in row] for row in table]
    assert np.allclose(values, kernel, rtol=1e-5)
    colors = [
        [int(digits, 16) for digits in re.findall("..", re.search("#(\\w{6})", cell.get("style"))[1])]
        for cell in sum(table, [])
    ]
    (blue, white, red), (_, _, pale_red), _ = colors[:3], colors[3:6], colors[6:]
    assert blue[2] > blue[0] + 50 and red[0] > red[2] + 50 and min(white) > 240 and min(pale_red) > min(red)
    assert [cell.get("class") for cell in sum(table, [])].index("center") == 4
    assert ("<sup>-4</sup>" in views.kernel_table(kernel)) == (scale != 1)
    assert table[0][0].text == "\N{MINUS SIGN}2.00"


def test_a_kernel_of_zeros_is_white():
    assert all("#f" in cell.get("style") for cell in sum(cells(views.kernel_table(torch.zeros(3, 3))), []))


# Which models


def test_a_model_without_classifier_shows_no_classes(tmp_path, model, processor, picture):
    RedNetModel(model.config).save_pretrained(tmp_path / "features")
    processor.save_pretrained(tmp_path / "features")
    loaded, processor = views.load_model_and_processor(str(tmp_path / "features"))
    assert views.analyze(loaded, processor, picture).classes == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no/such-model cannot be shown"),
        ({"model_type": "resnet"}, "model_type is 'resnet', expected 'rednet'"),
        ({"model_type": "rednet", "operator_type": "convolution"}, "operator_type is 'convolution'"),
        ({"model_type": "rednet", "num_channels": 1}, "num_channels is 1, expected 3"),
    ],
)
def test_models_that_cannot_be_shown_are_refused(tmp_path, capsys, config, message):
    model_id = "no/such-model"
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        model_id = str(tmp_path)
    with pytest.raises(SystemExit, match=message):
        app.main(["--model", model_id])


def test_damaged_weights_are_refused(tmp_path, model, processor):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(SystemExit, match=f"{tmp_path} cannot be shown: "):
        app.main(["--model", str(tmp_path)])


def test_it_opens_with_the_model_of_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="make demo"):
        app.main([])
    examples = tmp_path / "outputs/demo/examples"
    for place in (tmp_path / app.DEMO, examples):
        place.mkdir(parents=True)
    assert all(Path(path).is_file() for path in app.example_pictures("outputs/demo/last"))  # Gradio's
    Image.new("L", (28, 28)).save(examples / "00.png")
    assert app.example_pictures(app.default_model()) == ["outputs/demo/examples/00.png"]


def broken_pictures() -> dict[str, tuple[str, bytes]]:
    """Files by the kind of error that Pillow answers with: their names and contents."""

    def saved(format: str) -> bytes:
        file = io.BytesIO()
        Image.effect_noise((40, 30), 50).save(file, format)
        return file.getvalue()

    return {
        "UnidentifiedImageError": ("text.png", b"not a picture"),
        "ValueError": ("header.ppm", b"P6\n40 "),
        "OSError": ("cut.jpg", saved("JPEG")[:-200]),
        "OSError of a GIF": ("cut.gif", saved("GIF")[:-400]),
        "DecompressionBombError": (
            "bomb.bmp",
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 10**5, 10**5, 1, 24, 0, 0, 0, 0, 0, 0),
        ),
    }


@pytest.mark.parametrize("kind", broken_pictures())
def test_unreadable_files_are_reported(folder, tmp_path, monkeypatch, kind):
    name, content = broken_pictures()[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Exception) as raised, Image.open(tmp_path / name) as image:
        image.convert("RGB")
    assert type(raised.value).__name__ == kind.split()[0]
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    demo = app.build(str(folder))
    event = next(event for event in demo.fns.values() if event.name == "analyze")
    inputs = [{"path": str(tmp_path / name), "orig_name": name, "meta": {"_type": "gradio.FileData"}}, 0, 1, 1, None]
    with pytest.raises(gr.Error, match="This file cannot be read as a picture: ") as reported:
        asyncio.run(demo.process_api(event, inputs, state=SessionState(demo)))
    assert str(tmp_path) not in str(reported.value)  # no paths of the server


# As a Space


def test_the_space_has_the_pinned_gradio(root):
    card = yaml.safe_load((root / "app/README.md").read_text().split("---")[1])
    assert f"gradio=={card['sdk_version']}" in (root / "constraints.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def pushed(root, folder, tmp_path_factory):
    """A Hub to which the model and, twice, the Space were pushed, and what the pushes printed."""
    place = tmp_path_factory.mktemp("push")
    shutil.copytree(root / "app", place / "app", ignore=shutil.ignore_patterns("__pycache__", "examples"))
    (place / "app/examples").mkdir()
    Image.new("RGB", (70, 60), "red").save(place / "app/examples/red.png")
    shutil.copytree(place / "app", place / "before")
    (place / "before/examples/red.png").rename(place / "before/examples/old.png")
    space = f"{SPACE}|--model|{MODEL}"
    pushes = [f"{place}/app|{space}", f"{folder}|{MODEL}", f"{place}/before|{space}", f"{place}/app|{space}"]
    with HubServer() as hub:
        command = [sys.executable, "-c", PUSH, *pushes]
        done = subprocess.run(command, env=hub.environment(place / "home"), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        yield hub, done.stdout


@pytest.fixture(scope="module")
def hub(pushed):
    return pushed[0]


def test_a_space_is_pushed_in_one_commit_with_its_model(hub, root):
    commits = hub.commits(f"spaces/{SPACE}")
    assert len(commits) == 3  # the first is that of its creation
    names = {"README.md", "app.py", "views.py", "requirements.txt", ".gitattributes"}
    assert set(commits[1].tree) == names | {"examples/old.png"}
    assert set(commits[2].tree) == names | {"examples/old.png", "examples/red.png"}  # a push removes nothing
    files = hub.files(f"spaces/{SPACE}")
    assert files["views.py"] == (root / "app/views.py").read_bytes()
    metadata = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert metadata["models"] == [MODEL] and metadata["sdk"] == "gradio" and metadata["app_file"] in files


def test_a_space_needs_a_model_that_is_on_the_hub(pushed):
    refusal, *addresses = re.findall(r"there is no model \S+|http\S+$", pushed[1], re.MULTILINE)
    assert refusal == f"there is no model {MODEL}"  # the first push, before that of the model
    assert [address.split("/", 3)[3] for address in addresses] == [MODEL, f"spaces/{SPACE}", f"spaces/{SPACE}"]


@pytest.mark.parametrize(("pushed_folder", "more"), [("app", []), ("training", ["--model", MODEL])])
def test_a_model_is_for_a_space_and_a_space_has_one(root, capsys, pushed_folder, more):
    with pytest.raises(SystemExit):
        push_command(["push", str(root / pushed_folder), SPACE, *more])
    assert "--model" in capsys.readouterr().err


@pytest.fixture(scope="module")
def address(hub, tmp_path_factory):
    """Where the Space runs, as it was pushed, with an empty cache."""
    place = tmp_path_factory.mktemp("space")
    for name, data in hub.files(f"spaces/{SPACE}").items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(data)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = hub.environment(place / "home") | {"GRADIO_SERVER_PORT": port, "GRADIO_TEMP_DIR": str(place / "tmp")}
    environment.pop("PYTHONPATH", None)
    log = place / "log"
    with log.open("w") as file:
        command = [sys.executable, "-u", "-c", START]  # -u: a file would get its lines late
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=file, stderr=file)
    deadline = time.monotonic() + 180
    try:
        while "Running on" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def page(request):
    expect.set_options(timeout=60_000)  # milliseconds: other tests run at the same time
    with sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome")
        paths = [*filter(None, map(shutil.which, names)), playwright.chromium.executable_path]
        path = next((path for path in paths if os.path.exists(path)), None)
        if path is None:
            pytest.skip("there is no Chromium: install one, or run `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.goto(request.getfixturevalue("address"))
        yield page
        browser.close()


def test_driven_in_a_browser(page, address, model, processor, picture, seen, tmp_path):
    elsewhere = []
    page.on(
        "request",
        lambda request: (
            elsewhere.append(request.url) if not request.url.startswith((address, "data:", "blob:")) else None
        ),
    )
    inputs = inputs_in_double(model, processor(picture, return_tensors="pt")["pixel_values"])
    stages = by_stage(inputs)
    legend, place = page.locator("#heat-legend"), page.locator("#pixel")

    def shows(stage: int, block: int, group: int, row: int, column: int) -> None:
        kernels = seen.kernels[stage][block - 1]
        height, width = kernels.shape[-2:]
        expected = defined_kernels(*inputs[stages[stage][block - 1]], row, column)[group - 1]
        where = f"stage {stage}, block {block}" if stage else "the stem"
        expect(legend).to_contain_text(f"{where}, group {group} of {len(kernels)}:")
        expect(place).to_contain_text(f"row {row}, column {column} of {height} x {width} in {where}.")
        sums = kernels[group - 1].sum((0, 1))
        for value in (sums.min(), sums.max()):
            expect(legend).to_contain_text(f"{value:.3g}".replace("-", "\N{MINUS SIGN}"))
        values = [float(cell.get_attribute("title")) for cell in page.locator("table.kernel td").all()]
        assert np.allclose(values, expected.flatten(), atol=1e-4 * expected.abs().max())

    # It opens with its own example.
    expect(page.locator("table.kernel td")).to_have_count(49)
    red = views.analyze(model, processor, Image.new("RGB", (70, 60), "red"))
    expect(page.locator("#classes")).to_contain_text(next(iter(red.classes)))

    page.locator("#picture").get_by_label("Remove Image").click()
    expect(page.locator("table.kernel")).to_have_count(0)
    page.locator("#group input[type=number]").fill("2")
    expect(place).to_contain_text(app.NO_PICTURE)
    picture.save(tmp_path / "coins.png")
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "coins.png")
    shows(1, 1, 2, 14, 14)
    expect(page.get_by_test_id("toast-body")).to_have_count(0)  # no error so far
    lines = [line.strip() for line in page.locator("#classes").inner_text().splitlines() if line.strip()]
    shown = [text for text in lines if text.endswith("%") or text in seen.classes]
    assert shown == [text for name, odds in seen.classes.items() for text in (name, f"{100 * odds:.0f}%")]

    page.locator("#group input[type=number]").fill("1")
    shows(1, 1, 1, 14, 14)
    page.locator("#block input[type=number]").fill("2")
    shows(1, 2, 1, 14, 14)
    page.locator("#stage input[type=range]").press("ArrowRight")
    expect(page.locator("#block")).to_be_hidden()
    shows(2, 1, 1, 7, 7)
    page.locator("#group input[type=number]").fill("3")
    shows(2, 1, 3, 7, 7)

    # A click on a pixel: of 14 x 14, the fourth from above and the eleventh from the left.
    map = page.locator("#heat img")
    box = map.bounding_box()
    map.click(position={"x": 10.5 / 14 * box["width"], "y": 3.5 / 14 * box["height"]})
    shows(2, 1, 3, 3, 10)

    (tmp_path / "text.png").write_text("not a picture")
    page.locator("#picture").get_by_label("Remove Image").click()
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "text.png")
    expect(page.get_by_test_id("toast-body")).to_contain_text(
        "This file cannot be read as a picture: its format is unknown"
    )

    page.locator("#picture").get_by_label("Remove Image").click()
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "coins.png")
    shows(2, 1, 3, 3, 10)
    assert elsewhere == []  # it works without any other server
