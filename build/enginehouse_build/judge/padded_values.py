"""For which values, and masks, rows that are padded are answered as they are: as far as was tried, and no further.

First what samples rarely have: the value that is padded with, 0, the lowest and the highest that is let in, at the
first place of a row, amid it, at its last and everywhere, under masks of every kind. Then values of either sign,
fainter and louder by powers of two, of each input by itself and of all together, until one is answered otherwise. A
mask that adds -1e4 hides only what is smaller, and 0 is the largest of nothing but negative numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product, zip_longest

import numpy as np

from enginehouse.contract.signature_record import PaddedInput
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.judge.padded_answers import Harmful
from enginehouse_build.judge.padded_ladder import Number, Reach, Side, filled
from enginehouse_build.judge.padded_trials import IN_TURN, Trials, within

#: Values at an end that are left out one after the other, before nothing is padded.
_LEFT_OUT = 4
#: Of the samples so large a part has to be among what is left.
_NEARLY_ALL = 0.9
#: By which powers of two values of both signs are fainter.
_FAINT = (8, 24)
#: How often the samples' own ends are halved until they are right everywhere in a row, and how often then once more.
_INWARDS, _NEARER = 8, 3
#: Pairs of rows in which all inputs are out at once, and rows that are padded to the longest edge.
_CORNERS, _LAST, _LAST_IF_SLOW = 8, 16, 4

Ends = dict[str, tuple[Number, Number]]


@dataclass
class Widening:
    """`trials` of rows of `samples`, as `signature` lets them in; nothing further is begun unless `has_time`."""

    trials: Trials
    signature: Signature
    samples: Tensors
    has_time: Callable[[], bool]

    def __post_init__(self) -> None:
        self._padded = {each.name: each for each in self.trials.padder.padding.inputs}
        masks = {name for name, each in self._padded.items() if each.tells and each.mark is not None}
        self._values = [spec for spec in self.signature.inputs if spec.name not in masks]
        for spec in self._values:
            if spec.dtype.hasobject:
                raise Harmful(f"input {spec.name!r} holds text, of which any may come")
        self._ends = self.trials.ends
        self._reaches: list[Reach] = []
        for spec in self._values:
            if spec.dtype.kind == "b":
                continue
            if spec.domain is not None:
                self._ends[spec.name] = spec.domain.low, spec.domain.high - 1
                continue
            reach = Reach.of(spec.name, self.samples[spec.name], self._padded.get(spec.name))
            self._reaches.append(reach)
            self._ends[spec.name] = reach.ends()

    def ends(self) -> Ends:
        """Between what values of each input rows may be padded; raises Harmful where there are none.

        Kinds of masks with which they may not are among those that the trials exclude then.
        """
        for _ in range(_LEFT_OUT):
            if self._special():
                break
        else:
            raise Harmful(self._why)
        if self._begin():
            self._reaches = [self._anew(reach) for reach in self._reaches]
            self._climb()
        return dict(self._ends)

    def last(self, edge: int) -> bool:
        """Whether rows at the ends are answered as they are when they are padded to `edge` too."""
        made = [row for row, _ in self._at_places(("first", "all"))]
        made += [row for row, _ in self._climbing(0, proven=True)]
        most = min(len(made), _LAST if self.has_time() else _LAST_IF_SLOW)
        chosen = [made[at] for at in np.linspace(0, len(made) - 1, most).astype(int)]
        return not self.trials.failing(chosen, forgives=True, edge=edge)

    def _anew(self, reach: Reach) -> Reach:
        """From where values begin that are left of it."""
        padded = self._padded.get(reach.name)
        return Reach(reach.name, self.samples[reach.name], padded.dim if padded else 0, self._ends[reach.name])

    # What samples rarely have

    def _special(self) -> bool:
        """Whether all of that is answered as it is; otherwise what is not is left out, or Harmful raised."""
        made = self._at_places(("first", "all", "middle", "last")) + self._faint()
        size = min(len(made), self.trials.max_rows)
        faults: dict[int, str] = {}
        for start in range(0, len(made), size or 1):
            # The first ones tell most, and are asked for in any case.
            if start and not self.has_time():
                break
            part = [row for row, _ in made[start : start + size]]
            faults |= {start + at: said for at, said in self.trials.failing(part, forgives=True).items()}
        if not faults:
            return True
        kinds = {at: self.trials.padder.kinds(made[at][0]) - {"start"} for at in faults}
        left_out = {made[at][1]: faults[at] for at in faults if not kinds[at]}
        for (name, value), said in left_out.items():
            self._why = f"{said}, where {name!r} has {'fainter values' if value is None else value}"
            self._leave_out(name, value)
        if not left_out:
            for found in kinds.values():
                self.trials.excluded |= found
        self.trials.masks.clear()
        return False

    def _leave_out(self, name: str, value: Number | None) -> None:
        """Keep only what is above `value`, or below it, if nearly all of the samples are; else Harmful is raised."""
        low, high = self._ends.get(name, (0, 0))
        array = self.samples[name]
        if value is None or array.dtype.kind == "b":
            raise Harmful(self._why)
        above, below = array[(array > value) & (array <= high)], array[(array < value) & (array >= low)]
        whole, most = array.dtype.kind in "iu", _NEARLY_ALL * (above.size + below.size)
        if above.size and above.size >= most:
            self._ends[name] = (int(value) + 1 if whole else float(above.min()), high)
        elif below.size and below.size >= most:
            self._ends[name] = (low, int(value) - 1 if whole else float(below.max()))
        else:
            raise Harmful(self._why)

    def _at_places(self, places: Sequence[str]) -> list[tuple[dict[str, np.ndarray], tuple[str, Number | None]]]:
        """Rows with a telling value at one of `places`, first of those that are padded with; which it is of."""
        found: list[tuple[dict[str, np.ndarray], tuple[str, Number | None]]] = []
        for place in places:
            for spec in self._values:
                each = self._padded.get(spec.name)
                if each is None and place != "all":
                    continue
                for value in self._telling(spec.name, spec.dtype.kind == "b", spec.domain is not None, each):
                    put = partial(_put, value=value, dim=each.dim if each else 0, place=place)
                    for turn in self._turns(len(found) // 2):
                        row = self.trials.row(turn, {spec.name: put})
                        told = each is not None and each.tells and (row[spec.name] == each.value).all()
                        if not told:
                            found.append((row, (spec.name, value)))
        return found

    def _telling(self, name: str, is_bool: bool, has_domain: bool, each: PaddedInput | None) -> list[Number]:
        if is_bool:
            return [False, True]
        low, high = self._ends[name]
        values: list[Number] = [each.value] if each else []
        values += [0, low, high] if has_domain else [0]
        return [value for value in dict.fromkeys(values) if low <= value <= high]

    def _faint(self) -> list[tuple[dict[str, np.ndarray], tuple[str, Number | None]]]:
        found: list[tuple[dict[str, np.ndarray], tuple[str, Number | None]]] = []
        for reach in self._reaches:
            low, high = self._ends[reach.name]
            if reach.is_whole or not low < 0 < high:
                continue
            for power in _FAINT:

                def fainter(array: np.ndarray, power: int = power) -> np.ndarray:
                    return (within(array, low, high).astype(np.float64) / 2.0**power).astype(array.dtype)  # noqa: B023

                found += [(self.trials.row(turn, {reach.name: fainter}), (reach.name, None)) for turn in (0, 2)]
        return found

    # Further out

    def _begin(self) -> bool:
        """Whether the ends are answered as they are everywhere too; they are moved inwards until they are."""
        given = dict(self._ends)
        for power in range(_INWARDS):
            for reach in self._reaches:
                self._ends[reach.name] = _inwards(given[reach.name], power, reach.is_whole)
            made = [row for row, _ in self._climbing(0, proven=True)]
            faults = self.trials.failing(made, forgives=False)
            if not faults:
                if power:
                    for reach in self._reaches:
                        self._ends[reach.name] = _inwards(given[reach.name], power + _NEARER, reach.is_whole)
                return not power
            if not power:
                first = min(faults.values())
        # Of one value all over rounding may decide whatever its size is.
        self._ends |= given
        if self.trials.failing([row for row, _ in self._climbing(0, proven=True)], forgives=True):
            raise Harmful(first)
        return False

    def _climb(self) -> None:
        for step in range(1, max((reach.steps for reach in self._reaches), default=0)):
            while pushed := [side for reach in self._reaches for side in _sides(reach) if side.is_new(step)]:
                if not self.has_time():
                    return
                made = self._climbing(step)
                faults = self.trials.failing([row for row, _ in made], forgives=False)
                failed = [made[at][1] for at in faults]
                if not failed:
                    for side in pushed:
                        side.accept(step)
                    break
                # What is told by the fewest sides is most surely theirs.
                fewest = min(map(len, failed))
                told = {id(each) for sides in failed if len(sides) == fewest for each in sides}
                for reach in self._reaches:
                    reach.close({side for side in _sides(reach) if id(side) in told}, step)
            for reach in self._reaches:
                self._ends[reach.name] = reach.ends()

    def _climbing(self, step: int, proven: bool = False) -> list[tuple[dict[str, np.ndarray], list[Side]]]:
        """Rows with values as far out as `step` on the sides that are new there, or at all `proven` ends."""
        found: list[tuple[dict[str, np.ndarray], list[Side]]] = []
        reaches = self._reaches
        if proven:
            reaches = [self._anew(reach) for reach in reaches]
        pushed = [[side for side in _sides(reach) if proven or side.is_new(step)] for reach in reaches]
        for reach, sides in zip(reaches, pushed, strict=True):
            for told, change in reach.shapes(step, sides) if sides else ():
                turns = self._turns(step + len(found))
                found += [(self.trials.row(turn, {reach.name: change}), told) for turn in turns]
        everything = [side for sides in pushed for side in sides]
        for reach, sides in zip(reaches, pushed, strict=True) if len(reaches) > 1 else ():
            held = [[(other.name, change) for change in other.held(step)] for other in reaches if other is not reach]
            for side, others in product(sides, zip_longest(*held)):
                changed = {reach.name: filled(side.value(step))} | dict(filter(None, others))
                found += [(self.trials.row(turn, changed), everything) for turn in self._turns(len(found) // 2)]
        for seed in range(_CORNERS if len(reaches) > 1 and everything else 0):
            changed = {reach.name: reach.corner(step, seed) for reach in reaches}
            found += [(self.trials.row(turn, changed), everything) for turn in self._turns(seed)]
        return found

    @staticmethod
    def _turns(at: int) -> tuple[int, int]:
        """Of two rows: one of which all positions count, as nothing is hidden in it, and one of another kind."""
        return IN_TURN * (at % 2), at


def _sides(reach: Reach) -> tuple[Side, Side]:
    return reach.low, reach.high


def _inwards(ends: tuple[Number, Number], power: int, whole: bool) -> tuple[Number, Number]:
    """Ends smaller by a power of two, but where all are above 0, or below, the one that is nearest to it."""
    low, high = ends
    nearer = [value if not power else int(value / 2**power) if whole else value / 2.0**power for value in ends]
    if low > 0:
        return low, max(nearer[1], low)
    if high < 0:
        return min(nearer[0], high), high
    return nearer[0], nearer[1]


def _put(array: np.ndarray, value: Number, dim: int, place: str) -> np.ndarray:
    made = array.copy()
    if place == "all":
        made[...] = value
    else:
        at = {"first": 0, "middle": array.shape[dim] // 2, "last": array.shape[dim] - 1}[place]
        made[(slice(None),) * dim + (at,)] = value
    return made
