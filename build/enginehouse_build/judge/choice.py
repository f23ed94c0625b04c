"""The choice: which artifact to serve on the machine that measured it, with the reasons, for each numerics class.

By *latency*: the least median for one row. By *throughput*: the most rows/s over the measured rows whose median is
within the bound. Models with a cost axis are compared at its `opt` size. Where nothing is within the bound, the one
that is closest to it. Speed is weighed against exactness by the rule of `enginehouse.contract.choice`, which serving
goes by as well: only a VALID measurement puts a faster artifact before a more exact one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from enginehouse.contract.choice import Contender, chance, eligible, preferred, why_not
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import (
    ACCELERATOR_OF,
    Artifact,
    Chosen,
    Manifest,
    NumericsClass,
    Objective,
)

_CLASSES: tuple[NumericsClass, ...] = ("full", "int8")


def choose(manifest: Manifest, objective: Objective, max_latency_ms: float | None) -> tuple[Chosen, ...]:
    """One choice for each numerics class that has a measured `ready` artifact."""
    size = manifest.axes[0].opt if manifest.axes else None
    candidates = [
        _Candidate.of(table, artifact, objective, size, max_latency_ms)
        for table in manifest.latency
        for artifact in manifest.artifacts
        if artifact.name == table.artifact and artifact.status == "ready" and table.at(size)
    ]
    fields = []
    for numerics in _CLASSES:
        field = [candidate for candidate in candidates if candidate.artifact.numerics_class == numerics]
        if field:
            standing = eligible(field)
            left_out = [(each, why_not(each, field)) for each in field if each not in standing]
            fields.append(_Contest(numerics, objective, max_latency_ms, standing, left_out, candidates).chosen())
    return tuple(fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate(Contender):
    """An artifact on an engine, at the measured point where it is at its best.

    Its cost are the milliseconds of a call, or of a row.
    """

    table: LatencyTable
    point: LatencyPoint

    @classmethod
    def of(
        cls, table: LatencyTable, artifact: Artifact, objective: Objective, size: int | None, bound: float | None
    ) -> _Candidate:
        points = table.at(size) if objective == "throughput" else table.at(size)[:1]
        within = [point for point in points if bound is None or point.median_ms <= bound]
        if objective == "throughput" and within:
            best = min(within, key=lambda point: point.median_ms / point.rows)
            cost = best.median_ms / best.rows
        else:
            best = min(points, key=lambda point: point.median_ms)
            cost = best.median_ms
        return cls(
            engine=table.engine,  # type: ignore[arg-type]  # the build's own tables name no other engines
            artifact=artifact,
            cost=cost,
            spread=best.spread,
            valid=table.verdict == "VALID",
            fits=bool(within),
            table=table,
            point=best,
        )

    def __str__(self) -> str:
        return f"{self.artifact.name} on {self.engine}"

    @property
    def is_fp32_onnx_runtime(self) -> bool:
        return (self.artifact.format, self.artifact.precision) == ("onnx", "fp32")


@dataclass(frozen=True, slots=True)
class _Contest:
    """The candidates of one numerics class, and why others of it are none; `everyone` are those of all."""

    numerics: NumericsClass
    objective: Objective
    bound: float | None
    field: Sequence[_Candidate]
    left_out: Sequence[tuple[_Candidate, str]]
    everyone: Sequence[_Candidate]

    def chosen(self) -> Chosen:
        ranked = sorted(self.field, key=lambda candidate: (not candidate.fits, candidate.cost))
        best = preferred(ranked)
        return Chosen(
            numerics=self.numerics,
            objective=self.objective,
            engine=best.engine,
            artifact=best.artifact.name,
            rows=best.point.rows,
            reasons=tuple(self._reasons(best, ranked)),
        )

    def _reasons(self, best: _Candidate, ranked: Sequence[_Candidate]) -> Iterator[str]:
        yield self._figures(best)
        if self.bound is not None:
            yield self._about_bound(best, self.bound)
        if not best.valid and len(self.field) > 1:
            yield f"Taken as the most exact one: {_kind(best)} measurement decides nothing."
        compared = [best]
        ahead = ranked[: ranked.index(best)]
        doubtful = [other for other in ahead if not (other.valid and best.valid)]
        for other in doubtful:
            compared.append(other)
            doubted = other if not other.valid else best
            yield f"{other} had {self._measured(other)}, which {_kind(doubted)} measurement cannot tell from chance."
        twins = [other for other in ranked if other is not best and other.resembles(best)]
        # Whoever was measured to be faster is named: the table shows it.
        for twin in [other for other in twins if other in ahead] or twins[:1]:
            compared.append(twin)
            yield self._about_twin(best, twin)
        for other, reason in self.left_out:
            yield f"{other} was not considered: it {reason}."
        behind = [other for other in ranked[ranked.index(best) + 1 :] if other not in twins]
        if behind:
            compared.append(behind[0])
            yield f"Next is {behind[0]}: {self._versus(behind[0], best)}."
        baseline = self._baseline(best)
        if baseline is not None and baseline not in compared:
            compared.append(baseline)
            yield self._about_baseline(best, baseline)
        for candidate in compared:
            if candidate.table.verdict != "VALID":
                yield f"The latency table of {candidate} is {candidate.table.verdict}: {candidate.table.reason}."

    def _figures(self, best: _Candidate) -> str:
        point = best.point
        spent = f"{_figure(point.median_ms)} ms for {_rows(point)} (median of {point.count} calls)"
        if self.objective == "throughput":
            spent = f"{_figure(point.rows / point.median_ms * 1e3)} rows/s: {spent}"
        # Those that are left out were measured too, and are named with the reason.
        to_be_had = "considered" if self.left_out else "measured"
        if len(self.field) == 1:
            return f"The only {to_be_had} one of class {self.numerics}: {spent}."
        among = f"of the {len(self.field)} {to_be_had} of class {self.numerics}"
        if not best.fits:
            return f"{spent}, the closest to the bound {among}."
        extreme = "most" if self.objective == "throughput" else "least"
        if not best.valid:
            return f"{spent}, {among}."
        leads = all(other.cost >= best.cost for other in self.field if other.valid and other.fits)
        return f"{spent}, {'the' if leads else 'within chance of the'} {extreme} {among}."

    def _about_bound(self, best: _Candidate, bound_ms: float) -> str:
        bound = f"the bound of {_figure(bound_ms)} ms"
        if not best.fits:
            return f"Nothing measured of class {self.numerics} keeps {bound}."
        beyond = [point for point in best.table.at(best.point.size) if point.median_ms > bound_ms]
        if self.objective == "throughput" and beyond:
            return f"It keeps {bound}, as {_rows(beyond[0])} would not ({_figure(beyond[0].median_ms)} ms)."
        return f"It keeps {bound}."

    def _about_twin(self, best: _Candidate, twin: _Candidate) -> str:
        same = f"Not distinguishable from {twin} ({self._measured(twin)}; {chance(best, twin):.0%} may be chance)"
        if best.distance < twin.distance:
            return (
                f"{same}: chosen because its answers are closer to the reference "
                f"(relative L2 {best.distance:.1e} against {twin.distance:.1e})."
            )
        if best.exactness < twin.exactness:
            return f"{same}: chosen because {best.artifact.precision} is the more exact precision."
        return f"{same}: chosen because it was the faster one."

    def _versus(self, other: _Candidate, best: _Candidate) -> str:
        if best.fits and not other.fits:
            return f"{_figure(other.point.median_ms)} ms for {_rows(other.point)}, beyond the bound"
        ratio = _figure(other.cost / best.cost)
        if self.objective == "throughput" and best.fits:
            return f"{self._measured(other)}, where this one has {ratio} times as many"
        return f"{self._measured(other)}, {ratio} times as long"

    def _measured(self, candidate: _Candidate) -> str:
        point = candidate.point
        if self.objective == "throughput" and candidate.fits:
            return f"{_figure(point.rows / point.median_ms * 1e3)} rows/s at {_rows(point)}"
        return f"{_figure(point.median_ms)} ms"

    def _baseline(self, best: _Candidate) -> _Candidate | None:
        """ONNX Runtime with the fp32 model, on the same kind of hardware if it was measured there."""
        known = [candidate for candidate in self.everyone if candidate.is_fp32_onnx_runtime]
        hardware = ACCELERATOR_OF[best.engine]
        known.sort(key=lambda candidate: ACCELERATOR_OF[candidate.engine] != hardware)
        return known[0] if known else None

    def _about_baseline(self, best: _Candidate, baseline: _Candidate) -> str:
        rows, size = best.point.rows, best.point.size
        theirs = baseline.table.predict_ms(rows, size)
        return (
            f"{_figure(theirs / best.point.median_ms)} times as fast as fp32 ONNX Runtime "
            f"({baseline}: {_figure(theirs)} ms for {_rows(best.point)})."
        )


def _kind(candidate: _Candidate) -> str:
    return f"{'a' if candidate.table.verdict == 'QUICK' else 'an'} {candidate.table.verdict}"


def _rows(point: LatencyPoint) -> str:
    return f"{point.rows} row{'s' if point.rows > 1 else ''}" + (f" of size {point.size}" if point.size else "")


def _figure(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
