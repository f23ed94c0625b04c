"""CSV with a header: a unit is a range of bytes that begins with a record, wherever quotes have line ends in them.

All cells are text. Ids stay text (`007` is not 7); cells for a model's numbers are read as JSON reads them, so `[1, 2]`
in a cell is a row of two. An empty cell has no value.
"""

from __future__ import annotations

import csv
import io
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

_WHAT = "CSV"
#: Memory that a row takes, as a multiple of its text.
_GROWTH = 3
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Cells may be as long as rows are: Python's own limit is 128 KiB.
csv.field_size_limit(1 << 30)


def look(file: File) -> Look:
    """The names in the header; everything is text."""
    return Look(pa.schema([(name, pa.string()) for name in _header(file)]), is_typed=False)


def parts(file: File, limits: Limits) -> list[Part]:
    """By one look at all of the file: where records begin and how many there are."""
    with reading(file, _WHAT), opened(file) as stream:
        return stretches(islice(_records(stream), 1, None), limits, _GROWTH)
    raise AssertionError("unreachable")


def read(file: File, part: Part, wanted: Sequence[Wanted]) -> Rows:
    """The rows of `part`; bad are records with more or fewer cells than the header, and cells that are no numbers."""
    header = _header(file)
    places = {column.name: header.index(column.name) for column in wanted}
    rows: list[dict[str, Any]] = []
    numbers, bad, ids = [], {}, {}
    with reading(file, _WHAT), opened(file) as stream:
        stream.seek(part.at["start"])
        for number, (_, record) in enumerate(islice(_records(stream), part.rows), part.first):
            try:
                cells = _cells(record)
                if len(cells) != len(header):
                    raise ValueError(f"{len(cells)} cells, and the header has {len(header)}")
                ids[number] = next((cells[places[column.name]] for column in wanted if column.is_id), None)
                rows.append({column.name: _value(cells[places[column.name]], column) for column in wanted})
                numbers.append(number)
            except (ValueError, csv.Error) as error:
                bad[number] = Bad("undecodable", f"{error}")
    if len(rows) + len(bad) != part.rows:
        raise InvalidInput(f"{file.url} changed while it was read; score anew with --restart")
    found = values.rows_of(rows, numbers, wanted, bad)
    found.bad_ids = {number: ids[number] for number in found.bad if number in ids}
    return found


def _header(file: File) -> list[str]:
    with reading(file, _WHAT), opened(file) as stream:
        for _, record in _records(stream):
            return _cells(record.removeprefix(_BYTE_ORDER_MARK))
    raise InvalidInput(f"{file.url}: no header")


def _records(stream: Any) -> Iterator[tuple[int, bytes]]:
    """Where each record begins, and the record; without empty ones. A quoted line end does not end a record."""
    taken: list[bytes] = []

    def feed() -> Iterator[str]:
        rest = b""
        while True:
            block = stream.read(1 << 20)
            lines = (rest + block).split(b"\n")
            rest = lines.pop() if block else b""
            for line in lines:
                taken.append(line)
                # Only for where records end, which no other byte of UTF-8 looks like.
                yield line.decode("latin-1") + "\n"
            if not block:
                return

    start = stream.tell()
    for _ in csv.reader(feed()):
        record = b"\n".join(taken)
        taken.clear()
        if record.strip():
            yield start, record
        start += len(record) + 1


def _cells(record: bytes) -> list[str]:
    """Raises ValueError and csv.Error."""
    return next(csv.reader(io.StringIO(record.decode().removesuffix("\r"), newline=""), strict=True))


def _value(cell: str, column: Wanted) -> Any:
    """A cell as what it is for. Raises ValueError."""
    if column.use != "number":
        return cell
    text = cell.strip()
    if not text:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        # `.5`, `1.`, `+1`, `NaN`, `inf`: no JSON, and written by many. `1_000` is only a number to Python.
        return values.finite(text.replace("_", "?"))
    except ValueError:
        raise ValueError(f"column {column.name!r} has the value {cell!r}, which is no number") from None
