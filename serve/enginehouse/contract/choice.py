"""Which of several (engine, artifact) is taken: the rule by which the build chooses and by which an engine loads.

The most exact one, unless another is faster by more than the noise of VALID measurements. Two cannot be told apart when
they differ by no more than the rounds of either do: at least 3 % (two processes with the same artifact were seen 1 %
apart), at most 10 % (where the build's `profile` calls rounds different). An INVALID table decides nothing: neither for
its artifact nor against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from enginehouse.contract.manifest import (
    ACCELERATOR_OF,
    FORMAT_OF,
    Artifact,
    EngineKind,
    Manifest,
    NumericsRule,
    Precision,
)
from enginehouse.contract.numerics import admits, is_servable

_RESOLUTION = 0.03
_MOST_CHANCE = 0.10
_EXACTEST_FIRST: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True, slots=True)
class Contender:
    """An artifact on an engine, and what it takes there: `cost` is least for the best, infinite if never measured.

    `spread` is how far the rounds of the measurement lie apart, `valid` whether it keeps its own rules, and `fits`
    whether it keeps a bound that the caller has set.
    """

    engine: EngineKind
    artifact: Artifact
    cost: float = math.inf
    spread: float = 0.0
    valid: bool = False
    fits: bool = True

    @property
    def exactness(self) -> tuple[int, float]:
        """Less is more exact: by the precision, then by the distance from the reference."""
        return _EXACTEST_FIRST.index(self.artifact.precision), self.distance

    @property
    def distance(self) -> float:
        """From the reference; infinite where nobody compared them."""
        return self.artifact.parity.relative_l2 if self.artifact.parity else math.inf

    def resembles(self, other: Contender) -> bool:
        """Whether two VALID measurements cannot tell them apart."""
        if not (self.valid and other.valid) or self.fits != other.fits:
            return False
        return max(self.cost, other.cost) / min(self.cost, other.cost) - 1 <= chance(self, other)


#: Callers have contenders that know more.
_AnyContender = TypeVar("_AnyContender", bound=Contender)


def chance(one: Contender, other: Contender) -> float:
    """By what share the two may differ by chance alone."""
    return min(max(one.spread, other.spread, _RESOLUTION), _MOST_CHANCE)


def eligible(field: Sequence[_AnyContender]) -> list[_AnyContender]:
    """`field` without what is nothing of its own there (`why_not`); all of it if nothing were left."""
    return [contender for contender in field if not why_not(contender, field)] or list(field)


def why_not(contender: Contender, field: Sequence[Contender]) -> str:
    """Why `contender` does not stand beside the others of `field`, or "".

    A file that its engine computes in the precision of another file there is that file with worse weights. Which
    precision an artifact really runs in is known of CPUs only: it is the first engine of its format that tells. And
    what was compared on nothing does not stand beside fp32, which is what it should have been compared with.
    """
    artifact = contender.artifact
    ran = artifact.effective_precision
    if ACCELERATOR_OF[contender.engine] == "cpu" and ran not in (None, artifact.precision):
        own = [other for other in field if other.engine == contender.engine and other.artifact.precision == ran]
        if own:
            return f"runs in {ran} there, as {own[0].artifact.name} does"
    if artifact.unproven and artifact.precision != "fp32":
        fp32 = any(other.artifact.precision == "fp32" for other in field)
        return f"was compared on nothing in {', '.join(map(repr, artifact.unproven))}" if fp32 else ""
    return ""


def preferred(field: Sequence[_AnyContender]) -> _AnyContender:
    """The one of `field`, which is not empty, that the rule above takes. One that keeps the bound goes first."""
    fitting = [contender for contender in field if contender.fits] or list(field)
    exact = min(fitting, key=lambda contender: (contender.exactness, not contender.valid, contender.cost))
    if not exact.valid:
        return exact
    timed = [contender for contender in fitting if contender.valid]
    fastest = min(timed, key=lambda contender: contender.cost)
    alike = [contender for contender in timed if contender.resembles(fastest)]
    return min(alike, key=lambda contender: (contender.exactness, contender.cost))


def choose_artifact(
    manifest: Manifest, engines: Sequence[EngineKind], numerics: NumericsRule
) -> tuple[EngineKind, Artifact] | None:
    """The servable artifact within the numerics class that the rule takes at full batch, and on which of `engines`.

    Full batch, because a pool batches, of requests of the usual size. Artifacts that were never measured come last
    where others have VALID tables; where nothing was measured at all, GPUs take fp16 before the others.
    """
    field = eligible(
        [
            _contender(manifest, engine, artifact)
            for engine in engines
            for artifact in manifest.artifacts
            if is_servable(artifact) and artifact.format == FORMAT_OF[engine] and admits(numerics, artifact)
        ]
    )
    if not field:
        return None
    measured = [contender for contender in field if contender.cost < math.inf]
    if not measured:
        field = [contender for contender in field if _is_likely(contender)] or field
    elif any(contender.valid for contender in measured):
        field = measured
    best = preferred(field)
    return best.engine, best.artifact


def _contender(manifest: Manifest, engine: EngineKind, artifact: Artifact) -> Contender:
    table = manifest.latency_of(engine, artifact.name)
    if table is None:
        return Contender(engine, artifact)
    size = manifest.axes[0].opt if manifest.axes else None
    points = table.at(size) or table.points
    return Contender(
        engine,
        artifact,
        cost=table.predict_ms(manifest.max_batch, size),
        spread=max(point.spread for point in points),
        valid=table.verdict == "VALID",
    )


def _is_likely(contender: Contender) -> bool:
    """Whether it is probably the fastest on an engine of its kind."""
    return ACCELERATOR_OF[contender.engine] == "gpu" and contender.artifact.precision == "fp16"
