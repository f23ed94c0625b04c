"""One tensor's elements: raw little-endian bytes or a JSON array <-> numpy.

What may take long is also there as `Work`: `decoding`, `encoding`, `reading` and `writing`. Work is a generator, so
that others may go on meanwhile. It yields None wherever it may be left for a moment, after a few milliseconds at most,
or a function that takes longer and cannot be interrupted; what the function returns is sent back. Whoever runs it
decides what happens in between.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias, TypeVar

import numpy as np
import orjson

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import datatype

T = TypeVar("T")
Work: TypeAlias = Generator[Callable[[], Any] | None, Any, T]

#: Elements for which Python takes some 2 ms, one after the other, and bytes of numbers for which numpy does.
ELEMENTS, NUMBER_BYTES = 1 << 13, 1 << 22

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


def finished(work: Work[T]) -> T:
    """Run `work` to its end without a break, and return its result."""
    try:
        call = next(work)
        while True:
            try:
                result = call() if call is not None else None
            except Exception as error:
                call = work.throw(error)
            else:
                call = work.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


def from_bytes(name: str, dtype: np.dtype, shape: Sequence[int], data: memoryview) -> np.ndarray:
    """The array whose elements are `data`: a read-only view on it, or a copy where `data` is not aligned for `dtype`.

    BYTES elements are `<u4 length><bytes>`, BOOL elements one byte each, 0 or 1. Raises InvalidInput.
    """
    return finished(decoding(name, dtype, shape, data))


def decoding(name: str, dtype: np.dtype, shape: Sequence[int], data: memoryview) -> Work[np.ndarray]:
    """`from_bytes` in pieces."""
    count = math.prod(shape)
    if dtype.hasobject:
        return _reshaped(name, (yield from _byte_strings(name, count, data)), shape)
    if len(data) != count * dtype.itemsize:
        raise InvalidInput(
            f"input {name!r} has {len(data)} bytes; {datatype(dtype)} of shape {list(shape)} "
            f"takes {count} x {dtype.itemsize} = {count * dtype.itemsize}"
        )
    if dtype.kind == "b":
        flags = np.frombuffer(data, np.uint8)
        for start in range(0, count, NUMBER_BYTES):
            if start:
                yield None
            if (most := int(flags[start : start + NUMBER_BYTES].max())) > 1:
                raise InvalidInput(f"input {name!r} has the byte {most}; BOOL takes 0 or 1")
        return _reshaped(name, flags.view(np.bool_), shape)
    # The JSON before it decides where a payload starts. Engines read whole vectors: what is not aligned is copied here.
    array = np.frombuffer(data, dtype)
    if not array.flags.aligned:
        copy = np.empty_like(array)
        step = NUMBER_BYTES // dtype.itemsize
        for start in range(0, count, step):
            if start:
                yield None
            copy[start : start + step] = array[start : start + step]
        array = copy
    return _reshaped(name, array, shape)


def to_bytes(array: np.ndarray) -> bytes | memoryview:
    """The elements of `array` as the protocol sends them, in C order; numbers are not copied where they lie so."""
    parts = finished(encoding(array))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def encoding(array: np.ndarray) -> Work[list[bytes | memoryview]]:
    """`to_bytes` in pieces, and as pieces."""
    if array.dtype.kind not in "OSU":
        return [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]
    flat = array.reshape(-1)
    pieces: list[bytes | memoryview] = []
    for start in range(0, flat.size, ELEMENTS):
        if start:
            yield None
        parts = []
        for element in flat[start : start + ELEMENTS].tolist():
            # A lone surrogate is the caller's: what cannot be said in UTF-8 is passed on as it is.
            text = element if isinstance(element, bytes) else str(element).encode("utf-8", "surrogatepass")
            parts += [len(text).to_bytes(4, "little"), text]
        pieces.append(b"".join(parts))
    return pieces


def from_json(name: str, dtype: np.dtype, shape: Sequence[int], data: object) -> np.ndarray:
    """The array of a JSON `data` field, nested exactly as `shape` or flat. Raises InvalidInput.

    Integers and BOOL take only integers in range and true/false; floats take any number in range; BYTES takes strings,
    kept as UTF-8 bytes.
    """
    return finished(reading(name, dtype, shape, data))


def reading(name: str, dtype: np.dtype, shape: Sequence[int], data: object) -> Work[np.ndarray]:
    """`from_json` in pieces."""
    kind = datatype(dtype)
    if kind in BINARY_ONLY:
        raise InvalidInput(f"input {name!r} is {kind}, which has no JSON form; send it as binary data")
    flat = yield from _flat(name, shape, data)
    types, names = _JSON_ELEMENTS[dtype.kind]
    array = np.empty(len(flat), dtype)
    for start in range(0, len(flat), ELEMENTS):
        if start:
            yield None
        some = flat[start : start + ELEMENTS]
        strays = set(map(type, some)) - types
        if strays:
            stray = next(value for value in some if type(value) in strays)
            raise InvalidInput(f"input {name!r} has the element {json_text(stray)}; {kind} takes {names}")
        array[start : start + ELEMENTS] = _numbers(name, dtype, some) if not dtype.hasobject else _encoded(some)
    return _reshaped(name, array, shape)


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


def writing(name: str, array: np.ndarray) -> Work[list[bytes | memoryview]]:
    """What `json_items` makes of parts of `array`, one after the other."""
    flat = array.reshape(-1)
    texts: list[bytes | memoryview] = []
    for start in range(0, flat.size, ELEMENTS):
        if start:
            yield None
        texts.append(json_items(name, flat[start : start + ELEMENTS]))
    return texts


def json_items(name: str, array: np.ndarray) -> bytes:
    """The text of `to_json` without its brackets."""
    return orjson.dumps(to_json(name, array), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def listed(texts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """The parts of a JSON array of these items, each of which may be several."""
    parts: list[bytes | memoryview] = [b"["]
    for text in texts:
        parts += [text, b","]
    return [*parts[: 2 * len(texts) or 1], b"]"]


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


def _numbers(name: str, dtype: np.dtype, values: list[Any]) -> np.ndarray:
    try:
        with np.errstate(over="raise"):
            return np.array(values, dtype)
    except (OverflowError, FloatingPointError):
        low, high = _limits(dtype)
        stray = next(value for value in values if math.isfinite(value) and not low <= value <= high)
        raise InvalidInput(f"input {name!r} has the element {stray}; {datatype(dtype)} takes {low} to {high}") from None


def _encoded(texts: list[str]) -> np.ndarray:
    return _object_array([text.encode() for text in texts])


def _byte_strings(name: str, count: int, data: memoryview) -> Work[np.ndarray]:
    if count * 4 > len(data):
        raise InvalidInput(f"input {name!r} has {len(data)} bytes; {count} BYTES elements take at least {count * 4}")
    array = np.empty(count, dtype=object)
    offset = 0
    for first in range(0, count, ELEMENTS):
        if first:
            yield None
        elements = []
        for index in range(first, min(first + ELEMENTS, count)):
            start = offset + 4
            length = int.from_bytes(data[offset:start], "little")
            offset = start + length
            if start > len(data) or offset > len(data):
                raise InvalidInput(
                    f"input {name!r} ends inside element {index} of {count}: its length prefix says {length} bytes, "
                    f"{max(len(data) - start, 0)} are left"
                )
            elements.append(bytes(data[start:offset]))
        array[first : first + ELEMENTS] = elements
    if offset != len(data):
        raise InvalidInput(f"input {name!r} has {len(data) - offset} bytes after its {count} BYTES elements")
    return array


def _object_array(elements: Sequence[bytes]) -> np.ndarray:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _flat(name: str, shape: Sequence[int], data: object) -> Work[list[Any]]:
    if not isinstance(data, list):
        raise InvalidInput(f"input {name!r} has the data {json_text(data)}; send an array")
    count = math.prod(shape)
    if len(data) == count and (not data or not isinstance(data[0], list)):
        return data
    if data and not isinstance(data[0], list):
        raise InvalidInput(f"input {name!r} has {len(data)} elements; shape {list(shape)} takes {count}")
    for level in _levels(name, shape, data):
        data = level
        if len(data) > ELEMENTS:
            yield None
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
