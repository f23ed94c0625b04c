"""Which extents that no sample has an artifact is asked at, and up to where it was right if no range was declared.

What is asked is bounded: by bytes, by memory, and by seconds that the reference and the engine take together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest

import numpy as np
import psutil

from enginehouse.contract.manifest import Axis
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.inputs.extents import at_most, between, enlarged, extents_at, independent, near
from enginehouse_build.inputs.last_words import telling

#: Asks for a request: what it is, itself, and the way out if it is answered wrongly. False where nothing was compared.
Ask = Callable[[str, Tensors, str], bool]

#: Seconds for all extents of an artifact, and for how far it is right: a small model needs a fraction, and a large one
#: is known up to about twice the extent of its samples.
BUDGET_S = 2.5
_CLIMB_S = 1.5
#: Seconds that a full batch of the largest extents may be expected to take.
_CROWD_S = 2.0
#: A process that waits for its GPU uses no time of its own: no more seconds by the clock than this many budgets.
_WAITING = 3
#: Bytes of a request, and of memory that requests may have taken before longer ones are left out.
_BYTES, _MEMORY = 16 << 20, 256 << 20
#: Requests that change several dimensions at once.
_TOGETHER = 24
#: Rows of a request: of short ones as many as have the values of two that are as long as the samples.
_ROWS = 8
SEED = 0


class Extents:
    """The requests for one artifact, made of `samples`; `signature`, `axes` and `max_batch` say what they may be."""

    def __init__(self, signature: Signature, axes: Sequence[Axis], max_batch: int, samples: Tensors, ask: Ask) -> None:
        self._signature = signature
        self._most_rows = min(_ROWS, max_batch)
        self._axes = axes
        self._free = independent(axes)
        self._samples = samples
        self._ask = ask
        # What the build has verified so far is an end, and may come nearer.
        self._ends = {axis.name: axis.verified or math.inf for axis in axes}
        self._ranges = {free.name: free.range for free in signature.free if free.range and not free.verified}
        self._budget = Budget()
        self._outcomes: dict[tuple[tuple[str, int], ...], bool] = {}

    def check(self) -> dict[str, int]:
        """Ask at other extents and return, by name of those without a range, the largest that was right.

        Raises what `ask` raises for a wrong answer.
        """
        reached = {axis.name: axis.opt for axis in self._free if axis.name not in self._ranges}
        for axis in self._free:
            low, high = self._ranges.get(axis.name, (1, 2 * axis.opt + 1))
            for size in sorted({*near(axis.opt), low + 1, high - 1}):
                is_allowed = max(low, 1) <= size <= min(high, self._ends[axis.name])
                if is_allowed and self._asked({axis.name: size}) and axis.name in reached:
                    reached[axis.name] = max(reached[axis.name], size)
        self._empty()
        self._climb_all(reached)
        for sizes in self._spread(reached):
            if self._is_cheap(sizes, BUDGET_S):
                self._asked(sizes)
        return reached

    @property
    def longest(self) -> dict[str, int]:
        """Of all that was asked and right the largest extents, of each dimension; none where nothing is free."""
        asked = [dict(key) for key, was_right in self._outcomes.items() if was_right]
        return max(asked, key=self._bytes, default={})

    def request(self, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Made of the samples, at the extents `sizes`, of several rows: in one a sum is right by chance."""
        rows = max(min(self._most_rows, _BYTES // max(self._bytes(sizes), 1)), 1)
        return enlarged(self._samples, sizes, self._axes, rows if self._signature.batched else None)

    def crowd(self, reached: Mapping[str, int], rows: int) -> tuple[str, dict[str, np.ndarray]] | None:
        """A request of `rows` at the largest extents that may be and what it is; None where that takes too long."""
        sizes = {
            axis.name: self._ranges[axis.name][1] if axis.name in self._ranges else reached[axis.name]
            for axis in self._free
        }
        size = self._bytes(sizes) * rows
        if not sizes or size > _BYTES or not self._budget.allows(size, self._budget.spent + _CROWD_S):
            return None
        return f"{rows} rows {in_words(sizes)}", enlarged(self._samples, sizes, self._axes, rows)

    def _empty(self) -> None:
        """Extents of 0, each between others: what was not written may be right by accident, old memory is not."""
        may_be = [axis for axis in self._free if self._ranges.get(axis.name, (1, 1))[0] == 0]
        groups = [[axis] for axis in may_be] + ([may_be] if len(may_be) > 1 else [])
        for group in groups:
            for rows in range(1, min(2, self._most_rows) + 1):
                for other in ({axis.name: axis.opt for axis in group}, {axis.name: axis.max for axis in group}):
                    if self._bytes(other) <= _BYTES:
                        self._send(other, rows)
                    self._send({axis.name: 0 for axis in group}, rows)

    def _climb_all(self, reached: dict[str, int]) -> None:
        free = [axis for axis in self._free if axis.name in reached]
        is_refused = self._climb(free, reached) if free else False
        # One that has to be as it is in the samples stops all.
        for axis in free if is_refused and len(free) > 1 else ():
            self._climb([axis], reached)

    def _climb(self, group: Sequence[Axis], reached: dict[str, int]) -> bool:
        """Twice, four times ... the samples' extents in all of `group`; whether the reference refused one of them.

        Between the last that it takes and the first that it refuses is the end of a table, which is looked for.
        """
        good, bad, factor = 1.0, math.inf, 2.0
        seen = []
        while True:
            sizes = {axis.name: int(min(at_most(axis, factor), self._ends[axis.name])) for axis in group}
            if sizes in seen or not self._is_cheap(sizes, _CLIMB_S):
                return bad < math.inf
            seen.append(sizes)
            with telling(
                f"the model was asked {in_words(sizes)}, which no sample has; {self._ways(sizes)} limits requests"
            ):
                is_right = self._asked(sizes)
            if is_right:
                good = factor
                for name, size in sizes.items():
                    reached[name] = max(reached[name], size)
            else:
                bad = factor
            factor = 2 * good if bad == math.inf else (good + bad) / 2

    def _spread(self, reached: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """Extents all over what requests may have, in each dimension and in all of them; the most telling ones first.

        The ends of ranges come with all the others at their ends.
        """
        ranges = {axis.name: self._ranges.get(axis.name) or (1, reached[axis.name]) for axis in self._free}
        sizes = {axis.name: between(*ranges[axis.name], axis.opt) for axis in self._free}
        kinds = [[{name: size} for size in each] for name, each in sizes.items()]
        if len(sizes) > 1:
            kinds.append(list(self._together(ranges, sizes)))
        return (each for each in chain.from_iterable(zip_longest(*kinds)) if each)

    @staticmethod
    def _together(
        ranges: Mapping[str, tuple[int, int]], sizes: Mapping[str, Sequence[int]]
    ) -> Iterator[dict[str, int]]:
        for end in (1, 0):
            yield {name: max(extents[end], 1) for name, extents in ranges.items()}
        generator = np.random.default_rng(SEED)
        # The same in all, for models of squares, and any in each.
        common = [size for size in next(iter(sizes.values())) if all(a <= size <= b for a, b in ranges.values())]
        alike = [dict.fromkeys(sizes, size) for size in common[: _TOGETHER // 2]]
        mixed = [
            {name: int(generator.choice([*each, ranges[name][1]])) for name, each in sizes.items()}
            for _ in range(_TOGETHER - len(alike))
        ]
        yield from (each for each in chain.from_iterable(zip_longest(alike, mixed)) if each)

    def _asked(self, sizes: Mapping[str, int]) -> bool:
        """Ask once for each of the `sizes`; False where the door or the reference refuses them."""
        key = tuple(sorted(sizes.items()))
        if key not in self._outcomes:
            rows = self._rows(sizes)
            with self._budget.spending(self._bytes(sizes) * rows):
                self._outcomes[key] = self._send(sizes, rows)
        return self._outcomes[key]

    def _rows(self, sizes: Mapping[str, int]) -> int:
        """Few numbers are further from those of the reference by chance, and make its limits too strict."""
        return min(max(2 * self._bytes({}) // max(self._bytes(sizes), 1), 1), self._most_rows)

    def _send(self, sizes: Mapping[str, int], rows: int) -> bool:
        request = enlarged(self._samples, sizes, self._axes, rows if self._signature.batched else None)
        return self._ask(in_words(sizes), request, self.remedy(sizes))

    def remedy(self, sizes: Mapping[str, int]) -> str:
        """What to do about a wrong answer at the extents `sizes`."""
        if ways := self._ways(sizes):
            return f"; {ways} limits requests to what is right"
        empty = [name for name, size in sizes.items() if size == 0]
        return f"; {' '.join(f'--axis {name}=1:OPT:MAX' for name in empty)} leaves that out" if empty else ""

    def _ways(self, sizes: Iterable[str]) -> str:
        return " ".join(f"--axis {name}=MIN:OPT:MAX" for name in sizes if name not in self._ranges)

    def _bytes(self, sizes: Mapping[str, int]) -> int:
        """Of one row."""
        extents = extents_at(self._samples, sizes, self._axes)
        places = {place: extents[axis.name] for axis in self._axes for place in axis.dims}
        start = 1 if self._signature.batched else 0
        return sum(
            array.itemsize
            * math.prod(places.get((name, dim), size) for dim, size in enumerate(array.shape) if dim >= start)
            for name, array in self._samples.items()
        )

    def _is_cheap(self, sizes: Mapping[str, int], seconds: float) -> bool:
        size = self._bytes(sizes) * self._rows(sizes)
        return size <= _BYTES and self._budget.allows(size, seconds)


class Budget:
    """What was spent on requests by their bytes, and so what the next one may take."""

    def __init__(self) -> None:
        self._spent = 0.0
        self._began = time.monotonic()
        self._memory = psutil.Process().memory_info().rss
        self._seen: dict[int, float] = {}

    @contextmanager
    def spending(self, size: int) -> Iterator[None]:
        """What happens within is the cost of a request of `size` bytes."""
        began = _clocks()
        yield
        # Of the clock's time other processes have their part, and threads add up their own.
        taken = min(after - before for after, before in zip(_clocks(), began, strict=True))
        self._spent += taken
        self._seen[size] = min(taken, self._seen.get(size, math.inf))

    def allows(self, size: int, seconds: float) -> bool:
        """Whether a request of `size` bytes can be had within `seconds` for all."""
        if time.monotonic() - self._began > _WAITING * BUDGET_S:
            return False
        if size > max(self._seen, default=size) and psutil.Process().memory_info().rss - self._memory > _MEMORY:
            return False
        return self._spent + self._expected(size) <= seconds

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self._spent

    def _expected(self, size: int) -> float:
        if larger := [taken for seen, taken in self._seen.items() if seen >= size]:
            return min(larger)
        if not self._seen:
            return 0.0
        *others, most = sorted(self._seen)
        growth = 1.0
        if others:
            growth = math.log(max(self._seen[most] / max(self._seen[others[-1]], 1e-6), 1)) / math.log(
                most / others[-1]
            )
        return float(self._seen[most] * (size / most) ** min(max(growth, 1.0), 2.0))


def limited(axes: Sequence[Axis], reached: Iterable[Mapping[str, int]]) -> tuple[Axis, ...]:
    """`axes` with the extents up to which each of several artifacts was right, by name in `reached`."""
    least = {axis.name: axis.verified for axis in axes if axis.verified is not None}
    for each in reached:
        for name, size in each.items():
            least[name] = min(size, least.get(name, size))
    return tuple(axis.model_copy(update={"verified": least.get(axis.name)}) for axis in axes)


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def in_words(sizes: Mapping[str, int]) -> str:
    """The extents in words."""
    return "at " + ", ".join(f"{name} = {size}" for name, size in sizes.items())
