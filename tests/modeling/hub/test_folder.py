"""Hub folders on the disk: how they are written, replaced and checked."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rednet.hub import check_hub_folder, check_replaceable, replacing
from safetensors.torch import load_file, save_file

from interpreter import python


@pytest.fixture
def write(tmp_path, write_folder):
    return lambda name: write_folder(tmp_path / name)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_keeps_other_files(write, tmp_path):
    """A clone of a model repository with notes, other weights and the remains of a larger model."""
    folder = tmp_path / "things"
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    foreign = [".gitattributes", "notes.txt", "adapter_model.safetensors", "model.onnx", "runs/model.safetensors"]
    stale = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    (folder / "runs").mkdir()
    for name in [*foreign, *stale]:
        (folder / name).write_text(name)
    (folder / "config.json").write_text('{"model_type": "rednet"}')
    neighbors = [tmp_path / f"{prefix}things.{suffix}" for prefix in ("", ".") for suffix in ("old", "new")]
    for neighbor in neighbors:
        neighbor.mkdir()
        (neighbor / "precious").touch()
    before = contents(folder)
    write("things")
    check_hub_folder(folder)
    after = contents(folder)
    assert {
        name: data for name, data in before.items() if name not in [*stale, "config.json"]
    }.items() <= after.items()
    assert not after.keys() & set(stale)
    assert all((neighbor / "precious").exists() for neighbor in neighbors)
    assert sorted(tmp_path.iterdir()) == sorted([folder, *neighbors])

    write("things")
    assert contents(folder).keys() == after.keys()


def test_a_folder_has_the_license_of_its_code(write, root):
    assert (write("things") / "LICENSE").read_bytes() == (root / "LICENSE").read_bytes()


def test_a_link_to_a_folder_stays_a_link(write, tmp_path):
    """Nor is the folder itself exchanged: a mount point cannot be."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "things").symlink_to("elsewhere")
    number = (tmp_path / "elsewhere").stat().st_ino
    check_hub_folder(write("things"))
    assert (tmp_path / "things").is_symlink() and (tmp_path / "elsewhere").stat().st_ino == number


def save(folder: Path, name: str) -> None:
    """A model in two parts."""
    with replacing(folder) as temporary:
        for part in ("config.json", f"model-0000{len(name)}-of-00009.safetensors", "model.safetensors.index.json"):
            (temporary / part).write_text(json.dumps({"model_type": "rednet", "name": name}))


def test_killed_between_any_two_files(tmp_path):
    """The folder has one of the two models, or one that does not load; the next call completes it."""
    folder, states = tmp_path / "model", []
    for renames in itertools.count():
        save(folder, "old")
        (folder / "notes.txt").write_text("keep")
        old = contents(folder)
        if (process := os.fork()) == 0:
            left = itertools.count(renames, -1)
            sys.addaudithook(lambda event, _: event == "os.rename" and next(left) == 0 and os._exit(9))
            save(folder, "renewed")
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
        found = {name: data for name, data in contents(folder).items() if not name.startswith(".")}
        names = {json.loads(data)["name"] for name, data in found.items() if name != "notes.txt"}
        states.append("config.json" in found and names)
        assert found["notes.txt"] == old["notes.txt"]
        save(folder, "renewed")
        assert {json.loads(data)["name"] for name, data in contents(folder).items() if name != "notes.txt"} == {
            "renewed"
        }
        assert len(contents(folder)) == 4 and not (folder / ".rednet-new").exists()
        if not killed:
            break
    assert states == [False] * 3 + [{"renewed"}]


def test_an_error_while_writing_changes_nothing(tmp_path):
    save(tmp_path / "model", "old")
    before = contents(tmp_path)
    for folder in ("model", "new"):
        with pytest.raises(KeyboardInterrupt), replacing(tmp_path / folder) as temporary:
            (temporary / "config.json").write_text("half")
            raise KeyboardInterrupt
    assert contents(tmp_path) == before and not (tmp_path / "new").exists()


def test_an_error_after_a_kill_leaves_a_folder_that_the_next_call_completes(tmp_path):
    folder = tmp_path / "model"
    save(folder, "old")
    if (process := os.fork()) == 0:
        sys.addaudithook(lambda event, _: event == "os.rename" and os._exit(9))
        save(folder, "renewed")
    os.waitpid(process, 0)
    assert not (folder / "config.json").exists()
    with pytest.raises(OSError, match="no space"), replacing(folder):
        raise OSError("no space")
    save(folder, "renewed")
    assert json.loads((folder / "config.json").read_text())["name"] == "renewed"
    assert len(contents(folder)) == 3 and not (folder / ".rednet-new").exists()


def test_an_error_is_not_hidden_by_files_of_others(tmp_path):
    with pytest.raises(RuntimeError, match="the reason"), replacing(tmp_path / "model"):
        (tmp_path / "model/log.txt").write_text("keep")
        raise RuntimeError("the reason")
    assert contents(tmp_path) == {"model/log.txt": b"keep"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", "my project", "has README.md: choose another folder"),
        ("LICENSE", "my terms", "has LICENSE"),
        ("model.safetensors", "weights of something", "has model.safetensors"),
        ("config.json", '{"model_type": "bert"}', "has config.json"),
        ("config.json", "not JSON", "has config.json"),
        ("config.json", '["rednet"]', "has config.json"),
    ],
)
def test_files_of_others_with_our_names_are_not_replaced(write, tmp_path, name, content, message):
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / name).write_text(content)
    with pytest.raises(FileExistsError, match=message):
        write("things")
    assert contents(tmp_path) == {f"things/{name}": content.encode()}


def test_what_is_not_a_folder_is_refused_first(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        for path in (name, f"{name}/deep/er"):
            with pytest.raises(FileExistsError, match=f"{name} is not a folder"):
                check_replaceable(tmp_path / path)
    save(tmp_path / "model", "old")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="README.md is a folder"):
        (tmp_path / "model/README.md").mkdir()
        with replacing(tmp_path / "model") as temporary:
            (temporary / "README.md").touch()
    assert contents(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o500)
    for folder in (tmp_path / "mine", tmp_path / "mine/new/model"):
        with pytest.raises(PermissionError, match="no permission to write into .*/mine$"):
            check_replaceable(folder)


def damage(kind: str, folder: Path) -> None:
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
    elif kind == "half a configuration":
        (folder / "config.json").write_text('{"model_type": "rednet"')
    elif kind == "a list":
        (folder / "config.json").write_text("[]")
    elif kind == "no index":
        (folder / "model.safetensors.index.json").write_text("{}")
    elif kind == "old export":
        for name, time in (
            ("onnx/model.onnx", weights.stat().st_mtime - 1),
            ("openvino/model.xml", weights.stat().st_mtime + 1),
        ):
            (folder / name).parent.mkdir()
            (folder / name).touch()
            os.utime(folder / name, (time, time))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no processor", "preprocessor_config.json is missing"),
        ("no code", "modeling_rednet.py is missing"),
        ("truncated", "model.safetensors cannot be read"),
        ("other weights", r"classifier.weight is \[2, 64\], expected \[3, 64\]"),
        ("auto_map", "auto_map"),
        ("half a configuration", "things/config.json is damaged: Expecting"),
        ("a list", "things/config.json is damaged: it contains a list, expected an object"),
        ("no index", "model.safetensors.index.json has weight_map None, expected an object"),
        ("old export", r"exports that are older than its weights: onnx/model.onnx\. "),
    ],
)
def test_incomplete_folders_are_refused(write, kind, message):
    folder = write("things")
    check_hub_folder(folder)
    damage(kind, folder)
    with pytest.raises(ValueError, match=message):
        check_hub_folder(folder)


def test_an_invalid_configuration_is_named(write):
    folder = write("things")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "stem_stride": 3}))
    with pytest.raises(
        ValueError, match="things/config.json is not a valid configuration of a RedNet: (?s:.*)stem_stride=3"
    ):
        check_hub_folder(folder)


def test_the_converter_checks_the_hub_first(tmp_path):
    """If the Hub cannot be reached, one line says so before the conversion."""
    (tmp_path / "some.pth").touch()
    command = ["--checkpoint", "some.pth", "--output_dir", "out", "--push_to_hub", "me"]
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_some", "HF_HUB_OFFLINE": "0"}
    result = python("-m", "rednet.convert_rednet_to_hf", *command, env=environment, cwd=tmp_path)
    assert result.returncode == 1 and not (tmp_path / "out").exists()
    assert "error: the Hub cannot be reached" in result.stderr and "Traceback" not in result.stderr
