"""Telemetry: counts of requests and their seconds, for Ray's Prometheus endpoint on the node.

Counted in this process and passed to Ray once a second: updating a Ray metric takes as long as a small model's answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict

from ray.serve import metrics

logger = logging.getLogger("ray.serve")

PERIOD_S = 1.0
#: How a request ends whose caller has gone: while it is computed, and while its body arrives (Starlette).
_GONE = frozenset({"CancelledError", "ClientDisconnect"})
_TAGS = ("face", "model", "version", "backend", "outcome")


class RequestMetrics:
    """`enginehouse_requests` and `enginehouse_request_seconds` by face, model, version, backend and outcome.

    `outcome` is `ok`, `cancelled` when the caller has gone, or the class of the error. `backend` is empty for a request
    that none answered, and `model` for one that named no model of the catalog: no label holds what a client made up.
    Rates and mean latencies come from the two counters.
    """

    def __init__(self) -> None:
        self._requests = metrics.Counter("enginehouse_requests", "Requests that were answered or refused.", _TAGS)
        self._seconds = metrics.Counter("enginehouse_request_seconds", "Seconds that they took in the router.", _TAGS)
        self._counts: defaultdict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._reporter: asyncio.Task[None] | None = None

    def record(self, face: str, model: str, version: str, backend: str, outcome: str, seconds: float) -> None:
        """Count one request."""
        counted = self._counts[face, model, version, backend, outcome]
        counted[0] += 1
        counted[1] += seconds
        if self._reporter is None:
            self._reporter = asyncio.create_task(self._report())

    @staticmethod
    def outcome_of(kind: type[BaseException]) -> str:
        """The `outcome` of a request that ended with an error of this class."""
        return "cancelled" if kind.__name__ in _GONE else kind.__name__

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            counts, self._counts = self._counts, defaultdict(lambda: [0.0, 0.0])
            for values, (requests, seconds) in counts.items():
                tags = dict(zip(_TAGS, values, strict=True))
                try:
                    self._requests.inc(requests, tags)
                    # Ray's counters take nothing but more: what is refused at once took no time.
                    if seconds > 0:
                        self._seconds.inc(seconds, tags)
                except Exception:
                    # One count that Ray does not take must not be the last that it gets.
                    logger.exception("requests could not be counted: %s", tags)
