"""Full batches at the largest extents: rows that fit a buffer for all of them alone need not fit it together.

A capacity of experts frozen when a model was exported, a table with a place for each token of a batch: these are right
in full batches of short rows and in small batches of long ones, and give a row the values of another where many rows
meet a large extent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import psutil

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.manifest import Axis
from enginehouse.contract.parity import LIMITS, first_difference
from enginehouse.contract.tensors import Tensors
from enginehouse_build.inputs.extents import at_most, enlarged, extents_at, independent
from enginehouse_build.inputs.last_words import telling
from enginehouse_build.inputs.samples import take
from enginehouse_build.reference.company import Ask, answer_of, by_company, has_rows, joined, repeated
from enginehouse_build.reference.crowds import prove_copies, right_up_to
from enginehouse_build.reference.onnx import reason
from enginehouse_build.reference.proof import companies

#: Seconds for all; and for one full batch at the largest extents, which a client may ask for as well.
_SECONDS, _ONCE = 6.0, 8.0
#: Seconds until no longer rows are looked for, of extents without a range.
_CLIMB_S = 1.5
#: Bytes of memory, and of a request, that one batch may take.
_MEMORY, _BYTES = 2 << 30, 256 << 20
#: Of what a batch may have, the share that says what all of it would take.
_TRIAL = 8
#: So often the end of what is right is looked for between two extents.
_STEPS = 6
SEED = 0
_WHY = (
    "requests of strangers share a batch, so no row may depend on who else is in it; a buffer or a capacity for all "
    "rows together, of a size that was frozen when the model was exported, is the usual cause"
)


class Apart(NamedTuple):
    """Up to how many `rows` of a call, and up to which `extents` without a range, rows were proven apart."""

    rows: int
    extents: Mapping[str, int] = MappingProxyType({})
    remarks: tuple[str, ...] = ()

    def limited(self, axes: Sequence[Axis]) -> tuple[Axis, ...]:
        """`axes` with the ends of those without a range."""
        return tuple(axis.model_copy(update={"verified": self.extents.get(axis.name)}) for axis in axes)


def prove_wide(run: Ask, samples: Tensors, axes: Sequence[Axis], declared: Container[str], most: int) -> Apart:
    """Ask `run` for up to `most` rows at the largest extents of `axes`, and for some of these rows alone.

    Where a range is `declared` and rows depend on each other within it, raises ExportFailed with the way out; where so
    many rows cannot be had there, fewer are allowed. Extents without a range end where rows were proven apart.
    """
    free = independent(axes)
    if most < 2 or not free:
        return Apart(most)
    proof = _Proof(run, samples, axes)
    ranged = [axis for axis in free if axis.min < axis.max or axis.name in declared]
    rows, remarks = most, []
    usual = extents_at(samples, {}, axes)
    largest = [{axis.name: axis.max for axis in ranged}]
    if len(ranged) > 1 and not proof.takes(largest[0]):
        largest = [{axis.name: axis.max} for axis in ranged]
    for sizes in largest:
        if all(usual[name] == size for name, size in sizes.items()) or not proof.takes(sizes):
            continue
        rows = min(proof.affordable(sizes, most), rows)
        _prove_declared(proof, sizes, rows)
        if rows < most:
            remarks = [
                f"calls have up to {rows} rows and not {most}: more of them {_in_words(sizes)} take too long or too "
                f"much memory here to be proven apart; {_ways(sizes)} with a smaller MAX allows more"
            ]
    without = [axis for axis in free if axis not in ranged]
    ends = _ends(proof, without, largest[0] if len(largest) == 1 else {}, rows)
    extents: dict[str, int] = {}
    for end in ends:
        remarks += end.remarks
        extents |= {name: max(size, extents.get(name, size)) for name, size in end.extents.items()}
    return Apart(rows, extents, tuple(remarks))


def _prove_declared(proof: _Proof, sizes: Mapping[str, int], rows: int) -> None:
    try:
        proof.prove(sizes, rows)
        middle = {name: (size + proof.usual[name]) // 2 for name, size in sizes.items()}
        if middle != sizes and proof.has_time and proof.takes(middle):
            proof.prove(middle, rows)
    except ExportFailed as error:
        right = right_up_to(lambda count: proof.prove(sizes, count), rows) if proof.has_time else 1
        hint = f"up to {right} rows at once are right there: --max-batch {right} helps, or" if right > 1 else "use"
        raise ExportFailed(f"{error}; {hint} {_ways(sizes)} with a smaller MAX") from error


class _End(NamedTuple):
    """Where the extents of some dimensions end and what there is to say; whether the model refuses larger ones."""

    extents: dict[str, int]
    remarks: list[str]
    is_its_own: bool


def _ends(proof: _Proof, axes: Sequence[Axis], beside: Mapping[str, int], rows: int) -> list[_End]:
    """Of all `axes` together, and of each where the model takes no more of them together."""
    together = []
    if len(axes) > 1 and proof.takes({**beside, **_at(axes, 2)}):
        together = [_proven_end(proof, axes, beside, rows)]
        if not together[0].is_its_own:
            return together
    return together + [_proven_end(proof, [axis], beside, rows) for axis in axes]


def _proven_end(proof: _Proof, group: Sequence[Axis], beside: Mapping[str, int], rows: int) -> _End:
    """Up to where `rows` of the extents of a `group` are apart.

    The first that is asked is the largest that the model takes at all, as far as that is looked for.
    """
    right, (farthest, is_refused) = 1.0, proof.farthest(group, beside)
    fault: tuple[dict[str, int], ExportFailed] | None = None
    wrong = factor = farthest
    for _ in range(_STEPS):
        sizes = _at(group, factor)
        if sizes == _at(group, right) or (fault is not None and not proof.has_time):
            break
        share = proof.share({**beside, **sizes}, rows)
        if share < 1:
            # Too much for the time: nearer by as much as it is too much.
            wrong, factor = factor, max(right, factor * share)
            continue
        try:
            proof.prove({**beside, **sizes}, rows)
            middle = {**beside, **_at(group, math.sqrt(right * factor))}
            if fault is None and proof.has_time and proof.takes(middle):
                proof.prove(middle, rows)
        except ExportFailed as error:
            wrong, fault = factor, (sizes, error)
        else:
            right = factor
            if fault is None:
                break
        factor = math.sqrt(right * wrong)
    end = _at(group, right)
    if fault is None:
        return _End(end, [], is_refused and right == farthest)
    remark = (
        f"requests end {_in_words(end)}: with {rows} rows {_in_words(fault[0])} {fault[1]}; fewer rows of larger "
        f"extents: --max-batch ROWS {_ways(end)}"
    )
    return _End(end, [remark], is_its_own=False)


@dataclass(slots=True)
class _Proof:
    run: Ask
    samples: Tensors
    axes: Sequence[Axis]
    _began: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), time.process_time()))
    _taken: dict[tuple[tuple[str, int], ...], bool] = field(default_factory=dict)

    @property
    def usual(self) -> dict[str, int]:
        return extents_at(self.samples, {}, self.axes)

    @property
    def has_time(self) -> bool:
        return _since(self._began) < _SECONDS

    def takes(self, sizes: Mapping[str, int]) -> bool:
        """Whether the model takes a row of these extents alone."""
        key = tuple(sorted(sizes.items()))
        if key not in self._taken:
            self._taken[key] = answer_of(self.run, [enlarged(self.samples, sizes, self.axes, 1)]) is not None
        return self._taken[key]

    def farthest(self, group: Sequence[Axis], beside: Mapping[str, int]) -> tuple[float, bool]:
        """How many times the usual extents of the `group` the model takes in one row, and whether it refused more.

        As far as there is time.
        """
        began, good, bad, seen = _clocks(), 1.0, np.inf, [_at(group, 1.0)]
        factor, is_refused = 2.0, False
        while (sizes := _at(group, factor)) not in seen:
            started = _clocks()
            seen.append(sizes)
            if self._bytes({**beside, **sizes}, 1) > _BYTES:
                bad = factor
            elif self.takes({**beside, **sizes}):
                good = factor
            else:
                bad, is_refused = factor, True
            # Twice as long takes up to four times as long.
            if _since(began) + 4 * _since(started) > _CLIMB_S:
                break
            factor = 2 * good if bad == np.inf else float(good + bad) / 2
        return good, is_refused

    def affordable(self, sizes: Mapping[str, int], most: int) -> int:
        """How many rows of these extents can be asked for at once, up to `most`."""
        return max(min(int(most * self.share(sizes, most)), most), 1)

    def share(self, sizes: Mapping[str, int], most: int) -> float:
        """The share of `most` rows of these extents that there is time and memory for; 1 where there is for all."""
        share = min(_BYTES / max(self._bytes(sizes, most), 1), 1.0)
        for trial in dict.fromkeys((1, max(most // _TRIAL, 1))):
            if share * most < 2 * trial:
                break
            share = min(share, self._tried(sizes, trial) / most)
        return share

    def _tried(self, sizes: Mapping[str, int], rows: int) -> float:
        """How many rows of these extents there is time and memory for, as `rows` of them say."""
        request = enlarged(self.samples, sizes, self.axes, rows)
        space = min(_MEMORY, psutil.virtual_memory().available / 4)
        process, began = psutil.Process(), _clocks()
        before = process.memory_info().rss
        with telling(f"the model was asked for {rows} rows {_in_words(sizes)}; {_ways(sizes)} limits requests"):
            answer_of(self.run, [request])
        seconds = _since(began)
        taken = max(process.memory_info().rss - before, 1)
        return rows * min(_ONCE / max(seconds, 1e-6), space / taken)

    def prove(self, sizes: Mapping[str, int], rows: int) -> None:
        """Ask for `rows` in several companies. Raises ExportFailed for one that is answered otherwise than alone."""
        with telling(f"the model was asked for {rows} rows {_in_words(sizes)}; {_ways(sizes)} limits requests"):
            for at, (what, batch, places) in enumerate(self._batches(sizes, rows)):
                if at and not self.has_time:
                    return
                self._compare(f"{rows} rows {_in_words(sizes)}, {what}", _in_words(sizes), batch, places)

    def _batches(self, sizes: Mapping[str, int], rows: int) -> Iterator[tuple[str, list[Tensors], dict[int, Tensors]]]:
        """What a batch is, its rows, and by their place what some of them are answered alone; the most telling first.

        One half of the first are copies of one row, which fill the same places of what is shared; all others differ.
        """
        request = self._different(sizes, rows)
        each: list[Tensors] = [take(request, at, 1) for at in range(rows)]
        half = max(rows // 2, 1)
        mixed = [*each[:half], *(each[0] for _ in range(rows - half))]
        chosen = sorted({0, half // 2, half - 1})
        alone = {at: answer for at in chosen if (answer := answer_of(self.run, [each[at]])) is not None}
        if not alone:
            return
        known = dict(alone)
        if 0 in known:
            known[rows - 1] = known[0]
        yield "half of them copies of one", mixed, known
        yield "the same in another order", mixed[::-1], {rows - 1 - at: answer for at, answer in known.items()}
        for what, front, _ in companies(each[0], self.samples):
            if answer_of(self.run, [front]) is None:
                continue
            places = {rows - 1 - step: at for step, at in enumerate(alone)}
            batch = [each[places[place]] if place in places else front for place in range(rows)]
            yield what, batch, {place: alone[at] for place, at in places.items()}

    def _different(self, sizes: Mapping[str, int], rows: int) -> Tensors:
        """Rows of the samples; where these are fewer, the others are made of their values if the model takes that."""
        request = enlarged(self.samples, sizes, self.axes, rows)
        count = min(len(array) for array in self.samples.values())
        if count >= rows:
            return request
        generator = np.random.default_rng(SEED)
        made = {name: array.copy() for name, array in request.items()}
        for name, array in made.items():
            if (values := self.samples[name].ravel()).size:
                array[count:] = generator.choice(values, array[count:].shape)
        return made if answer_of(self.run, [take(made, rows - 1, 1)]) is not None else request

    def _compare(self, what: str, where: str, batch: Sequence[Tensors], places: Mapping[int, Tensors]) -> None:
        count, limit = len(batch), LIMITS["fp32"].relative_l2
        try:
            got = self.run(joined(batch))
        except Exception as error:
            raise ExportFailed(
                f"rows that the model answers alone fail together, {what}: {reason(error)}; {_WHY}"
            ) from error
        has_rows(got, count)
        for at, answer in places.items():
            own = {name: array[at : at + 1] for name, array in got.items()}
            if first_difference(own, repeated(answer, 1), limit, limit) is None:
                continue
            # What copies of it are answered otherwise than alone is so by more than rounding.
            prove_copies(self.run, self.run, (where, batch[at], answer), count, _WHY)
            if fault := by_company(self.run, batch[at], answer, [at], count, got):
                raise ExportFailed(
                    f"a row that shares its batch is answered otherwise than alone: {what}, row {at}: {fault}; {_WHY}"
                )

    def _bytes(self, sizes: Mapping[str, int], rows: int) -> int:
        extents = extents_at(self.samples, sizes, self.axes)
        places = {place: extents[axis.name] for axis in self.axes for place in axis.dims}
        total = 0
        for name, array in self.samples.items():
            shape = (places.get((name, dim), size) for dim, size in enumerate(array.shape) if dim)
            total += array.itemsize * math.prod(shape)
        return rows * total


def _at(group: Sequence[Axis], factor: float) -> dict[str, int]:
    return {axis.name: at_most(axis, factor) for axis in group}


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _since(began: tuple[float, float]) -> float:
    """Of the clock's time other processes have their part, and threads add up their own."""
    return min(after - at for after, at in zip(_clocks(), began, strict=True))


def _in_words(sizes: Mapping[str, int]) -> str:
    return "at " + ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _ways(sizes: Mapping[str, int]) -> str:
    return " ".join(f"--axis {name}=MIN:OPT:MAX" for name in sizes)
