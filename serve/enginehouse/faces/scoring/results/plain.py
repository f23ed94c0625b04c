"""Values of Arrow as JSON and Python have them: exact numbers stay numbers, bytes are base64, all else is its text."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pyarrow import compute


def values(column: pa.ChunkedArray) -> list[Any]:
    """Python's values of a column. Times in nanoseconds, which Python has no type for without pandas, as text."""
    kind = _without_nanoseconds(column.type)
    found: list[Any] = (column if kind == column.type else compute.cast(column, kind)).to_pylist()
    return found


def plain(value: Any) -> Any:
    """Of Python's value of a cell what can be written as JSON."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value)


def _without_nanoseconds(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_duration(kind):
        # Arrow has no text for them.
        return pa.int64() if kind.unit == "ns" else kind
    if (types.is_timestamp(kind) or types.is_time64(kind)) and kind.unit == "ns":
        return pa.string()
    if types.is_list(kind):
        return pa.list_(_without_nanoseconds(kind.value_type))
    if types.is_large_list(kind):
        return pa.large_list(_without_nanoseconds(kind.value_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(_without_nanoseconds(kind.value_type), kind.list_size)
    if types.is_struct(kind):
        return pa.struct([field.with_type(_without_nanoseconds(field.type)) for field in kind])
    return kind
