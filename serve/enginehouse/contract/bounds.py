"""For which values in its inputs an artifact answers as the reference does, and whether those of a request are such.

Found by the build's probes (`contract.probes`): OpenVINO makes 0 of a NaN in many operators, tells whole numbers apart
in fp32, keeps them in 32 bits, and has an answer where a blank row is divided by its own length. A request beyond an
artifact's bounds is answered by another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from enginehouse.contract.tensors import Tensors

Axes: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """A bound that one number does not say; all of its parts hold.

    `below` is a bound of the plain kind. All numbers are `at_least` and `less_than` these, NaN is not. `not_zero` are
    sets of axes: nowhere in the input is everything along such a set 0, with none of them no element is; `not_constant`
    the same for one value all over, whichever it is. `not_faint` are such sets with an exponent: nowhere is the largest
    magnitude along the set less than that power of two, unless it is 0.
    """

    below: Literal["finite"] | int | None = None
    at_least: int | None = None
    less_than: int | None = None
    not_zero: tuple[Axes, ...] = ()
    not_constant: tuple[Axes, ...] = ()
    not_faint: tuple[tuple[Axes, int], ...] = ()

    #: A part that this release does not know it cannot keep either.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def plain_parts(self) -> dict[str, Any]:
        """The parts that it has, as plain data."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}


#: `finite`: neither NaN nor infinite; a number: less than that in magnitude. Any other kind is a `Region`.
InputBound: TypeAlias = Literal["finite"] | int | Region
#: By the name of the input; of those that are not there any value will do.
InputBounds: TypeAlias = Mapping[str, InputBound]

#: Bits of the magnitude of a 16-bit float. As whole numbers they are in its order, with infinity and NaN above all.
_MAGNITUDE = 0x7FFF
#: Larger powers of two are shown as such.
_READABLE = 999
#: What is all along some axes: 0, one value, or less than two to that power.
_What: TypeAlias = Literal["zero", "constant"] | int


class Values:
    """The values of one request, looked at once for each input and only when somebody asks."""

    __slots__ = ("_blank", "_extremes", "_inputs", "_largest")

    def __init__(self, inputs: Tensors) -> None:
        self._inputs = inputs
        self._largest: dict[str, float | int] = {}
        self._extremes: dict[str, tuple[float | int, float | int]] = {}
        self._blank: dict[tuple[str, Axes, _What], bool] = {}

    def beyond(self, bounds: InputBounds) -> str:
        """In words, the first value that is beyond `bounds`; "" when there is none. On the path of requests."""
        for name, bound in bounds.items():
            below = bound.below if isinstance(bound, Region) else bound
            if below is not None:
                largest = self._largest.get(name)
                if largest is None:
                    largest = self._largest[name] = _largest(self._inputs[name])
                # NaN is less than nothing.
                if not largest < _limit(below):
                    return f"input {name!r} has {_named(largest)}"
            if isinstance(bound, Region) and (fault := self._outside(name, bound)):
                return f"input {name!r} has {fault}"
        return ""

    def place(self, bounds: InputBounds) -> str:
        """Where the first value beyond `bounds` is, as `input 'x' has NaN at [0, 3]`; "" when there is none."""
        for name, bound in bounds.items():
            array = np.asarray(self._inputs[name])
            region = bound if isinstance(bound, Region) else Region(below=bound)
            wide = array if array.dtype.kind in "iu" else array.astype(np.float64)
            inside = np.ones(wide.shape, bool)
            if region.below is not None:
                limit = _limit(region.below)
                inside = (wide < limit) if wide.dtype.kind == "u" else (wide < limit) & (wide > -limit)
            if region.at_least is not None:
                inside &= wide >= region.at_least
            if region.less_than is not None:
                inside &= wide < region.less_than
            if not inside.all():
                where = tuple(np.argwhere(~inside)[0].tolist())
                return f"input {name!r} has {_named(wide[where].item())} at {list(where)}"
            for axes, what in _slices(region):
                if (found := _has(array, axes, what)).any():
                    first = np.argwhere(found)[0].tolist()
                    at = [index for axis, index in enumerate(first) if axis not in axes]
                    return f"input {name!r} has {_called(axes, what)}" + (f" at {at}" if at else "")
        return ""

    def _outside(self, name: str, region: Region) -> str:
        array = self._inputs[name]
        if (region.at_least is not None or region.less_than is not None) and array.size:
            extremes = self._extremes.get(name)
            if extremes is None:
                extremes = self._extremes[name] = _ends(array)
            # NaN is neither.
            if region.at_least is not None and not extremes[0] >= region.at_least:
                return _named(extremes[0])
            if region.less_than is not None and not extremes[1] < region.less_than:
                return _named(extremes[1])
        for axes, what in _slices(region):
            has = self._blank.get((name, axes, what))
            if has is None:
                has = self._blank[name, axes, what] = bool(_has(array, axes, what).any())
            if has:
                return _called(axes, what)
        return ""


def narrower(one: InputBounds, other: InputBounds) -> dict[str, InputBound]:
    """The bounds that keep both."""
    return {name: _both(one.get(name), other.get(name)) for name in sorted({*one, *other})}


def described(bounds: InputBounds) -> str:
    """For people: `finite 'x', 'id' below 2^24, 'n' at least 0 and nowhere all 0 along axis 1`; "" for none."""
    return ", ".join(_described(name, bound) for name, bound in bounds.items())


def _described(name: str, bound: InputBound) -> str:
    region = bound if isinstance(bound, Region) else Region(below=bound)
    parts = []
    if region.at_least is not None:
        before = region.at_least - 1
        parts.append(f"above -{_power(-before)}" if before < -_READABLE else f"at least {region.at_least}")
    above = region.less_than if region.below in (None, "finite") else region.below
    if above is not None and above != "finite":
        parts.append(f"below {_power(above)}")
    faint = dict(region.not_faint)
    for axes, what in _slices(region):
        if isinstance(what, int):
            parts.append(f"nowhere below 2^{what}{'' if axes in region.not_zero else ' but 0'}{along(axes)}")
        elif what == "constant" or axes not in faint:
            parts.append(f"nowhere {'one value' if what == 'constant' else '0'}{along(axes)}")
    finite = "finite " if region.below == "finite" else ""
    return f"{finite}{name!r}{' ' if parts else ''}{' and '.join(parts)}"


def _both(one: InputBound | None, other: InputBound | None) -> InputBound:
    """The bound that keeps both, in the one form that such a bound has; None is no bound."""
    first, second = (bound if isinstance(bound, Region) else Region(below=bound) for bound in (one, other))
    below = min((each.below for each in (first, second) if each.below is not None), key=_limit, default=None)
    low = max((each.at_least for each in (first, second) if each.at_least is not None), default=None)
    high = min((each.less_than for each in (first, second) if each.less_than is not None), default=None)
    if isinstance(below, int) and (low is not None or high is not None):
        low, high = max(1 - below, 1 - below if low is None else low), min(below, below if high is None else high)
    if low is not None and high is not None:
        # What has both ends is finite anyhow.
        below = None
    if low is not None and high is not None and low == 1 - high:
        below, low, high = high, None, None
    constant = _least({*first.not_constant, *second.not_constant})
    zero = tuple(
        axes
        for axes in _least({*first.not_zero, *second.not_zero})
        if not any({*other} <= {*axes} for other in constant)
    )
    both = Region(below, low, high, zero, constant, _faintest((*first.not_faint, *second.not_faint)))
    return below if below is not None and both == Region(below) else both


def _least(all_axes: set[Axes]) -> tuple[Axes, ...]:
    """What is blank along some axes is so along a part of them: the sets of which no other is a part."""
    return tuple(sorted(axes for axes in all_axes if not any({*other} < {*axes} for other in all_axes)))


def _faintest(all_faint: tuple[tuple[Axes, int], ...]) -> tuple[tuple[Axes, int], ...]:
    """Where all is small along some axes, it is so along a part of them, or 0: those that no other one says already."""
    largest: dict[Axes, int] = {}
    for axes, exponent in all_faint:
        largest[axes] = max(exponent, largest.get(axes, exponent))
    return tuple(
        sorted(
            (axes, exponent)
            for axes, exponent in largest.items()
            if not any({*part} < {*axes} and other >= exponent for part, other in largest.items())
        )
    )


def _slices(region: Region) -> list[tuple[Axes, _What]]:
    if not region.not_zero and not region.not_constant and not region.not_faint:
        return []
    return [
        *((axes, "zero") for axes in region.not_zero),
        *((axes, "constant") for axes in region.not_constant),
        *region.not_faint,
    ]


def _has(array: np.ndarray, axes: Axes, what: _What) -> np.ndarray:
    """Which slices along `axes`, kept with an extent of 1, are such; none of an empty array is."""
    return _faint(array, axes, what) if isinstance(what, int) else _blank(array, axes, what == "constant")


def _faint(array: np.ndarray, axes: Axes, exponent: int) -> np.ndarray:
    if not array.size:
        return np.zeros((), bool)
    limit: Any = 2.0**exponent
    if array.dtype.kind in "iub":
        largest = np.abs(array.astype(np.float64)).max(axis=axes, keepdims=True)
    elif array.dtype.itemsize == 2:
        # Comparing 16-bit floats as such takes many times as long.
        largest = (array.view(np.uint16) & _MAGNITUDE).max(axis=axes, keepdims=True)
        limit = np.array(limit).astype(array.dtype).view(np.uint16)
    elif axes:
        largest = np.maximum(array.max(axis=axes, keepdims=True), -array.min(axis=axes, keepdims=True))
    else:
        largest = np.abs(array)
    # NaN is neither.
    return np.asarray((largest < limit) & (largest > 0))


def _blank(array: np.ndarray, axes: Axes, constant: bool) -> np.ndarray:
    """Which slices along `axes`, kept with an extent of 1, are 0 all over, or one value; none of an empty array is."""
    if not array.size:
        return np.zeros((), bool)
    if array.dtype.kind not in "iub" and array.dtype.itemsize == 2:
        # Comparing 16-bit floats as such takes many times as long.
        array = array.view(np.uint16) if constant else array.view(np.uint16) & _MAGNITUDE
    if not constant:
        same = array == 0
    else:
        first, last = (
            array[tuple(slice(at, at + 1 or None) if axis in axes else slice(None) for axis in range(array.ndim))]
            for at in (0, -1)
        )
        if not (ends := first == last).any():
            return np.asarray(ends)
        same = array == first
    return np.asarray(same.all(axis=axes, keepdims=True) if axes else same)


def _called(axes: Axes, what: _What) -> str:
    if isinstance(what, int):
        return f"{'values' if axes else 'a value'} below 2^{what}{along(axes)}"
    return ("one value" if what == "constant" else "0" if axes else "a 0") + along(axes)


def along(axes: Axes) -> str:
    """In words, ` all along axes 1 and 2`; "" for none."""
    if not axes:
        return ""
    *others, last = map(str, axes)
    return f" all along axes {', '.join(others)} and {last}" if others else f" all along axis {last}"


def _limit(bound: Literal["finite"] | int) -> float | int:
    return math.inf if bound == "finite" else bound


def _largest(array: np.ndarray) -> float | int:
    """The largest magnitude, NaN or infinity if there is one; 0 for nothing. Without a copy, where numpy is fast."""
    if not array.size:
        return 0
    if array.dtype.kind not in "iu" and array.dtype.itemsize == 2:
        # Reducing 16-bit floats as such takes 40 times as long, and as long as a small model's call.
        bits = np.bitwise_and(array.view(np.uint16), _MAGNITUDE).max()
        return float(bits.view(array.dtype))
    high: float | int = np.maximum.reduce(array, axis=None).item()
    low: float | int = np.minimum.reduce(array, axis=None).item()
    return high if high != high else max(high, -low)


def _ends(array: np.ndarray) -> tuple[float | int, float | int]:
    """The least and the largest, both NaN if there is one; of what is not empty, without a copy."""
    if array.dtype.kind in "iu" or array.dtype.itemsize != 2:
        return np.minimum.reduce(array, axis=None).item(), np.maximum.reduce(array, axis=None).item()
    # As whole numbers, 16-bit floats are in their order where they are positive, and in the opposite one elsewhere.
    bits, signed = array.view(np.uint16), array.view(np.int16)
    nearest, last, largest = bits.min(), bits.max(), signed.max()
    low = last if last > _MAGNITUDE else nearest
    high = largest.view(np.uint16) if largest >= 0 else nearest
    low, high = (float(each.view(array.dtype)) for each in (low, high))
    return (low, high) if low == low and high == high else (math.nan, math.nan)


def _named(value: float | int) -> str:
    if value != value:
        return "NaN"
    if isinstance(value, float):
        return "an infinite value" if math.isinf(value) else f"a value of {value:.4g}"
    return f"the number {value}"


def _power(bound: int) -> str:
    exponent = bound.bit_length() - 1
    return f"2^{exponent}" if bound > _READABLE and bound == 1 << exponent else str(bound)
