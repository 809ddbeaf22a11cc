"""The Hub on loopback, as huggingface_hub and transformers see it. They run unmodified, in processes of their own."""

import json
import os
import subprocess
import sys
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from textwrap import dedent

import pytest

from hub_server import ALWAYS, HubServer


REPO = "user/model"
CONFIG = b'{"model_type": "rednet"}\n'
LARGE = {"model.safetensors", "optimizer.bin", "picture.png"}

# Runs `code` with the names in `given`, and prints what it calls `result`.
CLIENT = """
import json, sys
import huggingface_hub as hf
code, given = json.loads(sys.argv[1])
def error(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as raised:
        status = getattr(getattr(raised, "response", None), "status_code", None)
        return {"classes": [kind.__name__ for kind in type(raised).mro()], "status": status, "text": str(raised)}
scope = globals() | given
exec(code, scope)
print(json.dumps(scope.get("result")))
"""


@pytest.fixture
def hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture
def run(hub, tmp_path):
    """Runs code with huggingface_hub as `hf`, at this Hub, and returns its `result`. Calls share a cache, `home`."""

    def run(code, home="home", token=None, **given):
        arguments = json.dumps([dedent(code), {"repo": REPO, **given}], default=str)
        command = [sys.executable, "-c", CLIENT, arguments]
        done = subprocess.run(command, env=hub.environment(tmp_path / home, token), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def folder(tmp_path):
    """Three files for LFS, one of them of some megabytes, and two others."""
    folder = tmp_path / "folder"
    (folder / "logs").mkdir(parents=True)
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "logs" / "log.txt").write_bytes(b"")
    (folder / "model.safetensors").write_bytes(os.urandom(3_000_000))
    (folder / "optimizer.bin").write_bytes(os.urandom(2_000_000))
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(100))
    return folder


@pytest.fixture
def upload(run, folder):
    """Uploads the folder and returns what came of it: the commit, or the error."""
    return lambda: run(
        """
        hf.create_repo(repo, exist_ok=True)
        def upload():
            global result
            result = hf.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload").oid
        result = error(upload) or result
        """,
        folder=folder,
    )


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def uploads(hub):
    """How the uploads of LFS files ended."""
    return [line.status for line in hub.log if line.method == "PUT"]


def titles(hub):
    return [commit.title for commit in hub.commits(REPO)]


def test_the_account_and_its_repositories(hub, run):
    name, urls, exist, again, elsewhere = run("""
        name = hf.whoami()["name"]
        urls = [hf.create_repo(repo), hf.create_repo(repo, exist_ok=True)]
        exist = [hf.repo_exists(repo), hf.repo_exists(repo + "2"), hf.file_exists(repo, ".gitattributes")]
        result = name, urls, exist, error(hf.create_repo, repo), error(hf.create_repo, "somebody/model")
    """)
    assert name == "user" and urls == [f"{hub.url}/{REPO}"] * 2 and exist == [True, False, True]
    assert again["status"] == 409 and elsewhere["status"] == 403
    assert list(hub.files(REPO)) == [".gitattributes"] and titles(hub) == ["initial commit"]


def test_a_folder_goes_up_as_one_commit_and_comes_down_the_same(hub, run, upload, folder):
    sha = upload()
    attributes = hub.files(REPO)[".gitattributes"]
    assert hub.files(REPO) == contents(folder) | {".gitattributes": attributes}
    assert titles(hub) == ["initial commit", "Upload"] and hub.commits(REPO)[-1].sha == sha
    assert {path for path, file in hub.commits(REPO)[-1].tree.items() if file.lfs} == LARGE
    assert b"*.safetensors filter=lfs" in attributes and uploads(hub) == [200] * 3

    # Once more: nothing has changed, so nothing is sent.
    assert upload() == sha
    assert len(uploads(hub)) == 3 and len(hub.commits(REPO)) == 2

    snapshot = run("result = hf.snapshot_download(repo)", home="other", token="")
    assert contents(snapshot) == hub.files(REPO)


def test_content_that_the_repository_has_is_not_sent_again(hub, upload, folder):
    upload()
    (folder / "model.safetensors").rename(folder / "renamed.safetensors")
    upload()
    assert len(uploads(hub)) == 3
    assert hub.files(REPO)["renamed.safetensors"] == hub.files(REPO)["model.safetensors"]


def test_a_file_is_downloaded_once(hub, run, upload):
    upload()
    download = "result = [hf.hf_hub_download(repo, name) for name in ('model.safetensors', 'config.json')]"
    paths = run(download)
    assert [Path(path).read_bytes() for path in paths] == [hub.files(REPO)["model.safetensors"], CONFIG]
    before = len(hub.log)
    assert run(download) == paths
    assert [line.method for line in hub.log[before:] if "/resolve/" in line.path] == ["HEAD", "HEAD"]


def test_a_download_that_breaks_off_goes_on_by_range(hub, run, upload, folder):
    # The client reads 10 MB at a time, and forgets a part of them.
    (folder / "model.safetensors").write_bytes(os.urandom(24_000_000))
    upload()
    hub.cut("/resolve/main/model", method="GET", in_answer=True)
    path = run("result = hf.hf_hub_download(repo, 'model.safetensors')")
    assert Path(path).read_bytes() == hub.files(REPO)["model.safetensors"]
    assert [line.status for line in hub.log if line.method == "GET" and "/resolve/" in line.path] == [200, 206]


def test_errors_are_the_clients_own(run):
    run("hf.create_repo(repo), hf.create_repo('user/private', private=True)")
    calls = """
        absent = "user/absent"
        result = [
            error(hf.hf_hub_download, absent, "config.json"),
            error(hf.model_info, absent),
            error(hf.upload_file, path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=absent),
            error(hf.hf_hub_download, "user/private", ".gitattributes"),
            error(hf.hf_hub_download, repo, ".gitattributes", revision="absent"),
            error(hf.hf_hub_download, repo, "absent.json"),
            error(lambda: list(hf.list_repo_tree(repo, "absent"))),
            error(hf.whoami),
        ]
    """

    def known(answers):
        names = ["RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError", "HfHubHTTPError"]
        return [
            answer and (min(set(answer["classes"]) & set(names), key=names.index), answer["status"])
            for answer in answers
        ]

    there = [("RevisionNotFoundError", 404)] + [("EntryNotFoundError", 404)] * 2
    assert known(run(calls)) == [("RepositoryNotFoundError", 404)] * 3 + [None] + there + [None]
    # whoami does not ask where there is no token.
    assert known(run(calls, token="", home="nobody")[:-1]) == [("RepositoryNotFoundError", 401)] * 4 + there
    assert known(run(calls, token="hf_wrong", home="wrong")) == [("HfHubHTTPError", 401)] * 8


def test_what_is_in_a_repository(hub, run, upload, folder):
    (folder / "README.md").write_text(
        "---\nlicense: mit\ntags: [involution]\npipeline_tag: image-classification\n---\n"
    )
    upload()
    commit = hub.commits(REPO)[-1]
    result = run("""
        info = hf.model_info(repo, files_metadata=True)
        [known] = hf.get_paths_info(repo, ["model.safetensors", "absent"])
        result = {
            "info": [info.sha, info.pipeline_tag, info.card_data.license, info.tags, info.config],
            "siblings": {file.rfilename: (file.size, file.lfs and file.lfs.sha256) for file in info.siblings},
            "deep": [item.path for item in hf.list_repo_tree(repo, recursive=True)],
            "flat": [item.path for item in hf.list_repo_tree(repo)],
            "logs": [item.path for item in hf.list_repo_tree(repo, "logs")],
            "known": [known.path, known.size, known.lfs.sha256],
        }
    """)
    tags = ["image-classification", "involution"]
    assert result["info"] == [commit.sha, "image-classification", "mit", tags, {"model_type": "rednet"}]
    sizes = {path: [len(file.data), file.sha256 if file.lfs else None] for path, file in commit.tree.items()}
    assert result["siblings"] == sizes and result["known"] == ["model.safetensors", *sizes["model.safetensors"]]
    assert set(result["deep"]) == set(sizes) | {"logs"} and result["logs"] == ["logs/log.txt"]
    assert set(result["flat"]) == set(result["deep"]) - {"logs/log.txt"}


def test_branches_tags_and_history(hub, run, upload):
    upload()
    first, last = hub.commits(REPO)
    result = run("""
        commits = hf.list_repo_commits(repo)
        hf.create_tag(repo, tag="v1")
        hf.create_branch(repo, branch="fix/1", revision=commits[-1].commit_id)
        hf.upload_file(path_or_fileobj=b"{}", path_in_repo="new.json", repo_id=repo, revision="fix/1")
        refs = hf.list_repo_refs(repo)
        revisions = ["main", "v1", "fix/1", commits[-1].commit_id]
        result = {
            "commits": [(commit.commit_id, commit.title) for commit in commits],
            "refs": {ref.name: ref.target_commit for ref in refs.branches + refs.tags},
            "files": [hf.list_repo_files(repo, revision=revision) for revision in revisions],
        }
    """)
    assert result["commits"] == [[last.sha, "Upload"], [first.sha, "initial commit"]]
    assert result["refs"] == {"main": last.sha, "v1": last.sha, "fix/1": hub.commits(REPO, "fix/1")[-1].sha}
    expected = [set(last.tree), set(last.tree), {".gitattributes", "new.json"}, {".gitattributes"}]
    assert [set(files) for files in result["files"]] == expected
    assert hub.files(REPO, "fix/1")["new.json"] == b"{}" and "new.json" not in hub.files(REPO)


def test_a_commit_is_done_whole_or_not_at_all(hub, run):
    absent, late, card = run("""
        add = lambda path, data=b"content": hf.CommitOperationAdd(path, data)
        commit = lambda *operations, **more: hf.create_commit(repo, operations, commit_message="Change", **more)
        hf.create_repo(repo)
        first = commit(add("a/1"), add("a/2"), add("b"))
        commit(add("c"), hf.CommitOperationDelete("a/"), hf.CommitOperationDelete("b"))
        result = [
            error(commit, add("d"), hf.CommitOperationDelete("absent")),
            error(commit, add("d"), parent_commit=first.oid),
            error(commit, add("d"), add("README.md", b"---\\nlicense: homemade\\n---\\n")),
        ]
    """)
    assert (absent["status"], late["status"]) == (404, 412) and '"license" must be one of' in card["text"]
    assert set(hub.files(REPO)) == {".gitattributes", "c"} and titles(hub) == ["initial commit", "Change", "Change"]


def test_server_errors_that_go_away(hub, run, upload):
    hub.fail("/preupload/")
    hub.fail("^/lfs/", status=500, method="PUT")
    hub.fail("/resolve/", status=502, method="HEAD")
    upload()
    path = run("result = hf.hf_hub_download(repo, 'config.json')")
    assert Path(path).read_bytes() == CONFIG
    assert titles(hub) == ["initial commit", "Upload"]
    assert [line.status for line in hub.log if line.status >= 500] == [503, 500, 502]


def test_server_errors_that_do_not(hub, upload):
    hub.fail("/commit/", times=ALWAYS)
    assert [upload()["status"] for _ in range(2)] == [503, 503]
    assert titles(hub) == ["initial commit"] and len(uploads(hub)) == 3
    hub.recover()
    upload()
    assert titles(hub) == ["initial commit", "Upload"] and len(uploads(hub)) == 3


def test_a_connection_cut_in_the_middle_of_a_file(hub, upload, folder):
    hub.cut("^/lfs/", method="PUT", times=2)
    upload()
    assert sorted(uploads(hub)) == [0, 0, 200, 200, 200]
    assert titles(hub) == ["initial commit", "Upload"]
    assert contents(folder).items() <= hub.files(REPO).items()


@pytest.mark.parametrize("in_answer", [False, True])
def test_a_connection_cut_in_the_middle_of_a_commit(hub, upload, folder, in_answer):
    """Cut in the request there is no commit, cut in the answer there is. The client cannot tell, and does not retry."""
    hub.cut("/commit/", in_answer=in_answer)
    assert {"NetworkError", "RemoteProtocolError"} & set(upload()["classes"])
    assert len(titles(hub)) == 1 + in_answer
    upload()
    assert titles(hub) == ["initial commit", "Upload"] and len(uploads(hub)) == 3
    assert contents(folder).items() <= hub.files(REPO).items()


CARD = """license: apache-2.0
pipeline_tag: image-classification
tags: [involution]
model-index:
- name: rednet26
  results:
  - task: {type: image-classification}
    dataset: {name: ImageNet, type: imagenet-1k}
    metrics: [{type: accuracy, value: 0.7}]
"""


def test_model_cards_are_checked(hub, run):
    cards = {
        CARD: None,
        CARD.replace("apache-2.0", "[mit, other]"): None,
        CARD.replace("image-classification\ntags", "image-seeing\ntags"): None,
        CARD.replace("apache-2.0", "homemade"): '- Error: "license" must be one of [apache-2.0, mit,',
        CARD.replace("[involution]", "involution"): '- Error: "tags" must be an array',
        CARD.replace("name: ImageNet, ", ""): '- Error: "model-index[0].results[0].dataset.name" is required',
        CARD.replace("[{type: accuracy", "[{type: 5"): '"model-index[0].results[0].metrics[0].type" must be a string',
        CARD.replace("- name: rednet26\n  ", "- "): '- Error: "model-index[0].name" is required',
    }
    # A RepoCard, since a ModelCard mends or refuses some of them by itself. Neither takes what does not parse.
    *answers, broken = run(
        """
        def check(text):
            card = hf.RepoCard("")
            card.content = text
            card.validate(repo_type="model")
        hf.ModelCard(cards[0]).validate()
        hf.create_repo(repo)
        upload = lambda text: hf.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=repo)
        result = [*(error(check, card) for card in cards), error(upload, "---\\ntags: {\\n---\\n")]
        """,
        cards=[f"---\n{card}---\n# RedNet\n" for card in cards],
    )
    assert "- Invalid YAML" in broken["text"]
    for expected, answer in zip(cards.values(), answers, strict=True):
        assert (
            answer is None if expected is None else answer["classes"][0] == "ValueError" and expected in answer["text"]
        )
    assert len(hub.warnings) == 1 and 'The pipeline tag "image-seeing" is not' in hub.warnings[0]


def test_one_connection_and_bodies_in_chunks(hub):
    body, path = json.dumps({"content": f"---\n{CARD}---\n"}).encode(), "/api/validate-yaml"
    connection = HTTPConnection("127.0.0.1", int(hub.url.rpartition(":")[2]))

    def post(chunks):
        connection.request("POST", path, iter(chunks), encode_chunked=True)
        answer = connection.getresponse().read()
        assert connection.sock is not None
        return answer

    assert json.loads(post([body[:30], body[30:]])) == {"errors": [], "warnings": []}
    hub.fail(path, status=500)
    hub.cut(path)
    assert b"error" in post([body])
    with pytest.raises((RemoteDisconnected, ConnectionResetError, BrokenPipeError)):
        post([body])
    assert [line.status for line in hub.log] == [200, 500, 0]


PUSH = """
import sys, torch
from huggingface_hub import upload_folder
from rednet import RedNetConfig, RedNetForImageClassification
repo, logits, sources = sys.argv[1:]
torch.manual_seed(0)
auto_map = {
    "AutoConfig": "configuration_rednet.RedNetConfig",
    "AutoModelForImageClassification": "modeling_rednet.RedNetForImageClassification",
}
config = RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[2], num_labels=3, auto_map=auto_map)
model = RedNetForImageClassification(config).eval()
model.push_to_hub(repo)
upload_folder(repo_id=repo, folder_path=sources, allow_patterns="*_rednet.py")
torch.save(model(torch.ones(1, 3, 32, 32)).logits.detach(), logits)
"""

LOAD = """
import sys, torch
from transformers import AutoModelForImageClassification
repo, logits, _ = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(repo, trust_remote_code=True)
torch.testing.assert_close(model(torch.ones(1, 3, 32, 32)).logits, torch.load(logits))
assert type(model).__module__.startswith("transformers_modules.") and "rednet" not in sys.modules
"""


def test_a_model_is_pushed_and_loaded_by_its_name(hub, root, tmp_path):
    for home, code in (("home", PUSH), ("empty", LOAD)):
        command = [sys.executable, "-c", code, REPO, str(tmp_path / "logits.pt"), str(root / "modeling")]
        done = subprocess.run(command, env=hub.environment(tmp_path / home), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert {"README.md", "config.json", "model.safetensors", "modeling_rednet.py"} <= set(hub.files(REPO))
    assert hub.commits(REPO)[-1].tree["model.safetensors"].lfs
