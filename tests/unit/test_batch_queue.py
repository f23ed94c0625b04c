"""The batch queue of an engine that is in no replica of Serve."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.unit.padded_model import DEAR_CALLS, ROWS, Engine, check, described, request

from enginehouse.contract.errors import EnginehouseError, InferenceFailed
from enginehouse.contract.tensors import Computed, Timing
from enginehouse.engines.padding import Padder
from enginehouse.pools.batch_queue import Together
from enginehouse.pools.batching import LoadedModel
from enginehouse.pools.line import Item


def item() -> Item:
    now = time.monotonic()
    return Item([], 1, now, now + 10)


class Noted:
    """Notes batches, and answers each with its size; a batch of `fails` calls fails."""

    def __init__(self, fails: int = 0) -> None:
        self.batches: list[list[Item]] = []
        self.fails = fails

    async def __call__(self, items: list[Item]) -> list[Computed | EnginehouseError]:
        self.batches.append(items)
        await asyncio.sleep(0.01)
        if len(items) == self.fails:
            raise InferenceFailed("so many")
        return [({}, Timing(0, 0, len(items))) for _ in items]


async def test_what_enters_in_one_turn_is_one_batch() -> None:
    run = Noted()
    queue, items = Together(run), [item() for _ in range(5)]
    first = asyncio.gather(*(queue(each) for each in items[:3]))
    await asyncio.sleep(0.001)
    second = asyncio.gather(*(queue(each) for each in items[3:]))
    assert [answer[1].batch_rows for answer in [*await first, *await second] if isinstance(answer, tuple)] == [
        3
    ] * 3 + [2] * 2
    assert run.batches == [items[:3], items[3:]]


async def test_who_has_given_up_is_not_computed_and_holds_nobody_up() -> None:
    run = Noted()
    queue, gone, stays = Together(run), item(), item()
    given_up = asyncio.create_task(queue(gone))
    other = asyncio.create_task(queue(stays))
    asyncio.get_running_loop().call_soon(given_up.cancel)
    assert not isinstance(await other, EnginehouseError)
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert run.batches in ([[stays]], [[gone, stays]])


async def test_a_batch_that_fails_fails_for_each_of_it_and_no_other() -> None:
    queue = Together(Noted(fails=2))
    failed = await asyncio.gather(queue(item()), queue(item()), return_exceptions=True)
    assert [type(error) for error in failed] == [InferenceFailed] * 2
    assert not isinstance(await queue(item()), EnginehouseError)


async def test_lengths_share_a_call_without_serve_too() -> None:
    engine = Engine(0.02)
    known, made = described(DEAR_CALLS)
    padder = Padder.of(known, made, "onnxruntime-cpu", DEAR_CALLS)
    model = LoadedModel(engine, "onnxruntime-cpu", known, made, ROWS, padder=padder, in_serve=False)
    asked = [request(length, rows) for length, rows in ((9, 1), (5, 1), (30, 2), (17, 1), (6, 3))]
    answers = await asyncio.gather(*(model.infer([inputs], len(inputs["input_ids"]), 30) for inputs in asked))
    check(asked, answers)
    # The first finds the engine idle, the others wait for it and go together.
    assert len(engine.calls) <= 3
    assert sum(rows for rows, _ in engine.calls) == 8
    assert max(rows for rows, _ in engine.calls) >= 6
