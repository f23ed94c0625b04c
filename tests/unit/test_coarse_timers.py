"""Coarse timers: due ones run, cancelled ones do not, and the timeout is told apart from other cancellations."""

from __future__ import annotations

import asyncio
import time

import pytest

from enginehouse.faces.http.coarse_timers import PERIOD_S, CoarseTimeout, timers


def test_due_ones_run_in_time_and_cancelled_ones_do_not() -> None:
    async def run() -> None:
        ran: list[tuple[str, float]] = []
        began = time.monotonic()

        def note(name: str) -> None:
            ran.append((name, time.monotonic() - began))

        timers().set(0.0, lambda: note("soon"))
        timers().set(0.12, lambda: note("later"))
        timers().cancel(timers().set(0.0, lambda: note("cancelled")))
        await asyncio.sleep(0.5)
        assert [name for name, _ in ran] == ["soon", "later"]
        assert ran[1][1] >= 0.12

    asyncio.run(run())


def test_one_that_runs_may_cancel_another_and_set_the_next() -> None:
    async def run() -> None:
        ran: list[str] = []
        first = timers().set(0.0, lambda: timers().cancel(second))
        second = timers().set(0.0, lambda: ran.append("cancelled"))

        def set_another() -> None:
            timers().set(0.0, lambda: ran.append("set by another"))

        timers().set(0.0, set_another)
        await asyncio.sleep(5 * PERIOD_S)
        assert ran == ["set by another"] and first != second

    asyncio.run(run())


def test_what_takes_too_long_is_a_timeout_and_what_does_not_is_left_alone() -> None:
    async def run() -> None:
        with pytest.raises(TimeoutError), CoarseTimeout(0.01):
            await asyncio.sleep(10)
        with CoarseTimeout(0.01):
            pass
        # Nothing is left of either that would cancel this.
        await asyncio.sleep(3 * PERIOD_S)
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0

    asyncio.run(run())


def test_a_cancellation_by_another_stays_one() -> None:
    async def wait(after_s: float) -> None:
        with CoarseTimeout(after_s):
            await asyncio.sleep(10)

    async def run() -> None:
        task = asyncio.create_task(wait(10))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_an_error_of_what_is_timed_passes_through() -> None:
    async def run() -> None:
        with pytest.raises(ValueError, match="mine"), CoarseTimeout(10):
            raise ValueError("mine")

    asyncio.run(run())


def test_each_loop_has_its_own() -> None:
    async def run() -> int:
        with pytest.raises(TimeoutError), CoarseTimeout(0.0):
            await asyncio.sleep(10)
        return id(timers())

    assert asyncio.run(run())
    assert asyncio.run(run())
