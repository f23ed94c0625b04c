"""Requests with nothing in them: rows, channels or steps that are 0 or one value all over, masks that hide everything.

Samples have none of these and clients send them (padding, a lens cap, a user without history). What a graph divides by
its own length or spread is 0 / 0 there, and what becomes of such a NaN further on differs between engines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from enginehouse.contract.bounds import Axes, InputBound, Region, along
from enginehouse.contract.tensors import Signature, Tensors, TensorSpec

#: Of slices within a row each third one is blank.
_THIRD = 3
#: Rows of a request, the last of which is an ordinary one: what it answers is what a blank row is measured on.
ROWS = 2

#: What is blank, as `contract.probes` has it: the inputs that a fault binds, how, the values in words, the request.
Blank = tuple[tuple[str, ...], InputBound, str, Tensors]


@dataclass(frozen=True, slots=True)
class _Input:
    spec: TensorSpec
    array: np.ndarray
    batched: bool

    @property
    def row(self) -> Axes:
        return tuple(range(1 if self.batched else 0, self.array.ndim))

    @property
    def parts(self) -> list[Axes]:
        """Sets of axes that one might normalise over, beside those of a row: channels, the last axis, the second."""
        first, dims = self.row[:1], self.array.ndim
        found = [self.row[1:], (dims - 1,), first] if len(self.row) > 1 else []
        # Images are normalised over channels and over planes, hardly over lines.
        return [axes for axes in dict.fromkeys(found) if len(self.row) < 3 or axes != (dims - 1,)]

    @property
    def is_index(self) -> bool:
        return self.spec.domain is not None

    def constants(self) -> list[int | float]:
        """One value beside 0 as large as those of the samples, and the largest of types that are often full."""
        kind, dtype = self.array.dtype.kind, self.array.dtype
        if kind == "b" or self.is_index:
            return [1] if self.spec.domain is None or self.spec.domain.high > 1 else []
        with np.errstate(all="ignore"):
            wide = self.array.astype(np.float64)
            size = float(np.sqrt(np.mean(np.square(wide[np.isfinite(wide)])))) if np.isfinite(wide).any() else 1.0
        value = 2.0 ** round(math.log2(size)) if 0 < size < math.inf else 1.0
        if kind not in "iu":
            return [value]
        largest = int(np.iinfo(dtype).max)
        return list(dict.fromkeys([min(max(int(value), 1), largest), *([largest] if dtype.itemsize <= 2 else [])]))

    def with_blank(self, axes: Axes, value: int | float) -> np.ndarray:
        """The array with `value` all along `axes`: in all rows but the last, in each third slice of them."""
        extents = [1 if axis in axes else extent for axis, extent in enumerate(self.array.shape)]
        steps = sum(np.ogrid[tuple(slice(extent if axis else 1) for axis, extent in enumerate(extents))])
        if not self.batched:
            steps = sum(np.ogrid[tuple(map(slice, extents))])
        chosen = np.broadcast_to(np.asarray(steps) % _THIRD == 0, extents).copy()
        if self.batched and len(self.array) > 1:
            chosen[-1] = False
        return np.where(chosen, np.array(value).astype(self.array.dtype), self.array)


def ways(base: Tensors, signature: Signature) -> dict[str, list[Axes]]:
    """Along which axes something may be next to nothing, by input of floats: rows, parts of them, single values."""
    inputs = [_Input(spec, base[spec.name], signature.batched) for spec in signature.inputs]
    return {
        one.spec.name: list(dict.fromkeys([one.row, (), *one.parts]))
        for one in inputs
        if one.array.size and one.array.dtype.kind in "fV"
    }


def requests(base: Tensors, signature: Signature, left_out: Sequence[str]) -> Iterator[Blank]:
    """Of `base` what has blanks in each input but those `left_out`, and in all of them; what is likeliest comes first.

    Inputs that index a table are 0 or 1 in whole rows only.
    """
    inputs = [
        _Input(spec, base[spec.name], signature.batched)
        for spec in signature.inputs
        if base[spec.name].size and base[spec.name].dtype.kind in "biufV" and spec.name not in left_out
    ]
    masks_first = sorted(inputs, key=lambda one: one.array.dtype.kind in "fV")
    for one in masks_first:
        yield _zero(base, one, one.row)
    free = [one for one in inputs if not one.is_index]
    yield from _together(base, free, [one.row for one in free])
    for one in masks_first:
        yield from _constant(base, one, one.row)
    for one in masks_first:
        for axes in [] if one.is_index else one.parts:
            yield _zero(base, one, axes)
            if one.array.dtype.kind != "b":
                yield from _constant(base, one, axes)
    numbers = [one for one in free if one.array.dtype.kind != "b" and one.row]
    for one in numbers:
        yield _zero(base, one, ())
    yield from _together(base, numbers, [()] * len(numbers))


def _zero(base: Tensors, one: _Input, axes: Axes) -> Blank:
    name = one.spec.name
    return (name,), Region(not_zero=(axes,)), _said(0, axes), {**base, name: one.with_blank(axes, 0)}


def _constant(base: Tensors, one: _Input, axes: Axes) -> Iterator[Blank]:
    name = one.spec.name
    if math.prod(one.array.shape[axis] for axis in axes) < 2:
        # A single value is always one value all over.
        return
    for value in one.constants():
        request = {**base, name: one.with_blank(axes, value)}
        yield (name,), Region(not_constant=(axes,)), _said(value, axes), request


def _together(base: Tensors, inputs: Sequence[_Input], axes: Sequence[Axes]) -> Iterator[Blank]:
    """Zeros in several inputs at once. Where one of them has some, the others may have them as well.

    So one input is bound: the one that is most rarely 0. Without it the next one is, and so on.
    """
    order = sorted(zip(inputs, axes, strict=True), key=lambda each: -float(np.mean(each[0].array == 0)))
    while len(order) > 1:
        blank = {one.spec.name: one.with_blank(along_, 0) for one, along_ in order}
        last, of_last = order.pop()
        others = ", ".join(repr(one.spec.name) for one, _ in order)
        said = f"{_said(0, of_last)} (as in {others})"
        yield (last.spec.name,), Region(not_zero=(of_last,)), said, {**base, **blank}


def _said(value: int | float, axes: Axes) -> str:
    return f"{value:g}{along(axes)}" if axes else f"{value:g} here and there"
