"""Writes the numbers of the records in `results` into the tables and sentences of the pages.

    python benchmarks/pages.py

Each benchmark has one record of a CPU there, with its date in the name. A table keeps its first columns, which say what a
row is; the other cells are replaced. What describes the machine in words is written by hand.
"""

import argparse
import csv
import re
from collections.abc import Callable
from pathlib import Path

from rednet.training.utils.files import write_text


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
# The records, by what their names begin with.
KINDS = ("network", "plain", "operator", "library", "export", "variants", "shortcuts", "data")
COUNT = r"\d+(?:\.\d+)?"
SUFFIX = "-other-shapes"


def record_name(kind: str) -> str:
    """The name of the only record of a kind on a CPU, such as `network-cpu-2-cores-zen3-2026-11-30`."""
    names = [path.stem for path in RESULTS.glob(f"{kind}-cpu-*.csv") if not path.stem.endswith(SUFFIX)]
    if len(names) != 1:
        raise ValueError(
            f"{RESULTS} has {len(names)} records {kind}-cpu-*.csv, expected one: {', '.join(sorted(names))}"
        )
    return names[0]


def read(kind: str) -> list[dict[str, str]]:
    with open(RESULTS / f"{record_name(kind)}.csv", newline="") as file:
        return list(csv.DictReader(file))


def number(text: str) -> str:
    """The first number of a cell such as `1.11 x as fast`."""
    return re.findall(COUNT, text)[0]


def find(rows: list[dict], **values: str) -> dict:
    (row,) = [row for row in rows if all(row[column] == value for column, value in values.items())]
    return row


def against(kind: str, what: str, batch: str, unfold: bool = False) -> dict:
    """The row of RedNet-50 against ResNet-50, or against RedNet-50 by unfold."""
    rows = [row for row in read(kind) if (row["peer"] == "RedNet-50 by unfold") == unfold]
    return find(rows, what=what, batch=batch)


def first_page(cells: list[str]) -> list[str]:
    what = cells[0].replace(", float32", "").replace("BatchNorm folded by `model.fuse()`", "folded")
    what = what.replace("`torch.compile` with freezing", "compiled with freezing")
    speeds = [number(against("network", what, batch)["against the peer"]) for batch in measured_batches(what)]
    return [cells[0], *["not measured"] * (2 - len(speeds)), *[f"{speed} x" for speed in speeds]]


def measured_batches(what: str) -> list[str]:
    return sorted({row["batch"] for row in read("network") if row["what"] == what}, key=int)


def network(kind: str) -> Callable[[list[str]], list[str]]:
    def fill(cells: list[str]) -> list[str]:
        what, batch = cells[0].replace(" (`model.fuse()`)", ""), cells[1]
        row = against(kind, what, batch)
        ratio = number(row["against the peer"])
        if "memory" in what:
            return [*cells[:2], "", f"{ratio} x the memory", ""]
        unfold = cells[4] and number(
            against(kind, what.replace("compiled with", "both compiled with"), batch, True)["against the peer"]
        )
        return [*cells[:2], number(row["RedNet-50"]), f"{ratio} x", f"{float(unfold):.1f} x" if unfold else ""]

    return fill


def exported(cells: list[str]) -> list[str]:
    runtime, involution = cells[0], ""
    if cells[0] != "PyTorch, eager" and ", " in cells[0]:
        runtime, involution = cells[0].split(", ")
    rows = [
        find(read("export"), **{"model": "RedNet-50", "in": runtime, "involution": involution, "batch": batch})
        for batch in ("1", "16")
    ]
    speeds = [f"{row['images/s']} ({number(row['against PyTorch, eager'])} x)" for row in rows]
    ratios = [number(ratio) for row in rows if (ratio := row["against ResNet-50 in the same"])]
    return [cells[0], *speeds, f"{', '.join(ratios)} x" if ratios else ""]


def exported_relative(cells: list[str]) -> list[str]:
    runtime, batch = cells[0].split(", batch ")
    return [cells[0]] + [
        number(
            find(read("export"), **{"in": runtime, "involution": name, "batch": batch})[
                "against ResNet-50 in the same"
            ]
        )
        for name in ("standard nodes", "custom node", "one multiplication")
    ]


def library(cells: list[str]) -> list[str]:
    row = find(read("library"), dtype=cells[0], batch=cells[1], input="all seventeen")
    columns = ("forward", "contiguous", "fused", "input grad", "kernel grad", "fused grad")
    return [*cells[:2], *[f"{row[column]} x" for column in columns]]


def data(cells: list[str]) -> list[str]:
    row = find(read("data"), **{"picture": cells[0], "what one core does": cells[1]})
    return [*cells[:2], row["ms"], row["images/s"]]


# The page, the heading above the table, and the function from the cells of a row to the new ones.
TABLES = [
    ("README.md", "Speed", first_page),
    ("benchmarks/README.md", "RedNet-50 relative to ResNet-50", network("network")),
    ("benchmarks/README.md", "RedNet-50 in plain PyTorch", network("plain")),
    ("benchmarks/README.md", "Exported models", exported),
    ("benchmarks/README.md", "The library in the wheel", library),
    ("benchmarks/README.md", "Training data", data),
    ("docs/export.md", "One node for each involution", exported_relative),
]


def fill_table(text: str, heading: str, fill: Callable[[list[str]], list[str]]) -> str:
    """Replaces the cells of the first table below a heading."""
    start = text.index(f"\n## {heading}\n")
    table = re.compile(r"(?:^\|.*\n)+", re.MULTILINE).search(text, start)
    assert table is not None
    head, line, *rows = table[0].splitlines()
    filled = [" | ".join(fill([cell.strip() for cell in row.strip("|").split("|")])) for row in rows]
    lines = [head, line, *[re.sub(r" +\|", " |", f"| {row} |") for row in filled]]
    return f"{text[: table.start()]}{chr(10).join(lines)}\n{text[table.end() :]}"


def sentences() -> list[tuple[str, str]]:
    """Regular expressions of sentences with numbers, and what replaces them."""
    plain = [
        [number(against("plain", f"inference, {mode}", batch)["against the peer"]) for batch in "18"]
        for mode in ("eager", "compiled")
    ]
    bfloat16 = number(against("network", "inference, eager, bfloat16", "16")["RedNet-50"])
    float32 = number(against("network", "inference, eager", "16")["RedNet-50"])
    training = number(against("network", "training step, eager", "16")["RedNet-50"])
    hours = round(1_281_167 * 130 / 3600 / float(training), -2)
    pictures = ("JPEG of 500 x 375", "JPEG of 1600 x 1200", "packed, 667 x 500", "packed, 341 x 256")
    batch = "read, decode, crop, flip, collate"
    crops = [find(read("data"), **{"picture": name, "what one core does": batch}) for name in pictures]
    full = [number(row["against RandomResizedCrop"]) for row in crops]
    small, large, packed, packed_small = (row["images/s"] for row in crops)
    street = find(read("data"), picture="PNG of 2048 x 1024 with mask")["images/s"]
    unfold = sorted(float(row["forward: faster than unfold"]) for row in read("operator") if row["dtype"] == "float32")
    return [
        (
            rf"{COUNT} x and {COUNT} x in eager mode(.*?): {COUNT} x \(batch 1\), {COUNT} x \(batch 8\)",
            rf"{plain[0][0]} x and {plain[0][1]} x in eager mode\1: {plain[1][0]} x (batch 1), {plain[1][1]} x (batch 8)",
        ),
        (rf"reaches {COUNT} instead of {COUNT} images/s", f"reaches {bfloat16} instead of {float32} images/s"),
        (
            r"(float32 \| )\S+( \(\S+\) \| )[\d,]+ hours: too slow",
            rf"\g<1>{training}\g<2>{hours:,.0f} hours: too slow",
        ),
        (
            rf"forward pass is {COUNT} to {COUNT} times as fast as unfold",
            f"forward pass is {unfold[0]} to {unfold[-1]} times as fast as unfold",
        ),
        (rf"crops {COUNT} JPEGs of 500 x 375 per second", f"crops {small} JPEGs of 500 x 375 per second"),
        (rf"or {COUNT} of 1600 x 1200", f"or {large} of 1600 x 1200"),
        (
            rf"large ones are {COUNT} per second, with 256 pixels {COUNT}",
            f"large ones are {packed} per second, with 256 pixels {packed_small}",
        ),
        (
            rf"takes {COUNT} times as long(.*?), and {COUNT} times",
            rf"takes {full[1]} times as long\1, and {full[0]} times",
        ),
        (rf"makes {COUNT} crops/s of a 2048", f"makes {street} crops/s of a 2048"),
    ]


def fill_card(text: str) -> str:
    """Replaces the speeds in `hub_cards/rednet-50.yaml`."""

    def fill(match: re.Match) -> str:
        kind = "plain" if match.start() > text.index("  plain:") else "network"
        row = against(kind, match["what"], match["batch"])
        speed = f"rednet: {row['RedNet-50']}, relative_speed: {number(row['against the peer'])}"
        return f'{{what: "{match["what"]}", batch: {match["batch"]}, {speed}}}'

    return re.sub(r'\{what: "(?P<what>[^"]+)", batch: (?P<batch>\d+), rednet: [^}]*\}', fill, text)


def filled_pages() -> dict[Path, str]:
    """The pages, with the names and the numbers of the records."""
    paths = ["README.md", "benchmarks/README.md", "hub_cards/rednet-50.yaml"]
    pages = {ROOT / path: (ROOT / path).read_text(encoding="utf-8") for path in paths}
    pages |= {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
    for page, heading, fill in TABLES:
        pages[ROOT / page] = fill_table(pages[ROOT / page], heading, fill)
    replacements = sentences()
    replacements += [(rf"\b{kind}-cpu-[a-z0-9-]*?\d{{4}}-\d\d-\d\d", record_name(kind)) for kind in KINDS]
    for expression, replacement in replacements:
        count = 0
        for page, text in pages.items():
            pages[page], found = re.subn(expression, replacement, text, flags=re.DOTALL)
            count += found
        if count == 0:  # for example because a line ends between the words
            raise ValueError(f"no page has a sentence of the form {expression}")
    return {page: fill_card(text) if page.suffix == ".yaml" else text for page, text in pages.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for path, text in filled_pages().items():
        if text != path.read_text(encoding="utf-8"):
            write_text(path, text)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
