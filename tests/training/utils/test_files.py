"""Files that are written atomically."""

import csv

import pytest
from rednet.training.utils.files import write_csv


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
