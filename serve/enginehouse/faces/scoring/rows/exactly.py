"""Numbers of one type as those of another, and which of them stay what they are."""

from __future__ import annotations

import numpy as np

#: Up to here a float holds every whole number.
_ALL_WHOLE = {"bfloat16": 2**8, "float16": 2**11, "float32": 2**24, "float64": 2**53}


def cast_exactly(array: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray | None]:
    """`array` as `dtype`, and where its values are kept; None where all are. Floats may be rounded, not to infinity."""
    if dtype.hasobject or array.dtype == dtype:
        return array, None
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
    kept = _kept(array, cast)
    return cast, None if kept.all() else kept


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
