"""The timer."""

from involution.timing import median_seconds


def test_functions_take_turns():
    calls = []
    seconds = median_seconds({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5 and seconds.keys() == {"a", "b"} and min(seconds.values()) >= 0
