"""Encoded images: a file is a row, called by its path, with its bytes in the column `image`; a unit is some files."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from enginehouse.faces.scoring.readers import Limits, Look, Part, Rows, Wanted
from enginehouse.faces.scoring.readers.opening import opened
from enginehouse.faces.scoring.sources import File

SCHEMA = pa.schema([("path", pa.string()), ("image", pa.binary())])


def look(file: File) -> Look:
    """Every file has the same."""
    return Look(SCHEMA)


def parts(file: File, limits: Limits) -> list[Part]:
    """One row."""
    return [Part(0, 1)]


def read(file: File, part: Part, wanted: Sequence[Wanted]) -> Rows:
    """The bytes of the file."""
    with opened(file) as stream:
        values = {"path": [file.name], "image": [stream.read()]}
    return Rows(pa.table(values, SCHEMA).select([column.name for column in wanted]), [0])
