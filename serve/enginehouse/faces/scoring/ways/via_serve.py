"""Answers from the running application: through its routers, after everybody else."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from enginehouse.contract.config import LAST
from enginehouse.contract.errors import DeadlineExceeded, EnginehouseError, Overloaded
from enginehouse.contract.tensors import Tensors
from enginehouse.faces.scoring.answering import Answered

#: Seconds that a request may wait, and how often one that may pass later is sent again, after pauses that grow.
_DEADLINE_S = 60.0
_TRIES = 5
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
#: Seconds for which rows are sent again that there is no room or no time for, because others ask: a job has to wait.
_BUSY_S = 600.0
#: Requests of one scorer at a time: some are computed while the next ones are on their way.
_IN_FLIGHT = 8
#: A request that took longer than this is followed by smaller ones: what is lost on its way is computed again.
_SLOW_S = 2.0


@dataclass(frozen=True, slots=True)
class ThroughServe:
    """Makes a `ViaServe` in the process that it is called in; picklable."""

    model: str
    version: str
    rows: int

    def __call__(self) -> ViaServe:
        return ViaServe(self.model, self.version, self.rows)


class ViaServe:
    """Answering through this process's own router (see `Client`), with the last priority.

    Pools compute such requests in what all others leave (see `pools.yielding`), so nothing is held back here. As that
    may be little, `batch_rows` gets smaller while requests take long.
    """

    def __init__(self, model: str, version: str, rows: int, client: Any = None) -> None:
        if client is None:
            # Here, since Ray reads its environment when it is imported.
            from enginehouse.faces.python.client import Client

            client = Client()
        self._client = client
        self._model, self._version = model, version
        self.batch_rows, self.in_flight = rows, _IN_FLIGHT
        self._most_rows = rows

    async def answer(self, inputs: Tensors) -> Answered:
        """See `Answering`. Also raises DeadlineExceeded when fewer rows, of which `batch_rows` says how many, may be in
        time."""
        rows = len(next(iter(inputs.values()))) if self._most_rows > 1 else 1
        began, attempt = time.monotonic(), 0
        while True:
            asked_at = time.monotonic()
            try:
                answer = await self._client.answer_async(
                    self._model, inputs, version=self._version, deadline_s=_DEADLINE_S, priority=LAST
                )
            except EnginehouseError as error:
                attempt += 1
                is_busy = isinstance(error, Overloaded | DeadlineExceeded)
                if not error.retryable or (time.monotonic() - began > _BUSY_S if is_busy else attempt == _TRIES):
                    raise
                if isinstance(error, DeadlineExceeded) and rows > 1:
                    self.batch_rows = max(1, min(self.batch_rows, rows // 4))
                    raise
                await asyncio.sleep(min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** (attempt - 1)))
            else:
                self._learn(rows, time.monotonic() - asked_at)
                return Answered(answer["outputs"], answer["backend"], answer["version"])

    def close(self) -> None:
        """Nothing: the router is the process's."""

    def _learn(self, rows: int, seconds: float) -> None:
        if seconds > _SLOW_S:
            self.batch_rows = max(1, min(self.batch_rows, rows // 2))
        elif rows >= self.batch_rows:
            self.batch_rows = min(self._most_rows, 2 * self.batch_rows)
