"""Downloads from a real server, which answers as broken servers do."""

import os
import re
import socket
from pathlib import Path

import pytest
import rednet.checkpoints.download as downloads
from rednet.checkpoints.download import PUBLISHED, download, locate

from file_server import FileServer
from interpreter import python
from processes import Training


CONTENT = b"\x80\x04" + os.urandom(1 << 20)


@pytest.fixture
def server():
    with FileServer({"/dygraph/RedNet26.pdparams": CONTENT}) as server:
        yield server


@pytest.fixture
def url(server) -> str:
    return f"{server.url}/dygraph/RedNet26.pdparams"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # for other processes
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # What arrives after the last whole chunk (10 MiB by default) is lost when a connection breaks.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    return tmp_path / "torch/hub/checkpoints"


def partial_files(cache: Path) -> list[Path]:
    return list(cache.glob("*.incomplete"))


def test_the_published_files_are_those_of_paddleclas():
    address = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/RedNet50_pretrained.pdparams"
    assert PUBLISHED["rednet-50"] == address and list(PUBLISHED)[::4] == ["rednet-26", "rednet-152"]


def test_a_file_is_downloaded_once(server, url, cache):
    path = download(url)
    assert path.read_bytes() == CONTENT and path.parent == cache and path.name.endswith("-RedNet26.pdparams")
    requests = len(server.log)
    assert download(url) == path and len(server.log) == requests
    assert not partial_files(cache)
    other = f"{server.url}/other/RedNet26.pdparams"  # the same name at another address is another file
    server.files["/other/RedNet26.pdparams"] = b"\x80other"
    assert download(other).read_bytes() == b"\x80other" and path.read_bytes() == CONTENT


def test_redirects_and_servers_without_head_etag_and_ranges(server, url):
    server.redirects["/latest.pdparams"] = "/dygraph/RedNet26.pdparams"
    server.without_head.add("/dygraph/RedNet26.pdparams")
    server.without_etag.add("/dygraph/RedNet26.pdparams")
    server.cuts["/dygraph/RedNet26.pdparams"] = [1000]
    assert download(f"{server.url}/latest.pdparams?version=1").read_bytes() == CONTENT


def test_a_broken_connection_resumes(server, url, cache):
    server.cuts["/dygraph/RedNet26.pdparams"] = [400_000, 300_000]
    assert download(url).read_bytes() == CONTENT
    assert [logged.range for logged in server.log if logged.method == "GET"] == [
        None, "bytes=400000-", "bytes=700000-",
    ]  # fmt: skip


def test_a_server_that_closed_the_connection_is_asked_again(server, url):
    """The second file is asked for on the connection of the first, which the server has closed meanwhile."""
    server.cuts["/dygraph/RedNet26.pdparams"] = [len(CONTENT)]
    server.files["/b.pdparams"] = b"\x80other"
    for _ in range(20):
        download(url).unlink()
        server.cuts["/dygraph/RedNet26.pdparams"] = [len(CONTENT)]
        download(f"{server.url}/b.pdparams").unlink()


def test_a_truncated_file_is_an_error_and_the_next_call_resumes(server, url, cache, monkeypatch):
    server.cuts["/dygraph/RedNet26.pdparams"] = [500_000, *[0] * 20]
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the retries
    with pytest.raises(ConnectionError, match=re.escape(f"{url} cannot be downloaded: ")):
        download(url)
    assert [path.stat().st_size for path in partial_files(cache)] == [500_000]
    server.cuts.clear()
    before = len(server.log)
    assert download(url).read_bytes() == CONTENT
    assert [logged.range for logged in server.log[before:]] == [None, "bytes=500000-"]  # HEAD and GET
    assert not partial_files(cache)


def test_parts_of_two_versions_are_not_joined(server, url, cache, monkeypatch):
    server.cuts["/dygraph/RedNet26.pdparams"] = [500_000, *[0] * 20]
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ConnectionError):
        download(url)
    server.cuts.clear()
    server.files["/dygraph/RedNet26.pdparams"] = other = b"\x80\x04" + os.urandom(1 << 20)
    assert download(url).read_bytes() == other


def start(root: Path, tmp_path: Path, url: str, number: int = 0) -> Training:
    """A process that downloads a file, in the environment of the fixture `cache`."""
    environment = {"TORCH_HOME": os.environ["TORCH_HOME"], "NO_PROXY": os.environ["NO_PROXY"]}
    return Training(root, tmp_path / f"output-{number}.txt", [url], "download_file", **environment)


def test_a_killed_download_resumes(root, server, url, cache, tmp_path):
    """The first process is killed in the middle of a file that arrives slowly."""
    server.files["/dygraph/RedNet26.pdparams"] = whole = CONTENT * 64
    start(root, tmp_path, url).kill_when(lambda: any(path.stat().st_size for path in partial_files(cache)))
    started = [path.stat().st_size for path in partial_files(cache)]
    before = len(server.log)
    assert download(url).read_bytes() == whole
    if started:  # otherwise the whole file had arrived
        assert server.log[-1].range == f"bytes={started[0]}-" and len(server.log) == before + 2


@pytest.mark.parametrize("status", [403, 404, 500])
def test_the_status_of_the_server_is_named(server, url, cache, monkeypatch, status):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the retries
    server.statuses["/dygraph/RedNet26.pdparams"] = status
    with pytest.raises(ConnectionError, match=f"{re.escape(url)} cannot .* status {status}. .*--checkpoint PATH"):
        download(url)
    assert not list(cache.glob("*RedNet26.pdparams"))


def test_without_a_network_the_cure_is_named(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with socket.socket() as unused:  # a port that nobody listens to
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.pth"
        with pytest.raises(ConnectionError, match=r"cannot be downloaded: ConnectError.*browser.*--checkpoint PATH"):
            download(url)
    with pytest.raises(ConnectionError, match=r"http://nobody.invalid/a.pth cannot be downloaded"):
        download("http://nobody.invalid/a.pth")


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_an_html_page_is_not_a_checkpoint(server, cache, content_type):
    """Servers answer with a page for a file that moved, or before a confirmation."""
    server.files["/a.pth"], server.types["/a.pth"] = b"\n<!doctype html><html></html>", content_type
    with pytest.raises(ValueError, match="does not return a checkpoint: it is an HTML page"):
        download(f"{server.url}/a.pth")
    assert not list(cache.glob("*.pth")) and not partial_files(cache)


def test_large_files_are_refused_before_the_transfer(server, url, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=f"has {len(CONTENT):,} bytes, expected at most 1,000"):
        download(url)
    assert [logged.method for logged in server.log] == ["HEAD"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full, of Linux")
def test_a_full_disk(server, url, cache):
    server.without_head.add("/dygraph/RedNet26.pdparams")
    path = download(url)
    path.rename(path.with_name(f"{path.name}.{downloads._digest('')}.incomplete"))
    (partial,) = partial_files(cache)
    partial.unlink()
    partial.symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"the disk of {re.escape(str(cache))} is full. .*TORCH_HOME"):
        download(url)


def test_proxies_of_the_environment_are_used(server, cache, tmp_path):
    server.files["/RedNet26.pdparams"] = CONTENT
    program = (
        "from rednet.checkpoints.download import download\nprint(download('http://far.invalid/RedNet26.pdparams'))"
    )
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HTTP_PROXY": server.url, "HF_HUB_DISABLE_PROGRESS_BARS": "0", "TQDM_POSITION": "-1"}
    result = python("-c", program, env=environment)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).read_bytes() == CONTENT
    assert {logged.address for logged in server.log} == {"http://far.invalid/RedNet26.pdparams"}
    assert "\nRedNet26.pdparams: 100%" in result.stderr  # the progress bar


def test_processes_that_start_together_download_once(root, server, url, tmp_path):
    processes = [start(root, tmp_path, url, number) for number in range(2)]
    assert [process.wait() for process in processes] == [0, 0], [process.text() for process in processes]
    assert [logged.method for logged in server.log] == ["HEAD", "GET"]


def test_other_arguments_are_refused(tmp_path, url):
    with pytest.raises(FileNotFoundError, match="the checkpoint is rednet-51, expected one of rednet-26, .*a URL"):
        locate("rednet-51")
    with pytest.raises(FileNotFoundError, match="expected one of"):
        locate("ftp://example.org/a.pth")
    with pytest.raises(ValueError, match="expected the URL of a file"):
        locate("http://example.org/")
    (tmp_path / "mine.pth").write_bytes(CONTENT)
    assert locate(tmp_path / "mine.pth") == (tmp_path / "mine.pth", None)
    assert locate(url) == (download(url), url)
