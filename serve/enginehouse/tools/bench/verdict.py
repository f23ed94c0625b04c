"""The verdict on a figure: VALID, or INVALID with every rule that it breaks.

The counts are those that MLPerf's early stopping asks for at least (inference rules, appendix on early stopping): 64
queries for a 90th percentile and 662 for a 99th. MLPerf measures for ten minutes; the duration here is for development,
and the windows tell whether it was long enough: like perf_analyzer's `--stability-percentage`, they agree within 10 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from enginehouse.tools.bench.figure import Figure
from enginehouse.tools.bench.limit import Limit

#: Answers that a percentile needs at least.
ANSWERS_FOR = {90: 64, 99: 662}


@dataclass(frozen=True, slots=True)
class Rules:
    """What a VALID figure keeps. Shares are of 1.

    `spread` is (most - least) / least of the windows' throughput. An open loop may send late (99th percentile) by
    `late` of its p99 latency, or by `late_ms`. `foreign` is the share of all CPUs that other processes may use.
    """

    seconds: float = 5.0
    spread: float = 0.10
    generator_busy: float = 0.80
    late: float = 0.10
    late_ms: float = 1.0
    foreign: float = 0.10


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` says what makes it INVALID; none means VALID."""

    reasons: tuple[str, ...] = field(default=())

    @property
    def valid(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        return "VALID" if self.valid else f"INVALID: {'; '.join(self.reasons)}"


def judge(figure: Figure, rules: Rules | None = None, limit: Limit | None = None) -> Verdict:
    """The verdict by `rules` (the usual ones by default); with `limit` also on what the figure is compared to."""
    rules = rules or Rules()
    reasons = [*_amount(figure, rules), *_answers(figure), *_windows(figure, rules), *_generator(figure, rules)]
    if figure.usage.foreign_share > rules.foreign:
        reasons.append(
            f"other processes used {figure.usage.foreign_share:.0%} of the CPUs, at most {rules.foreign:.0%} may be"
        )
    if limit is not None and limit.spread > rules.spread:
        reasons.append(
            f"the in-process limit lies between {min(limit.windows):,.1f} and {max(limit.windows):,.1f} rows/s, "
            f"more than {rules.spread:.0%} apart"
        )
    return Verdict(tuple(reasons))


def _amount(figure: Figure, rules: Rules) -> list[str]:
    reasons = []
    if figure.seconds < rules.seconds:
        reasons.append(f"measured for {figure.seconds:.1f} s, at least {rules.seconds:g} s are needed")
    tail = 90 if figure.scenario == "single-stream" else 99
    if figure.scenario != "offline" and figure.answers < ANSWERS_FOR[tail]:
        needed = ANSWERS_FOR[tail]
        remedy = f" (--seconds {ceil(figure.seconds * needed / figure.answers)})" if figure.answers else ""
        reasons.append(f"{figure.answers} answers, a p{tail} needs {needed}{remedy}")
    return reasons


def _answers(figure: Figure) -> list[str]:
    reasons = []
    if figure.errors:
        example = f", such as {figure.error}" if figure.error else ""
        reasons.append(f"{figure.errors} requests failed{example}")
    if figure.bound_ms is not None and not figure.latency.p99 <= figure.bound_ms:
        reasons.append(f"p99 {figure.latency.p99:.1f} ms is above the bound of {figure.bound_ms:g} ms")
    return reasons


def _windows(figure: Figure, rules: Rules) -> list[str]:
    if not figure.windows:
        return []
    least, most = min(figure.windows), max(figure.windows)
    if least > 0 and (most - least) / least <= rules.spread:
        return []
    return [
        f"the {len(figure.windows)} windows lie between {least:,.1f} and {most:,.1f} answers/s, "
        f"more than {rules.spread:.0%} apart"
    ]


def generator_fault(figure: Figure, rules: Rules | None = None) -> str:
    """Why the load generator may be what was measured; empty when it had time to spare."""
    rules = rules or Rules()
    if figure.generator_busy > rules.generator_busy:
        return (
            f"{figure.generator} was busy for {figure.generator_busy:.0%} of the time, so it may be what was measured"
        )
    allowed = max(rules.late_ms, rules.late * figure.latency.p99)
    if figure.late_ms > allowed:
        return f"{figure.generator} sent {figure.late_ms:.1f} ms late (p99), {allowed:.1f} ms are allowed"
    return ""


def _generator(figure: Figure, rules: Rules) -> list[str]:
    reasons = [f"no higher rate was reached: {figure.limited_by}"] if figure.limited_by else []
    if fault := generator_fault(figure, rules):
        reasons.append(fault)
    return reasons
