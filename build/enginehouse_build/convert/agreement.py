"""Whether a conversion would pass the gate, asked while it can still be done otherwise, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from enginehouse.contract import parity
from enginehouse.contract.errors import EngineUnavailable, ParityFailed
from enginehouse.contract.manifest import Parity, Precision
from enginehouse.contract.parity import Limits, limits_of
from enginehouse.contract.slices import BESIDE_ROW, Slices, compare_slices
from enginehouse.contract.tensors import Tensors

#: Requests that single nodes are judged by, at most: there may be hundreds of nodes.
_FEW = 6
#: Rows of a request that is there for its size.
_SMALL = 2
_HERE = "this machine"
#: How often the range that has the least limit is halved: to a millionth of the limit.
_HALVINGS = 20


def some(requests: Sequence[Tensors]) -> Sequence[Tensors]:
    """A few of the requests, from all over."""
    return requests[:: max(1, len(requests) // _FEW)][:_FEW]


@dataclass(frozen=True, slots=True)
class Found:
    """`fault` says which figures are past their limit, or is ""; `loss` is the worst figure in parts of its limit.

    `relative_l2` is that of the whole, `slice` how far the worst slice is off in its own size.
    """

    fault: str
    loss: float
    relative_l2: float = math.inf
    slice: float = math.inf


@dataclass(frozen=True, slots=True)
class Agreement:
    """Requests with the answers of the fp32 reference, and how far those of `artifact` may be from them.

    `passing` has the least limit with which each trial so far would have passed; see `same_within`.
    """

    artifact: str
    requests: Sequence[Tensors]
    answers: Sequence[Tensors]
    limits: Limits
    batched: bool = True
    passing: list[float] = field(default_factory=list, compare=False)

    @classmethod
    def of(
        cls, artifact: str, requests: Sequence[Tensors], run: Callable[[Tensors], Tensors], limits: Limits
    ) -> Agreement:
        """With the answers that `run` gives."""
        return cls(artifact, requests, [run(request) for request in requests], limits)

    def cut(self, rows: int) -> Agreement:
        """The same with about so many rows in all, and every request of one or two rows: those of other sizes."""
        requests, answers = [], []
        for request, answer in zip(self.requests, self.answers, strict=True):
            count = len(next(iter(request.values()))) if self.batched else 1
            taken = count if count <= _SMALL else min(count, rows)
            rows -= taken if count > _SMALL else 0
            if taken:
                requests.append(_first(request, taken) if self.batched else request)
                answers.append(_first(answer, taken) if self.batched else answer)
        return replace(self, requests=requests, answers=answers)

    def few(self) -> Agreement:
        """The same with some of the requests, for what decides nothing."""
        return replace(self, requests=some(self.requests), answers=some(self.answers), passing=[])

    def same_within(self) -> tuple[float, float]:
        """The least and the largest relative L2 that, as the limit, would have led to the very same trials.

        Where one failed, what was tried next depends on how much of this very limit was used.
        """
        limit, least = self.limits.relative_l2, max(self.passing, default=0.0)
        return (least, math.inf) if least <= limit else (limit, limit)

    def found(self, run: Callable[[Tensors], Tensors]) -> Found:
        """How far the answers of `run` are; one that fails, or is not finite where it should be, is lost altogether."""
        limits, pairs = self.limits, zip(self.requests, self.answers, strict=True)
        try:
            figures, slices = compare_slices(_HERE, run, pairs, limits.relative_l2, batched=self.batched)
        except EngineUnavailable:
            raise
        except Exception as error:
            self.passing.append(math.inf)
            return Found(str(error) or type(error).__name__, math.inf)
        worst = slices.worst()
        loss = max(
            figures.relative_l2 / limits.relative_l2,
            figures.worst_row / limits.worst_row,
            figures.differing / limits.differing,
            worst / (BESIDE_ROW * limits.worst_row),
            (1 - slices.least_found()) / (1 - limits.of_class),
        )
        fault = self._fault(limits, figures, slices)
        self.passing.append(math.inf if fault else self._least(figures, slices))
        return Found(fault, loss, figures.relative_l2, worst)

    def _fault(self, limits: Limits, figures: Parity, slices: Slices) -> str:
        try:
            parity.gate(self.artifact, limits, figures)
            slices.gate(self.artifact, _HERE, limits)
        except ParityFailed as error:
            return str(error)
        return ""

    def _least(self, figures: Parity, slices: Slices) -> float:
        """The least limit with which these figures pass, as they do with that of now."""
        precision: Precision = self.artifact.rpartition("-")[2]  # type: ignore[assignment]
        fails, passes = 0.0, self.limits.relative_l2
        for _ in range(_HALVINGS):
            middle = (fails + passes) / 2
            fault = self._fault(limits_of(precision, middle), figures, slices)
            fails, passes = (middle, passes) if fault else (fails, middle)
        return passes


def _first(tensors: Tensors, rows: int) -> Tensors:
    return {name: array[:rows] for name, array in tensors.items()}
