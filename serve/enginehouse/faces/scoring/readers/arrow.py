"""Arrow files (Feather V2) and streams: a unit is a part of the file's batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from enginehouse.contract.errors import InvalidInput
from enginehouse.faces.scoring.readers import Limits, Look, Part, Rows, Wanted
from enginehouse.faces.scoring.readers.opening import opened, reading
from enginehouse.faces.scoring.sources import File

_WHAT = "Arrow"
_MAGIC, _FEATHER_1 = b"ARROW1", b"FEA1"


def look(file: File) -> Look:
    """The schema."""
    with reading(file, _WHAT), opened(file) as stream:
        return Look(_source(file, stream).schema)


def parts(file: File, limits: Limits) -> list[Part]:
    """Ranges of rows; each remembers the batch that it begins in."""
    with reading(file, _WHAT), opened(file) as stream:
        sizes = [(batch.num_rows, batch.nbytes) for batch in _batches(_source(file, stream), 0)]
    rows = sum(count for count, _ in sizes)
    if not rows:
        return []
    most = limits.rows_of(sum(size for _, size in sizes) / rows)
    count = -(-rows // most)
    found, batch, before = [], 0, 0
    for at in range(count):
        start, end = rows * at // count, rows * (at + 1) // count
        while before + sizes[batch][0] <= start:
            before += sizes[batch][0]
            batch += 1
        found.append(Part(start, end - start, {"batch": batch, "before": before}))
    return found


def read(file: File, part: Part, wanted: Sequence[Wanted]) -> Rows:
    """The rows of `part`, and the columns as the file has them."""
    taken: list[pa.RecordBatch] = []
    with reading(file, _WHAT), opened(file) as stream:
        skip, left = part.first - part.at["before"], part.rows
        source = _source(file, stream)
        for batch in _batches(source, part.at["batch"]):
            piece = batch.slice(skip, left)
            skip = max(0, skip - batch.num_rows)
            left -= piece.num_rows
            taken.append(piece)
            if not left:
                break
        table = pa.Table.from_batches(taken, source.schema).select([column.name for column in wanted])
    if table.num_rows != part.rows:
        raise InvalidInput(f"{file.url} changed while it was read; score anew with --restart")
    return Rows(table, range(part.first, part.first + part.rows))


def _source(file: File, stream: Any) -> Any:
    magic = stream.read(len(_MAGIC))
    stream.seek(0)
    if magic.startswith(_FEATHER_1):
        raise InvalidInput(f"{file.url}: Feather V1, which Arrow no longer writes; write it anew as V2 or Parquet")
    return pa.ipc.open_file(stream) if magic == _MAGIC else pa.ipc.open_stream(stream)


def _batches(source: Any, first: int) -> Iterator[pa.RecordBatch]:
    """The batches from the one with number `first` on; a stream has to be read up to there."""
    if hasattr(source, "get_batch"):
        for at in range(first, source.num_record_batches):
            yield source.get_batch(at)
    else:
        for at, batch in enumerate(source):
            if at >= first:
                yield batch
