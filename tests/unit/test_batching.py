"""A request gets the same answer in a batch as by itself: real batch queues around real engines, without Ray."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from tests.conformance.conftest import MAX_ROWS
from tests.conformance.models import BY_NAME, Case
from tests.unit.loaded_models import LOOKUP, RNG, TABLE, Load, Slow

from enginehouse.contract.config import ModelConfig
from enginehouse.contract.errors import DeadlineExceeded, EnginehouseError, InvalidInput, Overloaded
from enginehouse.contract.tensors import Tensors
from enginehouse.pools import engine_calls, hosting
from enginehouse.pools.batching import SLICE_BATCHES, Computed, LoadedModel
from enginehouse.pools.engine_calls import EngineCalls, Lane
from enginehouse.pools.hosting import HostedModels
from enginehouse.pools.line import Item


def waiting(model: LoadedModel, ms: float = 100, at_most: int | None = None) -> LoadedModel:
    """Let batches wait, so that what is sent together is batched together."""
    model.set_batching(ModelConfig(name="m", version="1", batch_wait_ms=ms, max_batch_size=at_most))
    return model


async def send(model: LoadedModel, requests: list[Tensors], budget_s: float = 30) -> list[Computed | BaseException]:
    def rows(inputs: Tensors) -> int:
        return len(next(iter(inputs.values()))) if model.engine.signature.batched else 1

    calls = [model.infer([inputs], rows(inputs), budget_s) for inputs in requests]
    return await asyncio.gather(*calls, return_exceptions=True)


def check(case: Case, requests: list[Tensors], answers: list[Computed | BaseException]) -> list[int]:
    """Every answer is that of its own request; the rows of the batch each was in are returned."""
    batches = []
    for inputs, answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, BaseException), answer
        outputs, timing = answer
        for name, expected in case.expected(inputs).items():
            np.testing.assert_allclose(outputs[name], expected, rtol=1e-4, atol=1e-4)
        assert timing.compute_ms > 0
        assert timing.queue_ms >= 0
        batches.append(timing.batch_rows)
    return batches


async def test_requests_of_any_number_of_rows_are_joined_up_to_the_largest_batch(load: Load) -> None:
    case = BY_NAME["affine"]
    requests = [case.sample(RNG, rows) for rows in (1, 2, 3, 5, 8, 1)]
    # At most 8 rows a batch: 1+2+3, 5, 8, 1.
    assert check(case, requests, await send(waiting(load(case), at_most=6), requests)) == [6, 6, 6, 5, 8, 1]


async def test_others_get_their_turn_between_the_slices_of_a_huge_request(load: Load) -> None:
    case = BY_NAME["affine"]
    model = waiting(load(case), ms=0)
    huge = case.sample(RNG, 50 * SLICE_BATCHES * MAX_ROWS + 1)
    done: list[str] = []

    async def answered(name: str, inputs: Tensors) -> None:
        check(case, [inputs], await send(model, [inputs]))
        done.append(name)

    await asyncio.gather(answered("huge", huge), answered("small", case.sample(RNG, 1)))
    assert done == ["small", "huge"]


async def test_a_request_with_too_many_rows_is_run_in_pieces_and_answered_whole(load: Load) -> None:
    case = BY_NAME["affine"]
    requests = [case.sample(RNG, rows) for rows in (1, 2 * MAX_ROWS + 3, 1)]
    assert check(case, requests, await send(waiting(load(case), at_most=3), requests)) == [1, 19, 1]


async def test_requests_of_different_inner_shapes_are_batched_with_their_like(load: Load) -> None:
    case = BY_NAME["free_length"]
    requests = [{"x": RNG.standard_normal((1, width), dtype=np.float32)} for width in (3, 4, 3, 5, 4, 3)]
    assert check(case, requests, await send(waiting(load(case), at_most=6), requests)) == [3, 2, 3, 1, 2, 3]


async def test_requests_of_a_model_without_a_batch_are_run_one_by_one(load: Load) -> None:
    case = BY_NAME["unbatched"]
    requests = [case.sample(RNG, 1) for _ in range(3)]
    assert check(case, requests, await send(waiting(load(case), at_most=3), requests)) == [1, 1, 1]


async def test_an_expired_request_is_dropped_and_its_neighbours_answered(load: Load) -> None:
    case = BY_NAME["affine"]
    model = waiting(load(case), at_most=3)
    requests = [case.sample(RNG, 1) for _ in range(3)]
    calls = [model.infer([inputs], 1, budget) for inputs, budget in zip(requests, (30, 0.001, 30), strict=True)]
    # The batch is full at once, and formed in this same turn of the loop: let the deadline pass before it.
    tasks = [asyncio.create_task(call) for call in calls[:2]]
    await asyncio.sleep(0.02)
    answers = await asyncio.gather(*tasks, calls[2], return_exceptions=True)
    assert isinstance(answers[1], DeadlineExceeded)
    assert "in the queue of 'artifact'" in str(answers[1])
    assert check(case, [requests[0], requests[2]], [answers[0], answers[2]]) == [2, 2]


async def test_a_request_that_breaks_its_batch_fails_alone(load: Load) -> None:
    requests: list[Tensors] = [LOOKUP.sample(RNG, rows) for rows in (1, 2, 3)]
    poison = {"x": np.array([[3, 10]])}
    answers = await send(waiting(load(LOOKUP), at_most=4), [*requests[:2], poison, requests[2]])
    broken = answers.pop(2)
    assert isinstance(broken, InvalidInput)
    assert "10" in str(broken)
    check(LOOKUP, requests, answers)


async def test_only_the_piece_that_breaks_a_large_request_matters_to_it_and_to_nobody_else(load: Load) -> None:
    large = {"x": np.zeros((MAX_ROWS + 2, 2), np.int64)}
    large["x"][-1, 0] = -11
    neighbour = LOOKUP.sample(RNG, 1)
    answers = await send(waiting(load(LOOKUP), at_most=2), [large, neighbour])
    assert isinstance(answers[0], InvalidInput)
    check(LOOKUP, [neighbour], answers[1:])


async def test_batch_size_and_wait_change_live(load: Load) -> None:
    case = BY_NAME["affine"]
    model = waiting(load(case), at_most=4)
    requests = [case.sample(RNG, 1) for _ in range(4)]
    assert check(case, requests, await send(model, requests)) == [4] * 4
    waiting(model, at_most=2)
    assert check(case, requests, await send(model, requests)) == [2] * 4
    waiting(model, ms=200, at_most=8)
    started = time.monotonic()
    await send(model, requests)
    assert time.monotonic() - started >= 0.15


async def test_a_catalog_that_asks_for_no_batch_size_gets_the_manifests(load: Load) -> None:
    case = BY_NAME["affine"]
    model = waiting(load(case), at_most=1)
    waiting(model, ms=500)
    requests = [case.sample(RNG, 1) for _ in range(MAX_ROWS)]
    assert check(case, requests, await send(model, requests)) == [MAX_ROWS] * MAX_ROWS


async def test_many_concurrent_requests_each_get_their_own_answer(load: Load) -> None:
    case = BY_NAME["classifier"]
    requests = [case.sample(RNG, rows) for rows in RNG.integers(1, 12, 64)]
    batches = check(case, requests, await send(waiting(load(case), ms=1), requests))
    assert max(batches) > 1


def test_no_answer_of_a_batch_is_an_exception_that_was_not_meant_to_travel(load: Load) -> None:
    model = load(LOOKUP)
    now = time.monotonic()
    items = [Item([{"x": np.full((1, 2), number)}], 1, now, now + 30) for number in (1, 99, 2)]
    answers = EngineCalls(model.kind, model.artifact, nullcontext()).run(Lane(model.engine, MAX_ROWS), items)
    assert [isinstance(answer, EnginehouseError) for answer in answers] == [False, True, False]


async def test_what_would_not_be_in_time_is_refused_at_once(load: Load) -> None:
    model = load(LOOKUP)
    model.engine = Slow(0.05)  # type: ignore[assignment]
    x = [{"x": np.zeros((1, 2), np.int64)}]
    await model.infer(x, 1, 10)
    assert model.backlog_ms == 0
    # With an empty queue it is computed, whatever its rows took before; behind others it would be late.
    tasks = [asyncio.create_task(model.infer(x, 1, 10)) for _ in range(4)]
    await asyncio.sleep(0.01)
    assert model.backlog_ms == pytest.approx(200, rel=0.3)
    with pytest.raises(Overloaded, match="is busy for"):
        await model.infer(x, 1, 0.1)
    await asyncio.gather(*tasks)
    await model.infer(x, 1, 0.1)


def test_single_rows_do_not_make_a_backlog_of_large_calls_look_long(load: Load) -> None:
    """One row takes 1 ms, 700 take 100: beside each other they are 0.14 ms a row, and not half of a millisecond."""
    model = load(LOOKUP)
    calls = EngineCalls(model.kind, model.artifact, nullcontext())
    for _ in range(50):
        calls._note(0.001, 1)
        calls._note(0.1, 700)
    assert calls.row_ms == pytest.approx(0.144, rel=0.05)
    for _ in range(100):
        calls._note(0.001, 1)
    assert calls.row_ms == pytest.approx(1.0, rel=0.1)


async def test_an_engine_that_is_stuck_refuses_others_and_comes_back(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_calls, "STUCK_S", 0.1)
    model = load(LOOKUP)
    model.engine = slow = Slow(0.001)  # type: ignore[assignment]
    x = [{"x": np.zeros((1, 2), np.int64)}]
    await model.infer(x, 1, 10)
    slow.seconds = 0.4
    stuck = asyncio.create_task(model.infer(x, 1, 10))
    await asyncio.sleep(0.2)
    with pytest.raises(Overloaded, match="has been computing one call for"):
        await model.infer(x, 1, 10)
    # One that stays so has its process replaced.
    hosted = HostedModels("p", ["onnxruntime-cpu"], 1, lambda _: True, 0)
    hosted.models["lookup@1"] = model
    hosted.check_health()
    monkeypatch.setattr(hosting, "STUCK_FOR_GOOD_S", 0.1)
    with pytest.raises(RuntimeError, match="lookup@1: one call of its engine takes"):
        hosted.check_health()
    await stuck
    hosted.check_health()
    await model.infer(x, 1, 10)


async def test_a_loading_model_counts_as_busy_and_an_idle_one_does_not(load: Load) -> None:
    hosted = HostedModels("p", ["onnxruntime-cpu"], 1, lambda _: True, 0)
    hosted._report("lookup@1", "loading")
    assert hosted.busy_share() > 0
    hosted._report("lookup@1", "ready")
    assert hosted.busy_share() == 0
    hosted.models["lookup@1"] = model = load(LOOKUP)
    model.engine = Slow(0.2)  # type: ignore[assignment]
    # Loading, and the first call, which starts threads and metrics, are not what is measured.
    await model.infer([{"x": np.zeros((1, 2), np.int64)}], 1, 10)
    hosted.busy_share()
    await model.infer([{"x": np.zeros((1, 2), np.int64)}], 1, 10)
    assert 0.5 < hosted.busy_share() < 1.5


async def test_a_row_is_expected_to_take_its_part_of_the_calls_that_it_travels_in(load: Load) -> None:
    model = load(LOOKUP)
    model.engine = Slow(0.08)  # type: ignore[assignment]
    await model.infer([{"x": np.zeros((4, 2), np.int64)}], 4, 10)
    task = asyncio.create_task(model.infer([{"x": np.zeros((2, 2), np.int64)}], 2, 10))
    await asyncio.sleep(0.01)
    assert model.backlog_ms == pytest.approx(40, rel=0.3)
    await task


async def test_begun_is_called_before_an_isolated_call_is_computed(load: Load) -> None:
    model = load(LOOKUP)
    order: list[str] = []
    infer = model.engine.infer

    def watched(inputs: Tensors) -> dict[str, np.ndarray]:
        order.append("computes")
        return infer(inputs)

    model.engine = SimpleNamespace(infer=watched, signature=LOOKUP.signature, close=model.engine.close)  # type: ignore[assignment]
    x = {"x": np.array([[3, 4]])}
    outputs, timing = await model.infer_isolated([x], 1, 10, lambda _: order.append("begun"), False)
    assert (order, timing.batch_rows) == (["begun", "computes"], 1)
    np.testing.assert_array_equal(outputs["y"], TABLE[x["x"]])
    with pytest.raises(InvalidInput):
        await model.infer_isolated([{"x": np.array([[99, 0]])}], 1, 10, lambda _: None, False)
