"""The turns of a comparison as a table for people and as JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from benchmarks.peers import Conditions
from benchmarks.peers.turn import MANY, ONE, Turn
from enginehouse.tools.bench import Rules, judge
from enginehouse.tools.bench.report import overhead_ms

#: Throughput of a contestant that was started anew: (most - least) / least of its rounds.
SPREAD = 0.20


def table(conditions: Conditions, turns: Mapping[str, Sequence[Turn]]) -> Group:
    """A row for each contestant, the fastest first; figures are medians over its rounds. Below, what is INVALID."""
    some = next(turn for of_one in turns.values() for turn in of_one)
    limits = [turn.limit for of_one in turns.values() for turn in of_one]
    title = (
        f"{conditions.model}: in process {median(limit.rows_per_s for limit in limits):,.1f} rows/s "
        f"(engines x threads: {some.limit.engines} x {some.limit.threads}), "
        f"{median(limit.cpu_ms for limit in limits):.3g} CPU ms a row"
    )
    shown = Table(
        title=title,
        caption=f"{MANY} connections, and {ONE}; CPU ms: of all its processes for an answer, without the engine's",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("contestant", no_wrap=True)
    for name in ("answers/s", "rounds", "of limit", "p50 ms", "p99 ms", f"p50 at {ONE}", "CPU ms"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    below = [
        f"of limit: round {turn.round}, the limit's windows are {turn.limit.spread:.0%} apart, so its share is INVALID"
        for turn in max(turns.values(), key=len)
        if turn.limit.spread > Rules().spread
    ]
    for name, of_one in sorted(turns.items(), key=lambda entry: -_throughput(entry[1])):
        reasons = invalid(of_one)
        below += [f"{name}: {reason}" for reason in reasons]
        verdict = "not run" if not _throughput(of_one) else "INVALID" if reasons else "VALID"
        shown.add_row(name, *_cells([turn for turn in of_one if turn.figures]), verdict)
    return Group(shown, *below, "")


def invalid(turns: Sequence[Turn]) -> list[str]:
    """What makes a contestant's figures INVALID: reasons of single rounds, and rounds that do not agree."""
    measured = [turn.figures[0].answers_per_s for turn in turns if turn.figures]
    if not measured:
        return sorted({turn.failure for turn in turns})
    reasons = [f"round {turn.round}, {reason}" for turn in turns for reason in turn.reasons()]
    if max(measured) - min(measured) > SPREAD * min(measured):
        reasons.append(f"rounds lie between {min(measured):,.1f} and {max(measured):,.1f} answers/s")
    return reasons


def lines(name: str, version: str, conditions: Conditions, turn: Turn, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One JSON object for each figure of a turn, or one with the failure; `run` is in all of them."""
    common = {
        **run,
        "model": conditions.model,
        "contestant": name,
        "version": version,
        "workers": conditions.workers,
        "threads": conditions.threads,
        "max_batch": conditions.max_batch,
        "round": turn.round,
        "limit": asdict(turn.limit),
    }
    if turn.failure:
        return [{**common, "failure": turn.failure}]
    return [
        {
            **common,
            **asdict(figure),
            "answers_per_s": figure.answers_per_s,
            "share_of_limit": figure.answers_per_s / turn.limit.rows_per_s,
            "cpu_ms_over_engine": overhead_ms(figure, turn.limit),
            "verdict": str(judge(figure, limit=turn.limit)),
        }
        for figure in turn.figures
    ]


def _throughput(turns: Sequence[Turn]) -> float:
    return median([turn.figures[0].answers_per_s for turn in turns if turn.figures] or [0.0])


def _cells(turns: Sequence[Turn]) -> list[str]:
    if not turns:
        return [""] * 7

    def middle(of: Callable[[Turn], float]) -> float:
        return median(of(turn) for turn in turns)

    rates = [turn.figures[0].answers_per_s for turn in turns]
    return [
        f"{_throughput(turns):,.1f}",
        f"{min(rates):,.0f}-{max(rates):,.0f}",
        f"{100 * middle(lambda turn: turn.figures[0].answers_per_s / turn.limit.rows_per_s):.3g}%",
        f"{middle(lambda turn: turn.figures[0].latency.p50):.2f}",
        f"{middle(lambda turn: turn.figures[0].latency.p99):.2f}",
        f"{middle(lambda turn: turn.figures[1].latency.p50):.2f}",
        f"{middle(lambda turn: overhead_ms(turn.figures[0], turn.limit)):.3g}",
    ]
