"""The exported model beside the torch module it was made from: at extents and batches that no sample has.

All later steps take the exported model for the truth, so that here alone is asked whether it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest

import numpy as np

from enginehouse.contract.errors import ExportFailed, InvalidInput
from enginehouse.contract.manifest import Axis
from enginehouse.contract.parity import LIMITS, first_difference
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.inputs.extents import between, enlarged, extents_at, independent
from enginehouse_build.inputs.last_words import asking
from enginehouse_build.reference.branches import ROWS, Branch, broken
from enginehouse_build.reference.company import Ask
from enginehouse_build.reference.conditioning import Rounding
from enginehouse_build.reference.onnx import reason

#: Seconds for extents at which no known branch is another one; a small model needs a fraction.
_SECONDS = 6.0
#: Seconds for those at which one is.
_SECONDS_OF_BRANCHES = 30.0
#: Bytes of a request.
_BYTES = 16 << 20
#: Rows of a request, requests that change several dimensions at once, and numbers of rows.
_ROWS, _TOGETHER, _BATCHES = 2, 16, 10
#: Of many requests some are further off than the samples are on the whole, and so are sums of more numbers.
_LIMITS = replace(LIMITS["fp32"], relative_l2=3 * LIMITS["fp32"].relative_l2)
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
        """The same at extents all over their ranges and up to `max_rows` rows: not all is known of a module."""
        self._ask_all(self._spread(), _SECONDS, branches)

    def _ask_all(self, all_sizes: Iterable[Mapping[str, int]], seconds: float, branches: Sequence[Branch]) -> None:
        began = time.monotonic()
        for sizes in all_sizes:
            if time.monotonic() - began > seconds:
                return
            self._ask(sizes, branches)

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

    def _ask(self, sizes: Mapping[str, int], branches: Sequence[Branch]) -> None:
        chosen = {**self._usual, **sizes}
        rows = chosen.pop(ROWS, None)
        own = {axis.name: chosen[axis.name] for axis in independent(self.axes)}
        request = enlarged(self.samples, own, self.axes, rows)
        if sum(array.nbytes for array in request.values()) > _BYTES:
            return
        try:
            self.door.check(request)
        except InvalidInput:
            # A sum is out of its own range.
            return
        if (fault := self.fault(request)) is None:
            return
        extents = extents_at(self.samples, own, self.axes) | ({ROWS: rows} if rows is not None else {})
        where = ", ".join(f"{name} = {size}" for name, size in sizes.items() if name != ROWS)
        where += (", with" if where else "with") + f" {rows} rows" if ROWS in sizes else ""
        alone = ROWS in sizes and len(sizes) == 1
        wrong = [*broken(branches, extents)]
        raise ExportFailed(f"{where if alone else f'at {where}'} {fault}{_remedy(wrong, sizes)}")

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


def _remedy(broken: Sequence[Branch], sizes: Iterable[str]) -> str:
    names = dict.fromkeys(chain(sizes, *(branch.names for branch in broken)))
    options = " ".join("--max-batch ROWS" if name == ROWS else f"--axis {name}=MIN:OPT:MAX" for name in names)
    limited = f"limit requests to what it is right for with {options}"
    if not broken:
        return f"; compute from x.shape, without a branch, what depends on the extents, or {limited}"
    return (
        "; forward takes another branch there, and an exported model has but one: that where "
        f"{' and '.join(branch.said for branch in broken)}. Write it without a branch "
        f"(F.pad(x, (0, -x.shape[-1] % 160)) pads nothing where nothing is missing), or {limited}"
    )
