"""Columns of tensors as Ray Data writes them into Parquet, as Arrow's own tensors. Ray Data is not imported for it."""

from __future__ import annotations

import json
import math

import pyarrow as pa

_NAME, _SHAPE = b"ARROW:extension:name", b"ARROW:extension:metadata"
_NAMES = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")


def schema(found: pa.Schema) -> pa.Schema:
    """`found` with such columns as Arrow's tensors."""
    for at, field in enumerate(found):
        if (shape := _shape(field)) is not None:
            found = found.set(at, pa.field(field.name, pa.fixed_shape_tensor(_storage(field.type).value_type, shape)))
    return found


def table(found: pa.Table) -> pa.Table:
    """`found` with such columns as Arrow's tensors; rows that are null or of another size stay lists, which are bad."""
    for at, field in enumerate(found.schema):
        shape = _shape(field)
        if shape is None:
            continue
        column = found.column(at)
        chunks = [getattr(chunk, "storage", chunk) for chunk in column.chunks]
        values = pa.concat_arrays(chunks) if chunks else pa.array([], _storage(field.type))
        size = math.prod(shape)
        if values.null_count or len(values.flatten()) != size * len(values):
            made = values
        else:
            kind = pa.fixed_shape_tensor(values.type.value_type, shape)
            made = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(values.flatten(), size))
        found = found.set_column(at, field.name, made)
    return found


def _storage(kind: pa.DataType) -> pa.DataType:
    return getattr(kind, "storage_type", kind)


def _shape(field: pa.Field) -> list[int] | None:
    """Of a column of Ray's tensors; None of any other. Where Ray Data is imported, Arrow knows the type."""
    if getattr(field.type, "extension_name", None) in _NAMES:
        return [int(dim) for dim in field.type.shape]
    known = field.metadata or {}
    if known.get(_NAME, b"").decode() in _NAMES:
        return [int(dim) for dim in json.loads(known[_SHAPE])]
    return None
