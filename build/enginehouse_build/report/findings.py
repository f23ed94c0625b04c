"""What the page says: the manifest's figures joined by artifact and compared with the fp32 ONNX engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import (
    ACCELERATOR_OF,
    ENGINE_KINDS,
    Artifact,
    Axis,
    Chosen,
    Manifest,
    Parity,
    Step,
    TensorRecord,
)
from enginehouse.contract.numerics import left_out

#: Ends of the scale that distances to the reference are drawn on: rounding of float64, and no resemblance at all.
NEAREST, FARTHEST = 1e-8, 1.0


@dataclass(frozen=True, slots=True)
class Speed:
    """One engine on one artifact, as measured.

    `one` and `most` are the points at one row and at the most measured rows, at the size that the page shows; None
    where that was not measured. Ratios are to the baseline's time (2.0 = twice as fast). `best` is the point with the
    most rows per second.
    """

    key: str
    label: str
    table: LatencyTable
    artifact: Artifact
    one: LatencyPoint | None
    most: LatencyPoint | None
    one_ratio: float | None
    most_ratio: float | None
    best: LatencyPoint | None


@dataclass(frozen=True, slots=True)
class Line:
    """One artifact in the overview: its size, its speeds, the classes it is the choice of, and the logs about it.

    `unmeasured` says why an engine that should have been measured has no speed.
    """

    artifact: Artifact
    bytes: int
    speeds: tuple[Speed, ...]
    unmeasured: tuple[str, ...]
    best_of: tuple[str, ...]
    logs: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A choice with its figures at the rows it was made for.

    `baseline` is the fp32 ONNX artifact's point there, measured by `baseline_engine`: on hardware of the same kind, if
    it was measured on that. None where it is the choice itself.
    """

    chosen: Chosen
    artifact: Artifact
    speed: Speed | None
    point: LatencyPoint | None
    baseline: LatencyPoint | None
    baseline_engine: str

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the baseline."""
        if self.point is None or self.baseline is None:
            return None
        return self.baseline.median_ms / self.point.median_ms


@dataclass(frozen=True, slots=True)
class Span:
    """A step on the time line of the build; `start` and `width` in percent of it."""

    step: Step
    start: float
    width: float


class Findings:
    """Everything the page shows that has to be looked up or worked out first. A pure function of the manifest."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @cached_property
    def axis(self) -> Axis | None:
        """The cost axis, if there is one."""
        return self.manifest.axes[0] if self.manifest.axes else None

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Every measured size, ascending."""
        return tuple(sorted({size for table in self.manifest.latency for size in table.sizes}))

    @cached_property
    def size(self) -> int | None:
        """The one size that overview and curves over rows are about: the measured one closest to the axis's `opt`."""
        if self.axis is None or not self.sizes:
            return None
        typical = self.axis.opt
        return min(self.sizes, key=lambda size: (abs(size - typical), size))

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Every measured number of rows, ascending."""
        return tuple(sorted({point.rows for table in self.manifest.latency for point in table.points}))

    @cached_property
    def baseline(self) -> LatencyTable | None:
        """The fp32 ONNX artifact on ONNX Runtime that the overview's ratios are to; on a CPU, if measured there."""
        return min(self._fp32_onnx, key=lambda table: _order(table.engine), default=None)

    @cached_property
    def speeds(self) -> tuple[Speed, ...]:
        """One for every latency table, in the order of the manifest's artifacts."""
        names = [artifact.name for artifact in self.manifest.artifacts]
        tables = sorted(self.manifest.latency, key=lambda table: (names.index(table.artifact), _order(table.engine)))
        return tuple(self._speed(f"s{number}", table) for number, table in enumerate(tables))

    @cached_property
    def fastest(self) -> float:
        """The largest ratio at the most rows: full length of the bars that show them."""
        return max((speed.most_ratio for speed in self.speeds if speed.most_ratio is not None), default=1.0)

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """The overview, one for every artifact."""
        return tuple(
            Line(
                artifact=artifact,
                bytes=sum(file.bytes for file in artifact.files),
                speeds=tuple(speed for speed in self.speeds if speed.table.artifact == artifact.name),
                unmeasured=tuple(
                    f"{step.name}: {step.detail}"
                    for step in self.manifest.steps
                    if step.outcome == "failed" and step.name.startswith(f"profile {artifact.name} ")
                ),
                best_of=tuple(c.numerics for c in self.manifest.chosen if c.artifact == artifact.name),
                logs=tuple(s for s in self.manifest.steps if s.log is not None and artifact.name in s.name.split()),
            )
            for artifact in self.manifest.artifacts
        )

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The choices, full numerics first."""
        return tuple(
            self._verdict(chosen) for chosen in sorted(self.manifest.chosen, key=lambda c: c.numerics != "full")
        )

    @cached_property
    def left_out(self) -> str:
        """What does not answer unless somebody says so, and how."""
        return left_out(self.manifest, self.manifest.numerics)

    @cached_property
    def counts(self) -> tuple[tuple[str, int], ...]:
        """How many artifacts have each status that occurs."""
        statuses = [artifact.status for artifact in self.manifest.artifacts]
        found = ((status, statuses.count(status)) for status in ("ready", "unverified", "failed", "unavailable"))
        return tuple((status, count) for status, count in found if count)

    @cached_property
    def total_seconds(self) -> float:
        """Sum over all steps."""
        return sum(step.seconds for step in self.manifest.steps)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The steps one after the other."""
        spans, start, scale = [], 0.0, 100 / (self.total_seconds or 1)
        for step in self.manifest.steps:
            spans.append(Span(step, start * scale, step.seconds * scale))
            start += step.seconds
        return tuple(spans)

    def point(self, table: LatencyTable | None, rows: int, size: int | None) -> LatencyPoint | None:
        """The measured point, or None: the page shows nothing that was only predicted."""
        points = table.points if table is not None else ()
        return next((point for point in points if point.rows == rows and point.size in (size, None)), None)

    def place(self, distance: float) -> float:
        """Where a distance to the reference lies between NEAREST and FARTHEST, on a log scale, in percent."""
        inside = min(max(distance, NEAREST), FARTHEST)
        return 100 * math.log10(inside / NEAREST) / math.log10(FARTHEST / NEAREST)

    def passes(self, parity: Parity) -> bool:
        """Whether the distance that the strip shows is within its limit."""
        return parity.relative_l2 <= parity.limit

    def shape(self, tensor: TensorRecord, is_input: bool) -> str:
        """A shape for people, its free dimensions called by the name of the batch or of their axis."""
        names = {dim: axis.name for axis in self.manifest.axes for dim in axis.dims} if is_input else {}
        batched = self.manifest.signature.batched
        return ", ".join(
            str(extent) if extent != -1 else "batch" if batched and dim == 0 else names.get((tensor.name, dim), "free")
            for dim, extent in enumerate(tensor.shape)
        )

    def _speed(self, key: str, table: LatencyTable) -> Speed:
        one, most = (self.point(table, rows, self.size) for rows in (self.rows[0], self.rows[-1]))
        shown = [point for point in table.points if point.size in (self.size, None)]
        alone = sum(other.artifact == table.artifact for other in self.manifest.latency) == 1
        return Speed(
            key=key,
            label=table.artifact if alone else f"{table.artifact}, {table.engine.rpartition('-')[2]}",
            table=table,
            artifact=self.manifest.artifact(table.artifact),
            one=one,
            most=most,
            one_ratio=self._ratio(one),
            most_ratio=self._ratio(most),
            best=max(shown, key=lambda point: point.rows / point.median_ms, default=None),
        )

    def _ratio(self, point: LatencyPoint | None) -> float | None:
        if point is None:
            return None
        base = self.point(self.baseline, point.rows, point.size)
        return None if base is None else base.median_ms / point.median_ms

    @property
    def _fp32_onnx(self) -> list[LatencyTable]:
        names = {a.name for a in self.manifest.artifacts if (a.format, a.precision) == ("onnx", "fp32")}
        return [table for table in self.manifest.latency if table.artifact in names]

    def _verdict(self, chosen: Chosen) -> Verdict:
        table = self.manifest.latency_of(chosen.engine, chosen.artifact)
        alike = {kind for kind, hardware in ACCELERATOR_OF.items() if hardware == ACCELERATOR_OF[chosen.engine]}
        baseline = next((base for base in self._fp32_onnx if base.engine in alike), self.baseline)
        return Verdict(
            chosen=chosen,
            artifact=self.manifest.artifact(chosen.artifact),
            speed=next((speed for speed in self.speeds if speed.table is table), None),
            point=self.point(table, chosen.rows, self.size),
            baseline=None if baseline is table else self.point(baseline, chosen.rows, self.size),
            baseline_engine=baseline.engine if baseline is not None else "",
        )


def _order(engine: str) -> int:
    return [*ENGINE_KINDS, engine].index(engine)
