"""The book: how each request ended, and when."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from enum import IntEnum

from benchmarks.replay.clock import Clock
from benchmarks.replay.fleet import Model
from enginehouse.routing.policy import HOP_MS


class Ended(IntEnum):
    """How a request ended. All but the first break its SLO."""

    IN_TIME = 0
    LATE = 1
    REFUSED = 2
    #: Dropped, because its deadline had passed when its turn came.
    EXPIRED = 3
    #: With a node, and nobody else could answer in time.
    LOST = 4


@dataclass(slots=True, eq=False)
class Request:
    """One request; times in seconds."""

    number: int
    model: Model
    rows: int
    arrived: float
    deadline: float


class Book:
    """Every request ends once. Answers reach the caller a hop after they were computed."""

    def __init__(self, clock: Clock, requests: int) -> None:
        self._clock = clock
        #: By request, -1 while it is under way.
        self.ended = array("b", [-1]) * requests
        #: Of those that were answered, also late.
        self.latency_s = array("d", [0.0]) * requests

    def answer(self, request: Request) -> None:
        """It is answered now."""
        at = self._clock.now + HOP_MS / 1e3
        self.latency_s[request.number] = at - request.arrived
        self.end(request, Ended.IN_TIME if at <= request.deadline else Ended.LATE)

    def end(self, request: Request, how: Ended) -> None:
        """It ends now. Raises RuntimeError when it has ended before."""
        if self.ended[request.number] >= 0:
            raise RuntimeError(f"request {request.number} ended twice, at last {how.name}")
        self.ended[request.number] = how
