"""Files that are written atomically, and locked folders."""

import csv
import os
import signal
import time

import pytest
from rednet.training.utils.files import locked, write_csv


def test_csv_survives_a_round_trip(tmp_path):
    rows = [{"name": 'T-shirt, "top"', "top_1": 0.5}, {"name": "Größe\nzwei", "top_1": ""}]
    write_csv(tmp_path / "rows.csv", rows)
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"name": 'T-shirt, "top"', "top_1": "0.5"}, rows[1]]
    assert b"\r" not in (tmp_path / "rows.csv").read_bytes()


def test_an_error_leaves_the_old_file(tmp_path):
    write_csv(tmp_path / "rows.csv", [{"name": "old"}])
    with pytest.raises(ValueError, match="other"):
        write_csv(tmp_path / "rows.csv", [{"name": "new"}, {"other": 1}])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["name\nold\n"]


def test_a_locked_folder_has_one_writer(tmp_path):
    folder = tmp_path / "new/run"
    for _ in range(2):  # it is free after the block
        with locked(folder):
            with pytest.raises(BlockingIOError, match=f"another process writes to {folder}"), locked(folder):
                pass
        with pytest.raises(KeyError), locked(folder):  # also after an error
            raise KeyError
    assert list(folder.iterdir()) == []


def test_a_worker_keeps_no_lock_of_its_process(tmp_path):
    """Workers of a loader outlive a killed process by some seconds."""
    started, start = os.pipe()
    with locked(tmp_path):
        if (worker := os.fork()) == 0:
            os.write(start, b"!")
            time.sleep(60)
            os._exit(0)
        os.read(started, 1)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
