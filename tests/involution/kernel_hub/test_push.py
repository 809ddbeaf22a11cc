"""Pushes of a Kernel Hub repository, to a Hub on this machine. `test_kernelize.py` loads a kernel from there."""

import json
import shutil
from pathlib import Path

import pytest

import involution.kernel_hub
from hub_client import HubClient
from hub_server import HubServer


PUSH = "from involution.kernel_hub.__main__ import main; main()"
SOURCES = Path(involution.kernel_hub.__file__).parent / "repository"
CPU = "build/torch215-cxx11-cpu-x86_64-linux"


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with HubClient(hub, tmp_path_factory.mktemp("home")) as client:
        yield client


def write_folder(folder: Path, repo_id: str, builds: dict[str, bytes]) -> Path:
    """The repository that `write` would write, with other builds: a path in `build` for each content."""
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path, content in builds.items():
        build = folder / "build" / path
        build.parent.mkdir(parents=True, exist_ok=True)
        build.write_bytes(content)
        (folder / "build" / Path(path).parts[0] / "metadata.json").write_text(json.dumps({"version": 1}))
    for source, target in (("build.toml", "build.toml"), ("CARD.md", "build/CARD.md")):
        (folder / target).write_text((folder / source).read_text().replace("{{ repo_id }}", repo_id))
    return folder


UNIVERSAL = {"torch-universal/__init__.py": b"import torch\n"}
LIBRARY = {f"{Path(CPU).name}/a.so": b"\x7fELF\0", f"{Path(CPU).name}/__init__.py": b"import torch\n"}


def test_builds_and_sources_go_to_their_branches(hub, client, tmp_path):
    folder = write_folder(tmp_path / "kernel", "user/one", UNIVERSAL | LIBRARY)
    bytecode = ["tests/__pycache__/test.pyc", "build/torch-universal/__pycache__/a.pyc", ".git/config", "result/a.so"]
    for path in bytecode:
        (folder / path).parent.mkdir(parents=True)
        (folder / path).touch()
    output = client.output(PUSH, "push", folder, "--private")
    name = "kernels/user/one"
    commits = [hub.commits(name, branch)[-1] for branch in ("v1", "main")]
    assert output.split() == [f"{hub.url}/{name}/commit/{commit.sha}" for commit in commits]
    assert hub.repos[name].private and set(hub.repos[name].heads) == {"main", "v1"}
    assert all(len(hub.commits(name, branch)) == 2 for branch in ("main", "v1"))

    builds, sources = hub.files(name, "v1"), hub.files(name)
    expected = {path.relative_to(folder).as_posix() for path in folder.glob("build/*/*") if path.is_file()}
    assert set(builds) == expected | {"benchmarks/benchmark.py", ".gitattributes"}
    assert builds[f"{CPU}/a.so"] == LIBRARY[f"{Path(CPU).name}/a.so"]
    paths = {path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*") if path.is_file()}
    paths = {path for path in paths if "__pycache__" not in path}
    assert set(sources) == paths | {"README.md", ".gitattributes"}
    assert sources["README.md"] == (folder / "build" / "CARD.md").read_bytes()
    assert b'get_kernel("user/one", version=1' in sources["README.md"] and b'"user/one"' in sources["build.toml"]


def test_builds_of_several_machines_add_up(hub, client, tmp_path):
    first = UNIVERSAL | {"torch-universal/old.py": b"old\n", "torch-universal/csrc/old.h": b"old\n"}
    client.output(PUSH, "push", write_folder(tmp_path / "first", "user/two", first))
    client.output(PUSH, "push", write_folder(tmp_path / "second", "user/two", LIBRARY))
    new = {"torch-universal/__init__.py": b"import torch  # new\n"}
    third = write_folder(tmp_path / "third", "user/two", new)
    (third / "tests" / "test_involution.py").rename(third / "tests" / "test_kernel.py")
    client.output(PUSH, "push", third)
    builds = {path: data for path, data in hub.files("kernels/user/two", "v1").items() if not path.endswith(".json")}
    benchmark = {"benchmarks/benchmark.py": (SOURCES / "benchmarks" / "benchmark.py").read_bytes()}
    expected = {f"build/{path}": data for path, data in (new | LIBRARY).items()} | benchmark
    assert {path: data for path, data in builds.items() if path != ".gitattributes"} == expected
    tests = {path for path in hub.files("kernels/user/two") if path.startswith("tests/")}
    assert tests == {"tests/__init__.py", "tests/test_kernel.py"}


def test_a_revision_gets_everything_and_a_pull_request_changes_no_branch(hub, client, tmp_path):
    name, folder = "kernels/user/three", write_folder(tmp_path / "kernel", "user/three", UNIVERSAL)
    client.output(PUSH, "push", folder, "--revision", "trial")
    assert set(hub.repos[name].heads) == {"main", "trial"} and len(hub.commits(name)) == 1
    assert {"README.md", "build.toml", "build/torch-universal/__init__.py"} <= set(hub.files(name, "trial"))

    refused = client.run(PUSH, "push", folder, "--create_pr")
    assert refused.status == 1 and "user/three has no branch v1" in refused.output
    client.output(PUSH, "push", folder)
    heads = dict(hub.repos[name].heads)
    (folder / "build" / "torch-universal" / "__init__.py").write_text("import torch  # new\n")
    (folder / "build" / "CARD.md").write_text("---\nlicense: apache-2.0\n---\n# New\n")
    output = client.output(PUSH, "push", folder, "--create_pr")
    assert output.split() == [f"{hub.url}/{name}/discussions/{number}" for number in (1, 2)]
    assert {branch: head for branch, head in hub.repos[name].heads.items() if branch in heads} == heads
    assert b"# new" in hub.files(name, "refs/pr/1")["build/torch-universal/__init__.py"]
    assert b"# New" in hub.files(name, "refs/pr/2")["README.md"]


def test_a_failed_push_can_be_repeated(hub, client, tmp_path):
    folder = write_folder(tmp_path / "kernel", "user/unlucky", UNIVERSAL | LIBRARY)
    hub.fail("/user/unlucky/commit/v1")
    failed = client.run(PUSH, "push", folder)
    hub.recover()
    assert failed.status == 1 and "repeat the command" in failed.output and "Traceback" not in failed.output
    name = "kernels/user/unlucky"
    assert all(len(hub.commits(name, branch)) == 1 for branch in ("main", "v1"))
    client.output(PUSH, "push", folder)
    assert all(len(hub.commits(name, branch)) == 2 for branch in ("main", "v1"))
    uploads = [request for request in hub.log if request.method == "PUT" and name in request.path]
    assert len(uploads) == 1  # the library, by the first push


def version_2(folder: Path) -> None:
    (folder / "build" / "torch-universal" / "metadata.json").write_text(json.dumps({"version": 2}))


def no_repository(folder: Path) -> None:
    toml = folder / "build.toml"
    toml.write_text(toml.read_text().replace('repo-id = "user/four"', ""))


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda folder: (folder / "build.toml").unlink(), "which has no build.toml"),
        (lambda folder: shutil.rmtree(folder / "build"), "whose folder build is not complete"),
        (version_2, "has version 2, expected 1 as in build.toml"),
        (no_repository, "has no repo-id, expected OWNER/NAME"),
    ],
)
def test_an_incomplete_folder_is_refused_before_the_push(change, reason, hub, client, tmp_path):
    folder = write_folder(tmp_path / "kernel", "user/four", UNIVERSAL)
    change(folder)
    requests = len(hub.log)
    refused = client.run(PUSH, "push", folder)
    assert refused.status == 1 and reason in refused.output and "Traceback" not in refused.output
    assert len(hub.log) == requests


def test_a_push_needs_a_token_that_may_write(hub, client, tmp_path):
    folder = write_folder(tmp_path / "kernel", "user/five", UNIVERSAL)
    refused = client.run(PUSH, "push", folder, token="")
    assert refused.status == 1 and "`hf auth login`" in refused.output and "Traceback" not in refused.output
    hub.tokens["hf_read"] = "read"
    refused = client.run(PUSH, "push", folder, token="hf_read")
    assert refused.status == 1 and "403" in refused.output and "kernels/user/five" not in hub.repos
