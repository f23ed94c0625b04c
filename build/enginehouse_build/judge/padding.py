"""Whether rows that are made longer are answered as they are: then requests of several lengths may share a call.

For an artifact on its engine, and first for the reference, whose numbers are the most exact. Rows of the samples cut or
repeated to several lengths, and rows made up from all that they may hold, with masks of every kind that leave something
to count, are answered beside others of their own length only. Then they are made as long as an edge, beside ever other
company, and each has to have the same answer, cut back to its own length. An edge that there is no time for, and those
beyond it, are left out. Where only masks that have gaps, or begin late, are not answered so, requests with such are
left out; `padded_values` finds for which values the rest is right.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from enginehouse.contract.bounds import InputBounds, Values
from enginehouse.contract.manifest import Axis
from enginehouse.contract.parity import LIMITS, Limits
from enginehouse.contract.signature_record import MaskKind, Padding
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse.engines.padding import Padder
from enginehouse_build.inputs.padding import extents
from enginehouse_build.judge.padded_answers import Asked, Harmful, Member, Run
from enginehouse_build.judge.padded_rows import SEED, Rows, members
from enginehouse_build.judge.padded_trials import Trials
from enginehouse_build.judge.padded_values import Widening
from enginehouse_build.reference.conditioning import Rounding

#: Edges that are tried, spread over all, and seconds for an artifact within which they are.
_EDGES, _SECONDS = 7, 8.0
#: Seconds in which values are looked at that samples do not have.
_FURTHER = 4.0
#: Of other processes' time some is part of the clock's: no more seconds by that than this many times.
_BESIDE = 3
#: How the time of a call grows with the length of its rows.
_GROWTH = 1.5
#: Rows of a padded call.
_ROWS = 10


@dataclass(frozen=True, slots=True)
class Proof:
    """What is asked: rows made of `samples`, as `signature` and `axes` let them in.

    `right` is the reference, `rounding` knows what rounding decides in it. A call may have `max_rows` rows, where a
    dimension has no range none longer than it was `reached`.
    """

    signature: Signature
    axes: Sequence[Axis]
    samples: Tensors
    right: Run
    rounding: Rounding
    max_rows: int
    reached: dict[str, int]

    def of(
        self, paddings: Sequence[Padding], infer: Run, limits: Limits, bounds: InputBounds
    ) -> tuple[Padding | None, str]:
        """The first of `paddings` that changes no answer of `infer` by more than `limits`; else None and why.

        Without paddings nothing is asked. `bounds` are the values for which `infer` is right.
        """
        faults = []
        for padding in paddings:
            try:
                return self._proven(padding, infer, limits, bounds), ""
            except Harmful as fault:
                faults.append(str(fault))
        return None, faults[0] if faults else ""

    def _proven(self, padding: Padding, infer: Run, limits: Limits, bounds: InputBounds) -> Padding:
        axis = next(axis for axis in self.axes if (padding.inputs[0].name, padding.inputs[0].dim) in axis.dims)
        longest = self.reached.get(axis.name, padding.edges[-1])
        edges = tuple(edge for edge in padding.edges if edge <= longest)
        if not edges or self.max_rows < 2:
            raise Harmful("no two lengths are let in")
        rows = Rows(self.signature, self.axes, self.samples, axis, padding.inputs)
        asked = [Asked(self.right, LIMITS["fp32"], self.rounding), Asked(infer, limits, self.rounding)]
        tried = [edges[at] for at in sorted({*np.linspace(0, len(edges) - 1, _EDGES).round().astype(int).tolist()})]
        low, _ = extents(axis, self.signature)
        clock, done, outputs = _Clock(), 0, None
        excluded: set[MaskKind] = set()
        told = Padder(padding)
        for edge in tried:
            if done and not clock.allows(edge / done):
                break
            made = [each for each in members(rows, low, done, edge, clock.is_short) if not _beyond(each, bounds)]
            made = [each for each in made if not told.kinds(each[2]) & excluded]
            for who in asked:
                who.answer(made, self.max_rows)
            if outputs is None:
                outputs = asked[0].followers()
            padder = Padder(padding.model_copy(update={"outputs": outputs, "edges": (edge,)}))
            known = [each for each in made if asked[0].has(each) and asked[1].has(each)]
            if all(length == edge for length, _, _ in known):
                break
            for group in _groups(known, min(_ROWS, self.max_rows), edge):
                request = padder.joined([row for _, _, row in group], edge)
                if fault := Values(request).beyond(bounds):
                    raise Harmful(f"when it is padded, {fault}, for which it is not right")
                for who in asked:
                    want = [who.answers[member[:2]] for member in group]
                    excluded |= _left_out(
                        who.compare(request, [row for _, _, row in group], want, padder, edge), group, told
                    )
            clock.lap()
            done = edge
        update: dict[str, Any] = {"outputs": outputs or (), "edges": tuple(edge for edge in edges if edge <= done)}
        if not update["edges"]:
            raise Harmful("no two lengths are answered")
        padder = Padder(padding.model_copy(update=update))
        trials = Trials(asked, rows, padder, bounds, low, self.max_rows, excluded)
        widening = Widening(trials, self.signature, self.samples, _Clock(_FURTHER).is_left)
        ends = widening.ends()
        if done > trials.edge and not widening.last(done):
            update["edges"] = tuple(edge for edge in edges if edge <= trials.edge)
        masks = tuple(kind for kind in get_args(MaskKind) if kind in trials.masks - trials.excluded)
        return padding.model_copy(update=update | {"masks": masks, "within": ends})


def _left_out(faults: dict[int, str], group: Sequence[Member], padder: Padder) -> set[MaskKind]:
    """The kinds of masks that all `faults` in `group` have; raises Harmful for one of the usual kind."""
    found: set[MaskKind] = set()
    for at, said in faults.items():
        kinds = padder.kinds(group[at][2]) - {"start"}
        if not kinds:
            raise Harmful(said)
        found |= kinds
    return found


def _groups(members: Sequence[Member], rows: int, edge: int) -> Iterator[list[Member]]:
    """Calls in which lengths and kinds are mixed, each row once; then the shortest alone."""
    generator = np.random.default_rng((SEED, edge))
    order = [members[int(at)] for at in generator.permutation(len(members))]
    for start in range(0, len(order), rows):
        yield order[start : start + rows]
    if members:
        yield [min(members, key=lambda member: member[0])]


def _beyond(member: Member, bounds: InputBounds) -> str:
    return Values(member[2]).beyond(bounds)


class _Clock:
    """What was spent, and what the next edge may take."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._began = self._last = self._now()
        self.is_short = False

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.monotonic(), time.process_time()

    def is_left(self) -> bool:
        """Whether there is time at all."""
        spent = [now - began for now, began in zip(self._now(), self._began, strict=True)]
        return min(spent) < self._seconds and spent[0] < _BESIDE * self._seconds

    def lap(self) -> None:
        """An edge is done."""
        self._last, self._before = self._now(), self._last
        self._taken = min(now - then for now, then in zip(self._last, self._before, strict=True))

    def allows(self, longer: float) -> bool:
        """Whether there is time for an edge that is so many times as long; only for a part of the rows if short."""
        spent = [now - began for now, began in zip(self._now(), self._began, strict=True)]
        left = self._seconds - min(spent)
        expected = self._taken * longer**_GROWTH
        if expected > left / 2:
            # Some five rows in the place of thirteen.
            self.is_short = True
            expected *= 0.4
        return expected <= left and spent[0] <= _BESIDE * self._seconds
