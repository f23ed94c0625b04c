"""Floats that samples never have: of the other sign, between and beyond theirs, halves, next to whole numbers, -0.

Samples are of one sign and clients' values of both. What becomes of a negative number in a cast to bytes, of a half
that is rounded, of 1 / -0 is up to the engine; ONNX leaves some of it open.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from enginehouse.contract.bounds import Region
from enginehouse.contract.tensors import Tensors
from enginehouse_build.graph.graph import graphs
from enginehouse_build.inputs.scales import power_above
from enginehouse_build.inputs.unanswered import Unanswered

#: Exponents beyond the samples that are tried: the ends of fp16, of fp32's whole numbers, of 32 and of 64 bits, and far
#: beyond; 2^200 is beyond fp32.
FLOAT = (15, 24, 31, 62, 100, 200)
#: Of the elements every third one is changed, so that the rest of a row is as usual, and each place in some row.
THIRD = 3
#: Samples that are looked at, and bytes of a row from which on there are half as many requests.
_LOOKED_AT, _LARGE = 1 << 22, 1 << 16
#: The smallest fractions, as an exponent.
_LEAST = 30
#: How far from a whole number, relative to it, what is called next to it: rounding does not move it there.
_NEXT, _MOST_NEXT = 1 / 64, 31
#: Halves are floats of their own below this.
_HALVES = 1 << 22
_WRAPPING = frozenset(
    {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT16, onnx.TensorProto.UINT16}
    | {onnx.TensorProto.UINT32}
)
SEED = 0


def far(base: Tensors, samples: Tensors) -> Iterator[Unanswered]:
    """Floats beyond those of the samples, which the gate has compared: in each input by itself, ever larger."""
    generator = np.random.default_rng(SEED)
    for name in names_of(base):
        array = base[name]
        seen = samples[name].astype(np.float64).ravel()
        within = power_above(float(np.abs(seen[np.isfinite(seen)]).max(initial=0.0)))
        top = math.log2(largest_of(array.dtype))
        for exponent in FLOAT:
            if within >= 2**exponent or exponent > top:
                continue
            values = 2.0**exponent * generator.uniform(0.5, 1, array.shape) * generator.choice((-1, 1), array.shape)
            changed = {**base, name: dotted(array, values)}
            yield Unanswered((name,), within, f"magnitudes of 2^{exponent}", changed)
            within = 2**exponent


def untried(base: Tensors, samples: Tensors, wraps: bool, turns: bool) -> Iterator[Unanswered]:
    """`base` with floats of kinds that the samples do not have, up to those of `far`: each sign, each input by itself.

    Where a graph `wraps`, int8 is asked as well what is no larger than the samples. One that `turns` in a loop is asked
    neither fractions nor zeros, which may keep it turning.
    """
    for name in names_of(base):
        seen = _Seen.of(samples[name])
        if not turns:
            yield Unanswered((name,), Region(not_zero=((),)), "-0 here and there", _with(base, name, np.array(-0.0)))
            for sign in (1, -1):
                yield from _small(base, name, seen, sign, wraps)
        for sign in (1, -1):
            yield from _by_powers(base, name, seen, sign, wraps)


def wrapping(proto: onnx.ModelProto) -> bool:
    """Whether there is a cast to few bits: of numbers that these do not hold each engine makes something else."""
    return any(
        attribute.name == "to" and attribute.i in _WRAPPING
        for graph in graphs(proto)
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "Cast"
    )


class _Seen(NamedTuple):
    """What samples have: the ends, by sign the exponents of those that are not whole, and which have halves."""

    low: float
    high: float
    exponents: dict[int, frozenset[int]]
    halves: frozenset[int]

    @classmethod
    def of(cls, array: np.ndarray) -> _Seen:
        flat = array.reshape(-1)
        ends = flat.astype(np.float32) if flat.dtype.kind != "f" else flat
        ends = ends[np.isfinite(ends)]
        some = ends[:_LOOKED_AT].astype(np.float64)
        apart = some - np.trunc(some)
        exponents = np.maximum(np.frexp(some)[1] - 1, -1)
        tried = {
            sign: frozenset(np.flatnonzero(np.bincount(exponents[(apart != 0) & (some * sign > 0)] + 1)).tolist())
            for sign in (1, -1)
        }
        halves = frozenset(sign for sign in (1, -1) if bool((apart == sign * 0.5).any()))
        low, high = float(ends.min(initial=np.inf)), float(ends.max(initial=-np.inf))
        if not ends.size:
            low = high = 0.0
        return cls(low, high, {sign: frozenset(at - 1 for at in each) for sign, each in tried.items()}, halves)

    def ends_at(self, sign: int) -> float:
        """The largest magnitude of that sign; negative where there is none."""
        return sign * (self.high if sign > 0 else self.low)

    def nearest(self, sign: int) -> float:
        """The smallest magnitude, where all samples are of that sign; otherwise negative."""
        return sign * (self.low if sign > 0 else self.high)

    def bound(self, sign: int, least: int, most: int) -> Region:
        """What keeps out magnitudes between these; whole numbers alone bound, so that no fraction is left of 0."""
        if self.nearest(sign) >= most:
            return Region(at_least=math.floor(self.low)) if sign > 0 else Region(less_than=math.floor(self.high) + 1)
        return Region(less_than=least) if sign > 0 else Region(at_least=min(1 - least, 0))


def _small(base: Tensors, name: str, seen: _Seen, sign: int, wraps: bool) -> Iterator[Unanswered]:
    """Fractions of one sign, halves of the samples' size and what is next to whole numbers."""
    array, generator = base[name], np.random.default_rng(SEED)
    signed, bound = "-" if sign < 0 else "", seen.bound(sign, 0, 1)
    is_inside = seen.ends_at(sign) > 0
    every = wraps and not is_inside
    if -1 not in seen.exponents[sign]:
        tiny = 2.0 ** -generator.uniform(0, _LEAST, array.shape)
        values = np.where(generator.random(array.shape) < 0.5, tiny, generator.uniform(0, 1, array.shape))
        request = _with(base, name, sign * values)
        yield Unanswered((name,), bound, f"fractions between 0 and {signed}1", request, is_inside, every=every)
    size = np.abs(array.astype(np.float64))
    whole = np.trunc(np.where(np.isfinite(size) & (size < _HALVES), size, 0))
    if sign not in seen.halves:
        request = _with(base, name, sign * (whole + 0.5))
        yield Unanswered((name,), bound, f"halves like {signed}0.5", request, is_inside, every=every)
    near = np.maximum(whole % _MOST_NEXT, 1) * (1 + _NEXT * generator.choice((-1, 1), array.shape))
    request = _with(base, name, sign * near)
    yield Unanswered((name,), bound, f"numbers next to {signed}1, {signed}2 ...", request, True, scaled=True)


def _by_powers(base: Tensors, name: str, seen: _Seen, sign: int, wraps: bool) -> Iterator[Unanswered]:
    """Values from one power of two to the next, for each two of which the samples have nothing between them."""
    array, generator = base[name], np.random.default_rng(SEED)
    step = 2 if array[:1].nbytes >= _LARGE else 1
    size, signed = max(seen.high, -seen.low), "-" if sign < 0 else ""
    for exponent in range(0, FLOAT[0], step):
        if exponent in seen.exponents[sign]:
            continue
        least, most = 1 << exponent, 1 << (exponent + step)
        values = sign * generator.uniform(least, most, array.shape)
        is_inside = least <= seen.ends_at(sign)
        every = wraps and seen.ends_at(sign) <= 0 and least < size
        request = _with(base, name, np.clip(values, -largest_of(array.dtype), largest_of(array.dtype)))
        said = f"values from {signed}2^{exponent} on"
        yield Unanswered((name,), seen.bound(sign, least, most), said, request, is_inside, every=every)


def _with(base: Tensors, name: str, values: np.ndarray) -> Tensors:
    return {**base, name: dotted(base[name], values)}


def names_of(base: Tensors) -> Sequence[str]:
    """The inputs of floats that have anything."""
    return [name for name, array in base.items() if array.size and array.dtype.kind in "fV"]


def dotted(array: np.ndarray, values: np.ndarray, step: int = THIRD) -> np.ndarray:
    """`array` with each third element from `values`, another third in each row; or each `step`-th in all of it."""
    if step == THIRD:
        places = np.asarray(sum(np.ogrid[tuple(map(slice, array.shape))]) if array.ndim else 0) % THIRD == 0
    else:
        places = (np.arange(array.size) % step == 0).reshape(array.shape)
    return np.where(places, np.broadcast_to(values, array.shape).astype(array.dtype), array)


def largest_of(dtype: np.dtype) -> float:
    """The largest float of a type; ml_dtypes' bfloat16 has the range of fp32."""
    return float(np.finfo(dtype if dtype.kind == "f" else np.float32).max)
