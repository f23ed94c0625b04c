"""What one measurement found: a figure with its latencies, windows, and who used the CPU meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from enginehouse.tools.bench.usage import Usage

Scenario: TypeAlias = Literal["single-stream", "server", "offline", "closed-loop"]


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from sending a request (open loop: from when it was due) to the end of its answer."""

    p50: float
    p90: float
    p99: float
    mean: float
    worst: float

    @classmethod
    def of(cls, histogram: Mapping[float, int]) -> Latency:
        """From answers by milliseconds. All NaN when there is none."""
        return cls(
            p50=percentile(histogram, 0.50),
            p90=percentile(histogram, 0.90),
            p99=percentile(histogram, 0.99),
            mean=sum(time * count for time, count in histogram.items()) / (sum(histogram.values()) or float("nan")),
            worst=max(histogram, default=float("nan")),
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement of one server.

    `answers` were right in form and came within `seconds`; each had `rows` rows on average. `windows` are answers per
    second in equal parts of that time (open loop: none, because the arrivals set the rate). `usage` is CPU time during
    the measurement. `generator_busy` is the share of the load generator's threads that was used up; `late_ms` is the
    99th percentile of how late an open loop sent. `rate` is what an open loop was asked to send (requests/s),
    `bound_ms` the p99 that it had to keep, and `limited_by` what kept the search from a higher rate when that was not
    the server. `checked` answers were compared with the engine's own.
    """

    scenario: Scenario
    generator: str
    connections: int
    seconds: float
    answers: int
    rows: float
    errors: int
    latency: Latency
    usage: Usage
    generator_busy: float
    windows: tuple[float, ...] = ()
    error: str = ""
    late_ms: float = 0.0
    rate: float | None = None
    bound_ms: float | None = None
    limited_by: str = ""
    checked: int = 0

    @property
    def answers_per_s(self) -> float:
        return self.answers / self.seconds

    @property
    def rows_per_s(self) -> float:
        return self.answers_per_s * self.rows

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds of all serving processes for each answer, their engines' included; NaN without answers."""
        return self.usage.serving_s / self.answers * 1e3 if self.answers else float("nan")


def percentile(histogram: Mapping[float, int], share: float) -> float:
    """The smallest value that `share` of all counted values do not exceed (nearest rank); NaN when there is none."""
    needed = share * sum(histogram.values())
    reached = 0
    for value in sorted(histogram):
        reached += histogram[value]
        if reached >= needed and reached:
            return value
    return float("nan")


def counted(values: Iterable[float]) -> dict[float, int]:
    """A histogram of `values`."""
    histogram: dict[float, int] = {}
    for value in values:
        histogram[value] = histogram.get(value, 0) + 1
    return histogram
