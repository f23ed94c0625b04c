"""One tensor's elements: raw little-endian bytes or a JSON array <-> numpy."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import datatype

#: Two-byte floats have no JSON form (Triton refuses them too): their values are not what a reader would type.
BINARY_ONLY = frozenset({"FP16", "BF16"})

#: numpy kind -> what a JSON array of it may hold, and how a message calls that. A bool is no number here.
_JSON_ELEMENTS: Mapping[str, tuple[set[type], str]] = {
    "b": ({bool}, "true or false"),
    "i": ({int}, "integers"),
    "u": ({int}, "integers"),
    "f": ({int, float}, "numbers"),
    "O": ({str}, "strings"),
}


def from_bytes(name: str, dtype: np.dtype, shape: Sequence[int], data: memoryview) -> np.ndarray:
    """The array whose elements are `data`: a read-only view on it, or a copy where `data` is not aligned for `dtype`.

    BYTES elements are `<u4 length><bytes>`, BOOL elements one byte each, 0 or 1. Raises InvalidInput.
    """
    count = math.prod(shape)
    if dtype.hasobject:
        return _reshaped(name, _byte_strings(name, count, data), shape)
    if len(data) != count * dtype.itemsize:
        raise InvalidInput(
            f"input {name!r} has {len(data)} bytes; {datatype(dtype)} of shape {list(shape)} "
            f"takes {count} x {dtype.itemsize} = {count * dtype.itemsize}"
        )
    if dtype.kind == "b":
        flags = np.frombuffer(data, np.uint8)
        if (flags > 1).any():
            raise InvalidInput(f"input {name!r} has the byte {int(flags.max())}; BOOL takes 0 or 1")
        return _reshaped(name, flags.view(np.bool_), shape)
    # The JSON before it decides where a payload starts. Engines read whole vectors: what is not aligned is copied here.
    return _reshaped(name, np.require(np.frombuffer(data, dtype), requirements="A"), shape)


def to_bytes(array: np.ndarray) -> bytes | memoryview:
    """The elements of `array` as the protocol sends them, in C order; numbers are not copied where they lie so."""
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    parts = []
    for element in array.ravel().tolist():
        # A lone surrogate is the caller's: what cannot be said in UTF-8 is passed on as it is.
        text = element if isinstance(element, bytes) else str(element).encode("utf-8", "surrogatepass")
        parts += [len(text).to_bytes(4, "little"), text]
    return b"".join(parts)


def from_json(name: str, dtype: np.dtype, shape: Sequence[int], data: object) -> np.ndarray:
    """The array of a JSON `data` field, nested exactly as `shape` or flat. Raises InvalidInput.

    Integers and BOOL take only integers in range and true/false; floats take any number in range; BYTES takes strings,
    kept as UTF-8 bytes.
    """
    kind = datatype(dtype)
    if kind in BINARY_ONLY:
        raise InvalidInput(f"input {name!r} is {kind}, which has no JSON form; send it as binary data")
    flat = _flat(name, shape, data)
    types, names = _JSON_ELEMENTS[dtype.kind]
    strays = set(map(type, flat)) - types
    if strays:
        stray = next(value for value in flat if type(value) in strays)
        raise InvalidInput(f"input {name!r} has the element {json_text(stray)}; {kind} takes {names}")
    if dtype.hasobject:
        return _reshaped(name, _object_array([text.encode() for text in flat]), shape)
    try:
        with np.errstate(over="raise"):
            return _reshaped(name, np.array(flat, dtype), shape)
    except (OverflowError, FloatingPointError):
        low, high = _limits(dtype)
        stray = next(value for value in flat if math.isfinite(value) and not low <= value <= high)
        raise InvalidInput(f"input {name!r} has the element {stray}; {kind} takes {low} to {high}") from None


def to_json(name: str, array: np.ndarray) -> object:
    """What orjson (with OPT_SERIALIZE_NUMPY) writes as the flat `data` of an output. Raises InvalidInput.

    NaN and infinities are written as `NaN`, `Infinity` and `-Infinity`, as Triton does and tritonclient reads: JSON
    proper has no form for them, and `null` would turn an infinity into something else without a word.
    """
    if array.dtype.kind in "OSU":
        return [_as_text(name, element) for element in array.ravel().tolist()]
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        return orjson.Fragment(json.dumps(flat.tolist()))
    return flat


def json_text(value: object) -> str:
    """A value out of a request for a message: as JSON would write it, shortened."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return reprlib.repr(value)


def _limits(dtype: np.dtype) -> tuple[float, float]:
    # As Python numbers: compared with a float32, a Python float would be rounded to it first.
    if dtype.kind == "f":
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def _byte_strings(name: str, count: int, data: memoryview) -> np.ndarray:
    if count * 4 > len(data):
        raise InvalidInput(f"input {name!r} has {len(data)} bytes; {count} BYTES elements take at least {count * 4}")
    elements = []
    offset = 0
    for index in range(count):
        start = offset + 4
        length = int.from_bytes(data[offset:start], "little")
        offset = start + length
        if start > len(data) or offset > len(data):
            raise InvalidInput(
                f"input {name!r} ends inside element {index} of {count}: its length prefix says {length} bytes, "
                f"{max(len(data) - start, 0)} are left"
            )
        elements.append(bytes(data[start:offset]))
    if offset != len(data):
        raise InvalidInput(f"input {name!r} has {len(data) - offset} bytes after its {count} BYTES elements")
    return _object_array(elements)


def _object_array(elements: Sequence[bytes]) -> np.ndarray:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _flat(name: str, shape: Sequence[int], data: object) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidInput(f"input {name!r} has the data {json_text(data)}; send an array")
    count = math.prod(shape)
    if len(data) == count and (not data or not isinstance(data[0], list)):
        return data
    if data and not isinstance(data[0], list):
        raise InvalidInput(f"input {name!r} has {len(data)} elements; shape {list(shape)} takes {count}")
    for level in _levels(name, shape, data):
        data = level
    return data


def _levels(name: str, shape: Sequence[int], data: list[Any]) -> Iterator[list[Any]]:
    """Peel one dimension after the other; every list of a level must have the length that `shape` says."""
    nested = [data]
    for axis, dim in enumerate(shape):
        lengths = set(map(len, nested)) - {dim}
        if lengths:
            raise InvalidInput(
                f"input {name!r} has {lengths.pop()} elements along dimension {axis}; its shape is {list(shape)}"
            )
        level = list(chain.from_iterable(nested))
        yield level
        last = axis == len(shape) - 1
        kinds = set(map(type, level))
        if last and list in kinds:
            raise InvalidInput(f"input {name!r} has data nested deeper than its shape {list(shape)}")
        if not last and kinds - {list}:
            raise InvalidInput(
                f"input {name!r} has data nested unevenly: a value where dimension {axis + 1} of "
                f"{list(shape)} is expected"
            )
        nested = level


def _reshaped(name: str, flat: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError):
        # An empty tensor may claim dimensions whose product is zero but which numpy cannot hold.
        raise InvalidInput(f"input {name!r} has the impossible shape {list(shape)}") from None


def _as_text(name: str, element: object) -> str:
    if not isinstance(element, bytes):
        return str(element)
    try:
        return element.decode()
    except UnicodeDecodeError:
        raise InvalidInput(
            f"output {name!r} holds bytes that are not UTF-8, which JSON cannot carry; ask for binary data"
        ) from None
