"""NPZ and NPY: one array per column, one row each along the first axis; a unit is a range of rows.

What lies uncompressed and in C order is read from its place, a unit at a time; other arrays are loaded whole, once a
process.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from enginehouse.contract.errors import InvalidInput
from enginehouse.faces.scoring.readers import Limits, Look, Part, Rows, Wanted
from enginehouse.faces.scoring.readers.opening import opened, reading
from enginehouse.faces.scoring.rows.columns import lists, nested
from enginehouse.faces.scoring.sources import File

#: What the only array of an .npy file is called.
COLUMN = "array"
_LOCAL_HEADER, _LENGTHS = 30, slice(26, 30)


@dataclass(frozen=True, slots=True)
class _Array:
    """Where an array is. `offset`: of its first byte of data in the file, None if it has to be loaded whole."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int | None

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])


def look(file: File) -> Look:
    """The arrays, as Arrow has their rows. Those of objects, of records and of one number are left out."""
    fields = []
    for array in _arrays(file).values():
        if array.shape and not array.dtype.hasobject and array.dtype.names is None:
            try:
                kind = _column(np.zeros((1, *array.shape[1:]), array.dtype)).type
            except (pa.ArrowException, ValueError, TypeError):
                continue
            fields.append((array.name, kind))
    return Look(pa.schema(fields))


def parts(file: File, limits: Limits) -> list[Part]:
    """Equal ranges of rows, by the longest array; `read` says where arrays differ."""
    arrays = [array for array in _arrays(file).values() if array.shape]
    if not arrays:
        raise InvalidInput(f"{file.url}: no array with rows")
    rows = max(array.shape[0] for array in arrays)
    most = limits.rows_of(sum(array.row_bytes for array in arrays))
    count = -(-rows // most)
    ends = [rows * at // count for at in range(count + 1)] if count else [0]
    return [Part(start, end - start) for start, end in itertools.pairwise(ends)]


def read(file: File, part: Part, wanted: Sequence[Wanted]) -> Rows:
    """The rows of `part`."""
    arrays = _arrays(file)
    check_rows(file, {column.name: arrays[column.name].shape for column in wanted})
    columns = {}
    with reading(file, file.format.upper()):
        for column in wanted:
            columns[column.name] = _column(_rows(file, arrays[column.name], part.first, part.rows))
    return Rows(pa.table(columns), range(part.first, part.first + part.rows))


def check_rows(file: File, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises InvalidInput where the arrays that are read have no rows, or not as many as the others."""
    if scalars := [name for name, shape in shapes.items() if not shape]:
        raise InvalidInput(f"{file.url}: {scalars[0]!r} is one number; give an array with one row for each request")
    counts = {name: shape[0] for name, shape in shapes.items()}
    if len(set(counts.values())) > 1:
        raise InvalidInput(f"{file.url}: arrays differ in rows: {counts}")


@functools.lru_cache(maxsize=4)
def _arrays(file: File) -> dict[str, _Array]:
    with reading(file, file.format.upper()), opened(file) as stream:
        if file.format == "npy":
            shape, fortran, dtype = _header(stream)
            return {COLUMN: _Array(COLUMN, shape, dtype, None if fortran or dtype.hasobject else stream.tell())}
        found = {}
        with zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                with archive.open(entry) as member:
                    shape, fortran, dtype = _header(member)
                    skipped = member.tell()
                offset = None
                if entry.compress_type == zipfile.ZIP_STORED and not fortran and not dtype.hasobject:
                    stream.seek(entry.header_offset)
                    lengths = stream.read(_LOCAL_HEADER)[_LENGTHS]
                    extra = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
                    offset = entry.header_offset + _LOCAL_HEADER + extra + skipped
                found[name] = _Array(name, shape, dtype, offset)
        return found
    raise AssertionError("unreachable")


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    # Of one dimension, both orders are one.
    return shape, fortran and len(shape) > 1, dtype


def _rows(file: File, array: _Array, first: int, rows: int) -> np.ndarray:
    if array.offset is None:
        return _whole(file, array.name)[first : first + rows]
    with opened(file) as stream:
        stream.seek(array.offset + first * array.row_bytes)
        data = stream.read(rows * array.row_bytes)
    if len(data) != rows * array.row_bytes:
        raise InvalidInput(f"{file.url}: {array.name!r} ends too early; the file is damaged")
    return np.frombuffer(data, array.dtype).reshape(rows, *array.shape[1:])


@functools.lru_cache(maxsize=4)
def _whole(file: File, name: str) -> np.ndarray:
    with opened(file) as stream:
        if file.format == "npy":
            return np.asarray(np.load(io.BytesIO(stream.read()), allow_pickle=False))
        with np.load(stream, allow_pickle=False) as archive:
            return np.asarray(archive[name])


def _column(array: np.ndarray) -> pa.Array:
    """An array as an Arrow column, one row each, in this machine's order of bytes."""
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    flat = array.reshape(-1)
    # Text of a fixed width, which Arrow does not read as an array.
    values = pa.array(flat.tolist() if flat.dtype.kind in "US" else flat)
    return nested(values, array.shape, lists(values.type, array.shape[1:]))
