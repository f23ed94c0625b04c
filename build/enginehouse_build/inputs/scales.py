"""Samples times powers of two: much smaller, as a whole or in places, and larger step by step.

Samples are of one scale and clients' values of others: a microphone that is far away, pixels in the shade, a unit that
was left out. A constant that an engine adds to a divisor, or an exporter leaves out, tells there alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from enginehouse.contract.bounds import Axes, InputBound, Region, along
from enginehouse.contract.tensors import Tensors

#: By how many powers of two values are fainter than usual: next to fp32's roundoff and to 1e-3, 1e-5, 1e-8, 1e-12.
FAINT = (4, 7, 10, 14, 19, 27, 40)
#: By how many they are louder, and from which on single numbers beyond all samples are tried anyhow.
_LOUD, _STEP, _FAR = 3, 2, 15
#: Rows of a louder request, every other one of them with its signs turned; bytes from which on there is but one.
_ROWS, _LARGE = 4, 1 << 16
#: Requests with faint values, at most.
_MOST = 48
#: Of slices within a row each third one is faint.
_THIRD = 3
#: Numbers that are looked at together.
_BLOCK = 1 << 22

#: As `contract.probes` has it: the inputs that a fault binds, how, the values in words, the request.
Scaled = tuple[tuple[str, ...], InputBound, str, Tensors]


def faint(samples: Tensors, ways: Mapping[str, Sequence[Axes]], batched: bool) -> Iterator[Scaled]:
    """Two rows of `samples` with faint slices along the axes of `ways`, by input; likelier ways of each input first.

    The last row is as usual: what it answers is what a faint one is measured on. All values that the samples have are
    within the bounds.
    """
    turns = range(max(map(len, ways.values()), default=0))
    each = ((name, ways[name][at]) for at in turns for name in ways if at < len(ways[name]))
    return islice((one for name, axes in each for one in _fainter(samples, name, axes, batched)), _MOST)


def loud(samples: Tensors, names: Sequence[str], batched: bool) -> Iterator[Scaled]:
    """The largest of the `samples` 8, 32, 128 ... times as large, in each of the float inputs `names` by itself."""
    for name in names:
        array = samples[name]
        if not (largest := _of_rows(array).max(initial=0.0)):
            continue
        rows = _ROWS if not batched or array[:1].nbytes < _LARGE else 1
        order = np.argsort(-_of_rows(array))[:rows]
        request = {each: other[order] for each, other in samples.items()} if batched else samples
        within, above = power_above(float(largest)), math.frexp(largest)[1]
        signs = np.ones((len(request[name]) if batched else 1, *[1] * (array.ndim - 1)) if array.ndim else ())
        if batched and bool(array.min() < 0 < array.max()):
            signs[1::2] = -1
        for shift in range(max(_LOUD, 1 - above), _FAR + 1 - above, _STEP):
            changed = (request[name] * (signs * 2.0**shift)).astype(array.dtype)
            yield (name,), within, f"the samples' values times 2^{shift}", {**request, name: changed}
            within = 1 << (above - 1 + shift)


def power_above(value: float) -> int:
    """The least power of two that is larger, at least 1."""
    return 1 << max(0, math.frexp(value)[1])


def _fainter(samples: Tensors, name: str, axes: Axes, batched: bool) -> Iterator[Scaled]:
    array = samples[name]
    # Of a whole request nothing would be left to measure it on.
    seen = _exponent_of_faintest(array, axes) if batched or len(axes) < array.ndim else None
    if seen is None:
        return
    base = _usual_rows(samples, name) if batched else samples
    slices = _sizes(base[name], axes)
    chosen = _each_third(slices.shape, batched) & (slices > 0)
    if not chosen.any():
        return
    exponents = np.frexp(slices)[1] - 1
    usual = int(np.median(exponents[chosen]))
    least = -24 if array.dtype == np.float16 else -126
    within = seen
    for exponent in (usual - drop for drop in FAINT):
        if exponent >= seen or exponent < least:
            continue
        shift = np.where(chosen, exponent - exponents, 0)
        changed = (base[name] * 2.0**shift).astype(array.dtype)
        said = f"values of 2^{exponent}{along(axes) or ' here and there'}"
        yield (name,), Region(not_faint=((axes, within),)), said, {**base, name: changed}
        # The largest was between this power and the next one.
        within = min(exponent + 1, seen)


def _usual_rows(samples: Tensors, name: str) -> Tensors:
    """Two rows that are neither the largest nor the smallest."""
    sizes = _of_rows(samples[name])
    order = np.argsort(np.where(sizes > 0, np.abs(sizes - np.median(sizes[sizes > 0])), np.inf))
    return {each: array[order[[0, min(1, len(order) - 1)]]] for each, array in samples.items()}


def _each_third(shape: tuple[int, ...], batched: bool) -> np.ndarray:
    """In all rows but the last, and in all of these where they have but one slice."""
    own = (1, *shape[1:]) if batched else shape
    found: np.ndarray = np.asarray(sum(np.ogrid[tuple(map(slice, own))])) % _THIRD == 0
    found = np.broadcast_to(found, shape).copy()
    if batched:
        found[-1] = False
    return found


def _exponent_of_faintest(array: np.ndarray, axes: Axes) -> int | None:
    """Of the slices of the samples, but those that are 0."""
    least, step = math.inf, len(array) if 0 in axes else max(_BLOCK // array[:1].size, 1)
    for start in range(0, len(array), step):
        sizes = _sizes(array[start : start + step], axes)
        least = min(least, float(sizes[sizes > 0].min(initial=math.inf)))
    return math.frexp(least)[1] - 1 if least < math.inf else None


def _of_rows(array: np.ndarray) -> np.ndarray:
    return _sizes(array, tuple(range(1, array.ndim))).reshape(-1)


def _sizes(array: np.ndarray, axes: Axes) -> np.ndarray:
    """The largest magnitude of each slice along `axes`, kept with an extent of 1; 0 where one is not finite."""
    with np.errstate(over="ignore"):
        largest = np.abs(array).astype(np.float32).max(axis=axes, keepdims=True)
    return np.where(np.isfinite(largest), largest, 0)
