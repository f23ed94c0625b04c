"""Answers from the running application: through its routers, after everybody else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from enginehouse.contract.config import LAST
from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.tensors import Tensors
from enginehouse.faces.scoring.answering import Answered

#: Seconds that a request may wait, and how often one that may pass later is sent again, after pauses that grow.
_DEADLINE_S = 60.0
_TRIES = 5
_PAUSE_S = 0.5
#: Requests of one scorer at a time, at most: one is computed while the next is on its way.
_MOST = 4
#: While requests wait longer for their turn than this share of the time that they take to compute, fewer are sent.
_PATIENCE = 3.0


@dataclass(frozen=True, slots=True)
class ThroughServe:
    """Makes a `ViaServe` in the process that it is called in; picklable."""

    model: str
    version: str
    rows: int

    def __call__(self) -> ViaServe:
        return ViaServe(self.model, self.version, self.rows)


class ViaServe:
    """Answering through this process's own router (see `Client`), with the lowest priority there is.

    It yields to online traffic: requests wait at the pools behind all others, and as the pools publish how long they
    waited, fewer are sent at a time, down to one.
    """

    def __init__(self, model: str, version: str, rows: int) -> None:
        # Here, since Ray reads its environment when it is imported.
        from enginehouse.faces.python.client import Client

        self._client = Client()
        self._model, self._version = model, version
        self.batch_rows, self.in_flight = rows, _MOST
        self._allowed, self._under_way = float(_MOST), 0
        self._changed = asyncio.Condition()

    async def answer(self, inputs: Tensors) -> Answered:
        """See `Answering`."""
        for attempt in range(_TRIES):
            try:
                return await self._ask(inputs)
            except EnginehouseError as error:
                if not error.retryable or attempt == _TRIES - 1:
                    raise
            self._allowed = max(1.0, self._allowed / 2)
            await asyncio.sleep(_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Nothing: the router is the process's."""

    async def _ask(self, inputs: Tensors) -> Answered:
        async with self._changed:
            await self._changed.wait_for(lambda: self._under_way < max(1, int(self._allowed)))
            self._under_way += 1
        try:
            answer = await self._client.answer_async(
                self._model, inputs, version=self._version, deadline_s=_DEADLINE_S, priority=LAST
            )
        finally:
            async with self._changed:
                self._under_way -= 1
                self._changed.notify_all()
        if answer["queue_ms"] > _PATIENCE * max(answer["compute_ms"], 1.0):
            self._allowed = max(1.0, self._allowed - 0.5)
        else:
            self._allowed = min(float(_MOST), self._allowed + 0.25)
        return Answered(answer["outputs"], answer["backend"], answer["version"])
