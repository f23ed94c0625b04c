"""What is tried as the lowest and the highest value of an input, from what the samples have outwards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from enginehouse.contract.signature_record import PaddedInput
from enginehouse_build.judge.padded_trials import within

Number: TypeAlias = int | float
#: Makes of an input in a row another one.
Change: TypeAlias = Callable[[np.ndarray], np.ndarray]

#: Powers of two by which values are larger, and smaller.
_UP = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 56, 62, 80, 100, 120, 240, 480, 960)
_DOWN = (1, 3, 6, 12, 24)
_MOST_BF16 = 2.0**127
_FAINTEST = 2.0 ** _DOWN[-1]
#: How many times nearer than what failed the ends are that are kept: other values than those tried may fail sooner.
_MARGIN = 16
#: So many rows are the same at each position.
_VECTORS = 8
#: From this magnitude on whole numbers are multiplied as such.
_LARGE, _STEPS = 1 << 40, 1 << 20


@dataclass(eq=False)
class Side:
    """What is tried one after the other as one end; the first is that of the samples, `at` is the last one proven."""

    tried: list[Number]
    is_lower: bool
    at: int = 0
    is_open: bool = True

    def value(self, step: int) -> Number:
        return self.tried[min(step, len(self.tried) - 1)] if self.is_open else self.tried[self.at]

    def is_new(self, step: int) -> bool:
        return self.is_open and step < len(self.tried)

    def accept(self, step: int) -> None:
        if self.is_new(step):
            self.at = step

    def close(self, step: int) -> None:
        """What is tried at `step` fails: further ends are not tried, and the nearest ones are not kept."""
        failed = self.tried[step]
        self.is_open = False
        while self.at and not self._is_far(self.tried[self.at], failed):
            self.at -= 1

    def _is_far(self, value: Number, failed: Number) -> bool:
        if not self.is_lower:
            value, failed = -value, -failed
        # Outwards is downwards now.
        if failed < 0:
            return value * _MARGIN >= failed
        return not failed or value >= failed * _MARGIN


class Reach:
    """From where to where the values of an input may be: `low` and `high`, which move apart while nothing fails."""

    def __init__(self, name: str, values: np.ndarray, dim: int, ends: tuple[Number, Number]) -> None:
        self.name = name
        self.dim = dim
        lows, highs = _ladders(*ends, values.dtype)
        self.low, self.high = Side(lows, is_lower=True), Side(highs, is_lower=False)
        self.is_whole = values.dtype.kind in "iu"

    @classmethod
    def of(cls, name: str, array: np.ndarray, padded: PaddedInput | None) -> Reach:
        """That of an input whose samples are `array`."""
        wide = array if array.dtype.kind in "iu" else array.astype(np.float64)
        values = wide[np.isfinite(wide)]
        ends = (values.min().item(), values.max().item()) if values.size else (0, 0)
        return cls(name, array, padded.dim if padded else 0, ends)

    @property
    def steps(self) -> int:
        return max(len(self.low.tried), len(self.high.tried))

    def ends(self, step: int | None = None) -> tuple[Number, Number]:
        """What is proven, or what is tried at `step`."""
        if step is None:
            return self.low.tried[self.low.at], self.high.tried[self.high.at]
        return self.low.value(step), self.high.value(step)

    def close(self, sides: Collection[Side], step: int) -> None:
        """What was tried at `step` on these sides fails. Of values of both signs each is multiplied with each."""
        is_both = self.low.tried[0] < 0 < self.high.tried[0]
        for side in (self.low, self.high):
            if side in sides or (sides and is_both and side.is_new(step)):
                side.close(step)

    def shapes(self, step: int, sides: Sequence[Side]) -> list[tuple[list[Side], Change]]:
        """Ways to have values as far out as `step` on these sides: which sides each tells about, and how it is made."""
        low, high = self.ends(step)
        found: list[tuple[list[Side], Change]] = []
        for side in sides:
            end = side.value(step)
            found += [
                ([side], filled(end)),
                ([side], lambda array, end=end: self._spread(array, np.asarray(end, object), low, high)),  # type: ignore[misc]
                ([side], lambda array, end=end: self._alone(array, end, low, high, step)),  # type: ignore[misc]
            ]
        both = list(sides)
        found.append((both, lambda array: self._spread(array, self._any(array.shape, step, low, high), low, high)))
        if self.is_whole:
            # Any of their bits.
            found.append((both, lambda array: _numbers(array, step, low, high)))
        for turn in range(_VECTORS):
            # The same at each position: scores are then as far below, or above, all that a mask adds.
            found.append((both, lambda array, turn=turn: self._constant(array, _VECTORS * step + turn, low, high)))  # type: ignore[misc]
        return found

    def held(self, step: int) -> list[Change]:
        """What the others hold while one is far out: an end, next to nothing of either sign, or what they have."""
        low, high = self.ends(step)
        faint = [value if self.is_whole else value / _FAINTEST for value in (1, -1)]
        values = dict.fromkeys(min(max(value, low), high) for value in (low, high, 0, *faint))
        return [*(filled(value) for value in values), lambda array: within(array, low, high)]

    def corner(self, step: int, seed: int) -> Change:
        """Some of both ends by channel, or what the others hold: by chance."""
        low, high = self.ends(step)
        generator = np.random.default_rng((seed, step, *self.name.encode()))
        if generator.random() < 0.5:
            return lambda array: self._constant(array, int(generator.integers(1 << 30)), low, high)
        held = self.held(step)
        return held[int(generator.integers(len(held)))]

    def _any(self, shape: tuple[int, ...], seed: int, low: Number, high: Number) -> np.ndarray:
        ends = np.empty(2, object)
        ends[:] = low, high
        return np.asarray(ends[np.random.default_rng(seed).integers(0, 2, shape)])

    def _constant(self, array: np.ndarray, seed: int, low: Number, high: Number) -> np.ndarray:
        """The same at each position: by channel one of the ends, or any part of it."""
        shape = tuple(1 if axis == self.dim else extent for axis, extent in enumerate(array.shape))
        made = self._any(shape, seed, low, high)
        if seed % 2:
            part = np.random.default_rng((seed, 1)).integers(0, _STEPS + 1, shape).astype(object)
            made = made * part // _STEPS if self.is_whole else made * (part / _STEPS)
            made = np.clip(made, low, high)
        return np.broadcast_to(made, array.shape).astype(array.dtype)

    def _alone(self, array: np.ndarray, end: Number, low: Number, high: Number, turn: int) -> np.ndarray:
        """As it is, but for one position at the end: the first, the middle or the last."""
        made = within(array, low, high).copy()
        if not self.dim:
            return np.full_like(array, end)
        length = array.shape[self.dim]
        made[(slice(None),) * self.dim + ((0, length // 2, length - 1)[turn % 3],)] = end
        return made

    def _spread(self, array: np.ndarray, end: np.ndarray, low: Number, high: Number) -> np.ndarray:
        """Its magnitudes as parts of `end`; where all are above 0, or below, so that the nearest is there."""
        size = np.abs(array.astype(np.float64))
        size = np.where(np.isfinite(size), size, 0)
        largest = size.max(initial=0)
        part = size / largest if largest else np.ones_like(size)
        if (np.all(end == low) and low > 0) or (np.all(end == high) and high < 0):
            least = part.min(initial=1)
            part = part / least if least else np.ones_like(part)
        steps = (part * _STEPS).astype(np.int64).astype(object)
        made = steps * end / _STEPS if not self.is_whole else steps * end // _STEPS
        made = np.clip(made, low, high) if made.ndim else made
        return np.asarray(made).astype(array.dtype).reshape(array.shape)


def _numbers(array: np.ndarray, seed: int, low: Number, high: Number) -> np.ndarray:
    return np.random.default_rng(seed).integers(int(low), int(high), array.shape, array.dtype, endpoint=True)


def filled(value: Number) -> Change:
    """Has it everywhere."""
    return lambda array: np.full_like(array, value)


def _ladders(low: Number, high: Number, dtype: np.dtype) -> tuple[list[Number], list[Number]]:
    """What is tried as lower and as upper ends."""
    least, most = _least_and_most(dtype)
    whole = dtype.kind in "iu"
    largest = max(abs(low), abs(high)) or 1

    def outwards(value: Number) -> Iterable[Number]:
        return [*(value * (1 << power if whole else 2.0**power) for power in _UP), most if value > 0 else least]

    def towards_zero(value: Number) -> list[Number]:
        if not whole:
            return [value / 2.0**power for power in _DOWN]
        size = int(abs(value))
        return [(size >> power) * (1 if value > 0 else -1) for power in _DOWN if size >> power]

    def beyond(value: Number) -> list[Number]:
        """From 0 to the other side."""
        return [*reversed(towards_zero(-value)), -value, *outwards(-value)]

    lows: list[Number] = [low]
    highs: list[Number] = [high]
    if low > 0:
        lows += [*towards_zero(low), 0 if whole else 0.0, *beyond(largest)]
    elif low == 0 and high >= 0:
        lows += beyond(largest)
    else:
        lows += [-largest, *outwards(-largest)]
    if high < 0:
        highs += [*towards_zero(high), 0 if whole else 0.0, *beyond(-largest)]
    elif high == 0 and low < 0:
        highs += beyond(-largest)
    else:
        highs += [largest, *outwards(largest)]
    return _kept(lows, least, True), _kept(highs, most, False)


def _least_and_most(dtype: np.dtype) -> tuple[Number, Number]:
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    most = float(np.finfo(dtype).max) if dtype.kind == "f" else _MOST_BF16
    return -most, most


def _kept(values: Sequence[Number], end: Number, is_lower: bool) -> list[Number]:
    """Those that go on outwards and are no further than `end`."""
    found = [values[0]]
    for value in values[1:]:
        if (end <= value < found[-1]) if is_lower else (found[-1] < value <= end):
            found.append(value)
    return found
