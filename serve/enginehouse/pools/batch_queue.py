"""The batch queue behind the waiting room: calls that enter it together are computed together.

In a replica it is `@serve.batch`. That asks the replica it is in, and importing it takes a second of CPU time; so an
engine outside of Serve, as batch scoring has them, has `Together`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.tensors import Computed
from enginehouse.pools.line import Item

#: Computes items as one batch; an answer each, errors returned.
Run: TypeAlias = Callable[[list[Item]], Awaitable[list[Computed | EnginehouseError]]]


class Queue(Protocol):
    """Called with an item it returns that item's answer, computed with those that enter in the same turn."""

    async def __call__(self, item: Item, /) -> Computed | EnginehouseError:
        """The answer; an error is returned."""
        ...

    def set_max_batch_size(self, calls: int) -> None:
        """Limit the calls of a batch."""
        ...


def serve_queue(run: Run, calls: int, lanes: int) -> Queue:
    """Serve's own: batches of up to so many calls, on so many lanes. Never waits for more calls than there are."""
    from ray import serve

    # serve.batch keeps one queue per decorated function, hence a function per model.
    async def batched(items: list[Item]) -> list[Computed | EnginehouseError]:
        return await run(items)

    # It asks for the signature at each call, which is a tenth of a small model's call unless it is at hand.
    batched.__signature__ = inspect.signature(batched)  # type: ignore[attr-defined]
    queue: Queue = serve.batch(max_batch_size=calls, batch_wait_timeout_s=0.0, max_concurrent_batches=lanes)(batched)
    return queue


class Together:
    """All calls that enter in one turn of the event loop are one batch: the waiting room lets in what fits."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._entered: list[tuple[Item, asyncio.Future[Computed | EnginehouseError]]] = []
        self._computing: set[asyncio.Task[None]] = set()

    async def __call__(self, item: Item, /) -> Computed | EnginehouseError:
        loop = asyncio.get_running_loop()
        if not self._entered:
            loop.call_soon(self._go)
        answered: asyncio.Future[Computed | EnginehouseError] = loop.create_future()
        self._entered.append((item, answered))
        return await answered

    def set_max_batch_size(self, calls: int) -> None:
        """Nothing to limit: the waiting room counts rows, and each call has one at least."""

    def _go(self) -> None:
        # Who has given up by now is not computed.
        entered, self._entered = [entry for entry in self._entered if not entry[1].done()], []
        if entered:
            task = asyncio.create_task(self._compute(entered))
            self._computing.add(task)
            task.add_done_callback(self._computing.discard)

    async def _compute(self, entered: list[tuple[Item, asyncio.Future[Computed | EnginehouseError]]]) -> None:
        try:
            answers = await self._run([item for item, _ in entered])
        except Exception as error:
            for _, answered in entered:
                if not answered.done():
                    answered.set_exception(error)
            return
        for (_, answered), answer in zip(entered, answers, strict=True):
            if not answered.done():
                answered.set_result(answer)
