"""Downloads checkpoints: those that PaddleClas publishes, by name, and others by URL.

`http_get` of huggingface_hub does the transfer. It shows progress, resumes after a broken connection, and uses the
proxies in the environment (HTTPS_PROXY).
"""

import errno
import hashlib
import os
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import torch
from filelock import FileLock
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import http_backoff
from rednet.checkpoints.read import MAX_BYTES, find_problem


# The five RedNets, trained on ImageNet-1k, that PaddleClas publishes (Apache-2.0).
PUBLISHED = {
    f"rednet-{depth}": f"https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/RedNet{depth}_pretrained.pdparams"
    for depth in (26, 38, 50, 101, 152)
}
PUBLISHED_FILES = {PurePosixPath(url).name for url in PUBLISHED.values()}
_NO_ENCODING = {"Accept-Encoding": "identity"}  # Content-Length is the size of the file


def locate(checkpoint: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """
    Returns the file of a checkpoint and the URL that it was downloaded from, which is None for a file of the user.

    Args:
        checkpoint: a name in `PUBLISHED`, a URL, or a path.

    Raises:
        FileNotFoundError: `checkpoint` is neither a name nor a URL, and no file has this path.
        ConnectionError, OSError, ValueError: see `download`.
    """
    url = PUBLISHED.get(os.fspath(checkpoint), os.fspath(checkpoint))
    if urlsplit(url).scheme in ("http", "https"):
        return download(url), url
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(
            f"the checkpoint is {checkpoint}, expected one of {', '.join(PUBLISHED)}, a URL (http or https), or the path "
            "of a file"
        )
    return Path(checkpoint), None


def download(url: str) -> Path:
    """
    Returns the file at a URL. It is downloaded once, to `checkpoints` in the cache folder of `torch.hub` (TORCH_HOME, by
    default ~/.cache/torch). An interrupted download resumes at the next call, if the file on the server is the same.

    Raises:
        ConnectionError: the server cannot be reached, answers with an error, or closes the connection too early.
        OSError: the cache folder cannot be written, or the disk is full.
        ValueError: the URL has no file name, or returns an HTML page, or a file of more than `MAX_BYTES`.
    """
    if not _file_name(url):
        raise ValueError(f"the URL is {url}, expected the URL of a file")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / f"{_digest(url)}-{_file_name(url)}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            try:
                _transfer(url, path)
            except (ConnectionError, ValueError):
                raise
            except HfHubHTTPError as error:
                raise _connection_error(
                    url, f"the server answered with status {error.response.status_code}"
                ) from error
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise OSError(
                        f"{url} cannot be downloaded: the disk of {folder} is full. Make room, or set TORCH_HOME to a "
                        "folder on another disk. The same command resumes the download"
                    ) from error
                raise
            except Exception as error:  # the class for a broken connection differs between releases of huggingface_hub
                raise _connection_error(url, f"{type(error).__name__}: {error}") from error
    return path


def _transfer(url: str, path: Path) -> None:
    """Downloads to a temporary path, which is renamed to `path` when the file is complete."""
    etag, size = _version_and_size(url)
    # The name of a partial file contains its version on the server, so that parts of two versions are never joined.
    partial = path.with_name(f"{path.name}.{_digest(etag)}.incomplete")
    is_resumable = etag and size is not None and partial.exists() and partial.stat().st_size <= size
    with open(partial, "ab" if is_resumable else "wb") as file:
        resume_size = file.tell()
        if resume_size:
            print(f"resuming the download of {url} after {resume_size:,} of {size:,} bytes")
        http_get(
            url,
            file,
            resume_size=resume_size,
            headers=_NO_ENCODING | ({"If-Range": etag} if resume_size else {}),
            expected_size=size,
            displayed_filename=_file_name(url),
        )
    if problem := find_problem(partial):
        partial.unlink()
        raise ValueError(f"{url} does not return a checkpoint: {problem}")
    os.replace(partial, path)


def _version_and_size(url: str) -> tuple[str, int | None]:
    """
    Returns the ETag and the size in bytes of the file at a URL, empty and None if the server does not give them.

    Raises:
        ConnectionError, HfHubHTTPError: the server answers with an error.
        ValueError: the URL returns an HTML page, or a file of more than `MAX_BYTES`.
    """
    response = http_backoff("HEAD", url, max_retries=2, headers=_NO_ENCODING, timeout=30)
    if response.status_code in (403, 405, 501):  # some servers refuse only this method
        return "", None
    if response.is_error:
        raise _connection_error(url, f"the server answered with status {response.status_code}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise ValueError(f"{url} does not return a checkpoint: it is an HTML page")
    size = response.headers.get("Content-Length")
    if size is not None and int(size) > MAX_BYTES:
        raise ValueError(f"{url} has {int(size):,} bytes, expected at most {MAX_BYTES:,}")
    return response.headers.get("ETag", ""), None if size is None else int(size)


def _connection_error(url: str, reason: str) -> ConnectionError:
    return ConnectionError(
        f"{url} cannot be downloaded: {reason}. Repeat the command, or download the file by other means, for example in "
        "a browser on another machine, and give its path: --checkpoint PATH"
    )


def _file_name(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
