"""The exported model beside the torch module it was made from: extents, batches and values that no sample has.

All later steps take the exported model for the truth, so that here alone is asked whether it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, product, zip_longest

import numpy as np

from enginehouse.contract.bounds import InputBound, Region, Values, narrower
from enginehouse.contract.errors import ExportFailed, InvalidInput
from enginehouse.contract.manifest import Axis
from enginehouse.contract.parity import LIMITS, WHOLE, first_difference
from enginehouse.contract.probes import Probe
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.inputs.extents import between, enlarged, extents_at, independent
from enginehouse_build.inputs.floats import FLOAT
from enginehouse_build.inputs.last_words import asking
from enginehouse_build.inputs.samples import take
from enginehouse_build.inputs.scales import power_above
from enginehouse_build.reference.branches import ROWS, Branch, broken, remedy
from enginehouse_build.reference.company import Ask
from enginehouse_build.reference.conditioning import Rounding
from enginehouse_build.reference.onnx import reason
from enginehouse_build.reference.strangers import Door, strangers

#: Seconds for extents at which no known branch is another one; a small model needs a fraction.
_SECONDS = 3.0
#: Seconds for those at which one is.
_SECONDS_OF_BRANCHES = 30.0
#: Bytes of a request.
_BYTES = 16 << 20
#: Rows of a request, requests that change several dimensions at once, and numbers of rows.
_ROWS, _TOGETHER, _BATCHES = 2, 16, 10
#: Of many requests some are further off than the samples are on the whole, and so are sums of more numbers.
_LIMITS = replace(LIMITS["fp32"], relative_l2=3 * LIMITS["fp32"].relative_l2)
#: Rows that have zeros among their values.
_ROWS_OF_ZEROS = 8
#: Seconds for each kind of values that samples rarely have.
_SECONDS_OF_VALUES = 2.5
#: What tells equal numbers apart.
_LITTLE = 1e-3
_NO_BOUND = (
    "torch's exporter writes an operator otherwise than torch computes it; write that of other operators (the parts of "
    "its formula), or give the model as an ONNX file"
)
SEED = 0


@dataclass(frozen=True, slots=True)
class Likeness:
    """Compares `exported` with the module as `source` has it; requests are made of `samples`, and pass the `door`."""

    exported: Ask
    source: Ask
    samples: Tensors
    axes: Sequence[Axis]
    door: Signature
    max_rows: int
    rounding: Rounding

    def prove_branches(self, branches: Sequence[Branch]) -> None:
        """Ask both where the `branches` do not hold. What the module itself refuses proves nothing.

        Raises ExportFailed naming the extents, output and row, and the branch that the exported model does not have.
        """
        self._ask_all(self._at(branches), _SECONDS_OF_BRANCHES, branches)

    def prove(self, branches: Sequence[Branch]) -> None:
        """The same all over the ranges and up to `max_rows` rows: not all is known of a module."""
        self._ask_all(self._spread(), _SECONDS, branches)

    def _ask_all(self, all_sizes: Iterable[Mapping[str, int]], seconds: float, branches: Sequence[Branch]) -> None:
        began, cost = time.monotonic(), 0.0
        for sizes in all_sizes:
            request = self._request(sizes)
            size = sum(array.nbytes for array in request.values())
            spent = time.monotonic() - began
            if spent > seconds:
                return
            if 0 < size <= _BYTES and spent + cost * size <= seconds and self._passes(request):
                self._ask(sizes, request, branches)
                cost = max(cost, (time.monotonic() - began - spent) / size)

    @property
    def _ranges(self) -> dict[str, tuple[int, int]]:
        ranges = {axis.name: (max(axis.min, 1), max(axis.max, 1)) for axis in independent(self.axes)}
        return ranges | ({ROWS: (1, self.max_rows)} if self.door.batched else {})

    @property
    def _usual(self) -> dict[str, int]:
        usual = {axis.name: axis.opt for axis in self.axes}
        return usual | ({ROWS: min(_ROWS, self.max_rows)} if self.door.batched else {})

    def _at(self, branches: Sequence[Branch]) -> Iterator[dict[str, int]]:
        ranges = self._ranges
        # Of a sum the parts are what may be chosen.
        known = [branch for branch in branches if all(name in ranges for name in branch.names)]
        found = [branch.witnesses(ranges, self._usual) for branch in known]
        return (each for each in chain.from_iterable(zip_longest(*found)) if each)

    def _spread(self) -> Iterator[dict[str, int]]:
        """Extents of one dimension, of all of them, and numbers of rows; the most telling ones of each first."""
        usual, ranges = self._usual, self._ranges
        sizes = {name: between(*ranges[name], usual[name]) for name in ranges}
        kinds = [
            [{name: size} for size in islice(each, _BATCHES if name == ROWS else None)] for name, each in sizes.items()
        ]
        if len([name for name in sizes if name != ROWS]) > 1:
            generator = np.random.default_rng(SEED)
            kinds.append(
                [
                    {name: int(generator.choice([*each, usual[name]])) for name, each in sizes.items() if name != ROWS}
                    for _ in range(_TOGETHER)
                ]
            )
        return (each for each in chain.from_iterable(zip_longest(*kinds)) if each)

    def _request(self, sizes: Mapping[str, int]) -> Tensors:
        chosen = self._usual | dict(sizes)
        own = {axis.name: chosen[axis.name] for axis in independent(self.axes)}
        return enlarged(self.samples, own, self.axes, chosen.get(ROWS))

    def _passes(self, request: Tensors) -> bool:
        """Whether it passes the door: a sum may be out of its own range."""
        try:
            self.door.check(request)
        except InvalidInput:
            return False
        return True

    def _ask(self, sizes: Mapping[str, int], request: Tensors, branches: Sequence[Branch]) -> None:
        if (fault := self.fault(request)) is None:
            return
        extents = self._usual | extents_at(request, {}, self.axes) | dict(sizes)
        where = ", ".join(f"{name} = {size}" for name, size in sizes.items() if name != ROWS)
        rows = f"with {sizes[ROWS]} rows" if ROWS in sizes else ""
        said = ", ".join(filter(None, (f"at {where}" if where else "", rows)))
        raise ExportFailed(f"{said} {fault}{remedy([*broken(branches, extents)], sizes)}")

    def fault(self, request: Tensors) -> str | None:
        """In words, how the exported model answers otherwise than the module does; None where it does not.

        A difference that rounding explains is none, and what the module refuses says nothing.
        """
        try:
            with asking("torch", request):
                want = self.source(request)
        except Exception:
            # A module may raise anything.
            return None
        try:
            with asking("the exported model", request):
                got = self.exported(request)
        except Exception as error:
            return f"the exported model fails where torch answers: {reason(error)}"
        return self.difference(got, want, request)

    def difference(self, got: Tensors, want: Tensors, request: Tensors) -> str | None:
        """The same of known answers: `got` is that of the exported model."""
        found = first_difference(got, want, _LIMITS.relative_l2, _LIMITS.worst_row)
        # What is moved by rounding is the exported model: it is steady where its own answers are.
        if found is None or self.rounding.difference(want, got, request, _LIMITS) is None:
            return None
        return f"the exported model differs from torch: {found}"


@dataclass(slots=True)
class Asked:
    """The values of `probes` and of strangers, asked of torch too; `probes` come out with what it answers.

    So an artifact is right where it answers as torch does, and bound to where it does so, the exported model included.
    """

    likeness: Likeness
    bounds: dict[str, InputBound] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def probes(self, probes: Sequence[Probe], values: Door) -> list[Probe]:
        """`probes` with torch's answers where the exported model's are others, and more of these.

        Raises ExportFailed where they are others in the range of the samples, and nothing can be bound.
        """
        found: list[Probe] = []
        own = (self._ends(), self._louder(), self._larger(values))
        # What bounds floats on one side comes last: it would keep out strangers of the samples' range, which refuse.
        sided = [probe for probe in probes if probe.is_sided]
        others = [probe for probe in probes if not probe.is_sided]
        for each in (*own, map(self._told, others), self._strangers(values), map(self._told, sided)):
            self._began = time.monotonic()
            found += each
        return found

    def _told(self, probe: Probe) -> Probe:
        # Company is compared by rows of the samples.
        if probe.request is None or probe.answer is None or probe.beside or not self._has_time():
            return probe
        want = self._other(probe.request, probe.answer)
        if want is None:
            return probe
        self.bounds = narrower(self.bounds, dict.fromkeys(probe.names, probe.within))
        return replace(probe, answer=want)

    def _ends(self) -> Iterator[Probe]:
        """Zeros of either sign among other values, where branches end and signs are decided; nothing but infinity."""
        base, generator = self._rows(_ROWS_OF_ZEROS), np.random.default_rng(SEED)
        bounds: tuple[tuple[float, float, InputBound, str], ...] = (
            *((zero, 0.5, Region(not_zero=((),)), f"{zero:g} here and there") for zero in (0.0, -0.0)),
            (np.inf, 1.0, "finite", "nothing but infinity"),
        )
        floats = [name for name, array in base.items() if array.dtype.kind == "f"]
        for name, (value, share, bound, said) in product(floats, bounds):
            array = base[name]
            request = {**base, name: np.where(generator.random(array.shape) < share, array.dtype.type(value), array)}
            if self._has_time() and (want := self._other(request)) is not None:
                self.bounds = narrower(self.bounds, {name: bound})
                yield Probe((name,), bound, said, request, want)

    def _louder(self) -> Iterator[Probe]:
        """The samples twice, four times ... as large, in each input by itself: where torch first answers otherwise."""
        base = self._rows(_ROWS)
        for name, array in base.items():
            largest = float(np.abs(array[np.isfinite(array)]).max(initial=0)) if array.dtype.kind == "f" else 0.0
            if not largest:
                continue
            seen = self.likeness.samples[name]
            first = power_above(float(np.abs(seen[np.isfinite(seen)]).max(initial=0))).bit_length()
            for exponent, sign in product(range(first, FLOAT[0]), (1, -1)):
                if not self._has_time():
                    return
                request = {**base, name: (array * (sign * 2.0**exponent / largest)).astype(array.dtype)}
                want = self._other(request)
                if want is not None:
                    within = 1 << (exponent - 1)
                    self.bounds = narrower(self.bounds, {name: within})
                    yield Probe((name,), within, f"magnitudes of 2^{exponent}", request, want)
                    break

    def _larger(self, values: Door) -> Iterator[Probe]:
        """Whole numbers from all over each power of two beyond the samples, of either sign, in each input by itself."""
        base, generator = self._rows(_ROWS_OF_ZEROS), np.random.default_rng(SEED)
        free = [name for name, array in base.items() if array.dtype.kind in "iu" and name not in values.domains]
        for name in free if not values.sizes else ():
            array, seen = base[name], self.likeness.samples[name]
            first = max(int(seen.max(initial=0)), -int(seen.min(initial=0))).bit_length() + 1
            for sign in (1, -1) if array.dtype.kind == "i" else (1,):
                for exponent in range(first, np.iinfo(array.dtype).bits - (array.dtype.kind == "i")):
                    low = 1 << (exponent - 1)
                    numbers = generator.integers(low, 2 * low, array.shape) * sign
                    request = {**base, name: numbers.astype(array.dtype)}
                    if not self._has_time():
                        return
                    if (want := self._other(request, exact=True)) is not None:
                        bound = Region(less_than=low) if sign > 0 else Region(at_least=1 - low)
                        self.bounds = narrower(self.bounds, {name: bound})
                        yield Probe((name,), bound, f"numbers of {'-' if sign < 0 else ''}2^{exponent}", request, want)
                        break

    def _strangers(self, values: Door) -> Iterator[Probe]:
        """Whatever the door lets in, with the bound that keeps out what torch answers otherwise."""
        row, samples = self._rows(1), self.likeness.samples
        for what, request in strangers(row, samples, values):
            if not self._has_time():
                return
            if Values(request).beyond(self.bounds) or (want := self._other(request)) is None:
                continue
            changed = (name for name, array in request.items() if array is not row[name])
            within = next(((name, bound) for name in changed if (bound := _bound(request[name], samples[name]))), None)
            if within is not None:
                self.bounds = narrower(self.bounds, dict([within]))
                yield Probe(within[:1], within[1], what, request, want)
            elif (fault := self.likeness.fault(_moved(request, samples))) is not None:
                # What is left of it where values have moved apart is not about one value.
                raise ExportFailed(f"with {what}, which the samples may have, {fault}; {_NO_BOUND}")

    def _other(self, request: Tensors, got: Tensors | None = None, *, exact: bool = False) -> Tensors | None:
        """What torch answers, where the exported model, which may have answered `got`, answers otherwise.

        With `exact` rounding excuses nothing: a divisor of ids that is moved by it makes other ids of large ones.
        """
        try:
            want = self.likeness.source(request)
            got = self.likeness.exported(request) if got is None else got
        except Exception:
            # A module may raise anything; what is refused is not silent.
            return None
        if self.likeness.difference(got, want, request) is None:
            is_other = exact and first_difference(got, want, _LIMITS.relative_l2, _LIMITS.worst_row)
            return want if is_other else None
        numbers = {name: array for name, array in want.items() if array.dtype.kind not in WHOLE}
        is_tie = (
            self.likeness.difference({name: got[name] for name in numbers if name in got}, numbers, request) is None
        )
        # Of equal scores each is the largest. Where the values have moved apart, both have to choose the same.
        return None if is_tie and self.likeness.fault(_moved(request, self.likeness.samples)) is None else want

    def _rows(self, most: int) -> Tensors:
        samples = self.likeness.samples
        return take(samples, 0, most) if self.likeness.door.batched else samples

    def _has_time(self) -> bool:
        return time.monotonic() - self._began < _SECONDS_OF_VALUES


def _bound(array: np.ndarray, samples: np.ndarray) -> InputBound | None:
    """The bound to the range of the `samples`, where `array` is beyond it."""
    if array.dtype.kind == "f":
        within = power_above(float(np.abs(samples[np.isfinite(samples)]).max(initial=0)))
        return within if np.abs(array).max(initial=0) >= within else None
    if array.dtype.kind not in "iu" or not array.size:
        return None
    low, high = int(samples.min()), int(samples.max())
    is_within = low <= int(array.min()) and int(array.max()) <= high
    return None if is_within else Region(at_least=low, less_than=high + 1)


def _moved(request: Tensors, samples: Tensors) -> dict[str, np.ndarray]:
    """`request`, its floats moved a little in the scale of the `samples`: no two of them are equal any more."""
    generator = np.random.default_rng(SEED)
    return {
        name: (array + _LITTLE * np.nanstd(samples[name]) * generator.standard_normal(array.shape)).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in request.items()
    }
