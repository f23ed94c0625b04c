"""Timers that share a tick: each expires once, near its time, unless it was cancelled before it was called."""

from __future__ import annotations

import asyncio
import functools
import threading
import time

from enginehouse.routing import timers
from enginehouse.routing.timers import Timeout


def _late(due: float, heard: list[float]) -> None:
    heard.append(time.monotonic() - due)


async def test_each_expires_once_within_a_tick_of_its_time() -> None:
    began = time.monotonic()
    late: dict[float, list[float]] = {after_s: [] for after_s in (0.0, 0.03, 0.06, 0.11, 0.2)}
    for after_s, heard in late.items():
        timers.call_about(after_s, functools.partial(_late, began + after_s, heard))
    await asyncio.sleep(0.5)
    assert all(len(heard) == 1 and heard[0] >= 0 for heard in late.values()), late
    # A tick, and a turn of a loop that has a core to itself only now and then.
    assert all(heard[0] < timers.TICK_S + 0.15 for heard in late.values()), late


async def test_what_is_cancelled_in_the_turn_in_which_it_expires_is_not_called() -> None:
    called: list[str] = []
    together: list[timers.Timer] = []

    def first(name: str) -> None:
        called.append(name)
        for timer in together:
            timer.cancel()

    together += [timers.call_about(0.01, functools.partial(first, name)) for name in "abc"]
    await asyncio.sleep(0.2)
    assert len(called) == 1, called


async def test_one_that_fails_does_not_keep_the_others() -> None:
    heard: list[Exception] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context["exception"]))
    called: list[int] = []
    timers.call_about(0.01, lambda: 1 // 0)
    for number in range(5):
        timers.call_about(0.01, functools.partial(called.append, number))
    await asyncio.sleep(0.2)
    assert sorted(called) == list(range(5))
    assert [type(error) for error in heard] == [ZeroDivisionError]


async def test_a_loop_with_no_timers_left_has_rest() -> None:
    loop = asyncio.get_running_loop()
    for _ in range(3):
        timers.call_about(60.0, lambda: None).cancel()
    await asyncio.sleep(3 * timers.TICK_S)
    ticks = [handle for handle in getattr(loop, "_scheduled", []) if not handle.cancelled()]
    assert not ticks
    # And it ticks again when there is one.
    called = asyncio.Event()
    timers.call_about(0.01, called.set)
    await asyncio.wait_for(called.wait(), 5)


def test_each_loop_of_a_process_has_its_own() -> None:
    heard: list[int] = []

    async def several() -> None:
        for _ in range(20):
            done = asyncio.Event()
            timers.call_about(0.0, done.set)
            timers.call_about(30.0, done.set).cancel()
            await asyncio.sleep(0.001)
            await asyncio.wait_for(done.wait(), 5)
        heard.append(1)

    threads = [threading.Thread(target=lambda: asyncio.run(several())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(heard) == 3


async def test_a_long_timeout_is_late_by_a_tick_at_most() -> None:
    began = time.monotonic()
    try:
        with Timeout(timers.LEAST_S):
            await asyncio.sleep(10)
    except TimeoutError:
        took_s = time.monotonic() - began
    assert timers.LEAST_S <= took_s < timers.LEAST_S + 0.5
