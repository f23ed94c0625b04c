"""The waiting room lets items in by deadline, those of one shape together, and as many as make a batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.pools.line import Item
from enginehouse.pools.waiting_room import WaitingRoom


def item(rows: int = 1, seconds: float = 30, shape: str = "") -> Item:
    now = time.monotonic()
    return Item([], rows, now, now + seconds, shape)


@contextmanager
def computing(room: WaitingRoom, items: Sequence[Item] = ()) -> Iterator[None]:
    taken = room.begin_call(items)
    try:
        yield
    finally:
        room.end_call(taken)


async def let_in(rows: list[int], limit: int) -> list[list[int]]:
    """Positions of `rows` as they are let in together, all waiting at once; each group is computed in no time."""
    room, now = WaitingRoom(limit), time.monotonic()
    items = [Item([], count, now, now + 30) for count in rows]
    parts: list[list[int]] = []
    done: set[int] = set()

    async def enter(position: int) -> None:
        await room.enter(items[position])
        if not parts or parts[-1][0] in done:
            parts.append([])
            asyncio.get_running_loop().call_soon(compute, parts[-1])
        parts[-1].append(position)

    def compute(part: list[int]) -> None:
        done.update(part)
        with computing(room, [items[position] for position in part]):
            pass

    await asyncio.wait_for(asyncio.gather(*(enter(position) for position in range(len(rows)))), 10)
    return parts


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 16))
def test_parts_keep_the_order_and_the_limit_and_are_as_few_as_that_allows(rows: list[int], limit: int) -> None:
    parts = asyncio.run(let_in(rows, limit))
    assert [position for part in parts for position in part] == list(range(len(rows)))
    sizes = [sum(rows[position] for position in part) for part in parts]
    assert all(size <= limit or len(part) == 1 for size, part in zip(sizes, parts, strict=True))
    for size, after in zip(sizes, parts[1:], strict=False):
        assert size + rows[after[0]] > limit


async def test_those_of_one_shape_go_together_and_the_first_chooses_which() -> None:
    room, order = WaitingRoom(8), list[str]()

    async def enter(name: str, waiting: Item) -> None:
        await room.enter(waiting)
        order.append(name)

    with computing(room):
        wide = [item(shape="wide", seconds=10), item(shape="wide", seconds=30)]
        asked = {"narrow": item(shape="narrow", seconds=20), "wide 1": wide[0], "wide 2": wide[1]}
        tasks = [asyncio.create_task(enter(name, waiting)) for name, waiting in asked.items()]
        await asyncio.sleep(0.01)
        assert order == []
    await asyncio.sleep(0.01)
    assert order == ["wide 1", "wide 2"]
    with computing(room, wide):
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    assert order[2:] == ["narrow"]


async def test_what_was_let_in_and_never_computed_keeps_nobody_waiting() -> None:
    room, first, second = WaitingRoom(8), item(), item()
    await room.enter(first)
    waits = asyncio.create_task(room.enter(second))
    await asyncio.sleep(0.01)
    assert not waits.done()
    room.leave(first)
    await asyncio.wait_for(waits, 1)


async def test_a_deadline_passes_while_waiting() -> None:
    room = WaitingRoom(8)
    with computing(room), pytest.raises(TimeoutError):
        await room.enter(item(seconds=0.01))
    late, timely = item(seconds=-1), item()
    with pytest.raises(TimeoutError):
        await room.enter(late)
    await asyncio.wait_for(room.enter(timely), 1)


async def test_a_lower_wait_holds_for_those_that_wait_already() -> None:
    room = WaitingRoom(8)
    room.set_limits(8, 60)
    waits = asyncio.create_task(room.enter(item()))
    await asyncio.sleep(0.01)
    assert not waits.done()
    room.set_limits(8, 0)
    await asyncio.wait_for(waits, 1)


async def test_an_idle_engine_is_entered_at_once_and_in_that_turn_by_what_fits_beside() -> None:
    room, items = WaitingRoom(3), [item(1), item(2), item(1)]
    # Awaiting what does not wait takes no turn of the loop.
    await room.enter(items[0])
    other_shape = asyncio.create_task(room.enter(item(shape="other")))
    await room.enter(items[1])
    no_room = asyncio.create_task(room.enter(items[2]))
    await asyncio.sleep(0.01)
    assert not no_room.done()
    assert not other_shape.done()
    with computing(room, items[:2]):
        pass
    await asyncio.sleep(0.01)
    assert no_room.done() != other_shape.done()
    # A turn later Serve may have read its queue: who comes then is the next batch.
    room, first, second = WaitingRoom(3), item(), item()
    await room.enter(first)
    await asyncio.sleep(0)
    waits = asyncio.create_task(room.enter(second))
    await asyncio.sleep(0.01)
    assert not waits.done()
    with computing(room, [first]):
        pass
    await asyncio.wait_for(waits, 1)
    no_room.cancel()
    other_shape.cancel()
