"""Arrow columns <-> tensors, without changing a value: what a datatype cannot hold is refused, row by row.

A column of a type that is never right is refused as a whole (`check_type`), before a job begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import TensorSpec, datatype
from enginehouse.faces.scoring.rows import pictures
from enginehouse.faces.scoring.rows.exactly import cast_exactly


@dataclass(frozen=True, slots=True)
class Bad:
    """Why a row is rejected: `kind` is one word to count by."""

    kind: str
    reason: str


@dataclass(slots=True)
class Cast:
    """A column as a model wants it: arrays of rows of one shape, each with the rows' numbers; and the bad rows.

    Every row is in one of them. Arrays have a batch dimension in front.
    """

    blocks: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    bad: dict[int, Bad] = field(default_factory=dict)


def check_type(kind: pa.DataType, spec: TensorSpec, column: str = "") -> None:
    """Raises InvalidInput for a column of a type that no row of could be an input of `spec`."""
    if (isinstance(kind, pa.FixedShapeTensorType) and not spec.dtype.hasobject) or pa.types.is_null(kind):
        return
    depth = 0
    while True:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif _is_list(kind):
            kind, depth = kind.value_type, depth + 1
        else:
            break
    if _is_text(kind) if spec.dtype.hasobject else (_is_number(kind) or (not depth and pictures.fits(kind, spec))):
        return
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    raise InvalidInput(
        f"column {column or spec.name!r} holds {kind}, and the model wants {spec}; "
        + ("write text" if spec.dtype.hasobject else f"write numbers, best as {spec.dtype}")
    )


def cast(column: pa.ChunkedArray, spec: TensorSpec) -> Cast:
    """The values of `column`, one row each, as `spec` wants them; lists in a row are dimensions.

    float64 is rounded to float32, as any client does; everything else has to stay what it is. Encoded pictures become
    pixels. Where a row has several dimensions that are all fixed, it may be a flat list of their numbers, in C order.
    Bad are rows with a null, ragged ones, flat ones of another length, and those with a number that `spec.dtype` does
    not hold. The column has to pass `check_type`.
    """
    values = column.unify_dictionaries().combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        # Of no chunk, in some releases of Arrow.
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], column.type)
    shape: tuple[int, ...] = ()
    if isinstance(values.type, pa.FixedShapeTensorType):
        if values.type.permutation not in (None, list(range(len(values.type.shape)))):
            raise InvalidInput(f"column {spec.name!r} holds tensors whose dimensions are permuted; write them in order")
        shape, values = tuple(values.type.shape), values.storage
    if pictures.fits(values.type, spec):
        return _of_pictures(values, spec)
    cast_column = _uniform(values, spec, shape)
    return _unflattened(cast_column if cast_column is not None else _row_by_row(values, spec, shape), spec)


def _unflattened(flat: Cast, spec: TensorSpec) -> Cast:
    """`flat` with the shape that `spec` fixes, where rows are lists of its numbers."""
    dims = [dim for dim in spec.shape[1:] if dim is not None]
    if len(dims) < 2 or len(dims) < len(spec.shape) - 1:
        return flat
    count = math.prod(dims)
    made = Cast([], flat.bad)
    for rows, array in flat.blocks:
        if array.ndim != 2:
            made.blocks.append((rows, array))
        elif array.shape[1] == count:
            made.blocks.append((rows, array.reshape(len(rows), *dims)))
        else:
            told = f"column {spec.name!r} has a flat list of {array.shape[1]} values, and {spec} is {count} of them"
            made.bad |= {row: Bad("shape", told) for row in rows.tolist()}
    return made


def _uniform(values: pa.Array, spec: TensorSpec, inner: tuple[int, ...]) -> Cast | None:
    """Where no row is null and all have one shape; else None."""
    shape = [len(values)]
    while True:
        values = _decoded(values)
        if values.null_count or pa.types.is_null(values.type):
            return None
        if not _is_list(values.type):
            break
        lengths = compute.unique(compute.list_value_length(values)).to_pylist()
        if len(lengths) != 1:
            return None
        shape.append(lengths[0])
        values = values.flatten()
    if inner:
        shape[1:] = inner
    return _exact(np.arange(shape[0]), _leaves(values).reshape(shape), spec)


def _row_by_row(values: pa.Array, spec: TensorSpec, inner: tuple[int, ...]) -> Cast:
    """Where rows are null, or differ in shape: each row's shape is found, and rows of one shape are cast together."""
    rows = len(values)
    parents = np.arange(rows)
    bad: dict[int, Bad] = {}
    shapes = np.zeros((rows, 0), np.int64)
    while True:
        values = _decoded(values)
        nulls = parents[values.is_null().to_numpy(zero_copy_only=False)]
        for row in np.unique(nulls).tolist():
            bad.setdefault(row, Bad("null", f"column {spec.name!r} has no value (null)"))
        if not _is_list(values.type):
            break
        lengths = compute.fill_null(compute.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        least, most = np.full(rows, np.iinfo(np.int64).max), np.zeros(rows, np.int64)
        np.minimum.at(least, parents, lengths)
        np.maximum.at(most, parents, lengths)
        for row in np.flatnonzero((least < most) & np.isin(np.arange(rows), parents)).tolist():
            told = f"lists of {least[row]} and {most[row]} values"
            bad.setdefault(row, Bad("shape", f"column {spec.name!r} has a row of different shapes in itself: {told}"))
        shapes = np.column_stack([shapes, most])
        parents, values = np.repeat(parents, lengths), values.flatten()
    if pa.types.is_null(values.type):
        return Cast(
            [], {row: bad.get(row, Bad("null", f"column {spec.name!r} has no value (null)")) for row in range(rows)}
        )
    result = Cast([], bad)
    good = np.array([row for row in range(rows) if row not in bad], np.int64)
    if not len(good):
        return result
    filled = values.fill_null("" if _is_text(values.type) and not _is_bytes(values.type) else _zero(values.type))
    leaves = _leaves(filled)
    kinds, group_of = np.unique(shapes[good], axis=0, return_inverse=True)
    of_row = np.full(rows, -1)
    of_row[good] = group_of.reshape(-1)
    for number, own in enumerate(kinds):
        members = np.flatnonzero(of_row == number)
        dims = inner or tuple(own.tolist())
        block = _exact(members, leaves[of_row[parents] == number].reshape(len(members), *dims), spec)
        result.blocks += block.blocks
        result.bad |= block.bad
    return result


def _exact(rows: np.ndarray, array: np.ndarray, spec: TensorSpec) -> Cast:
    made, kept = cast_exactly(array, spec.dtype)
    if kept is None:
        return Cast([(rows, made)])
    axes = tuple(range(1, array.ndim))
    whole = kept.all(axis=axes) if axes else kept
    bad = {}
    for at in np.flatnonzero(~whole).tolist():
        value = array[at] if not axes else array[at][~kept[at]][0]
        told = f"column {spec.name!r} has the value {value}, which {datatype(spec.dtype)} does not hold"
        bad[int(rows[at])] = Bad("cast", f"{told}; the model wants {spec}")
    return Cast([(rows[whole], made[whole])] if whole.any() else [], bad)


def _of_pictures(values: pa.Array, spec: TensorSpec) -> Cast:
    result = Cast()
    by_shape: dict[tuple[int, ...], tuple[list[int], list[np.ndarray]]] = {}
    for row, encoded in enumerate(values):
        if not encoded.is_valid:
            result.bad[row] = Bad("null", f"column {spec.name!r} has no value (null)")
            continue
        try:
            pixels = pictures.decoded(encoded.as_buffer(), spec)
        except InvalidInput as error:
            result.bad[row] = Bad("undecodable", f"column {spec.name!r}: {error}")
            continue
        rows, arrays = by_shape.setdefault(pixels.shape, ([], []))
        rows.append(row)
        arrays.append(pixels)
    result.blocks = [(np.array(rows), np.stack(arrays)) for rows, arrays in by_shape.values()]
    return result


def type_of(spec: TensorSpec, batched: bool) -> pa.DataType:
    """How an output is written: nested lists, of a fixed size where the dimension is; every unit's are the same."""
    kind = pa.string() if spec.dtype.hasobject else pa.from_numpy_dtype(_written(spec.dtype))
    return lists(kind, spec.shape[1:] if batched else spec.shape)


def lists(kind: pa.DataType, dims: Sequence[int | None]) -> pa.DataType:
    """The type of a row of these extents: nested lists, of a fixed size where it is known."""
    for dim in reversed(dims):
        kind = pa.list_(kind, dim) if dim else pa.list_(kind)
    return kind


def column_of(array: np.ndarray, kind: pa.DataType) -> pa.Array:
    """A tensor as an Arrow column of `type_of`, one row each. Raises InvalidInput for text that is not UTF-8."""
    flat = array.reshape(-1)
    if array.dtype.hasobject:
        try:
            leaves = [each.decode() if isinstance(each, bytes) else each for each in flat.tolist()]
        except UnicodeDecodeError:
            raise InvalidInput("the model's answer is text that is not UTF-8") from None
        values = pa.array(leaves, pa.string())
    else:
        # Arrow has no bfloat16, and fp32 holds all of its values.
        values = pa.array(np.ascontiguousarray(flat.astype(_written(array.dtype), copy=False)))
    return nested(values, array.shape, kind)


def nested(values: pa.Array, shape: tuple[int, ...], kind: pa.DataType) -> pa.Array:
    """The elements of a tensor of this shape as lists of the type `kind`, one row each."""
    kinds = []
    while _is_list(kind):
        kinds.append(kind)
        kind = kind.value_type
    for axis in range(len(shape) - 1, 0, -1):
        if pa.types.is_fixed_size_list(kinds[axis - 1]):
            values = pa.FixedSizeListArray.from_arrays(values, shape[axis])
        else:
            offsets = np.arange(math.prod(shape[:axis]) + 1, dtype=np.int32) * shape[axis]
            values = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
    return values


def _written(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype.name == "bfloat16" else dtype


def _decoded(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _leaves(values: pa.Array) -> np.ndarray:
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array


def _zero(kind: pa.DataType) -> Any:
    return b"" if _is_bytes(kind) else False if pa.types.is_boolean(kind) else pa.scalar(0).cast(kind)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    types: Sequence[Any] = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in types)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_bytes(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))
