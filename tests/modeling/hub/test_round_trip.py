"""Pushed to a Hub and pulled from it, by unmodified libraries in processes of their own with empty caches."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import EvalResult
from PIL import Image
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.configuration_rednet import AUTO_MAP, REMOTE_CODE
from rednet.convert_rednet_to_hf import checkpoint_name
from rednet.hub import check_hub_folder, save_hub_folder
from rednet.hub.cards import make_card
from safetensors.torch import load_file, save_file
from transformers import ConvNextImageProcessor

from hub_api import Commit, Repo
from hub_server import ALWAYS, HubServer
from remote import WITHOUT_PACKAGES


REPO = "user/rednet-tiny"
COMMAND = "from rednet.hub.__main__ import main; main()"
REMOTE = WITHOUT_PACKAGES + "remote = {'trust_remote_code': True}\n"
WITH_PACKAGES = "import rednet\nremote = {}\n"
PULL = """
import json, sys, torch
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
json.dump(logits.tolist(), sys.stdout)
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


CHECK = """
import json, os, sys
from rednet.hub import check_token
answers = []
for token, name, kind in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        check_token(name, kind)
        answers.append(None)
    except (PermissionError, ValueError) as error:
        answers.append(str(error))
json.dump(answers, sys.stdout)
"""


def test_what_a_token_may_not_push_to_is_known_before(tmp_path):
    """By the answers of the Hub: repositories that are there and those that a push would create, models and Spaces."""
    cases = [
        ("hf_secret", "user/new", "model", None),
        ("hf_secret", "new", "model", None),
        ("hf_secret", "new", "space", None),
        ("hf_secret", "lab/there", "model", None),
        ("hf_secret", "lab/new", "model", None),
        ("hf_secret", "club/new", "model", "may not create club/new: it may only create repositories of user, lab"),
        ("hf_secret", "somebody/new", "space", "may not create somebody/new"),
        ("hf_secret", "somebody/there", "model", "may not write to somebody/there"),
        ("hf_secret", "a b", "model", "a b"),
        ("hf_read", "user/new", "model", "may only read"),
        ("hf_fine", "lab/new", "model", None),
        ("hf_fine", "lab/there", "model", None),
        ("hf_fine", "new", "model", "may not create user/new: it may only create repositories of lab"),
        ("hf_wrong", "new", "model", "this Hub token is invalid"),
    ]
    with HubServer() as hub:
        hub.orgs = {"lab": "write", "club": "read"}
        hub.tokens |= {"hf_read": "read", "hf_fine": {"lab": ["repo.write"], "user": ["repo.content.read"]}}
        for owner in ("lab", "somebody"):
            hub.repos[f"{owner}/there"] = Repo(False, {"main": Commit.make(None, "initial commit", "", {})})
        asked = json.dumps([case[:3] for case in cases])
        command = [sys.executable, "-c", CHECK, asked]
        done = subprocess.run(command, env=hub.environment(tmp_path), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for (*case, expected), answer in zip(cases, json.loads(done.stdout), strict=True):
        assert answer is None if expected is None else answer is not None and expected in answer, (case, answer)


@pytest.fixture(scope="module")
def model() -> RedNetForImageClassification:
    torch.manual_seed(0)
    labels = ["cat", "dog", "red"]
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
    config = RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[2], **names)
    model = RedNetForImageClassification(config).eval()
    torch.nn.init.ones_(model.rednet.encoder.stages[0].layers[1].layer[2].normalization.weight)
    torch.nn.init.normal_(model.classifier.weight)
    return model


def write_folder(folder, model, license="apache-2.0"):
    result = EvalResult("image-classification", "user/things", "things", "accuracy", 0.5, metric_name="Top-1")
    card = make_card(model.config, "RedNet of things", "rednet-tiny", "A test.", "None.", results=[result])
    card.data.license = license
    model.config.architectures = ["RedNetForImageClassification"]
    save_hub_folder(folder, model, ConvNextImageProcessor(size={"shortest_edge": 64}), card)
    return folder


@pytest.fixture
def place(tmp_path):
    """A working directory with a picture, and the folder `pictures` with two classes of them."""
    for n, color in enumerate(("red", "blue", "red", "blue")):
        (tmp_path / "pictures" / color).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), color).save(tmp_path / "pictures" / color / f"{n}.jpg")
    shutil.copy(tmp_path / "pictures/red/0.jpg", tmp_path / "picture.jpg")
    return tmp_path


def run(hub, place, code, *arguments, token=None, stdin=None):
    """In a new interpreter with an empty cache."""
    home = place / f"home-{len(list(place.iterdir()))}"
    environment = hub.environment(home, token)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=place, env=environment, capture_output=True, text=True, input=stdin,
    )  # fmt: skip


def output(result) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def push(hub, place):
    def push(folder, repo=REPO, *arguments, token=None):
        return run(hub, place, COMMAND, "push", folder, repo, *arguments, token=token)

    return push


def local_logits(folder, place) -> torch.Tensor:
    """What the package gives for the picture with the weights in a folder."""
    model = RedNetForImageClassification.from_pretrained(folder).double()
    inputs = ConvNextImageProcessor.from_pretrained(folder)(Image.open(place / "picture.jpg"), return_tensors="pt")
    with torch.no_grad():
        return model(**inputs.to(torch.float64)).logits


def uploads(hub, repo) -> int:
    """Commits after the one that creates the repository."""
    return len(hub.commits(repo)) - 1


@pytest.fixture(scope="module")
def pushed(hub, model, tmp_path_factory):
    place = tmp_path_factory.mktemp("pushed")
    folder = write_folder(place / "folder", model)
    (folder / "events.log").write_text("not for the Hub")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1/config.json").write_text("{}")
    result = run(hub, place, COMMAND, "push", folder, REPO)
    assert REPO in output(result)
    return folder


def test_a_push_is_one_commit_of_the_whole(hub, pushed):
    files = hub.files(REPO)
    expected = {".gitattributes", "README.md", "config.json", "preprocessor_config.json", "involution.png"}
    assert set(files) == expected | {"model.safetensors", *REMOTE_CODE}
    assert uploads(hub, REPO) == 1
    assert all(data == (pushed / name).read_bytes() for name, data in files.items() if name != ".gitattributes")
    assert f'model="{REPO}"' in files["README.md"].decode()


@pytest.mark.parametrize("start", [WITH_PACKAGES, REMOTE], ids=["package", "remote code"])
def test_pull(hub, pushed, place, start):
    logits = torch.tensor(json.loads(output(run(hub, place, start + PULL, REPO))), dtype=torch.float64)
    torch.testing.assert_close(logits, local_logits(pushed, place), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("start", [WITH_PACKAGES, REMOTE], ids=["package", "remote code"])
def test_the_snippets_of_a_card_run(hub, pushed, place, start):
    blocks = re.findall(r"```python\n(.*?)```", hub.files(REPO)["README.md"].decode(), re.DOTALL)
    assert len(blocks) == 3
    if start == WITH_PACKAGES:
        blocks = [re.sub(r",?\s*trust_remote_code=True", "", block) for block in blocks]
    check = "\nassert len(classify('picture.jpg')) == 3 and len(feature_maps) == 1 and model.num_labels == 2\n"
    output(run(hub, place, start + "\n".join(blocks) + check))


def test_the_use_section_of_the_readme_runs(hub, root, pushed, place):
    block = re.search(r"```python\n(import rednet .*?)```", (root / "README.md").read_text(), re.DOTALL)[1]
    assert "cat" in output(run(hub, place, block.replace("your-name/rednet-50", REPO)))


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
    """Also where Trainer ran on remote code: the repository does not lean on the one that the model came from."""
    repo = f"user/fine-tuned-{'package' if start == WITH_PACKAGES else 'remote'}"
    output(run(hub, place, start.replace("import rednet", "import rednet, sys") + FINE_TUNE, REPO, repo))
    files = hub.files(repo)
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    assert all(files[name] == (pushed / name).read_bytes() for name in REMOTE_CODE)
    assert {"README.md", "preprocessor_config.json", "model.safetensors"} < set(files)

    for name, data in files.items():
        (place / name).write_bytes(data)
    logits = torch.tensor(json.loads(output(run(hub, place, REMOTE + PULL, repo))), dtype=torch.float64)
    torch.testing.assert_close(logits, local_logits(place, place), rtol=1e-10, atol=1e-10)


def test_the_converter_pushes(hub, model, place):
    torch.save(
        {f"backbone.{checkpoint_name(key)}": value for key, value in model.rednet.state_dict().items()},
        place / "a.pth",
    )
    arguments = ["--checkpoint_path", "a.pth", "--output_dir", "converted", "--push_to_hub", "user/converted"]
    code = "from rednet.convert_rednet_to_hf import main; main()"
    assert "/user/converted" in output(run(hub, place, code, *arguments))
    files = hub.files("user/converted")
    assert uploads(hub, "user/converted") == 1 and '"user/converted"' in files["README.md"].decode()
    assert files["model.safetensors"] == (place / "converted/model.safetensors").read_bytes()
    assert run(hub, place, code, *arguments, token="").stderr == (
        "error: there is no Hub token: run `hf auth login`, or set HF_TOKEN\n"
    )


def test_after_a_failure_the_same_command_goes_on(hub, model, place, push):
    folder = write_folder(place / "folder", model)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}
    start = len(hub.log)
    hub.fail(r"/commit/", status=500, times=ALWAYS)
    failed = push(folder, "user/unlucky")
    assert failed.returncode == 1 and "repeat the command" in failed.stderr
    hub.recover()
    assert [entry.status for entry in hub.log[start:] if entry.method == "PUT"] == [200, 200]
    assert uploads(hub, "user/unlucky") == 0
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}

    # The weights came through before the commit failed: they are not sent again.
    start = len(hub.log)
    output(push(folder, "user/unlucky"))
    assert uploads(hub, "user/unlucky") == 1
    sent = [entry for entry in hub.log[start:] if entry.method == "PUT"]
    assert sent == []


UPLOAD = """
import sys
from huggingface_hub import CommitOperationAdd, create_commit
repo, *names = sys.argv[1:]
create_commit(repo, [CommitOperationAdd(name, name.encode()) for name in names], commit_message="By hand")
"""


def test_a_second_push_replaces_the_weights_alone(hub, model, place, push):
    folder = write_folder(place / "folder", model)
    output(push(folder, "user/twice", "--commit_message", "The first"))
    foreign = {name: name.encode() for name in ("notes.txt", "adapter_model.safetensors", "lora/model.safetensors")}
    output(run(hub, place, UPLOAD, "user/twice", *foreign))
    model.save_pretrained(place / "sharded", max_shard_size="20KB")
    shutil.rmtree(folder)
    shutil.copytree(place / "sharded", folder)
    ConvNextImageProcessor().save_pretrained(folder)
    make_card(model.config, "RedNet", "x", "A test.", "None.").save(folder / "README.md")
    output(push(folder, "user/twice"))
    files = hub.files("user/twice")
    assert uploads(hub, "user/twice") == 3 and hub.commits("user/twice")[1].title == "The first"
    assert foreign.items() <= files.items()
    assert "model.safetensors" not in files and "model.safetensors.index.json" in files
    assert json.loads(output(run(hub, place, WITH_PACKAGES + PULL, "user/twice")))


PUSH_FUSED = """
import sys, torch
from rednet import RedNetForImageClassification
model = RedNetForImageClassification.from_pretrained(sys.argv[1]).eval().fuse()
try:
    model.push_to_hub("user/fused")
except ValueError as error:
    print(error)
"""


def test_a_fused_model_is_refused_before_its_repository_is_created(hub, pushed, place):
    assert "fused for inference" in output(run(hub, place, PUSH_FUSED, pushed))
    assert "user/fused" not in hub.repos


SUBFOLDER = """
import sys
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
    assert output(run(hub, place, WITHOUT_PACKAGES + SUBFOLDER, "user/several", pushed)).split() == ["True", "cat"]


def damage(kind, folder):
    weights = folder / "model.safetensors"
    if kind == "no processor":
        (folder / "preprocessor_config.json").unlink()
    elif kind == "no code":
        (folder / "modeling_rednet.py").unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "other weights":
        state = load_file(weights)
        state["classifier.weight"] = state["classifier.weight"][:2].clone()
        save_file(state, weights, {"format": "pt"})
    elif kind == "auto_map":
        config = json.loads((folder / "config.json").read_text())
        del config["auto_map"]["AutoBackbone"]
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no processor", "preprocessor_config.json is missing"),
        ("no code", "modeling_rednet.py is missing"),
        ("truncated", "model.safetensors cannot be read"),
        ("other weights", r"classifier.weight is \[2, 64\], expected \[3, 64\]"),
        ("auto_map", "auto_map"),
    ],
)
def test_incomplete_folders_are_refused(model, place, kind, message):
    folder = write_folder(place / "folder", model)
    check_hub_folder(folder)
    damage(kind, folder)
    with pytest.raises(ValueError, match=message):
        check_hub_folder(folder)


REFUSED = """
import os, sys
from rednet.hub import push_hub_folder
for line in sys.stdin.read().splitlines():
    folder, os.environ["HF_TOKEN"] = line.split(",")
    try:
        push_hub_folder(folder, "user/refused")
    except (PermissionError, ValueError) as error:
        print(type(error).__name__, str(error).replace("\\n", " "))
"""


def test_refusals_of_a_push(hub, model, place):
    """Without a token, with a wrong one, of a folder that is incomplete, and of a card with wrong metadata."""
    write_folder(place / "good", model)
    write_folder(place / "card", model, license="my own")
    damage("no processor", write_folder(place / "incomplete", model))
    lines = f"good,\ngood,hf_wrong\nincomplete,{hub.token}\ncard,{hub.token}\n"
    errors = output(run(hub, place, REFUSED, token="", stdin=lines)).splitlines()
    for error, message in zip(
        errors,
        (
            "PermissionError there is no Hub token: run `hf auth login`",
            "PermissionError this Hub token is invalid",
            "ValueError .*preprocessor_config.json is missing",
            "ValueError .*README.md has invalid metadata.*license",
        ),
        strict=True,
    ):
        assert re.match(message, error), errors
    assert "user/refused" not in hub.repos


def test_a_failed_command_says_what_and_leaves_the_folder(push, place):
    result = push(place, "user/refused")
    assert result.returncode == 1 and "config.json is missing" in result.stderr and "Traceback" not in result.stderr
