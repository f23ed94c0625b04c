"""A unit's answers -> its file of results: the columns of `mapping.results` in the order of the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from enginehouse.contract.tensors import Signature, Tensors
from enginehouse.faces.scoring.results.plain import plain, values
from enginehouse.faces.scoring.results.top import Top
from enginehouse.faces.scoring.rows.columns import column_of, type_of

#: The formats of results, and how their files end.
ENDS = {"parquet": "parquet", "jsonl": "jsonl", "arrow": "arrow"}


@dataclass(frozen=True, slots=True)
class Part:
    """Answers to some rows: their numbers in the unit's table, the outputs with the rows in front, who answered."""

    rows: np.ndarray
    outputs: Tensors
    backend: str
    version: str


def table(
    parts: Sequence[Part],
    passed_on: Sequence[pa.ChunkedArray],
    signature: Signature,
    schema: pa.Schema,
    top: Top | None = None,
) -> pa.Table:
    """The results of a unit; `passed_on` are the id and the kept columns, of all of its rows."""
    numbers = np.concatenate([part.rows for part in parts]) if parts else np.zeros(0, np.int64)
    # Mostly all rows in their order: then nothing has to be copied.
    is_ordered = bool(np.all(numbers[1:] > numbers[:-1]))
    order, rows = pa.array(np.argsort(numbers, kind="stable")), pa.array(np.sort(numbers))

    def ordered(column: pa.ChunkedArray) -> pa.ChunkedArray:
        return column if is_ordered else column.take(order)

    columns = [_of_type(column, schema.field(at).type) for at, column in enumerate(passed_on)]
    columns = [column if is_ordered and len(column) == len(rows) else column.take(rows) for column in columns]
    for spec in signature.outputs:
        kind = type_of(spec, signature.batched)
        columns.append(ordered(pa.chunked_array([column_of(part.outputs[spec.name], kind) for part in parts], kind)))
    for spec in top.outputs(signature) if top is not None else ():
        best = [top.column(part.outputs[spec.name], spec) for part in parts if top is not None]
        columns.append(ordered(pa.chunked_array(best, top.kind(spec) if top is not None else None)))
    for names in ([part.version for part in parts], [part.backend for part in parts]):
        told = [pa.repeat(pa.scalar(name), len(part.rows)) for name, part in zip(names, parts, strict=True)]
        columns.append(ordered(pa.chunked_array(told, pa.string())))
    return pa.table(columns, schema=schema)


def _of_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return column if column.type == kind else compute.cast(column, kind)


def encoded(results: pa.Table, form: str) -> bytes:
    """The file of `results`."""
    if form == "jsonl":
        # The standard library: orjson turns NaN into null. What JSON has no form for is text or base64.
        names, columns = results.column_names, map(values, results.columns)
        rows = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
        return b"".join(json.dumps(plain(row), ensure_ascii=False).encode() + b"\n" for row in rows)
    sink = pa.BufferOutputStream()
    if form == "arrow":
        with pa.ipc.new_file(sink, results.schema) as writer:
            writer.write_table(results)
    else:
        # Scores and ids seldom repeat: a dictionary of them takes twice the time and half as much again of space.
        _, *others = results.schema
        repeats = [
            each.name for each in others if not (pa.types.is_nested(each.type) or pa.types.is_floating(each.type))
        ]
        parquet.write_table(results, sink, use_dictionary=repeats)
    return bytes(sink.getvalue())
