"""Parquet files of consecutive rows, written by any number of processes. A run that was stopped skips those that exist.

Each file carries the options of its run, so that the folder holds nothing but rows: `pandas.read_parquet(folder)` reads
it as a whole.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from rednet.hub import check_writable
from rednet.training.utils.files import to_json


OPTIONS = b"rednet.predict"  # the key of the options in the metadata of a file


class Shards:
    """The files part-000000.parquet, part-000001.parquet ... of a folder.

    Args:
        folder: created with the first file.
        columns: the name and type of each column.
        options: what the rows depend on.
    """

    def __init__(self, folder: Path, columns: Mapping[str, pa.DataType], options: Mapping[str, Any]):
        self.folder = folder
        self.schema = pa.schema(dict(columns), metadata={OPTIONS: to_json(options)})

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:06}.parquet"

    def done(self) -> list[int]:
        """The numbers of the files that exist.

        Raises:
            OSError: the folder is a file, or cannot be written.
            ValueError: a file in it belongs to a run with other options, or to no run.
        """
        check_writable(self.folder)
        paths = sorted(self.folder.glob("part-*.parquet"))
        for path in paths:
            self.check(path)
        return [int(path.stem.removeprefix("part-")) for path in paths]

    def check(self, path: Path) -> None:
        metadata = _metadata(path)
        if OPTIONS not in metadata:
            raise ValueError(f"{path} was not written by predict.py: choose another --output")
        options, previous = (json.loads(values[OPTIONS]) for values in (self.schema.metadata, metadata))
        changed = [name for name in {**previous, **options} if previous.get(name) != options.get(name)]
        if changed:
            differences = ", ".join(f"{name} {previous.get(name)!r} -> {options.get(name)!r}" for name in changed)
            raise ValueError(
                f"{path} belongs to a run with other options ({differences}). Choose another --output, or remove the "
                "folder"
            )

    def write(self, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes one file to a temporary path, which is then renamed. Values that a row lacks are null."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{self.path(number).name}"  # a resumed run overwrites that of a killed one
        columns = {name: [row.get(name) for row in rows] for name in self.schema.names}
        parquet.write_table(pa.Table.from_pydict(columns, self.schema), temporary)
        temporary.replace(self.path(number))

    def count(self) -> tuple[int, int]:
        """The number of rows of all files, and of those with an error."""
        tables = [parquet.read_table(self.path(number), columns=["error"]) for number in self.done()]
        return sum(len(table) for table in tables), sum(len(table) - table["error"].null_count for table in tables)


def _metadata(path: Path) -> dict[bytes, bytes]:
    try:
        return parquet.read_schema(path).metadata or {}
    except pa.ArrowException as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
