"""Files of Debian packages."""

import os
from pathlib import Path

import pytest
from rednet.training.data import debian


FILES = Path("usr/share/datasets/things")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine on which apt-get downloads an empty file, and dpkg unpacks two files, unless it is killed after one."""
    programs = {"apt-get": "touch things_1.deb"}
    programs["dpkg"] = f'mkdir -p "$3/{FILES}"; touch "$3/{FILES}/1"; test -e killed && exit 2; touch "$3/{FILES}/2"'
    (tmp_path / "bin").mkdir()
    for name, script in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_package_is_unpacked_whole_or_not_at_all(machine):
    (machine / "killed").touch()
    assert debian.debian_files("things", FILES) is None
    (machine / "killed").unlink()
    folder = debian.debian_files("things", FILES)
    assert folder == Path("outputs/data") / FILES and sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    assert sorted(path.name for path in Path("outputs/data").iterdir()) == ["apt", "things_1.deb", "usr"]
