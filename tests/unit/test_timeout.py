"""The timeout of the request path: as asyncio's, and told apart from cancellations by others."""

from __future__ import annotations

import asyncio

import pytest

from enginehouse.routing.timers import Timeout


async def test_what_takes_too_long_is_a_timeout_and_what_does_not_is_left_alone() -> None:
    with pytest.raises(TimeoutError), Timeout(0.01):
        await asyncio.sleep(10)
    with pytest.raises(TimeoutError), Timeout(-1):
        await asyncio.sleep(10)
    with Timeout(0.01):
        pass
    # Nothing is left that would cancel this.
    await asyncio.sleep(0.05)
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_a_cancellation_by_another_stays_one() -> None:
    async def wait() -> None:
        with Timeout(10):
            await asyncio.sleep(10)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_by_another_in_the_same_turn_is_not_swallowed() -> None:
    timeout = Timeout(0.01)

    async def wait() -> None:
        with timeout:
            await asyncio.sleep(10)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    while not task.cancelling():  # noqa: ASYNC110
        await asyncio.sleep(0)
    # The timeout has cancelled the task, which has not run since.
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_inner_of_two_is_the_one_that_is_late() -> None:
    with Timeout(10):
        with pytest.raises(TimeoutError), Timeout(0.01):
            await asyncio.sleep(10)
        await asyncio.sleep(0.01)


async def test_an_error_of_what_is_timed_passes_through() -> None:
    with pytest.raises(ValueError, match="mine"), Timeout(10):
        raise ValueError("mine")
