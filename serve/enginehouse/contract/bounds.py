"""For which values in its inputs an artifact answers as the reference does, and whether those of a request are such.

Found by the build's probes (`contract.probes`): OpenVINO makes 0 of a NaN in many operators, tells whole numbers apart
in fp32, and keeps them in 32 bits. A request beyond an artifact's bounds is answered by another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from enginehouse.contract.tensors import Tensors

#: `finite`: neither NaN nor infinite; a number: less than that in magnitude.
InputBound: TypeAlias = Literal["finite"] | int
#: By the name of the input; of those that are not there any value will do.
InputBounds: TypeAlias = Mapping[str, InputBound]

#: Bits of the magnitude of a 16-bit float. As whole numbers they are in its order, with infinity and NaN above all.
_MAGNITUDE = 0x7FFF


class Values:
    """The values of one request, looked at once for each input and only when somebody asks."""

    __slots__ = ("_inputs", "_largest")

    def __init__(self, inputs: Tensors) -> None:
        self._inputs = inputs
        self._largest: dict[str, float | int] = {}

    def beyond(self, bounds: InputBounds) -> str:
        """In words, the first value that is beyond `bounds`; "" when there is none. On the path of requests."""
        for name, bound in bounds.items():
            largest = self._largest.get(name)
            if largest is None:
                largest = self._largest[name] = _largest(self._inputs[name])
            # NaN is less than nothing.
            if not largest < _limit(bound):
                return f"input {name!r} has {_named(largest)}"
        return ""

    def place(self, bounds: InputBounds) -> str:
        """Where the first value beyond `bounds` is, as `input 'x' has NaN at [0, 3]`; "" when there is none."""
        for name, bound in bounds.items():
            array = np.asarray(self._inputs[name])
            wide = array if array.dtype.kind in "iu" else array.astype(np.float64)
            limit = _limit(bound)
            inside = (wide < limit) if wide.dtype.kind == "u" else (wide < limit) & (wide > -limit)
            if not inside.all():
                where = tuple(np.argwhere(~inside)[0].tolist())
                return f"input {name!r} has {_named(wide[where].item())} at {list(where)}"
        return ""


def narrower(one: InputBounds, other: InputBounds) -> dict[str, InputBound]:
    """The bounds that keep both."""
    return {
        name: min((bounds[name] for bounds in (one, other) if name in bounds), key=_limit)
        for name in sorted({*one, *other})
    }


def described(bounds: InputBounds) -> str:
    """For people: `finite 'x', 'id' below 2^24`; "" for none."""
    return ", ".join(
        f"finite {name!r}" if bound == "finite" else f"{name!r} below {_power(bound)}" for name, bound in bounds.items()
    )


def _limit(bound: InputBound) -> float | int:
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


def _named(value: float | int) -> str:
    if value != value:
        return "NaN"
    if isinstance(value, float):
        return "an infinite value" if math.isinf(value) else f"a value of {value:.4g}"
    return f"the number {value}"


def _power(bound: int) -> str:
    exponent = bound.bit_length() - 1
    return f"2^{exponent}" if bound > 999 and bound == 1 << exponent else str(bound)
