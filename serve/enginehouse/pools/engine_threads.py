"""Threads in which one model's engine calls run, each with the cores that were taken for it."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeAlias

from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.manifest import ACCELERATOR_OF, EngineKind
from enginehouse.contract.tensors import Computed
from enginehouse.pools.cores import Cores
from enginehouse.pools.engine_calls import Lane
from enginehouse.pools.line import Item
from enginehouse.pools.waiting_room import WaitingRoom

#: The least of priorities; Ray starts its workers with 15.
NICE = 19

#: Computes items on a lane.
Run: TypeAlias = Callable[[Lane, list[Item]], list[Computed | EnginehouseError]]


class EngineThreads:
    """`count` threads for engines of this `kind`. Used on one event loop.

    `lane_of` says what a call computes with that has so many cores.
    """

    def __init__(
        self, kind: EngineKind, name: str, count: int, room: WaitingRoom, cores: Cores, lane_of: Callable[[int], Lane]
    ) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=step_back(kind))
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


def step_back(*kinds: EngineKind) -> Callable[[], None] | None:
    """Has a thread of such engines, and those that it starts, compute behind whoever passes requests on.

    What routers and event loops do for a request takes microseconds, and would wait for milliseconds of computing. None
    for engines of GPUs, whose threads pass on as well.
    """
    if sys.platform != "linux" or any(ACCELERATOR_OF[kind] != "cpu" for kind in kinds):
        return None

    def step() -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)

    return step
