"""Arrow columns <-> tensors, without changing a value: what a datatype cannot hold is refused, naming row and value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute
from ray.data.extensions import ArrowTensorArray

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import TensorSpec, datatype

#: Up to here a float holds every whole number.
_ALL_WHOLE = {"bfloat16": 2**8, "float16": 2**11, "float32": 2**24, "float64": 2**53}


def tensor_of(column: pa.ChunkedArray, spec: TensorSpec, ids: pa.ChunkedArray) -> np.ndarray:
    """The values of `column`, one row each, as `spec` wants them; lists in a row are dimensions. `ids` name the rows.

    float64 is rounded to float32, as any client does; everything else has to stay what it is. Raises InvalidInput for
    nulls, rows of different lengths, types that are no numbers or text, and numbers that `spec.dtype` does not hold.
    """
    if isinstance(column.type, pa.ExtensionType):
        rows = np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks])
        return _as(rows, spec, ids)
    values = column.unify_dictionaries().combine_chunks()
    shape = [len(values)]
    while True:
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if values.null_count:
            at = values.is_null().index(True).as_py() * shape[0] // len(values)
            raise InvalidInput(
                f"column {spec.name!r} has no value (null) in the row of id {ids[at].as_py()!r}; fill it in or leave "
                "the row out"
            )
        if not _is_list(values.type):
            break
        lengths = compute.unique(compute.list_value_length(values)).to_pylist()
        if len(lengths) > 1:
            raise InvalidInput(
                f"column {spec.name!r} has rows of different shapes: lists of {min(lengths)} and {max(lengths)} values"
            )
        shape.append(lengths[0])
        values = values.flatten()
    return _as(_leaves(values, spec).reshape(shape), spec, ids)


def column_of(array: np.ndarray) -> Any:
    """A tensor as an Arrow column, one row each."""
    if array.dtype.name == "bfloat16":
        # Arrow has no such type, and fp32 holds all of its values.
        array = array.astype(np.float32)
    if array.dtype.hasobject:
        return pa.array(array.tolist())
    return pa.array(array) if array.ndim == 1 else ArrowTensorArray.from_numpy(array)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _leaves(values: pa.Array, spec: TensorSpec) -> np.ndarray:
    kind, types = values.type, pa.types
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    if text if spec.dtype.hasobject else number:
        array: np.ndarray = values.to_numpy(zero_copy_only=False)
        return array
    raise InvalidInput(
        f"column {spec.name!r} holds {kind}, and the model wants {spec}; "
        + ("write text" if spec.dtype.hasobject else f"write numbers, best as {spec.dtype}")
    )


def _as(array: np.ndarray, spec: TensorSpec, ids: pa.ChunkedArray) -> np.ndarray:
    if spec.dtype.hasobject or array.dtype == spec.dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(spec.dtype)
    kept = _kept(array, cast)
    if kept.all():
        return cast
    at = tuple(np.argwhere(~kept)[0].tolist())
    raise InvalidInput(
        f"column {spec.name!r} has the value {array[at]} in the row of id {ids[at[0]].as_py()!r}, which "
        f"{datatype(spec.dtype)} does not hold; the model wants {spec}"
    )


def _kept(array: np.ndarray, cast: np.ndarray) -> np.ndarray:
    """Where `cast` has the values of `array`. There and back is no proof: -1 comes back from unsigned numbers."""
    if _is_float(cast.dtype):
        if _is_float(array.dtype):
            # Rounded, but never to infinity.
            return np.asarray(np.isfinite(cast) | ~np.isfinite(array))
        exact: np.ndarray = np.isfinite(cast)
        for at in np.argwhere(np.abs(cast.astype(np.float64)) >= _ALL_WHOLE[cast.dtype.name]):
            where = tuple(at)
            exact[where] = exact[where] and int(float(cast[where])) == int(array[where])
        return exact
    if array.dtype.kind == "b" or cast.dtype.kind == "b":
        return np.asarray(cast.astype(array.dtype) == array)
    low, high = np.iinfo(cast.dtype).min, np.iinfo(cast.dtype).max
    if _is_float(array.dtype):
        # The largest whole number may be none that a float holds; the power of two after it is one.
        within = (array >= float(low)) & (array < float(high + 1))
        return np.asarray(within & (np.floor(array) == array))
    own = np.iinfo(array.dtype)
    return np.asarray((array >= max(low, own.min)) & (array <= min(high, own.max)))


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"
