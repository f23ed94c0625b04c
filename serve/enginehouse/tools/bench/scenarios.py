"""The scenarios, as MLPerf's LoadGen defines them, and closed loops of several connections.

| scenario | requests | figure |
|---|---|---|
| single-stream | one at a time: the next when the last is answered | p90 |
| server | at random times (Poisson), whatever was answered | the highest rate whose p99 keeps its bound |
| offline | all there at once: full batches, a few under way at any time | rows/s |
| closed-loop | so many connections, one request under way on each | answers/s, p50, p99 |

A trace takes the place of the Poisson arrivals: it is replayed once, as it is. MLPerf's single query of 24,576 samples
is no HTTP request; full batches on OFFLINE_CONNECTIONS connections keep every engine busy without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from enginehouse.contract.errors import ParityFailed
from enginehouse.tools.bench import arrivals, generator, verdict
from enginehouse.tools.bench.arrivals import Trace
from enginehouse.tools.bench.figure import Figure, Latency, Scenario, counted
from enginehouse.tools.bench.load import closed_loop
from enginehouse.tools.bench.subject import Message, Subject

OFFLINE_CONNECTIONS = 4
WARM_UP_S = 2.0
#: p99 bound of the server scenario when none is given: so many times the p50 of one request at a time.
BOUND = 10.0
#: The search stops this close to a rate that does not hold.
PRECISION = 0.05
#: The rate that was found is measured again, for up to so many times as long as others so that it has a p99.
MOST_LONGER = 6.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `seconds` are for one figure (in the server scenario for each rate that is tried)."""

    scenarios: Sequence[Scenario] = ("single-stream", "server", "offline", "closed-loop")
    connections: Sequence[int] = (1, 8, 32, 64)
    rows: int = 1
    seconds: float = 10.0
    p99_ms: float | None = None
    trace: Trace | None = None


def run(subject: Subject, plan: Plan, tell: Callable[[str], None]) -> Iterator[Figure]:
    """The figures of `plan`, one after the other, each between two probes. Raises ParityFailed for a wrong answer."""
    for scenario in plan.scenarios:
        if scenario == "server":
            yield _server(subject, plan, tell)
        elif scenario == "offline":
            yield _closed(subject, "offline", OFFLINE_CONNECTIONS, subject.max_rows, plan.seconds, tell)
        else:
            for connections in (1,) if scenario == "single-stream" else plan.connections:
                yield _closed(subject, scenario, connections, plan.rows, plan.seconds, tell)


def _closed(
    subject: Subject, scenario: Scenario, connections: int, rows: int, seconds: float, tell: Callable[[str], None]
) -> Figure:
    message = subject.message(rows)
    load = (subject.url, message.body, message.headers, connections)
    closed_loop(*load, WARM_UP_S, ())
    subject.probe(rows)
    figure = closed_loop(*load, seconds, subject.processes, rows=rows, scenario=scenario)
    subject.probe(rows)
    tell(
        f"{scenario}, {connections} connections: {figure.answers_per_s:,.1f} answers/s, "
        f"p50 {figure.latency.p50:.1f} ms, p99 {figure.latency.p99:.1f} ms"
    )
    return figure


def _server(subject: Subject, plan: Plan, tell: Callable[[str], None]) -> Figure:
    subject.probe(plan.rows)
    figure = _replay(subject, plan, plan.trace) if plan.trace else _search(subject, plan, tell)
    subject.probe(plan.rows)
    return figure


def _replay(subject: Subject, plan: Plan, trace: Trace) -> Figure:
    messages = {rows: subject.messages(rows) for rows in sorted(set(trace.rows))}
    first = dict(zip(messages, np.cumsum([0, *(len(some) for some in messages.values())]).tolist(), strict=False))
    which = [first[rows] + number % len(messages[rows]) for number, rows in enumerate(trace.rows)]
    every = [message for some in messages.values() for message in some]
    figure = open_loop(subject, every, trace.due_s, which, plan.p99_ms)
    return replace(figure, rows=sum(trace.rows) / len(trace.rows), rate=trace.rate)


def _search(subject: Subject, plan: Plan, tell: Callable[[str], None]) -> Figure:
    messages = subject.messages(plan.rows)
    alone, together = (
        closed_loop(subject.url, messages[0].body, messages[0].headers, connections, WARM_UP_S, ())
        for connections in (1, 8)
    )
    bound = plan.p99_ms or BOUND * alone.latency.p50
    if plan.p99_ms is None:
        tell(f"server: the bound is {bound:.1f} ms, {BOUND:g} x the p50 of one at a time (--p99-ms chooses another)")

    def attempt(rate: float, seconds: float) -> Figure:
        due = arrivals.poisson(rate, seconds)
        figure = open_loop(subject, messages, due, [number % len(messages) for number in range(len(due))], bound)
        told = "holds" if _holds(figure) else figure.error or "does not hold"
        tell(f"server: {rate:,.1f} requests/s for {seconds:.0f} s: p99 {figure.latency.p99:.1f} ms: {told}")
        return replace(figure, rows=plan.rows, rate=rate)

    tried: dict[float, Figure] = {}

    def holds(rate: float) -> bool:
        tried[rate] = attempt(rate, plan.seconds)
        return _holds(tried[rate])

    # Below some ten requests there is nothing to tell a rate by.
    best = arrivals.highest_rate(holds, together.answers_per_s / 2, lowest=10 / plan.seconds, precision=PRECISION)
    if best == 0.0:
        return tried[min(tried)]
    above = min((rate for rate in tried if rate > best), default=None)
    late = verdict.generator_fault(tried[above]) if above else f"every rate that was tried held, up to {best:,.0f}/s"
    # One of many short trials may have been lucky.
    for rate in (best, best * (1 - PRECISION), best * (1 - 2 * PRECISION)):
        figure = attempt(rate, _confirming_s(rate, plan.seconds))
        if _holds(figure):
            break
    return replace(figure, limited_by=late)


def _holds(figure: Figure) -> bool:
    return not figure.errors and figure.bound_ms is not None and figure.latency.p99 <= figure.bound_ms


def _confirming_s(rate: float, seconds: float) -> float:
    """Long enough for a p99, within reason: low rates would take minutes."""
    return min(max(seconds, 1.1 * verdict.ANSWERS_FOR[99] / rate), MOST_LONGER * seconds)


def open_loop(
    subject: Subject, messages: Sequence[Message], due_s: Sequence[float], which: Sequence[int], bound_ms: float | None
) -> Figure:
    """Send `messages[which[i]]` at `due_s[i]` and compare every answer. Raises ParityFailed for a wrong one."""
    rate = len(due_s) / max(due_s[-1], 1e-9)
    waiting = max(100, round(4 * rate * bound_ms * 1e-3)) if bound_ms else 1000
    order = generator.Order(
        subject.url,
        [message.headers for message in messages],
        [message.body for message in messages],
        due_s=due_s,
        which=which,
        expected=[message.expected for message in messages],
        most_waiting=waiting,
    )
    result, used = generator.run(order, subject.processes)
    if result.wrong:
        raise ParityFailed(f"{subject.url} gave {len(result.wrong)} wrong answers, such as to {result.wrong[0]}")
    good = [request for request in result.requests if request.error is None]
    failed = [request.error for request in result.requests if request.error is not None]
    if result.unsent:
        failed.append(f"it fell behind: {waiting} requests were waiting, so {result.unsent} more were not sent")
    late = counted(request.late_s * 1e3 for request in result.requests)
    return Figure(
        scenario="server",
        generator="python",
        connections=0,
        seconds=max((request.ended_s for request in result.requests), default=due_s[-1]),
        answers=len(good),
        rows=1,
        errors=len(failed),
        error=failed[-1] if failed else "",
        latency=Latency.of(counted(request.latency_s * 1e3 for request in good)),
        usage=used,
        generator_busy=used.own_s / used.seconds,
        late_ms=Latency.of(late).p99,
        bound_ms=bound_ms,
        checked=result.checked,
    )
