"""Threads in which one model's engine calls run, each with the cores that were taken for it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeAlias

from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.tensors import Computed
from enginehouse.pools.cores import Cores
from enginehouse.pools.engine_calls import Lane
from enginehouse.pools.line import Item
from enginehouse.pools.waiting_room import WaitingRoom

#: Computes items on a lane.
Run: TypeAlias = Callable[[Lane, list[Item]], list[Computed | EnginehouseError]]


class EngineThreads:
    """`count` threads; `lane_of` says what a call computes with that has so many cores. Used on one event loop."""

    def __init__(self, name: str, count: int, room: WaitingRoom, cores: Cores, lane_of: Callable[[int], Lane]) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._room = room
        self._cores = cores
        self._lane_of = lane_of
        # Of each call in progress, the cores that it has.
        self._held: dict[object, int] = {}

    def run(self, run: Run, items: list[Item]) -> asyncio.Future[list[Computed | EnginehouseError]]:
        """Run `run` with `items`; others wait until that ends, whoever gives up before."""
        loop, held = asyncio.get_running_loop(), object()
        self._held[held] = cores = self._room.begin_call(items)

        def end() -> None:
            self._room.end_call(self._held.pop(held))

        def ended(_: object) -> None:
            # No loop any more: the process ends.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(end)

        try:
            call = self._pool.submit(functools.partial(run, self._lane_of(cores)), items)
        except RuntimeError:
            end()
            raise
        # Before the answer is passed on, so that those let in are in the queue when Serve looks for the next batch.
        call.add_done_callback(ended)
        return asyncio.wrap_future(call)

    def free_cores(self) -> None:
        """Let other models have the cores of the calls in progress: the engine is stuck, and they need not be."""
        for call, cores in self._held.items():
            self._held[call] = 0
            self._cores.give(cores)

    def end(self, close: Callable[[], None]) -> Future[None]:
        """Run `close` after what is computed now, and nothing any more after that."""
        closed = self._pool.submit(close)
        self._pool.shutdown(wait=False)
        return closed
