"""Where the curves of the latency tables lie: points, bands, ticks and labels in the units of a chart's view box.

Colour says which engine, the marker which precision, so twelve curves need no more than four colours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from enginehouse.contract.latency import LatencyPoint
from enginehouse_build.report.findings import Findings, Speed
from enginehouse_build.report.text import magnitude, milliseconds, number

#: The view box, and the plot inside it. What is right of it belongs to the labels of the curves.
WIDTH, HEIGHT = 600, 330
LEFT, RIGHT, TOP, BOTTOM = 46, 448, 12, 290

#: Past this ratio of the largest to the smallest value a linear scale would hide the small ones.
_LINEAR_UP_TO = 12.0
_LABEL_GAP = 14.0
_TICK_GAP = 30.0

_Value: TypeAlias = Callable[[LatencyPoint], float]


@dataclass(frozen=True, slots=True)
class Tick:
    """A line of the grid and its text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A measured point and what it says when pointed at."""

    x: float
    y: float
    says: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One engine on one artifact: `line` through the medians, `band` from there to the 90th percentile (SVG paths).

    `label_y` is where its name is written, `end` the point that it belongs to.
    """

    speed: Speed
    line: str
    band: str
    marks: tuple[Mark, ...]
    end: Mark
    label_y: float


@dataclass(frozen=True, slots=True)
class Chart:
    """One plot, ready to be drawn."""

    title: str
    x_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]


def charts(findings: Findings) -> tuple[Chart, ...]:
    """Latency and throughput over rows, and over the cost axis where there is one.

    What was measured at a single value only has no curve: its figures are in the tables.
    """
    plots: list[Chart] = []
    axis, size = findings.axis, findings.size
    rows = findings.rows
    if len(rows) > 1:
        at = f", {axis.name} {size}" if axis is not None and size is not None else ""
        plots += [
            _chart(findings, f"Latency of a call, ms{at}", "rows in the call", _rows, _latency, size=size),
            _chart(findings, f"Throughput, rows/s{at}", "rows in the call", _rows, _throughput, size=size),
        ]
    if axis is not None and len(findings.sizes) > 1:
        for count in sorted({rows[0], rows[-1]}):
            title = f"Latency of a call, ms, {count} {'row' if count == 1 else 'rows'}"
            plots.append(_chart(findings, title, axis.name, _size, _latency, rows=count))
    return tuple(plots)


def _rows(point: LatencyPoint) -> float:
    return point.rows


def _size(point: LatencyPoint) -> float:
    return point.size or 0


def _latency(point: LatencyPoint) -> float:
    return point.median_ms


def _throughput(point: LatencyPoint) -> float:
    return point.rows / point.median_ms * 1e3


def _chart(
    findings: Findings,
    title: str,
    x_title: str,
    x: _Value,
    y: _Value,
    *,
    rows: int | None = None,
    size: int | None = None,
) -> Chart:
    chosen = [
        (speed, sorted((p for p in speed.table.points if rows in (None, p.rows) and size in (None, p.size)), key=x))
        for speed in findings.speeds
    ]
    chosen = [(speed, points) for speed, points in chosen if points]
    measured = [point for _, points in chosen for point in points]
    slow = [point.model_copy(update={"median_ms": point.p90_ms}) for point in measured]
    across = _Scale.of([x(point) for point in measured], LEFT + 8, RIGHT - 8, logarithmic=True, margin=0)
    values = [y(point) for point in measured + slow]
    logarithmic = y is _latency or max(values) / min(values) > _LINEAR_UP_TO
    up = _Scale.of(values if logarithmic else [0, *values], BOTTOM, TOP, logarithmic=logarithmic, margin=0.04)
    ends = _apart([up(y(points[-1])) for _, points in chosen])
    return Chart(
        title=title,
        x_title=x_title,
        x_ticks=_thinned(Tick(round(across(value), 1), f"{value:,.0f}") for value in sorted({x(p) for p in measured})),
        y_ticks=tuple(Tick(round(up(value), 1), magnitude(value)) for value in up.ticks()),
        curves=tuple(
            _curve(speed, points, x, y, across, up, at) for (speed, points), at in zip(chosen, ends, strict=True)
        ),
    )


def _curve(
    speed: Speed, points: Sequence[LatencyPoint], x: _Value, y: _Value, across: _Scale, up: _Scale, label_y: float
) -> Curve:
    slow = [point.model_copy(update={"median_ms": point.p90_ms}) for point in points]
    marks = tuple(Mark(round(across(x(p)), 1), round(up(y(p)), 1), _says(speed, p)) for p in points)
    far = [(mark.x, round(up(y(p)), 1)) for mark, p in zip(marks, slow, strict=True)]
    near = [(mark.x, mark.y) for mark in marks]
    return Curve(speed, _path(near), _path(near + far[::-1]) + "Z", marks, marks[-1], round(label_y, 1))


def _says(speed: Speed, point: LatencyPoint) -> str:
    at = f"{point.rows} rows" + (f", size {point.size}" if point.size is not None else "")
    return (
        f"{speed.table.artifact} on {speed.table.engine}, {at}\n"
        f"median {milliseconds(point.median_ms)}, p90 {milliseconds(point.p90_ms)}, {point.count} calls\n"
        f"{number(_throughput(point))} rows/s"
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to positions; `low` and `high` are values, `start` and `end` the positions they have."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float, *, logarithmic: bool, margin: float) -> _Scale:
        """A scale with room for all `values`, and a `margin` (share of its length) beyond them."""
        low, high = min(values), max(values)
        if logarithmic:
            # Less than a factor of four would blow noise up to the height of the chart.
            spare = max(math.log(4 * low / high) / 2, 0) if margin else 0
            spare += margin * math.log(high / low)
            return cls(low / math.exp(spare), high * math.exp(spare), start, end, True)
        return cls(low, high + margin * (high - low), start, end, False)

    def __call__(self, value: float) -> float:
        if self.low == self.high:
            return (self.start + self.end) / 2
        share = (
            math.log(value / self.low) / math.log(self.high / self.low)
            if self.logarithmic
            else (value - self.low) / (self.high - self.low)
        )
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values: 1, 2, 5, 10 ... on a log scale (only powers of ten on a long one), about five on a linear."""
        if not self.logarithmic:
            rough = (self.high - self.low) / 5
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
            return [step * count for count in range(math.floor(self.high / step) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        leads = (1, 2, 5) if self.high / self.low < 2000 else (1,)
        ticks = [lead * 10.0**decade for decade, lead in itertools.product(decades, leads)]
        return [tick for tick in ticks if self.low <= tick <= self.high]


def _thinned(ticks: Iterable[Tick]) -> tuple[Tick, ...]:
    """Without those whose text would run into the one before."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick.at - kept[-1].at >= _TICK_GAP:
            kept.append(tick)
    return tuple(kept)


def _apart(wanted: Sequence[float]) -> list[float]:
    """Heights for labels that want to be at `wanted`: in that order, readable, and moved as little as possible.

    Less the gaps above them, the heights only have to ascend: an isotonic regression, by pooling adjacent violators.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    pools: list[list[float]] = []
    for rank, index in enumerate(order):
        pools.append([wanted[index] - rank * _LABEL_GAP])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pooled = pools.pop()
            pools[-1] += pooled
    heights = [fmean(pool) for pool in pools for _ in pool]
    lowest = max(HEIGHT - _LABEL_GAP * len(wanted), TOP)
    placed = [0.0] * len(wanted)
    for rank, (index, height) in enumerate(zip(order, heights, strict=True)):
        placed[index] = min(max(height, TOP), lowest) + rank * _LABEL_GAP
    return placed
