"""The latency table: measured T(engine, rows, size), and how times between the measured points are predicted.

*Size* is the extent of the model's cost axis (sequence length, pixels along a side); models whose inputs have no free
dimension but the batch have none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

#: What share of the best throughput is as good as the best: a model that reads tens of megabytes of weights for every
#: batch gains more from a larger one among other work than alone (ResNet-18: 8 rows 6 % over 2, alone 3 %).
AS_GOOD = 0.98
#: How many predictions a table remembers.
MOST_KNOWN = 128


Verdict: TypeAlias = Literal["VALID", "INVALID", "QUICK"]


class LatencyPoint(BaseModel):
    """Measured time of one `Engine.infer` call with this many rows of this size, in milliseconds.

    `count` calls were measured, warm-up excluded; `spread` is how far the medians of the rounds lie apart, as a share
    of the smallest of them (0.1 = 10 %).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(ge=1)
    size: int | None = Field(default=None, ge=1)
    median_ms: float
    p90_ms: float
    min_ms: float
    count: int
    spread: float = 0.0


class LatencyTable(BaseModel):
    """T(engine, rows, size) of one artifact, measured on `host` with `threads` intra-op threads.

    `verdict` is INVALID when the measurement breaks its own rules (`enginehouse_build.judge.profile`); `reason` says
    which. A QUICK one was made in a hurry, as was asked for. Both are still the best guess there is, so they are used,
    and shown as what they are; only VALID ones decide between artifacts.
    Large sizes of slow models may have fewer points than small ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    artifact: str
    threads: int
    host: str
    points: tuple[LatencyPoint, ...] = Field(min_length=1)
    verdict: Verdict = "VALID"
    reason: str = ""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Measured sizes, ascending; empty for a model without a cost axis."""
        return tuple(curve.size for curve in self._curves if curve.size)

    def at(self, size: int | None) -> tuple[LatencyPoint, ...]:
        """The points measured at exactly this size (None: of a model without a cost axis), by ascending rows."""
        return tuple(sorted((point for point in self.points if point.size == size), key=lambda point: point.rows))

    def predict_ms(self, rows: int, size: int | None = None) -> float:
        """Time of a call, linear between measured points: along the rows at each size, then along the size.

        Beyond the largest measured value proportional to it (compute-bound), below the smallest one that one's time
        (overhead-bound). Without `size` the largest measured one counts.
        """
        # A router asks the same few questions for every request.
        key = rows, size
        known_ms = self._known.get(key)
        if known_ms is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            known_ms = self._known[key] = self._predict_ms(rows, size)
        return known_ms

    def _predict_ms(self, rows: int, size: int | None) -> float:
        curves = self._curves
        if size is None or (len(curves) == 1 and not curves[0].size):
            return _interpolated(rows, curves[-1].rows, curves[-1].times)
        return _interpolated(size, self.sizes, [_interpolated(rows, curve.rows, curve.times) for curve in curves])

    def rows_per_s(self, rows: int, size: int | None = None) -> float:
        """Throughput of one engine that runs calls of `rows` rows back to back."""
        return rows / self.predict_ms(rows, size) * 1e3

    def efficient_rows(self, most: int, size: int | None = None) -> int:
        """The smallest measured number of rows whose throughput is as good as the best (`AS_GOOD`).

        Larger batches gain nothing and make everybody in them wait; on CPUs they may even be slower, when their
        activations no longer fit the caches. `most` where the throughput still rises at the end of the table.
        """
        curve = next((curve for curve in self._curves if curve.size == size), self._curves[-1])
        rates = [(rows / time_ms, rows) for rows, time_ms in zip(curve.rows, curve.times, strict=True)]
        enough = AS_GOOD * max(rate for rate, _ in rates)
        best = min(rows for rate, rows in rates if rate >= enough)
        return most if best == curve.rows[-1] else best

    @cached_property
    def _known(self) -> dict[tuple[int, int | None], float]:
        return {}

    @cached_property
    def _curves(self) -> list[_Curve]:
        # Sorted once, because a router predicts for every request.
        ordered = sorted(self.points, key=lambda point: (point.size or 0, point.rows))
        curves = []
        for size, points in groupby(ordered, key=lambda point: point.size or 0):
            known = [(point.rows, point.median_ms) for point in points]
            curves.append(_Curve(size, [rows for rows, _ in known], [time for _, time in known]))
        return curves


class _Curve(NamedTuple):
    """Medians over rows at one size; size 0 stands for a model without a cost axis."""

    size: int
    rows: list[int]
    times: list[float]


def _interpolated(at: int, known: Sequence[int], times: Sequence[float]) -> float:
    """`times` at `at`; `known` ascends."""
    if at >= known[-1]:
        return times[-1] * (at / known[-1])
    above = bisect_left(known, at)
    if above == 0 or known[above] == at:
        return times[above]
    share = (at - known[above - 1]) / (known[above] - known[above - 1])
    return times[above - 1] + share * (times[above] - times[above - 1])
