"""Whether rows that are made longer are answered as they are: then requests of several lengths may share a call.

For an artifact on its engine, and first for the reference, whose numbers are the most exact. Rows of the samples cut or
repeated to several lengths, and rows made up from all that they may hold, with masks of every kind that leave something
to count, are answered beside others of their own length only. Then they are made as long as an edge, beside ever other
company, and each has to have the same answer, cut back to its own length. An edge that there is no time for, and those
beyond it, are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from enginehouse.contract.bounds import InputBounds, Values
from enginehouse.contract.manifest import Axis
from enginehouse.contract.parity import LIMITS, WHOLE, Limits, first_difference
from enginehouse.contract.signature_record import PaddedInput, Padding
from enginehouse.contract.tensors import Domain, Signature, Tensors
from enginehouse.engines.padding import Padder
from enginehouse_build.inputs.extents import resized
from enginehouse_build.inputs.padding import extents
from enginehouse_build.inputs.samples import take
from enginehouse_build.reference.company import joined
from enginehouse_build.reference.conditioning import Rounding

Run = Callable[[Tensors], Tensors]

#: Edges that are tried, spread over all, and seconds for an artifact within which they are.
_EDGES, _SECONDS = 7, 8.0
#: Of other processes' time some is part of the clock's: no more seconds by that than this many times.
_BESIDE = 3
#: How the time of a call grows with the length of its rows.
_GROWTH = 1.5
#: Rows of each length: so many kinds of masks there are.
_KINDS = 8
#: How much larger than the samples floats are in some kinds of rows: a mask may hide only what is small.
_LOUDER, _LOUD = 8.0, (3, 6, 7)
#: Rows of a padded call.
_ROWS = 10
SEED = 0


class Harmful(Exception):
    """Padding changes an answer; says which."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What is asked: rows made of `samples`, as `signature` and `axes` let them in.

    `right` is the reference, `rounding` knows what rounding decides in it. A call may have `max_rows` rows, where a
    dimension has no range none longer than it was `reached`. With `loud`, floats larger than the samples' are tried.
    """

    signature: Signature
    axes: Sequence[Axis]
    samples: Tensors
    right: Run
    rounding: Rounding
    max_rows: int
    reached: dict[str, int]
    loud: bool = False

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
        rows = _Rows(self, axis, padding.inputs)
        asked = [_Asked(self.right, LIMITS["fp32"], self.rounding), _Asked(infer, limits, self.rounding)]
        tried = [edges[at] for at in sorted({*np.linspace(0, len(edges) - 1, _EDGES).round().astype(int).tolist()})]
        low, _ = extents(axis, self.signature)
        clock, done, outputs = _Clock(), 0, None
        for edge in tried:
            if done and not clock.allows(edge / done):
                break
            made = [each for each in _members(rows, low, done, edge, clock.is_short) if not _beyond(each, bounds)]
            for who in asked:
                who.answer(made, self.max_rows)
            if outputs is None:
                outputs = asked[0].followers()
            padder = Padder(padding.model_copy(update={"outputs": outputs, "edges": (edge,)}))
            members = [each for each in made if asked[0].has(each) and asked[1].has(each)]
            if all(length == edge for length, _, _ in members):
                break
            for group in _groups(members, min(_ROWS, self.max_rows), edge):
                request = padder.joined([row for _, _, row in group], edge)
                if fault := Values(request).beyond(bounds):
                    raise Harmful(f"when it is padded, {fault}, for which it is not right")
                for who in asked:
                    who.compare(request, group, padder, edge)
            clock.lap()
            done = edge
        return padding.model_copy(
            update={"outputs": outputs or (), "edges": tuple(edge for edge in edges if edge <= done)}
        )


#: A row: its length, which of its kind it is, and itself.
_Member = tuple[int, int, Tensors]


@dataclass(slots=True)
class _Asked:
    """One that answers, `run`, and what it has answered to rows as they are."""

    run: Run
    limits: Limits
    rounding: Rounding
    answers: dict[tuple[int, int], Tensors] = field(default_factory=dict)

    def has(self, member: _Member) -> bool:
        return member[:2] in self.answers

    def answer(self, members: Sequence[_Member], max_rows: int) -> None:
        """Ask for `members` as they are, those of one length together; what is refused proves nothing."""
        by_length: dict[int, list[_Member]] = {}
        for member in members:
            if not self.has(member):
                by_length.setdefault(member[0], []).append(member)
        for alike in by_length.values():
            for start in range(0, len(alike), max_rows):
                part = alike[start : start + max_rows]
                try:
                    got = self.run(joined([row for _, _, row in part]))
                except Exception:
                    # ONNX Runtime raises classes of its own.
                    continue
                for at, member in enumerate(part):
                    self.answers[member[:2]] = {name: array[at : at + 1] for name, array in got.items()}

    def followers(self) -> tuple[tuple[str, int], ...]:
        """Dimensions of outputs that are as long as the row; raises Harmful for one that follows otherwise."""
        shapes: dict[int, Tensors] = {}
        for (length, _), answer in self.answers.items():
            shapes.setdefault(length, answer)
        if len(shapes) < 2:
            raise Harmful("only one length is answered")
        found = []
        first = next(iter(shapes.values()))
        for name, array in first.items():
            if any(answer[name].ndim != array.ndim for answer in shapes.values()):
                raise Harmful(f"output {name!r} has other dimensions at other lengths")
            for dim in range(1, array.ndim):
                extents = {length: answer[name].shape[dim] for length, answer in shapes.items()}
                if len(set(extents.values())) == 1:
                    continue
                if any(length != extent for length, extent in extents.items()):
                    raise Harmful(f"dimension {dim} of output {name!r} is not as long as the row")
                found.append((name, dim))
        return tuple(found)

    def compare(self, request: Tensors, group: Sequence[_Member], padder: Padder, edge: int) -> None:
        """Ask for `group`, padded to `edge` in `request`; raises Harmful for a row that is answered otherwise."""
        try:
            got = self.run(request)
        except Exception as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Harmful(f"rows that are padded to {edge} are refused: {said}") from None
        for name, dim in padder.padding.outputs:
            if got[name].shape[dim] != edge:
                raise Harmful(f"dimension {dim} of output {name!r} is not as long as the row")
        by_length: dict[int, list[int]] = {}
        for at, (length, _, _) in enumerate(group):
            by_length.setdefault(length, []).append(at)
        for length, places in by_length.items():
            own = padder.cut({name: array[places] for name, array in got.items()}, length)
            want = joined([self.answers[group[at][:2]] for at in places])
            if fault := self._difference(own, want, joined([group[at][2] for at in places])):
                raise Harmful(f"a row of {length}, padded to {edge}, is answered otherwise than alone: {fault}")

    def _difference(self, got: Tensors, want: Tensors, request: Tensors) -> str | None:
        limits = self.limits
        floats = {name: array for name, array in want.items() if array.dtype.kind not in WHOLE}
        if fault := first_difference(got, floats, limits.relative_l2, limits.worst_row):
            return fault
        # Of nearly equal scores rounding decides.
        return self.rounding.difference(got, {n: a for n, a in want.items() if n not in floats}, request, limits)


class _Rows:
    """Rows of any length, made of samples and of all that requests may hold."""

    def __init__(self, proof: Proof, axis: Axis, padded: Sequence[PaddedInput]) -> None:
        self._axes = proof.axes
        self._axis = axis
        self._samples = proof.samples
        self._padded = padded
        self._loud = proof.loud
        self._domains = {spec.name: spec.domain for spec in proof.signature.inputs if spec.domain is not None}
        self._count = min(len(array) for array in proof.samples.values())
        self._known: dict[int, list[dict[str, np.ndarray]]] = {}

    def of(self, length: int) -> list[dict[str, np.ndarray]]:
        """One of each kind, always the same ones; each has something that counts."""
        if length not in self._known:
            generator = np.random.default_rng((SEED, length))
            self._known[length] = [self._row(length, kind, generator) for kind in range(_KINDS)]
        return self._known[length]

    def _row(self, length: int, kind: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        at = (length * _KINDS + kind) % self._count
        row = dict(resized(take(self._samples, at, 1), self._axis, length, self._axes))
        for each in self._padded:
            array = row[each.name]
            if each.tells and each.mark is not None:
                row[each.name] = _mask(kind, each, array, generator)
            elif kind % 2:
                row[each.name] = self._any(each.name, array, generator)
            elif not kind and (others := self._samples[each.name] != each.value).any():
                # Nowhere in it is what it is padded with.
                other = generator.choice(self._samples[each.name][others], array.shape)
                row[each.name] = np.where(array == each.value, other, array)
            if each.tells and each.mark is None and (row[each.name] == each.value).all():
                # Nothing that counts: such a row is never padded.
                values = self._samples[each.name]
                row[each.name] = np.full_like(array, values[values != each.value].flat[0])
        if self._loud and kind in _LOUD:
            told = {each.name for each in self._padded if each.tells}
            row |= {
                name: array * array.dtype.type(_LOUDER)
                for name, array in row.items()
                if array.dtype.kind == "f" and name not in told
            }
        return row

    def _any(self, name: str, array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        domain: Domain | None = self._domains.get(name)
        if domain is not None:
            return generator.integers(domain.low, domain.high, array.shape).astype(array.dtype)
        return generator.choice(self._samples[name].ravel(), array.shape)


def _mask(kind: int, each: PaddedInput, own: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """All that count; as in the samples; some, the first, the last, or one alone."""
    assert each.mark is not None
    length = own.shape[each.dim]
    where = np.arange(length)
    part, alone = (int(number) for number in generator.integers((1, 0), (length + 1, length)))
    some = generator.random(length) < 0.5
    mask = own.copy()
    if kind != 1:
        counts: np.ndarray = np.stack([where >= 0, some, where < part, where >= length - part, where == alone])[
            min(max(kind - 1, 0), 4)
        ]
        shape = [1] * own.ndim
        shape[each.dim] = length
        mask[...] = np.where(counts.reshape(shape), each.mark, each.value)
    if not (mask == each.mark).any():
        mask[(0,) * mask.ndim] = each.mark
    return mask


def _members(rows: _Rows, low: int, before: int, edge: int, few: bool) -> list[_Member]:
    """What is padded to `edge`, the last one `before` being another: of the shortest length every kind."""
    counts = [(low, 2 * _KINDS), (low + (edge - low) // 3, 3), (edge // 2, 4), (before, 1), (edge - 1, 2), (edge, 1)]
    if few:
        counts = [(low, 2), (edge // 2, 2), (edge - 1, 1)]
    most = {length: max(count for other, count in counts if other == length) for length, _ in counts}
    found: list[_Member] = []
    for length, count in most.items():
        if low <= length <= edge:
            # The last kinds are the loud ones with one position that counts, which tell most.
            kinds = [_KINDS - 1 - at if at < count // 2 else (edge // 4 + at) % _KINDS for at in range(count)]
            found += [(length, kind, rows.of(length)[kind]) for kind in dict.fromkeys(kinds)]
    return found


def _groups(members: Sequence[_Member], rows: int, edge: int) -> Iterator[list[_Member]]:
    """Calls in which lengths and kinds are mixed, each row once; then the shortest alone."""
    generator = np.random.default_rng((SEED, edge))
    order = [members[int(at)] for at in generator.permutation(len(members))]
    for start in range(0, len(order), rows):
        yield order[start : start + rows]
    if members:
        yield [min(members, key=lambda member: member[0])]


def _beyond(member: _Member, bounds: InputBounds) -> str:
    return Values(member[2]).beyond(bounds)


class _Clock:
    """What was spent, and what the next edge may take."""

    def __init__(self) -> None:
        self._began = self._last = self._now()
        self.is_short = False

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.monotonic(), time.process_time()

    def lap(self) -> None:
        """An edge is done."""
        self._last, self._before = self._now(), self._last
        self._taken = min(now - then for now, then in zip(self._last, self._before, strict=True))

    def allows(self, longer: float) -> bool:
        """Whether there is time for an edge that is so many times as long; only for a part of the rows if short."""
        spent = [now - began for now, began in zip(self._now(), self._began, strict=True)]
        left = _SECONDS - min(spent)
        expected = self._taken * longer**_GROWTH
        if expected > left / 2:
            # Some five rows in the place of thirteen.
            self.is_short = True
            expected *= 0.4
        return expected <= left and spent[0] <= _BESIDE * _SECONDS
