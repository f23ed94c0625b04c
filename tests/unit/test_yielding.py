"""Calls of the last priority: in what all others leave, in short pieces beside them, and never left out for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import numpy as np
import pytest
from tests.unit.loaded_models import LOOKUP, RNG, TABLE, Load, Slow
from tests.unit.test_waiting_room import item

from enginehouse.contract.errors import DeadlineExceeded
from enginehouse.contract.tensors import Tensors
from enginehouse.pools import cores as cores_of
from enginehouse.pools import yielding
from enginehouse.pools.cores import Cores
from enginehouse.pools.line import Item
from enginehouse.pools.waiting_room import Lanes, WaitingRoom
from enginehouse.pools.yielding import PIECE_S, SHARE, Pieces


def last(rows: int = 8, seconds: float = 30) -> Item:
    now = time.monotonic()
    return Item([], rows, now, now + seconds, yields=True)


async def a_moment() -> None:
    await asyncio.sleep(0.01)


@contextmanager
def computing(room: WaitingRoom, items: list[Item]) -> Iterator[None]:
    taken = room.begin_call(items)
    try:
        yield
    finally:
        room.end_call(taken)
        for one in items:
            room.leave(one)


@asynccontextmanager
async def waiting(room: WaitingRoom, items: list[Item]) -> AsyncIterator[list[asyncio.Task[int | None]]]:
    tasks = [asyncio.create_task(room.enter(one)) for one in items]
    await a_moment()
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("others_called", [True, False])
async def test_who_comes_later_goes_before_those_of_the_last_priority_and_shares_no_call_with_them(
    others_called: bool,
) -> None:
    cores = Cores(2)
    room = WaitingRoom(8, cores)
    if others_called:
        cores.note_other()
    first, online, jobs = item(), item(), [last(1), last(1), last(1)]
    await room.enter(first)
    taken = room.begin_call([first])
    async with waiting(room, jobs) as yielded, waiting(room, [online]) as (entered,):
        assert not any(task.done() for task in [*yielded, entered])
        room.end_call(taken)
        await a_moment()
        assert entered.done() and not any(task.done() for task in yielded)
        with computing(room, [online]):
            await a_moment()
            assert not any(task.done() for task in yielded)
        await a_moment()
        # While others call one piece at a time; else as any others, together.
        assert [task.done() for task in yielded] == [True, not others_called, not others_called]


async def test_what_yields_waits_for_the_calls_of_other_models_and_takes_no_cores_from_them() -> None:
    cores = Cores(2)
    busy, room, third = (WaitingRoom(8, cores) for _ in range(3))
    cores.note_other()
    online, job, other_job = item(), last(), last()
    await busy.enter(online)
    async with waiting(room, [job]) as (yielded,), waiting(third, [other_job]) as (other,):
        with computing(busy, [online]):
            await a_moment()
            assert not yielded.done() and not other.done()
        await a_moment()
        # One piece in the whole process.
        assert yielded.done() and not other.done()
        with computing(room, [job]):
            await a_moment()
            assert cores.free == 2 and not other.done()
            later = item()
            await asyncio.wait_for(busy.enter(later), 1)
            with computing(busy, [later]):
                assert cores.free == 0
        await a_moment()
        assert other.done()


async def test_a_call_that_is_alone_but_for_those_of_the_last_priority_has_all_cores() -> None:
    cores = Cores(4)
    room = WaitingRoom(8, cores, Lanes(4, 2, 1, 1))
    cores.note_other()
    job, online = last(), item()
    await room.enter(job)
    with computing(room, [job]):
        async with waiting(room, [last()]):
            await room.enter(online)
            assert room.begin_call([online]) == 4


async def test_under_a_load_that_leaves_nothing_a_piece_goes_first_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(yielding, "OVERDUE_S", 0.1)
    cores = Cores(1)
    room, pieces = WaitingRoom(1, cores), list[float]()
    cores.note_other()
    began = time.monotonic()

    async def ask_online() -> None:
        while len(pieces) < 3:
            one = item()
            await room.enter(one)
            with computing(room, [one]):
                await asyncio.sleep(0.005)
            cores.note_other()

    async def ask_last() -> None:
        while len(pieces) < 3:
            one = last()
            assert await room.enter(one) is not None
            pieces.append(time.monotonic() - began)
            with computing(room, [one]):
                pass

    await asyncio.wait_for(asyncio.gather(ask_last(), *(ask_online() for _ in range(4))), 10)
    # Bounded from below too: it is rare.
    assert all(at >= 0.09 * number for number, at in enumerate(pieces, 1)), pieces


async def test_one_that_gives_up_or_is_late_keeps_nobody_waiting() -> None:
    cores = Cores(1)
    room = WaitingRoom(8, cores)
    cores.note_other()
    gone, late, stays = last(), last(seconds=0.05), last()
    first = last()
    await room.enter(first)
    async with waiting(room, [gone, late, stays]) as (gives_up, is_late, entered):
        gives_up.cancel()
        await asyncio.sleep(0.1)
        assert isinstance(is_late.exception(), TimeoutError)
        # Let in, and never computed.
        room.leave(first)
        await asyncio.wait_for(entered, 1)


async def test_while_nobody_else_calls_those_that_wait_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = Cores(1)
    room = WaitingRoom(4, cores)
    jobs = [last(2), last(2), last(2)]
    async with waiting(room, jobs) as tasks:
        assert [task.done() for task in tasks] == [True, True, False]
        assert tasks[0].result() is None
    cores.note_other()
    assert cores.others_call
    monkeypatch.setattr(cores_of, "RECENT_S", 0.0)
    assert not cores.others_call


def test_a_piece_has_as_many_rows_as_take_a_share_of_what_others_take() -> None:
    pieces = Pieces()
    assert pieces.rows == 1
    row_s = 1e-5
    for _ in range(20):
        pieces.note(pieces.rows, 1e-4 + pieces.rows * row_s)
    assert pieces.rows == pytest.approx((PIECE_S - 1e-4) / row_s, rel=0.1)
    for _ in range(30):
        pieces.note_other(0.1)
        pieces.note(pieces.rows, 1e-4 + pieces.rows * row_s)
    assert pieces.rows == pytest.approx(0.1 * SHARE / row_s, rel=0.1)
    # The rest of a call: few rows, which says nothing of many.
    pieces.note(3, 2e-4)
    assert pieces.rows > 1000
    # The machine is busy.
    pieces.note(pieces.rows, 10.0)
    assert pieces.rows < 10
    for _ in range(5):
        pieces.note(pieces.rows, 1.0)
    assert pieces.rows == 1


async def test_answers_in_pieces_are_those_of_the_whole(load: Load) -> None:
    model = load(LOOKUP)
    inputs: Tensors = {"x": RNG.integers(0, 10, (37, 2))}
    whole, timing = await model.infer_last([inputs], 37, 10)
    np.testing.assert_array_equal(whole["y"], TABLE[inputs["x"]])
    assert timing.batch_rows > 1
    one: Tensors = {"x": np.array([[1, 2]])}
    await model.infer([one], 1, 10)
    parts, beside = await asyncio.gather(
        model.infer_last([inputs], 37, 10),
        asyncio.gather(*(model.infer([one], 1, 10) for _ in range(20))),
    )
    np.testing.assert_array_equal(parts[0]["y"], TABLE[inputs["x"]])
    assert all((outputs["y"] == [[1, 4]]).all() and timing.batch_rows <= 20 for outputs, timing in beside)


async def test_what_comes_while_a_long_call_of_the_last_priority_is_computed_waits_for_one_piece(load: Load) -> None:
    model = load(LOOKUP)
    one: Tensors = {"x": np.array([[1, 2]])}
    await model.infer([one], 1, 10)
    engine, model.engine = model.engine, Slow(0.02)  # type: ignore[assignment]
    try:
        long = asyncio.create_task(model.infer_last([{"x": RNG.integers(0, 10, (12, 2))}], 12, 10))
        await asyncio.sleep(0.01)
        for _ in range(3):
            _, timing = await model.infer([one], 1, 10)
            # Never behind all of them, which takes some 0.2 s; of others alone.
            assert timing.queue_ms < 100 and timing.batch_rows == 1
        assert not long.done()
        assert (await long)[0]["y"].shape == (12, 2)
        with pytest.raises(DeadlineExceeded):
            await model.infer_last([{"x": RNG.integers(0, 10, (12, 2))}], 12, 0.05)
    finally:
        model.engine = engine
