"""Requests at other extents of a free dimension, and dimensions whose extent follows from others.

The mask of a decoder is as long as its past and its new tokens together; its dimension is called `past + new` in the
file. At another extent of the past the mask has another one too, or the model does not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np

from enginehouse.contract.manifest import Axis
from enginehouse.contract.signature_record import parts_of
from enginehouse.contract.tensors import Tensors

#: Extents of one dimension that are worth looking at: a shorter range is looked at in all of its.
_MOST = 48
#: Of these, neighbours of the usual one, multiples of what vectors and tiles are, and any.
_NEIGHBOURS, _MULTIPLES, _ANY = 16, 12, 8
_TILE = 32
#: How far apart the rows are that follow one another along the first dimension, the second ...
_STEP = 6
SEED = 0
#: Nothing that nobody declared is asked for beyond this extent, or this many times that of the samples if that is more.
LONGEST, TIMES = 1024, 8


def sizes(axis: Axis) -> tuple[int, ...]:
    """What latency and parity are looked at: the ends of the range, its `opt`, and half of the largest."""
    found = {axis.min, axis.opt, axis.max, axis.max // 2}
    return tuple(sorted(size for size in found if axis.min <= size <= axis.max))


def near(extent: int) -> list[int]:
    """Extents that nobody declared: one more and a half (odd where `extent` is even), and about twice as much."""
    return sorted({extent + 1, max(extent // 2, 1), 2 * extent + 1} - {extent})


def at_most(axis: Axis, factor: float) -> int:
    """`factor` times the usual extent of an axis that nobody declared, as far as such extents are looked at."""
    return min(int(axis.opt * factor), max(LONGEST, TIMES * axis.opt))


def between(low: int, high: int, usual: int) -> list[int]:
    """Extents from `low` (at least 1) to `high` that engines may take differently, the most telling ones first.

    The ends, all residues of 16 near the `usual` one, multiples of 32, some at random; all of a short range.
    """
    low = max(low, 1)
    generator = np.random.default_rng(SEED)
    first = [low, high, *near(usual), low + 1, high - 1]
    multiples = list(range(-(-low // _TILE) * _TILE, high + 1, _TILE))
    if len(multiples) > _MULTIPLES:
        multiples = [multiples[at] for at in np.linspace(0, len(multiples) - 1, _MULTIPLES).astype(int)]
    start = max(min(usual, high - _NEIGHBOURS), low)
    neighbours = [start + int(at) for at in generator.permutation(_NEIGHBOURS)]
    any_of = [int(size) for size in generator.integers(low, high + 1, _ANY)]
    kinds = (size for group in zip_longest(multiples, neighbours, any_of) for size in group if size is not None)
    chosen = dict.fromkeys(size for size in (*first, *kinds) if low <= size <= high and size != usual)
    if high - low < _MOST:
        chosen |= dict.fromkeys(low + int(at) for at in generator.permutation(high - low + 1))
    chosen.pop(usual, None)
    return list(chosen)


def independent(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axes whose extent follows from no other's."""
    names = {axis.name for axis in axes}
    return tuple(axis for axis in axes if not parts_of(axis.name, names))


def resized(request: Tensors, axis: Axis, size: int, axes: Sequence[Axis]) -> dict[str, np.ndarray]:
    """`request` cut or repeated to `size` along `axis`, and to what follows along the sums with it among `axes`."""
    by_name = {each.name: each for each in axes}
    result = _along(request, axis, size)
    for other in axes:
        parts = parts_of(other.name, by_name)
        if axis.name in parts and _extent(request, other) == _sum(request, parts, by_name):
            result = _along(result, other, _sum(result, parts, by_name))
    return result


def extents_at(request: Tensors, sizes: Mapping[str, int], axes: Sequence[Axis]) -> dict[str, int]:
    """The extent of each of `axes` where some have the `sizes`, sums follow, and the rest is as in `request`."""
    by_name = {each.name: each for each in axes}
    extents = {each.name: _extent(request, each) for each in axes} | dict(sizes)
    for axis in axes:
        parts = parts_of(axis.name, by_name)
        if parts and _extent(request, axis) == _sum(request, parts, by_name):
            extents[axis.name] = sum(int(part) if part.isdecimal() else extents[part] for part in parts)
    return extents


def enlarged(
    samples: Tensors, sizes: Mapping[str, int], axes: Sequence[Axis], rows: int | None
) -> dict[str, np.ndarray]:
    """`rows` rows of the `samples` at other extents, `sizes` by the names of `axes`; None is for those without a batch.

    What goes on beyond the end of a row is the next row, not the same again: of equal values no two engines have to
    find the same largest one.
    """
    extents = extents_at(samples, sizes, axes)
    steps = {axis.name: 1 + _STEP * at for at, axis in enumerate(independent(axes))}
    places = {place: (extents[axis.name], steps.get(axis.name, 1)) for axis in axes for place in axis.dims}
    result = {}
    for name, array in samples.items():
        start = 0 if rows is None else 1
        mesh: list[np.ndarray] = []
        at_row = np.zeros((1,) * array.ndim, np.int64)
        if rows is not None:
            at_row = at_row + np.arange(rows).reshape(-1, *(1,) * (array.ndim - 1))
        for dim in range(start, array.ndim):
            size, step = places.get((name, dim), (array.shape[dim], 0))
            along = np.arange(size).reshape(-1, *(1,) * (array.ndim - 1 - dim))
            # An extent of 0 has nothing to repeat, and is asked for nothing when `size` is 0 too.
            extent = max(array.shape[dim], 1)
            mesh.append(along % extent)
            if size > extent:
                at_row = at_row + along // extent * step
        if rows is not None:
            result[name] = array[at_row % len(array), *mesh]
        else:
            result[name] = array[tuple(mesh)] if mesh else array
    return result


def _sum(request: Tensors, parts: Sequence[str], axes: dict[str, Axis]) -> int:
    return sum(int(part) if part.isdecimal() else _extent(request, axes[part]) for part in parts)


def _extent(request: Tensors, axis: Axis) -> int:
    name, dim = axis.dims[0]
    return int(request[name].shape[dim])


def _along(request: Tensors, axis: Axis, size: int) -> dict[str, np.ndarray]:
    result = dict(request)
    for name, dim in axis.dims:
        # An extent of 0 has nothing to repeat, and is asked for nothing when `size` is 0 too.
        result[name] = np.take(result[name], np.arange(size) % max(result[name].shape[dim], 1), axis=dim)
    return result
