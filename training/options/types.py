"""Types of options: a Python type, and which of its values are valid."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Constraint:
    """Which values of a type are valid. The parser checks them."""

    description: str  # completes "expected ..."
    holds: Callable[[Any], bool]


def _each(holds: Callable[[Any], bool], count: int | None = None) -> Callable[[list], bool]:
    """A condition on lists: `count` elements, by default at least one, and `holds` for each of them."""
    return lambda values: (len(values) == count if count else len(values) > 0) and all(map(holds, values))


Natural = Annotated[int, Constraint("an integer of at least 0", lambda value: value >= 0)]
Count = Annotated[int, Constraint("an integer of at least 1", lambda value: value >= 1)]
Seed = Annotated[int, Constraint("an integer from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32)]  # as in NumPy
Quality = Annotated[int, Constraint("an integer from 1 to 95", lambda value: 1 <= value <= 95)]
NumTrained = Annotated[int, Constraint("an integer from 0 to 5", lambda value: 0 <= value <= 5)]

# Infinity and NaN are not valid for any of these.
NotNegative = Annotated[float, Constraint("a finite number of at least 0", lambda value: value >= 0)]
Positive = Annotated[float, Constraint("a finite number above 0", lambda value: value > 0)]
Probability = Annotated[float, Constraint("a number from 0 to 1", lambda value: 0 <= value <= 1)]
BelowOne = Annotated[float, Constraint("a number from 0 to below 1", lambda value: 0 <= value < 1)]
Fraction = Annotated[float, Constraint("a number between 0 and 1, without both", lambda value: 0 < value < 1)]
Scale = Annotated[float, Constraint("a number above 0 and up to 1", lambda value: 0 < value <= 1)]

Folder = Annotated[str, Constraint("the path of a folder", lambda value: value.strip() != "")]

Epochs = Annotated[list[int], Constraint("one or more integers of at least 1", _each(lambda value: value >= 1))]
Sizes = Annotated[list[int], Constraint("one or more integers of at least 1", _each(lambda value: value >= 1))]
Seeds = Annotated[
    list[int],
    Constraint(
        "one or more different integers of at least 0",
        lambda values: len(set(values)) == len(values) > 0 and min(values) >= 0,
    ),
]
Size = Annotated[
    list[int], Constraint("a height and a width, integers of at least 1", _each(lambda value: value >= 1, 2))
]
Scales = Annotated[
    list[float],
    Constraint(
        "a minimum and a maximum, numbers above 0", lambda values: len(values) == 2 and 0 < values[0] <= values[1]
    ),
]
Means = Annotated[list[float], Constraint("3 finite numbers, one for each channel", _each(lambda value: True, 3))]
Deviations = Annotated[
    list[float], Constraint("3 finite numbers above 0, one for each channel", _each(lambda value: value > 0, 3))
]

Betas = Annotated[
    list[float],
    Constraint("two numbers from 0 to below 1", lambda values: len(values) == 2 and all(0 <= v < 1 for v in values)),
]

RAND_AUGMENT = re.compile(r"rand(-(m\d+|mstd\d+(\.\d+)?|mmax\d+|n[1-9]\d*|p(0(\.\d+)?|1(\.0)?)|inc[01]))*")
AutoAugment = Annotated[
    str,
    Constraint(
        "trivial, or RandAugment as timm writes it, for example rand-m7-mstd0.5-inc1",
        lambda value: value == "trivial" or RAND_AUGMENT.fullmatch(value) is not None,
    ),
]

StepsOrEpoch = Annotated[
    str,
    Constraint(
        "a number of steps above 0, or epoch",
        lambda value: value == "epoch" or (value.isdecimal() and int(value) > 0),
    ),
]
