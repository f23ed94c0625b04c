"""What came of a trace under a policy, and how ours compares with the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.replay.baselines import STATIC
from benchmarks.replay.book import Ended
from benchmarks.replay.fleet import PRICE
from benchmarks.replay.replay import Outcome
from benchmarks.replay.router import FASTEST_KIND, NAME
from benchmarks.replay.traces import Trace

#: Shares of violations this close, and costs this close as a share, count as the same: twice the standard error of
#: 90,000 requests of which 5 % break their SLO, and what seeds differ by.
SAME_SHARE, SAME_COST = 0.0015, 0.01


@dataclass(frozen=True, slots=True)
class Figure:
    """One trace under one policy.

    `late` to `lost` are shares of the requests and make up `violations`. `goodput` is answers in time per second of the
    trace, `cents` what 1000 of them cost at the price of the time in which nodes computed (inf: there were none).
    Percentiles are of answers, late ones too.
    """

    trace: str
    policy: str
    requests: int
    violations: float
    late: float
    refused: float
    expired: float
    lost: float
    goodput: float
    cents: float
    p50_ms: float
    p99_ms: float
    cpu_busy_s: float
    gpu_busy_s: float


def figure(trace: Trace, policy: str, outcome: Outcome) -> Figure:
    """The figure of an outcome with at least one request."""
    counts = np.bincount(outcome.ended, minlength=len(Ended))
    shares = {how: float(counts[how] / counts.sum()) for how in Ended}
    in_time = int(counts[Ended.IN_TIME])
    dollars = sum(PRICE[accelerator] * seconds / 3600 for accelerator, seconds in outcome.busy_s.items())
    answered = outcome.latency_s[outcome.ended <= Ended.LATE]
    p50_ms, p99_ms = np.quantile(answered, (0.5, 0.99)) * 1e3 if len(answered) else (np.inf, np.inf)
    return Figure(
        trace.name,
        policy,
        int(counts.sum()),
        1 - shares[Ended.IN_TIME],
        shares[Ended.LATE],
        shares[Ended.REFUSED],
        shares[Ended.EXPIRED],
        shares[Ended.LOST],
        in_time / trace.seconds,
        dollars * 100 / in_time * 1000 if in_time else np.inf,
        float(p50_ms),
        float(p99_ms),
        outcome.busy_s["cpu"],
        outcome.busy_s["gpu"],
    )


def beside(ours: Figure, other: Figure) -> str:
    """How ours is beside another on the same trace: in violations, then in cost."""
    more = ours.violations - other.violations
    dearer = ours.cents / other.cents - 1
    violations = "as many" if abs(more) <= SAME_SHARE else ("more" if more > 0 else "fewer")
    cost = "as dear" if abs(dearer) <= SAME_COST else ("dearer" if dearer > 0 else "cheaper")
    return f"{violations}, {cost}"


def verdict(figures: Sequence[Figure]) -> str:
    """Of one trace: `wins` with fewer violations than every other at no higher cost, else what holds beside whom.

    Beside static preference ours is also told as it is on the nodes that that uses.
    """
    by_policy = {figure.policy: figure for figure in figures}
    ours, alike, static = (by_policy.get(name) for name in (NAME, FASTEST_KIND, STATIC))
    assert ours is not None
    found = {name: beside(ours, one) for name, one in by_policy.items() if one not in (ours, alike)}
    missed = [f"{name}: {how}" for name, how in found.items() if how not in ("fewer, cheaper", "fewer, as dear")]
    told = f"does not win ({'; '.join(missed)})" if missed else "wins"
    return f"{told}; on the nodes of {STATIC}: {beside(alike, static)}" if alike and static else told
