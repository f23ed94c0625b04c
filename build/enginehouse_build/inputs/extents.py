"""Requests at other extents of a free dimension, and dimensions whose extent follows from others.

The mask of a decoder is as long as its past and its new tokens together; its dimension is called `past + new` in the
file. At another extent of the past the mask has another one too, or the model does not run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from enginehouse.contract.manifest import Axis
from enginehouse.contract.signature_record import parts_of
from enginehouse.contract.tensors import Tensors


def sizes(axis: Axis) -> tuple[int, ...]:
    """What latency and parity are looked at: the ends of the range, its `opt`, and half of the largest."""
    found = {axis.min, axis.opt, axis.max, axis.max // 2}
    return tuple(sorted(size for size in found if axis.min <= size <= axis.max))


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
