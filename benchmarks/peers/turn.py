"""One turn: a contestant is started, checked, warmed up, measured at two concurrencies, checked again and ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from benchmarks.peers import Conditions, Contestant, NotRun, NotStarted, decode, encode
from benchmarks.peers.process import Process, running
from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.parity import LIMITS, compare
from enginehouse.contract.tensors import Tensors
from enginehouse.tools.bench import closed_loop, judge
from enginehouse.tools.bench.figure import Figure
from enginehouse.tools.bench.limit import Limit
from enginehouse.tools.bench.subject import ask

#: Connections: as many as keep every contestant busy, and one, whose latency is the way there and back.
MANY, ONE = 32, 1
#: A row and the engine's own answer to it.
Probe = tuple[Tensors, Tensors]


@dataclass(frozen=True, slots=True)
class Turn:
    """One contestant in one round: its figures at MANY and ONE connections, or the `failure` that left it without.

    `limit` is what the engines reached by themselves in that round.
    """

    round: int
    limit: Limit
    figures: tuple[Figure, ...] = ()
    failure: str = ""

    def reasons(self) -> list[str]:
        """What makes its figures INVALID, the limit apart; nothing when they are VALID."""
        if self.failure:
            return [self.failure]
        judged = {figure.connections: judge(figure) for figure in self.figures}
        return [f"at {number}: {'; '.join(verdict.reasons)}" for number, verdict in judged.items() if not verdict.valid]


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds of load before the measurements, and of the one at MANY connections; ONE takes half as long."""

    warm_up: float
    measure: float


def take(
    number: int,
    limit: Limit,
    contestant: Contestant,
    python: Path,
    conditions: Conditions,
    port: int,
    probes: Sequence[Probe],
    durations: Durations,
) -> Turn:
    """The turn of `contestant` in round `number`. A wrong answer, or none, is a failure of the turn."""
    failure = ""
    # Once more: on busy cores PyTriton's Triton sometimes connects to PyTriton before that listens.
    for _ in range(2):
        try:
            with running(contestant, python, conditions, port) as process:
                return Turn(number, limit, _measure(process, probes, durations))
        except NotStarted as error:
            failure = str(error)
        except (NotRun, EnginehouseError) as error:
            return Turn(number, limit, failure=str(error))
    return Turn(number, limit, failure=failure)


def _measure(process: Process, probes: Sequence[Probe], durations: Durations) -> tuple[Figure, Figure]:
    url = process.url
    body, headers = encode(process.contestant, probes[0][0])
    process.until_ready(body, headers)
    _check(process, probes)
    closed_loop(url, body, headers, MANY, durations.warm_up, process.processes())
    many = closed_loop(url, body, headers, MANY, durations.measure, process.processes())
    one = closed_loop(url, body, headers, ONE, durations.measure / 2, process.processes(), scenario="single-stream")
    _check(process, probes)
    return many, one


def _check(process: Process, probes: Sequence[Probe]) -> None:
    """Compare answers with the engine's own. Raises NotRun for a wrong one."""
    # Two engines of one artifact, in batches of other sizes: it is not a matter of precision.
    allowed = LIMITS["fp32"].relative_l2
    for row, expected in probes:
        try:
            content, headers = ask(process.url, *encode(process.contestant, row))
            distance = compare(decode(process.contestant, content, headers, expected), expected).relative_l2
        except (HTTPException, ValueError, EnginehouseError) as error:
            raise NotRun(f"no answer to a probe: {error} (see {process.log})") from None
        if distance > allowed:
            raise NotRun(f"a wrong answer: {distance:.1e} (relative L2) off the engine's own, at most {allowed:.0e}")
