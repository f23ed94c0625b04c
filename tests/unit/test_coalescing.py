"""Requests that wait for a slot travel together, and each gets its own answer or its own error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pytest

from enginehouse.contract.config import FIRST, LAST, USUAL
from enginehouse.contract.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, InvalidInput
from enginehouse.contract.tensors import Computed, Tensors, Timing, stack
from enginehouse.routing.coalescing import Coalescer


class Backend:
    """Doubles what it gets, when it is let; a negative number fails the call that it is in, as an engine would."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []
        self.arrays: list[int] = []
        self.open = asyncio.Event()
        self.lost = False
        self.error: Exception = InferenceFailed("a negative number")

    async def __call__(self, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        x = stack(requests)["x"]
        assert len(x) == rows
        self.calls.append(x[:, 0].tolist())
        self.arrays.append(len(requests))
        await asyncio.sleep(0.001)
        await self.open.wait()
        if self.lost:
            raise EngineUnavailable("pool", "gone")
        if (x < 0).any():
            raise self.error
        return {"y": 2 * x}, Timing(0.0, 1.0, rows)


def row(number: float, width: int = 1, rows: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, width), number, np.float32)}


def send(coalescer: Coalescer, inputs: Tensors) -> asyncio.Task[Computed]:
    return asyncio.create_task(coalescer.infer(inputs, len(inputs["x"]), time.monotonic() + 30))


async def values(tasks: Sequence[asyncio.Task[Computed]]) -> list[float]:
    return [float(outputs["y"][0, 0]) for outputs, _ in await asyncio.gather(*tasks)]


async def test_the_first_leaves_at_once_and_those_behind_it_travel_together() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    tasks = [send(coalescer, row(number)) for number in range(6)]
    await asyncio.sleep(0)
    assert backend.calls == [[0]]
    assert not coalescer.is_unused
    backend.open.set()
    assert await values(tasks) == [0, 2, 4, 6, 8, 10]
    assert backend.calls == [[0], [1, 2, 3, 4, 5]]
    assert coalescer.is_unused


async def test_a_group_keeps_to_its_rows_bytes_and_shape() -> None:
    backend = Backend()
    backend.open.set()
    limits = Coalescer(backend, max_rows=4, max_bytes=64)
    # The first leaves alone; 2 + 2 rows fill a group; the wide row is of another shape; 48 + 32 bytes are too many.
    tasks = [send(limits, inputs) for inputs in (row(0), row(1, rows=2), row(2, rows=2), row(3, width=12), row(4))]
    assert await values(tasks) == [0, 2, 4, 6, 8]
    assert backend.calls == [[0], [1, 1, 2, 2], [3], [4]]
    backend.calls.clear()
    tasks = [send(limits, row(0, width=12)), send(limits, row(1, width=12)), send(limits, row(2, width=12))]
    assert await values(tasks) == [0, 2, 4]
    assert backend.calls == [[0], [1], [2]]


async def test_more_slots_are_more_calls_at_once() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    coalescer.slots = 3
    tasks = [send(coalescer, row(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert backend.calls == [[0], [1], [2]]
    backend.open.set()
    assert await values(tasks) == [0, 2, 4, 6, 8]
    assert backend.calls[3] == [3, 4]


async def test_those_that_wait_leave_by_priority_and_then_by_deadline() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=1, max_bytes=1 << 20)
    now = time.monotonic()
    asked = [(0, 30, USUAL), (1, 30, USUAL), (2, 20, USUAL), (3, 40, FIRST), (4, 10, LAST), (5, 30, USUAL)]
    tasks = [
        asyncio.create_task(coalescer.infer(row(number), 1, now + seconds, priority))
        for number, seconds, priority in asked
    ]
    await asyncio.sleep(0)
    assert coalescer.waiting_rows == 5
    assert [coalescer.waiting_before(priority) for priority in (FIRST, USUAL, LAST)] == [1, 4, 5]
    backend.open.set()
    await asyncio.gather(*tasks)
    assert backend.calls == [[0], [3], [2], [1], [5], [4]]
    assert coalescer.waiting_rows == 0


async def test_what_would_be_late_is_not_sent() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    coalescer.least_s = 0.1
    now = time.monotonic()
    tasks = [asyncio.create_task(coalescer.infer(row(n), 1, now + (30, 0.1, 30)[n])) for n in range(3)]
    await asyncio.sleep(0.01)
    backend.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [tuple, DeadlineExceeded, tuple]
    assert backend.calls == [[0], [2]]
    assert coalescer.waiting_rows == 0


async def test_how_fast_the_queue_drains_is_seen_while_there_is_one() -> None:
    async def call(requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        await asyncio.sleep(0.02)
        return {"y": stack(requests)["x"]}, Timing(0.0, 1.0, rows)

    coalescer = Coalescer(call, max_rows=2, max_bytes=1 << 20)
    await asyncio.gather(*(send(coalescer, row(number)) for number in range(3)))
    assert coalescer.drain_ms(time.monotonic()) == 0
    # One leaves at once, then pairs: each row waits 10 ms for each before it.
    await asyncio.gather(*(send(coalescer, row(number)) for number in range(13)))
    assert coalescer.drain_ms(time.monotonic()) == pytest.approx(10, rel=0.3)
    assert coalescer.drain_ms(time.monotonic() + 10) == 0
    # Those that gave up or were dropped leave no queue behind, and a quiet time is no drain.
    tasks = [send(coalescer, row(number)) for number in range(5)]
    await asyncio.sleep(0.03)
    for task in tasks[3:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.3)
    await asyncio.gather(*(send(coalescer, row(number)) for number in range(7)))
    assert coalescer.drain_ms(time.monotonic()) < 20


async def test_requests_are_not_copied_together_on_the_way() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    tasks = [send(coalescer, row(number)) for number in range(3)]
    backend.open.set()
    assert await values(tasks) == [0, 2, 4]
    assert backend.arrays == [1, 2]


async def test_a_request_that_fails_is_found_and_fails_alone() -> None:
    backend = Backend()
    backend.open.set()
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    answers = await asyncio.gather(
        *(send(coalescer, row(number)) for number in (0, 1, 2, -3, 4, 5)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [tuple, tuple, tuple, InferenceFailed, tuple, tuple]
    assert backend.calls[1] == [1, 2, -3, 4, 5]


async def test_a_bad_value_that_only_the_engine_sees_is_the_fault_of_its_request_alone() -> None:
    backend = Backend()
    backend.error = InvalidInput("not UTF-8")
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    tasks = [send(coalescer, row(number)) for number in (0, 1, -2, 3)]
    await asyncio.sleep(0)
    backend.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [tuple, tuple, InvalidInput, tuple]


async def test_a_call_that_is_stuck_holds_nobody_up_for_long() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    coalescer.hold_s = 0.05
    stuck = send(coalescer, row(0))
    await asyncio.sleep(0)
    assert backend.calls == [[0]]
    others = [send(coalescer, row(number)) for number in (1, 2)]
    await asyncio.sleep(0.3)
    assert backend.calls == [[0], [1, 2]]
    backend.open.set()
    assert await values([stuck, *others]) == [0, 2, 4]
    assert coalescer.is_unused


async def test_requests_that_list_their_inputs_in_another_order_are_told_apart_by_name() -> None:
    seen: list[list[int]] = []

    async def call(requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        inputs = stack(requests)
        seen.append([inputs["a"].shape[1], inputs["b"].shape[1]])
        await asyncio.sleep(0.001)
        return {"y": inputs["a"]}, Timing(0.0, 1.0, rows)

    coalescer = Coalescer(call, max_rows=8, max_bytes=1 << 20)
    wide, narrow = np.ones((1, 5), np.float32), np.ones((1, 3), np.float32)
    requests = [{"a": narrow, "b": wide}] * 2 + [{"b": narrow, "a": wide}] + [{"b": wide, "a": narrow}]
    tasks = [asyncio.create_task(coalescer.infer(inputs, 1, time.monotonic() + 30)) for inputs in requests]
    widths = [outputs["y"].shape for outputs, _ in await asyncio.gather(*tasks)]
    assert widths == [(1, 3), (1, 3), (1, 5), (1, 3)]
    assert seen == [[3, 5], [3, 5], [5, 3]]


async def test_what_was_lost_fails_for_everybody_in_the_group_and_the_next_group_goes_on() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=2, max_bytes=1 << 20)
    tasks = [send(coalescer, row(number)) for number in range(5)]
    await asyncio.sleep(0)
    backend.lost = True
    backend.open.set()
    await asyncio.wait(tasks[:3])
    for task in tasks[:3]:
        assert isinstance(task.exception(), EngineUnavailable)
    backend.lost = False
    assert all(isinstance(task, asyncio.Task) for task in tasks)
    await asyncio.wait(tasks)
    assert coalescer.is_unused


async def test_who_gives_up_is_not_sent_and_holds_nobody_up() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    tasks = [send(coalescer, row(number)) for number in range(4)]
    await asyncio.sleep(0)
    assert coalescer.waiting_rows == 3
    tasks[2].cancel()
    await asyncio.sleep(0)
    assert coalescer.waiting_rows == 2
    backend.open.set()
    assert await values([tasks[0], tasks[1], tasks[3]]) == [0, 2, 6]
    assert backend.calls == [[0], [1, 3]]
    with pytest.raises(asyncio.CancelledError):
        await tasks[2]


async def test_the_first_giving_up_frees_its_slot() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    tasks = [send(coalescer, row(number)) for number in range(2)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    backend.open.set()
    assert await values(tasks[1:]) == [2]
    assert coalescer.is_unused


async def test_the_wait_for_a_slot_counts_as_time_in_the_queue() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    tasks = [send(coalescer, row(number)) for number in range(2)]
    await asyncio.sleep(0.05)
    backend.open.set()
    (_, first), (_, second) = await asyncio.gather(*tasks)
    assert first.queue_ms == 0
    assert second.queue_ms >= 45


async def test_each_request_of_a_group_is_heard_by_its_own_deadline() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    first, now = send(coalescer, row(0)), time.monotonic()
    await asyncio.sleep(0)
    tasks = [asyncio.create_task(coalescer.infer(row(n), 1, now + (0, 0.3, 30)[n])) for n in (1, 2)]
    await asyncio.sleep(0.05)
    backend.open.set()
    await first
    # Sent together, and then the backend takes longer than one of them has.
    backend.open.clear()
    await asyncio.sleep(0.01)
    assert backend.calls == [[0], [1, 2]]
    with pytest.raises(DeadlineExceeded, match="in a call with others"):
        await tasks[0]
    assert 0.25 < time.monotonic() - now < 0.45
    assert not tasks[1].done()
    backend.open.set()
    assert await values(tasks[1:]) == [4]
    assert coalescer.is_unused


async def test_a_deadline_that_passes_in_the_queue_is_heard_then_and_not_when_a_slot_is_free() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    first, now = send(coalescer, row(0)), time.monotonic()
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded, match="waiting to be sent"):
        await coalescer.infer(row(1), 1, now + 0.1)
    assert time.monotonic() - now < 0.2
    assert coalescer.waiting_rows == 0
    backend.open.set()
    assert await values([first]) == [0]
    assert backend.calls == [[0]]


async def test_who_is_out_of_time_when_a_group_is_halved_is_not_sent_again() -> None:
    backend = Backend()
    coalescer = Coalescer(backend, max_rows=8, max_bytes=1 << 20)
    first, now = send(coalescer, row(0)), time.monotonic()
    await asyncio.sleep(0)
    tasks = [asyncio.create_task(coalescer.infer(row(n), 1, now + (0.15 if n == 1 else 30))) for n in (1, 2, -3)]
    await asyncio.sleep(0.02)
    backend.open.set()
    await first
    backend.open.clear()
    await asyncio.sleep(0.2)
    backend.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [DeadlineExceeded, tuple, InferenceFailed]
    assert backend.calls[1:] == [[1, 2, -3], [2, -3], [2], [-3]]
