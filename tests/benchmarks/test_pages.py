"""The pages have the numbers of the records."""

import re

import pytest

import pages


def test_the_pages_have_the_numbers_of_the_records():
    for path, text in pages.filled_pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python benchmarks/pages.py"


def test_wrong_numbers_are_replaced():
    """In all cells but the first ones, which say what a row is."""
    for page, heading, fill in pages.TABLES:
        text = (pages.ROOT / page).read_text(encoding="utf-8")
        wrong = re.sub(r"(?<=\| )\d+\.\d+(?= )", "99.99", text)
        assert wrong != text and pages.fill_table(wrong, heading, fill).count("99.99") < wrong.count("99.99")
        assert pages.fill_table(text, heading, fill) == text


def test_a_record_that_exists_twice_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    (tmp_path / "network-cpu-one-2026-01-01.csv").touch()
    (tmp_path / "network-cpu-one-2026-01-01-other-shapes.csv").touch()
    assert pages.record_name("network") == "network-cpu-one-2026-01-01"
    (tmp_path / "network-cpu-two-2026-01-01.csv").touch()
    with pytest.raises(ValueError, match="has 2 records .* expected one: network-cpu-one-2026-01-01, network-cpu-two"):
        pages.record_name("network")
