"""Parquet: a unit is a row group, several small ones, or a part of a large one.

Parts of one row group are read in a stream that stays open between them, so that it is decoded once a process.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from enginehouse.contract.errors import InvalidInput
from enginehouse.faces.scoring.readers import Limits, Look, Part, Rows, Wanted, ray_tensors
from enginehouse.faces.scoring.readers.opening import opened, reading
from enginehouse.faces.scoring.sources import File

_WHAT = "Parquet"
#: Rows that are decoded at a time.
_BATCH = 4096


def look(file: File) -> Look:
    """The schema in the footer."""
    with reading(file, _WHAT), opened(file) as stream:
        return Look(ray_tensors.schema(parquet.ParquetFile(stream).schema_arrow))


def parts(file: File, limits: Limits) -> list[Part]:
    """By the footer alone."""
    with reading(file, _WHAT), opened(file) as stream:
        footer = parquet.ParquetFile(stream).metadata
        each = [footer.row_group(at) for at in range(footer.num_row_groups)]
        groups = [(group.num_rows, group.total_byte_size) for group in each]
    found: list[Part] = []
    first = 0
    pending: list[int] = []
    pending_rows = pending_bytes = 0

    def flush() -> None:
        nonlocal pending, pending_rows, pending_bytes
        if pending_rows:
            found.append(Part(first - pending_rows, pending_rows, {"groups": [pending[0], pending[-1] + 1]}))
        pending, pending_rows, pending_bytes = [], 0, 0

    for group, (rows, size) in enumerate(groups):
        most = limits.rows_of(size / rows) if rows else limits.rows
        if pending and (pending_rows + rows > most or pending_bytes + size > limits.bytes):
            flush()
        if rows > most:
            flush()
            # Equal parts: no last one of a few rows.
            count = -(-rows // most)
            for at in range(count):
                start, end = rows * at // count, rows * (at + 1) // count
                found.append(Part(first + start, end - start, {"groups": [group, group + 1], "from": start}))
        else:
            pending.append(group)
            pending_rows += rows
            pending_bytes += size
        first += rows
    flush()
    return found


def read(file: File, part: Part, wanted: Sequence[Wanted]) -> Rows:
    """The rows of `part`, and the columns as the file has them."""
    columns = [column.name for column in wanted]
    with reading(file, _WHAT):
        table = ray_tensors.table(_streams.rows(file, part, columns))
    if table.num_rows != part.rows:
        raise InvalidInput(f"{file.url} changed while it was read; start again with --restart")
    return Rows(table, range(part.first, part.first + part.rows))


@dataclass(slots=True)
class _Stream:
    """A row group that is being read: `at` is the number of its next row, `rest` what was read beyond the last part."""

    key: Any
    stream: Any
    batches: Any
    at: int = 0
    rest: list[pa.RecordBatch] = field(default_factory=list)

    def take(self, start: int, rows: int) -> pa.Table:
        taken: list[pa.RecordBatch] = []
        while rows:
            batch = self.rest.pop() if self.rest else next(self.batches, None)
            if batch is None:
                break
            end = self.at + batch.num_rows
            if end <= start:
                self.at = end
                continue
            if self.at < start:
                batch, self.at = batch.slice(start - self.at), start
            if batch.num_rows > rows:
                self.rest.append(batch.slice(rows))
                batch = batch.slice(0, rows)
            taken.append(batch)
            self.at += batch.num_rows
            rows -= batch.num_rows
        return pa.Table.from_batches(taken) if taken else pa.table({})


class _Streams:
    """The stream of this process that was read last; units come in order, so the next part is mostly its next rows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: _Stream | None = None

    def rows(self, file: File, part: Part, columns: list[str]) -> pa.Table:
        first, last = part.at["groups"]
        start = part.at.get("from", 0)
        key = (file.url, file.stamp, first, last, tuple(columns))
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is None or kept.key != key or kept.at > start:
            if kept is not None:
                kept.stream.close()
            stream = opened(file)
            source = parquet.ParquetFile(stream)
            groups = list(range(first, last))
            rows = min(part.rows, _BATCH)
            kept = _Stream(
                key, stream, source.iter_batches(rows, row_groups=groups, columns=columns, use_threads=False)
            )
        table = kept.take(start, part.rows)
        with self._lock:
            other, self._kept = self._kept, kept
        if other is not None:
            other.stream.close()
        return table


_streams = _Streams()
