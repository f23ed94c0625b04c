"""JSON lines: a row is a line that is a JSON object; a unit is a range of bytes that begins with a line.

Lines are read one by one, so that one that is no JSON is one bad row. Empty lines are no rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa

from enginehouse.contract.errors import InvalidInput
from enginehouse.faces.scoring.readers import Limits, Look, Part, Rows, Wanted, values
from enginehouse.faces.scoring.readers.opening import opened, reading
from enginehouse.faces.scoring.readers.stretches import stretches
from enginehouse.faces.scoring.rows.columns import Bad
from enginehouse.faces.scoring.sources import File

_WHAT = "JSON lines"
#: Rows by which types of ids and kept columns are told.
_LOOKED_AT = 1000
#: Numbers beyond 64 bits: orjson makes doubles of them.
_LONG = re.compile(rb"\d{19}")
#: Memory that a row takes, as a multiple of its text.
_GROWTH = 2


def look(file: File) -> Look:
    """The names in the first rows, and the types of their values."""
    names: dict[str, list[Any]] = {}
    rows = 0
    with reading(file, _WHAT), opened(file) as stream:
        for _, line in islice(_lines(stream), _LOOKED_AT):
            try:
                row = _parsed(line)
            except ValueError:
                continue
            rows += 1
            for name, value in row.items():
                names.setdefault(name, []).append(value)
    if not rows:
        raise InvalidInput(f"{file.url}: not readable as {_WHAT}: none of its first lines is a JSON object")
    return Look(pa.schema([(name, values.kind_of(found)) for name, found in names.items()]), is_typed=False)


def parts(file: File, limits: Limits) -> list[Part]:
    """By one look at all of the file: where lines begin and how many there are."""
    with reading(file, _WHAT), opened(file) as stream:
        return stretches(_lines(stream), limits, _GROWTH)
    raise AssertionError("unreachable")


def read(file: File, part: Part, wanted: Sequence[Wanted]) -> Rows:
    """The rows of `part`; bad are lines that are no objects, and values of another kind than what they are for."""
    rows, numbers, bad = [], [], {}
    with reading(file, _WHAT), opened(file) as stream:
        stream.seek(part.at["start"])
        lines = islice(_lines(stream), part.rows)
        for number, (_, line) in enumerate(lines, part.first):
            try:
                rows.append(_parsed(line))
                numbers.append(number)
            except ValueError as error:
                bad[number] = Bad("undecodable", f"not a JSON object: {error}")
    if len(rows) + len(bad) != part.rows:
        raise InvalidInput(f"{file.url} changed while it was read; score anew with --restart")
    return values.rows_of(rows, numbers, wanted, bad)


def _lines(stream: Any) -> Iterator[tuple[int, bytes]]:
    """Where each line begins, and the line; without empty ones."""
    at = stream.tell()
    rest = b""
    while True:
        block = stream.read(1 << 20)
        lines = (rest + block).split(b"\n")
        rest = lines.pop() if block else b""
        for line in lines:
            if line.strip():
                yield at, line
            at += len(line) + 1
        if not block:
            return


def _parsed(line: bytes) -> dict[str, Any]:
    """Raises ValueError for what is no object."""
    row: Any
    if _LONG.search(line):
        row = json.loads(line, parse_float=values.finite)
    else:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            # NaN and infinities, as Python writes them.
            row = json.loads(line, parse_float=values.finite)
    if not isinstance(row, dict):
        raise ValueError(f"it is {type(row).__name__}")
    return row
