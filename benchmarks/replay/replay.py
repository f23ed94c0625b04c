"""One trace under one policy, from the first arrival until the last request has ended."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.replay.baselines import BASELINES
from benchmarks.replay.book import Book, Request
from benchmarks.replay.clock import Clock
from benchmarks.replay.fleet import Fleet
from benchmarks.replay.machines import Machines
from benchmarks.replay.router import FASTEST_KIND, NAME, OfFastestKind, Routers
from benchmarks.replay.traces import Trace
from enginehouse.contract.manifest import Accelerator


class Dispatcher(Protocol):
    """What decides where requests are answered."""

    def arrive(self, request: Request) -> None: ...


class Maker(Protocol):
    """Makes a dispatcher for one replay."""

    def __call__(self, clock: Clock, fleet: Fleet, machines: Machines, book: Book, seed: int) -> Dispatcher: ...


def policies(routers: int) -> Mapping[str, Maker]:
    """By name, ours first: that of so many routers, on all nodes and on those that static preference uses.

    The baselines know everything, as one balancer would.
    """
    ours = functools.partial(Routers, routers)
    return {NAME: ours, FASTEST_KIND: functools.partial(ours, policy=OfFastestKind()), **BASELINES}


@dataclass(frozen=True, eq=False, slots=True)
class Outcome:
    """How every request of a trace ended (`Ended`), seconds until its answer if there was one, and the work for it.

    `busy_s` is how long the nodes of each kind computed, all together.
    """

    ended: np.ndarray
    latency_s: np.ndarray
    busy_s: Mapping[Accelerator, float]


def replay(fleet: Fleet, trace: Trace, make: Maker, seed: int) -> Outcome:
    """Have all arrivals of `trace` answered by what `make` makes; the same for the same seed."""
    clock = Clock()
    machines = Machines(clock, fleet, seed)
    book = Book(clock, len(trace.at_s))
    dispatcher = make(clock, fleet, machines, book, seed + 1)

    def arrive(number: int) -> None:
        if number + 1 < len(trace.at_s):
            clock.at(trace.at_s[number + 1], lambda: arrive(number + 1))
        model, rows = fleet.models[trace.models[number]], trace.rows[number]
        dispatcher.arrive(Request(number, model, rows, clock.now, clock.now + model.budget_s(rows)))

    if trace.at_s:
        clock.at(trace.at_s[0], lambda: arrive(0))
    if loss := trace.loss:
        clock.at(loss.at_s, lambda: machines.lose(loss.nodes, loss.until_s))
    clock.run()
    busy_s: dict[Accelerator, float] = {"cpu": 0.0, "gpu": 0.0}
    for machine in machines.all:
        busy_s[machine.node.accelerator] += machine.busy_s
    return Outcome(np.array(book.ended), np.array(book.latency_s), busy_s)
