"""Readers: one module per format, all with the same three functions, found by `of`.

    look(file)                   -> Look: the columns and their types, as far as the file itself says them
    parts(file, limits)          -> how the file is cut into units: row numbers, and where the rows are in it
    read(file, part, wanted)     -> Rows: these columns of these rows, and which rows could not be read; a part with
                                    fewer rows than `parts` had said is the first ones of it

Nothing else opens INPUT. A file that cannot be read at all raises InvalidInput naming it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from enginehouse.faces.scoring.rows.columns import Bad
from enginehouse.faces.scoring.sources import File

_MODULES = {
    "parquet": "parquet",
    "jsonl": "lines",
    "csv": "csv",
    "npz": "arrays",
    "npy": "arrays",
    "arrow": "arrow",
    "images": "images",
}


@dataclass(frozen=True, slots=True)
class Look:
    """What a file says of itself. `is_typed`: its columns have the types of `schema`; else each value has its own."""

    schema: pa.Schema
    is_typed: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a unit may be: rows, and bytes as they are in memory."""

    rows: int = 16_384
    bytes: int = 64 << 20

    def rows_of(self, row_bytes: float) -> int:
        """Rows of a unit whose rows take so many bytes."""
        return max(1, min(self.rows, int(self.bytes / max(row_bytes, 1))))


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a file: the number of the first, how many, and `at`, by which their reader finds them (plain data)."""

    first: int
    rows: int
    at: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A column to read: `number` or `text` for what goes into a model, or `as it is`, in untyped files as `kind`."""

    name: str
    use: str
    kind: pa.DataType | None = None
    is_id: bool = False


@dataclass(slots=True)
class Rows:
    """Columns of a part. `numbers` are those of the rows in the file; `bad` the rows that are not there, and why."""

    table: pa.Table
    numbers: Sequence[int]
    bad: dict[int, Bad] = field(default_factory=dict)
    #: What bad rows are called, as far as that could be read.
    bad_ids: Mapping[int, Any] = field(default_factory=dict)


class Reader(Protocol):
    """The functions of a reader's module."""

    def look(self, file: File) -> Look: ...

    def parts(self, file: File, limits: Limits) -> list[Part]: ...

    def read(self, file: File, part: Part, wanted: Sequence[Wanted]) -> Rows: ...


def of(form: str) -> Reader:
    """The reader of a format; its module is imported when the first file of it is read."""
    module: Reader = importlib.import_module(f"{__name__}.{_MODULES[form]}")
    return module
