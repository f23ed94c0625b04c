"""Calls that arrive while the engine computes gather and enter the batch queue together."""

from __future__ import annotations

import asyncio
import itertools
import time

import numpy as np
import pytest
from tests.unit.loaded_models import LOOKUP, Load, Slow

from enginehouse.contract.config import ModelConfig
from enginehouse.contract.errors import DeadlineExceeded
from enginehouse.contract.tensors import Tensors
from enginehouse.pools.batching import LoadedModel


class Counting(Slow):
    """Slow, and counts the rows of each call."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.calls: list[int] = []

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        self.calls.append(len(inputs["x"]))
        return super().infer(inputs)


async def counting(load: Load, seconds: float, **settings: float) -> tuple[LoadedModel, Counting]:
    """A model around an engine that counts, after the first call, which starts threads and metrics."""
    model, engine = load(LOOKUP), Counting(0)
    model.engine = engine  # type: ignore[assignment]
    await model.infer([{"x": np.zeros((1, 2), np.int64)}], 1, 10)
    model.set_batching(ModelConfig.model_validate({"name": "m", "version": "1"} | settings))
    engine.calls, engine.seconds, model.engine_calls.row_ms = [], seconds, 0.0
    return model, engine


@pytest.mark.parametrize(("gap_ms", "engine_ms"), [(0, 20), (2, 60), (10, 200), (10, 100), (40, 10)])
async def test_what_arrives_while_the_engine_computes_is_its_next_call(
    load: Load, gap_ms: float, engine_ms: float
) -> None:
    model, engine = await counting(load, engine_ms / 1e3, max_batch_size=8)
    arrived: list[float] = []

    async def send_one(number: int) -> None:
        await asyncio.sleep(number * gap_ms / 1e3)
        arrived.append(time.monotonic())
        await model.infer([{"x": np.zeros((1, 2), np.int64)}], 1, 10)

    await asyncio.gather(*(send_one(number) for number in range(9)))
    assert sum(engine.calls) == 9
    # One call for the first, then one for each stretch of the engine's time in which others came. The time of arrival
    # is measured, since a slow host may deliver late.
    spread_ms = (arrived[-1] - arrived[0]) * 1e3
    assert len(engine.calls) <= 2 + spread_ms / engine_ms
    # An engine that is free computes at once.
    apart = sum(after - before > 3e-3 * engine_ms for before, after in itertools.pairwise(arrived))
    assert len(engine.calls) >= 1 + apart


async def test_no_call_of_the_engine_has_more_rows_than_the_limit_however_many_wait(load: Load) -> None:
    model, engine = await counting(load, 0.02, max_batch_size=5)
    calls = [model.infer([{"x": np.zeros((rows, 2), np.int64)}], rows, 10) for rows in (1, 2, 2, 3, 2, 4, 1)]
    await asyncio.gather(*calls)
    assert engine.calls == [5, 5, 5]


async def test_a_deadline_that_passes_while_the_engine_computes_fails_then_and_enters_no_batch(load: Load) -> None:
    model, engine = await counting(load, 0.3)
    x = [{"x": np.zeros((1, 2), np.int64)}]
    first = asyncio.create_task(model.infer(x, 1, 10))
    await asyncio.sleep(0.02)
    others = asyncio.create_task(model.infer(x, 1, 10))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="in the queue of 'artifact'"):
        await model.infer(x, 1, 0.05)
    assert time.monotonic() - began < 0.2
    await asyncio.gather(first, others)
    assert engine.calls == [1, 1]
    assert model.backlog_ms == 0


async def test_who_has_least_time_goes_first(load: Load) -> None:
    model, _ = await counting(load, 0.02, max_batch_size=1)
    order: list[int] = []

    async def answered(seconds: int) -> None:
        await model.infer([{"x": np.zeros((1, 2), np.int64)}], 1, seconds)
        order.append(seconds)

    first = asyncio.create_task(answered(60))
    await asyncio.sleep(0.005)
    await asyncio.gather(first, *(answered(seconds) for seconds in (30, 10, 20)))
    assert order == [60, 10, 20, 30]


async def test_callers_that_give_up_hold_nobody_up_wherever_they_are(load: Load) -> None:
    model, engine = await counting(load, 0.05)
    x = [{"x": np.zeros((1, 2), np.int64)}]
    # Turn by turn of the loop: in the waiting room, let in, in Serve's queue, in the engine.
    for turns in range(12):
        task = asyncio.create_task(model.infer(x, 1, 10))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait_for(model.infer(x, 1, 10), 5)
    assert model.backlog_ms == 0
    engine.calls.clear()
    await asyncio.gather(*(model.infer(x, 1, 10) for _ in range(4)))
    assert engine.calls == [4]


async def test_while_an_isolated_call_computes_others_gather(load: Load) -> None:
    model, engine = await counting(load, 0.1)
    x = [{"x": np.zeros((1, 2), np.int64)}]
    isolated = asyncio.create_task(model.infer_isolated(x, 1, 10, lambda _: None, False))
    await asyncio.sleep(0.01)
    first = asyncio.create_task(model.infer(x, 1, 10))
    await asyncio.sleep(0.01)
    await asyncio.gather(isolated, first, model.infer(x, 1, 10))
    assert engine.calls == [1, 2]


async def test_a_batch_waits_no_longer_for_more_than_it_is_told_whatever_the_engine_does(load: Load) -> None:
    model, engine = await counting(load, 0.3, batch_wait_ms=200)
    x = [{"x": np.zeros((1, 2), np.int64)}]
    began = time.monotonic()
    first = asyncio.create_task(model.infer(x, 1, 10))
    await asyncio.sleep(0.22)
    # It waits while the engine computes, for 280 ms: longer than a batch waits.
    await asyncio.gather(first, model.infer(x, 1, 10))
    assert engine.calls == [1, 1]
    assert 0.75 < time.monotonic() - began < 0.95
