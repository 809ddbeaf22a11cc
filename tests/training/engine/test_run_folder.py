"""The files of a run."""

import json
import math

from rednet.training.engine.run_folder import append_log
from rednet.training.utils.files import write_json


def test_what_is_written_is_json(tmp_path):
    """A skipped step of fp16 has a gradient of infinite norm, for which JSON has no word."""

    def strict(word):
        raise AssertionError(f"{word} is not JSON")

    values = {"loss": 0.5, "grad_norm": math.inf, "more": {"a": [math.nan, 1], "b": -math.inf}, "n": 3, "word": "NaN"}
    append_log(tmp_path / "log.jsonl", values)
    write_json(tmp_path / "results.json", values)
    expected = {"loss": 0.5, "grad_norm": None, "more": {"a": [None, 1], "b": None}, "n": 3, "word": "NaN"}
    for name in ("log.jsonl", "results.json"):
        assert json.loads((tmp_path / name).read_text(), parse_constant=strict) == expected
