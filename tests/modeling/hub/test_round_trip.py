"""Pulled from a Hub after a push, by unmodified libraries in processes of their own with empty caches."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from rednet import RedNetForImageClassification
from rednet.configuration_rednet import AUTO_MAP, REMOTE_CODE
from rednet.hub.cards import EXAMPLE_PICTURE
from transformers import ConvNextImageProcessor

from interpreter import python
from remote import WITHOUT_PACKAGES


REPO = "user/rednet-tiny"
COMMAND = "import runpy; runpy.run_module('rednet.hub', run_name='__main__')"
REMOTE = WITHOUT_PACKAGES + "remote = {'trust_remote_code': True}\n"
WITH_PACKAGES = "import rednet, sys\nremote = {}\n"
PULL = """
import json, torch
from PIL import Image
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
repo = sys.argv[1]
processor = AutoImageProcessor.from_pretrained(repo)
inputs = processor(Image.open("picture.jpg"), return_tensors="pt").to(torch.float64)
tolerance = {"rtol": 1e-10, "atol": 1e-10}
model, base = (c.from_pretrained(repo, **remote).eval().double() for c in (AutoModelForImageClassification, AutoModel))
backbone = AutoBackbone.from_pretrained(repo, out_features=["stage1"], **remote).eval().double()
with torch.no_grad():
    logits = model(**inputs).logits
    torch.testing.assert_close(model.classifier(base(**inputs).pooler_output), logits, **tolerance)
    features = base(**inputs).pooler_output
    torch.testing.assert_close(backbone(**inputs).feature_maps[0].mean((2, 3)), features, **tolerance)
best = pipeline("image-classification", model=repo, **remote)("picture.jpg")[0]
assert best["label"] == model.config.id2label[logits.argmax().item()]
with open("logits.json", "w") as file:
    json.dump(logits.tolist(), file)
"""
CHECK_EXAMPLES = """
assert len(classify("picture.jpg")) == 3 and abs(probabilities.sum() - 1) < 1e-3
assert embedding.shape == (1, 64) and [m.shape for m in feature_maps] == [(1, 64, 16, 16)] and model.num_labels == 2
"""


@pytest.fixture
def place(tmp_path):
    """A working directory with a picture, and the folder `pictures` with two classes of them."""
    for n, color in enumerate(("red", "blue", "red", "blue")):
        (tmp_path / "pictures" / color).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), color).save(tmp_path / "pictures" / color / f"{n}.jpg")
    shutil.copy(tmp_path / "pictures/red/0.jpg", tmp_path / "picture.jpg")
    return tmp_path


def run(hub, place, code: str, *arguments) -> str:
    """Runs code in a new interpreter with an empty cache, and returns what it prints."""
    environment = hub.environment(place / f"home-{len(list(place.iterdir()))}")
    result = python("-c", code, *arguments, cwd=place, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def check_logits(folder, place) -> None:
    """The logits of PULL are what the package computes for the picture with the weights in a folder."""
    model = RedNetForImageClassification.from_pretrained(folder).double()
    inputs = ConvNextImageProcessor.from_pretrained(folder)(Image.open(place / "picture.jpg"), return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs.to(torch.float64)).logits
    logits = torch.tensor(json.loads((place / "logits.json").read_text()), dtype=torch.float64)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def pushed(hub, write_folder, tmp_path_factory):
    """The folder of a model that was pushed to REPO."""
    place = tmp_path_factory.mktemp("pushed")
    folder = write_folder(place / "folder")
    assert REPO in run(hub, place, COMMAND, "push", folder, REPO)
    notebook = hub.files(REPO)["notebook.ipynb"]
    assert f'repository = \\"{REPO}\\"' in notebook.decode() and (folder / "notebook.ipynb").read_bytes() == notebook
    return folder


@pytest.mark.parametrize("start", [WITH_PACKAGES, REMOTE], ids=["package", "remote code"])
def test_a_pushed_model_and_the_examples_of_its_card(hub, root, pushed, place, picture_url, start):
    """With the package, also the example of the documentation. Only the server of the picture is another one."""
    blocks = re.findall(r"```python\n(.*?)```", hub.files(REPO)["README.md"].decode(), re.DOTALL)
    assert len(blocks) == 5 and sum(block.count(EXAMPLE_PICTURE) for block in blocks) == 4
    blocks = [block.replace(EXAMPLE_PICTURE, picture_url) for block in blocks]
    example = ""
    if start == WITH_PACKAGES:
        blocks = [re.sub(r",?\s*trust_remote_code=True", "", block) for block in blocks]
        example = re.search(r"```python\n(import rednet .*?)```", (root / "docs/use.md").read_text(), re.DOTALL)[1]
    code = start + PULL + "\n".join(blocks) + CHECK_EXAMPLES + example.replace("your-name/rednet-50", REPO)
    assert "cat" in run(hub, place, code, REPO) or not example
    check_logits(pushed, place)


FINE_TUNE = """
import torch
from datasets import load_dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments
model = AutoModelForImageClassification.from_pretrained(
    sys.argv[1], id2label={0: "blue", 1: "red", 2: "none"}, label2id={"blue": 0, "red": 1, "none": 2}, **remote
)
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
def collate(rows):
    batch = processor([row["image"] for row in rows], return_tensors="pt")
    return {**batch, "labels": torch.tensor([row["label"] for row in rows])}
arguments = TrainingArguments(
    "trained", max_steps=2, push_to_hub=True, hub_model_id=sys.argv[2], remove_unused_columns=False, report_to=[],
    use_cpu=True,
)
pictures = load_dataset("imagefolder", data_dir="pictures", split="train")
trainer = Trainer(model, arguments, train_dataset=pictures, data_collator=collate, processing_class=processor)
trainer.train()
trainer.push_to_hub()
"""


@pytest.mark.parametrize("start", [WITH_PACKAGES, REMOTE], ids=["package", "remote code"])
def test_what_trainer_pushes_is_complete(hub, pushed, place, start):
    """If Trainer runs on remote code, the new repository does not depend on the one that the model came from."""
    repo = f"user/fine-tuned-{'package' if start == WITH_PACKAGES else 'remote'}"
    run(hub, place, start + FINE_TUNE, REPO, repo)
    files = hub.files(repo)
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    assert all(files[name] == (pushed / name).read_bytes() for name in REMOTE_CODE)
    assert {"README.md", "preprocessor_config.json", "model.safetensors"} < set(files)
    for name, data in files.items():
        (place / name).write_bytes(data)
    run(hub, place, REMOTE + PULL, repo)
    check_logits(place, place)


SUBFOLDER = """
from huggingface_hub import HfApi
from transformers import AutoModelForImageClassification
api, (repo, folder) = HfApi(), sys.argv[1:]
api.create_repo(repo)
api.upload_folder(repo_id=repo, folder_path=folder, path_in_repo="large")
def load():
    return AutoModelForImageClassification.from_pretrained(repo, subfolder="large", trust_remote_code=True)
try:
    load()
except OSError as error:
    print("configuration_rednet.py" in str(error))
api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns="*.py")
print(load().config.id2label[0])
"""


def test_a_model_in_a_subfolder_needs_its_code_at_the_root(hub, pushed, place):
    assert run(hub, place, WITHOUT_PACKAGES + SUBFOLDER, "user/several", pushed).split() == ["True", "cat"]
