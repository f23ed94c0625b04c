"""What requests bring and samples leave out: other company, other extents, other ids, larger numbers.

Nobody has recorded answers to that; the reference file in ONNX Runtime gives them. What it refuses says nothing, and
what the artifact refuses is not silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

from enginehouse.contract.bounds import InputBounds, Values
from enginehouse.contract.errors import EnginehouseError, InvalidInput, ParityFailed
from enginehouse.contract.manifest import Artifact, Manifest
from enginehouse.contract.parity import Limits
from enginehouse.contract.tensors import Signature, Tensors, TensorSpec
from enginehouse_build.graph.graph import element_types
from enginehouse_build.graph.sizes import sizing
from enginehouse_build.inputs.last_words import asking
from enginehouse_build.inputs.samples import take
from enginehouse_build.judge.extents import Extents, in_words
from enginehouse_build.judge.longest import as_samples_may_be, whole_inputs
from enginehouse_build.reference.company import joined
from enginehouse_build.reference.conditioning import Rounding
from enginehouse_build.reference.proof import companies, picked
from enginehouse_build.reference.strangers import Door, strangers

Run = Callable[[Tensors], Tensors]

SEED = 0
#: Rows that are asked between made-up ones.
_IN_COMPANY = 3
#: Strangers from all that the door lets in, at most: the reference has been asked beside more of them.
_STRANGERS = 8
#: Rows of each request, and requests that ids are spread over: more take longer than the samples themselves.
_ROWS = 8
_REQUESTS_OF_IDS = 2
#: How much larger than the samples floats may be in requests that nobody would call absurd.
_LOUDER = 8.0
#: How much further than the samples on the whole a single request may be.
_SLACK = 3.0
#: Whole numbers beyond this are for `probes` to look at.
_LARGEST_WHOLE = 24

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})


class Reached(NamedTuple):
    """How far an artifact was right: up to which `extents` of free dimensions without a range, by name.

    `longest` is a request at the largest of all that was asked, in which the inputs `whole` may hold other numbers;
    None where there is none.
    """

    extents: dict[str, int]
    longest: Tensors | None
    whole: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Beyond:
    """Asks an artifact's `infer` what samples leave out, and `right`, the reference in the ONNX file `model`, the same.

    Nothing large is asked beyond the `bounds` that the artifact has already.
    `check` raises ParityFailed saying what was asked, which output and row differed, and what to do about it.
    """

    artifact: Artifact
    manifest: Manifest
    infer: Run
    right: Run
    model: Path
    samples: Tensors
    limits: Limits
    rounding: Rounding
    bounds: InputBounds = field(default_factory=dict)

    def check(self) -> Reached:
        """Look at all that there is, and say how far it was right.

        Only fp32 promises to answer values that samples and calibration never had, and a graph of whole numbers, which
        is the same in every precision.
        """
        proto = onnx.load(self.model, load_external_data=False)
        if self._signature.batched and self.manifest.max_batch > 1:
            self._company(Door.of(proto, self._signature.inputs))
        extents = Extents(self._signature, self.manifest.axes, self.manifest.max_batch, self.samples, self._same_extent)
        reached, whole, is_sizing = extents.check(), whole_inputs(self._signature, self.samples), bool(sizing(proto))
        if self._signature.batched and self.manifest.max_batch > 1:
            self._crowd(extents.crowd(reached, self.manifest.max_batch))
        longest = extents.longest
        request = extents.request(longest) if longest and not is_sizing else None
        if self.artifact.precision != "int8":
            for what, ids in self._ids():
                self._same(what, ids)
        if self.artifact.precision == "fp32" or not _FLOATS & set(_types_of(proto)):
            for what, large in self._large(proto):
                # What it is not asked by anybody may be anything.
                if not Values(large).beyond(self.bounds):
                    self._same(what, large, where_finite=True)
            for what, full in as_samples_may_be(request, self.samples, whole) if request is not None else ():
                self._same_extent(f"{in_words(longest)} for {what}", full, extents.remedy(longest))
        return Reached(reached, request, whole)

    def _same_extent(self, what: str, request: Tensors, remedy: str) -> bool:
        try:
            self._signature.check(request)
        except InvalidInput:
            # A sum is out of its own range.
            return False
        return self._same(what, request, remedy, self._loose)

    @property
    def _loose(self) -> Limits:
        """Of many requests some are further off than the samples are on the whole, and so are sums of more numbers."""
        return replace(self.limits, relative_l2=min(_SLACK * self.limits.relative_l2, self.limits.worst_row))

    def _same(
        self, what: str, request: Tensors, remedy: str = "", limits: Limits | None = None, *, where_finite: bool = False
    ) -> bool:
        """Whether the reference takes the request at all; an artifact may refuse it, but not answer otherwise."""
        try:
            with asking("the reference", request):
                want = self.right(request)
        except Exception:
            # ONNX Runtime raises classes of its own.
            return False
        if where_finite and not all(np.isfinite(array).all() for array in want.values() if array.dtype.kind == "f"):
            # The model was not made for such a request: a root of what is never negative.
            return True
        try:
            with asking(self.artifact.name, request):
                got = self.infer(request)
        except EnginehouseError:
            return True
        fault = self.rounding.difference(got, want, request, limits or self.limits)
        if fault is not None:
            raise ParityFailed(f"{self.artifact.name} answers otherwise than the reference {what}: {fault}{remedy}")
        return True

    def _company(self, door: Door) -> None:
        """Each row alone, then with others around it: the artifact against itself, whatever its precision."""
        rows = picked(self.samples)
        alone = [self.infer(row) for row in rows]
        for what, before, chosen, behind in self._groups(rows, door):
            own = [rows[row] for row in chosen]
            try:
                got = self.infer(joined([*before, *own, *behind]))
            except EnginehouseError:
                continue
            within = {name: array[len(before) : len(before) + len(own)] for name, array in got.items()}
            fault = self.rounding.difference(within, joined([alone[row] for row in chosen]), joined(own), self.limits)
            if fault is not None:
                raise ParityFailed(
                    f"{self.artifact.name} answers a row that shares its batch otherwise than alone: {what}, {fault}; "
                    "requests of strangers share a batch"
                )

    def _crowd(self, asked: tuple[str, Tensors] | None) -> None:
        """Some rows of a full batch alone, then in it: the artifact against itself, as with company."""
        if asked is None:
            return
        what, request = asked
        count = self.manifest.max_batch
        places = sorted({0, count // 2, count - 1})
        rows = [take(request, place, 1) for place in places]
        if not all(map(self._takes, rows)):
            return
        try:
            alone, got = [self.infer(row) for row in rows], self.infer(request)
        except EnginehouseError:
            return
        within = {name: array[places] for name, array in got.items()}
        fault = self.rounding.difference(within, joined(alone), joined(rows), self._loose)
        if fault is not None:
            raise ParityFailed(
                f"{self.artifact.name} answers a row that shares its batch otherwise than alone: in a batch of {what}, "
                f"{fault}; requests of strangers share a batch"
            )

    def _groups(
        self, rows: Sequence[Tensors], door: Door
    ) -> Iterator[tuple[str, list[Tensors], list[int], list[Tensors]]]:
        """What the company is, who is before, which of `rows`, who is behind; together as many as a call may have."""
        most = self.manifest.max_batch
        order = list(reversed(range(len(rows))))
        for start in range(0, len(order), most):
            yield "beside other samples", [], order[start : start + most], []
        for at, (what, front, back) in enumerate(companies(rows[0], self.samples)):
            count = max(min(_IN_COMPANY, most - 2), 1)
            chosen = [order[(at + step) % len(order)] for step in range(count)]
            yield what, [front], chosen, [back] if most > 2 else []
        for what, row in islice(strangers(rows[0], self.samples, door), _STRANGERS):
            if self._takes(row):
                yield f"beside {what}", [row], order[: max(min(_IN_COMPANY, most - 1), 1)], []

    def _takes(self, request: Tensors) -> bool:
        try:
            self.right(request)
        except Exception:
            # ONNX Runtime raises classes of its own.
            return False
        return True

    @property
    def _signature(self) -> Signature:
        return self.manifest.request_signature()

    def _rows(self, most: int) -> Tensors:
        if not self._signature.batched:
            return self.samples
        return take(self.samples, 0, min(most, self.manifest.max_batch))

    def _ids(self) -> Iterator[tuple[str, Tensors]]:
        """Ids of the whole table, the first and last ones in any case; also those that count from its end."""
        request = self._rows(_ROWS)
        specs = [spec for spec in self._signature.inputs if spec.domain is not None]
        generator = np.random.default_rng(SEED)
        for from_end in (False, True) if specs else ():
            orders = {spec.name: _order(spec, generator, from_end=from_end) for spec in specs}
            for part in range(_REQUESTS_OF_IDS):
                ids = {name: _slice_of(order, request[name], part) for name, order in orders.items()}
                what = f"for ids all over the table of {', '.join(repr(name) for name in ids)}"
                yield what, {**request, **ids}

    def _large(self, proto: onnx.ModelProto) -> Iterator[tuple[str, Tensors]]:
        request = self._rows(_ROWS)
        floats = {name: array for name, array in request.items() if array.dtype.kind == "f"}
        for sign in (1, -1) if floats else ():
            louder = {name: (array * array.dtype.type(sign * _LOUDER)) for name, array in floats.items()}
            yield f"for samples {sign * _LOUDER:g} times as large", {**request, **louder}
        generator = np.random.default_rng(SEED)
        whole = {
            spec.name: _spread(spec, request[spec.name], generator)
            for spec in self._signature.inputs
            if spec.dtype.kind in "iu" and spec.domain is None
        }
        if whole and not sizing(proto):
            yield "for whole numbers of all sizes below 2^24", {**request, **whole}


def _types_of(proto: onnx.ModelProto) -> Iterable[int]:
    """TensorProto.DataType of everything that the graph takes, makes and answers."""
    return element_types(onnx.shape_inference.infer_shapes(proto).graph).values()


def _order(spec: TensorSpec, generator: np.random.Generator, *, from_end: bool) -> np.ndarray:
    assert spec.domain is not None
    low, high = (spec.domain.low, 0) if from_end else (0, spec.domain.high)
    ends = [low, high - 1]
    return np.concatenate([ends, generator.permutation(np.arange(low + 1, max(high - 1, low + 1)))])


def _slice_of(order: np.ndarray, like: np.ndarray, part: int) -> np.ndarray:
    at = (part * like.size + np.arange(like.size)) % len(order)
    return np.asarray(order[at].reshape(like.shape).astype(like.dtype))


def _spread(spec: TensorSpec, like: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Of the signs that `like` has: what else it may be is for `probes` to find out, and bounds an artifact only."""
    bits = min(_LARGEST_WHOLE, np.iinfo(spec.dtype).bits - (spec.dtype.kind == "i"))
    values = np.floor(2 ** generator.uniform(0, bits, like.shape)).astype(np.int64)
    # The largest of uint64 is none of int64.
    values = np.minimum(values, min(np.iinfo(spec.dtype).max, 1 << _LARGEST_WHOLE))
    if like.size and like.min() < 0:
        values *= generator.choice((1, -1) if like.max() > 0 else (-1,), like.shape)
    return values.astype(like.dtype)
