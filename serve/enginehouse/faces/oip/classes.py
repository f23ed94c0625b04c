"""Triton's classification extension: the largest values of each row as text, in pieces."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from enginehouse.contract.elements import ELEMENTS, Work

#: Lines that are written at a time: a number is long in becoming text.
_LINES = ELEMENTS // 4


def classes(
    array: np.ndarray, count: int, batched: bool, write: Callable[[np.ndarray], bytes | memoryview]
) -> Work[tuple[tuple[int, ...], list[bytes | memoryview]]]:
    """The `count` largest values of each row as `value:index`, largest first, equal ones by index, NaN last.

    One line per row of a batched model, one line in all otherwise; `index` counts within the row as if it were flat.
    Returns their shape, and what `write` made of some after the other: all of them together would take much memory.
    """
    rows = array.reshape(len(array) if batched else 1, -1)
    width = rows.shape[1]
    count = min(count, width)
    pieces = []
    step = max(1, ELEMENTS // max(1, width))
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        # A row that is long on its own takes as long as it takes, and numpy lets others compute meanwhile.
        order = (yield functools.partial(_order, some, count)) if some.size > 4 * ELEMENTS else _order(some, count)
        values, indices = np.take_along_axis(some, order, axis=1).reshape(-1), order.reshape(-1)
        for start in range(0, values.size, _LINES):
            places = slice(start, start + _LINES)
            # As text a number of numpy is that of Python, which is faster at it; BF16 is none of numpy's own.
            some_values = values[places].tolist() if values.dtype.kind in "fiu" else values[places]
            pairs = zip(some_values, indices[places].tolist(), strict=True)
            pieces.append(write(np.array([f"{value}:{index}".encode() for value, index in pairs], object)))
            yield None
    return (len(rows), count) if batched else (count,), pieces


def _order(rows: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest values of each row."""
    keys = rows.astype(np.float64) if rows.dtype.kind not in "iu" else rows
    if keys.dtype.kind == "f":
        keys = np.where(np.isnan(keys), -np.inf, keys)
    # Sorting backwards twice keeps the lower index first among equals, for unsigned integers too.
    backwards: np.ndarray = np.argsort(keys[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    return np.asarray(rows.shape[1] - 1 - backwards)
