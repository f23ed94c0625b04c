"""The load generator in Python: what it is asked to send and what it reports. `sender` is its process.

An open loop sends each request when it is due, whatever became of the ones before it, and times it from that moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import psutil

from enginehouse.contract.errors import NoBackend
from enginehouse.engines.worker_process import WorkerDied, WorkerProcess
from enginehouse.tools.bench import usage
from enginehouse.tools.bench.answers import Expected


@dataclass(frozen=True, slots=True)
class Order:
    """Requests to send: POST of `bodies[i]` to `url`, or to the i-th of several.

    With `due_s` (seconds from the start) an open loop that sends `bodies[which[i]]` at `due_s[i]`; otherwise a closed
    loop of `connections` that ends after `seconds`. With `expected`, one for each body, every answer is compared.
    A server that lets more than `most_waiting` requests of an open loop wait has fallen behind; the rest is not sent.
    """

    url: Sequence[str] | str
    headers: Sequence[Mapping[str, str]] | Mapping[str, str]
    bodies: Sequence[bytes]
    due_s: Sequence[float] = ()
    which: Sequence[int] = ()
    connections: int = 0
    seconds: float = 0.0
    expected: Sequence[Mapping[str, Expected]] = ()
    most_waiting: int = 1000

    def url_of(self, body: int) -> str:
        return self.url if isinstance(self.url, str) else self.url[body]

    def headers_of(self, body: int) -> Mapping[str, str]:
        return self.headers if isinstance(self.headers, Mapping) else self.headers[body]


class Sent(NamedTuple):
    """One request: when it was due, how much later it was sent, and what it took from when it was due."""

    body: int
    due_s: float
    late_s: float
    latency_s: float
    error: str | None

    @property
    def ended_s(self) -> float:
        return self.due_s + self.latency_s


@dataclass(slots=True)
class Result:
    """What became of an order. `wrong` says what is wrong with answers that had another value than expected."""

    requests: list[Sent] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    checked: int = 0
    unsent: int = 0


def run(order: Order, processes: Sequence[psutil.Process]) -> tuple[Result, usage.Usage]:
    """Have a child do `order`; the CPU time is from its first request to its last answer. Raises NoBackend."""
    with WorkerProcess("enginehouse.tools.bench.sender") as sender:
        try:
            sender.send(order)
            sender.receive()
            before = usage.read(processes)
            sender.send(None)
            sender.receive()
            used = before.until(usage.read(processes))
            return sender.receive(), used
        except WorkerDied as died:
            raise NoBackend(f"the load generator {died}") from None
