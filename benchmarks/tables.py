"""Tables as text, and options that are lists. Imports little, so that a script that uses it starts at once."""

import argparse
from collections.abc import Callable, Collection


def table(rows: list[dict]) -> str:
    """Rows with the same keys as Markdown."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[column]) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comma_separated(text: str) -> list[str]:
    return text.split(",")


def some_of(choices: Collection[str]) -> Callable[[str], list[str]]:
    """The type of an option that names some of `choices`, separated by commas."""

    def parse(text: str) -> list[str]:
        names = comma_separated(text)
        if unknown := [name for name in names if name not in choices]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(choices)}")
        return names

    return parse
