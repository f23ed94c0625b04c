"""One backend as a router sees it: its failures, its pace, its queue, and requests that may have crashed a replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tests.unit.test_policy import artifact, backend, manifest, table

from enginehouse.contract.config import FIRST, LAST, USUAL, ModelConfig
from enginehouse.contract.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, InvalidInput
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import Axis
from enginehouse.contract.tensors import Computed, Tensors, Timing
from enginehouse.routing import backends
from enginehouse.routing.backends import FAILURES, Backend, Backends, Sender
from enginehouse.routing.policy import BackendState
from enginehouse.routing.view import ModelVersion

X = {"x": np.zeros((1, 4), np.float32)}
TIMES = (1, 2.0), (8, 8.0)


def served(**settings: object) -> ModelVersion:
    described = manifest([artifact("a", "onnx")], table(*TIMES))
    config = ModelConfig.model_validate({"name": "m", "version": "1", **settings})
    return ModelVersion(config, described, described.signature.signature())


class Pool:
    """Answers after `compute_ms`, or raises what it is told to."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.calls = self.under_way = self.most = 0
        self.compute_ms = 2.0

    async def __call__(
        self, requests: Sequence[Tensors], rows: int, budget_s: float, isolated: bool = False, _: int = 5
    ) -> Computed:
        self.calls += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.001)
        self.under_way -= 1
        if self.errors:
            raise self.errors.pop(0)
        return {"y": np.zeros((rows, 4), np.float32)}, Timing(0.0, self.compute_ms, rows)


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def known(pool: Pool) -> Backends:
    def call(_: Backend) -> Sender:
        return pool

    return Backends(call, routers=2)


def look(known: Backends, model: ModelVersion, **changes: object) -> BackendState:
    live = [backend("p", *TIMES)._replace(**changes)]  # type: ignore[arg-type]
    (state,) = known.states(model, live)
    return state


async def ask(
    known: Backends, model: ModelVersion, error: type[Exception] | None = None, budget_s: float = backends.ATTEMPT_S
) -> None:
    one = known.get(model, look(known, model))
    if error is None:
        await one.infer(X, 1, time.monotonic() + budget_s, USUAL)
    else:
        with pytest.raises(error):
            await one.infer(X, 1, time.monotonic() + budget_s, USUAL)


FAILING: list[Callable[[], Exception]] = [
    lambda: EngineUnavailable("p", "gone"),
    lambda: InferenceFailed("broken"),
    # It had all the time that could be asked for.
    lambda: DeadlineExceeded("no answer"),
]


@pytest.mark.parametrize("error", FAILING)
async def test_after_several_failures_it_fails_until_one_request_is_answered(
    known: Backends, pool: Pool, error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "PROBE_S", 0.05)
    model = served()
    pool.errors = [error() for _ in range(FAILURES + 1)]
    for _ in range(FAILURES):
        assert not look(known, model).fails
        await ask(known, model, type(pool.errors[0]))
    assert look(known, model).fails.startswith(f"{FAILURES} calls in a row failed, at last: ")
    await asyncio.sleep(0.06)
    # Half open: one may try, and while it does the others go elsewhere.
    assert not look(known, model).fails
    await ask(known, model, type(pool.errors[0]))
    assert look(known, model).fails
    await asyncio.sleep(0.06)
    await ask(known, model)
    assert not look(known, model).fails


async def test_requests_that_are_refused_for_what_is_in_them_say_nothing_of_the_backend(
    known: Backends, pool: Pool
) -> None:
    model = served()
    pool.errors = [InvalidInput("no such row") for _ in range(2 * FAILURES)]
    for _ in range(2 * FAILURES):
        await ask(known, model, InvalidInput)
    assert not look(known, model).fails


async def test_being_late_and_one_bad_request_among_others_are_no_failures(known: Backends, pool: Pool) -> None:
    model = served()
    pool.errors = [DeadlineExceeded("late") for _ in range(2 * FAILURES)]
    for _ in range(2 * FAILURES):
        await ask(known, model, DeadlineExceeded, budget_s=0.5)
    assert not look(known, model).fails
    one = known.get(model, look(known, model))
    pool.errors = []
    first = asyncio.create_task(one.infer(X, 1, time.monotonic() + 10, USUAL))
    await asyncio.sleep(0)
    pool.errors = [InferenceFailed("of four"), InferenceFailed("of two"), InferenceFailed("it was this one")]
    others = [asyncio.create_task(one.infer(X, 1, time.monotonic() + 10, USUAL)) for _ in range(4)]
    pool.errors.insert(0, InferenceFailed("the first, alone"))
    outcomes = await asyncio.gather(first, *others, return_exceptions=True)
    assert sum(isinstance(outcome, InferenceFailed) for outcome in outcomes) == 2
    assert not look(known, model).fails


async def test_an_attempt_that_ran_out_counts_whatever_passed_on_the_way_to_it(known: Backends, pool: Pool) -> None:
    model = served()
    pool.errors = [DeadlineExceeded("no answer") for _ in range(FAILURES)]
    for _ in range(FAILURES):
        await ask(known, model, DeadlineExceeded, budget_s=0.95 * backends.ATTEMPT_S)
    assert look(known, model).fails


async def test_a_request_is_expected_to_take_what_its_own_size_takes(known: Backends) -> None:
    points = tuple(
        LatencyPoint(rows=1, size=size, median_ms=ms, p90_ms=ms, min_ms=ms, count=1)
        for size, ms in ((2, 1.0), (8, 100.0))
    )
    sized = LatencyTable(engine="onnxruntime-cpu", artifact="a", threads=1, host="here", points=points)
    axis = Axis(name="length", min=2, opt=8, max=8, dims=(("x", 1),))
    described = manifest([artifact("a", "onnx")], sized).model_copy(update={"axes": (axis,)})
    model = ModelVersion(ModelConfig(name="m", version="1"), described, described.signature.signature())
    one = known.get(model, look(known, model, table=sized))
    assert one.call_ms([{"x": np.zeros((1, 2), np.float32)}], 1) == 1.0
    assert one.call_ms([{"x": np.zeros((1, 8), np.float32)}], 1) == 100.0
    one.queue.max_rows = 1
    one.count_demand(1, 2)
    assert one.take_demand_ms() == 1.0
    one.count_demand(1, 8)
    assert one.take_demand_ms() == 100.0
    # What is short enough is not dropped from the queue for what the longest would take.
    assert one.queue.least_s == 0.001


@pytest.mark.parametrize(("lanes", "replicas"), [(1, 1), (2, 1), (2, 3)])
async def test_jobs_keep_every_lane_busy_while_their_next_calls_are_on_the_way(
    lanes: int, replicas: int, known: Backends, pool: Pool
) -> None:
    """Also of a model that is faster than the way to it, whose other requests are sent together."""
    model = served(max_batch_size=1)
    (state,) = known.states(model, [backend("p", (1, 0.01))._replace(lanes=lanes, replicas=replicas)])
    one = known.get(model, state)
    for priority, most in (USUAL, 1), (LAST, 2 * lanes * replicas):
        pool.most = 0
        await asyncio.gather(*(one.infer(X, 1, time.monotonic() + 10, priority) for _ in range(50)))
        assert pool.most == most


async def test_who_waits_behind_a_request_does_not_make_it_late(known: Backends, pool: Pool) -> None:
    model = served(max_batch_size=1)
    live = [backend("p", *TIMES)]
    one = known.get(model, known.states(model, live)[0])
    asked = USUAL, LAST, LAST, LAST, USUAL
    tasks = [asyncio.create_task(one.infer(X, 1, time.monotonic() + 10, priority)) for priority in asked]
    await asyncio.sleep(0)
    queued = {priority: known.states(model, live, priority)[0].queued_rows for priority in (FIRST, USUAL, LAST)}
    # Two of the last priority are under way in slots of their own.
    assert queued == {FIRST: 0, USUAL: 1, LAST: 2}
    await asyncio.gather(*tasks)


async def test_what_calls_take_corrects_what_was_measured(known: Backends, pool: Pool) -> None:
    model = served()
    assert look(known, model).compute_ms(1, None) == 2.0
    pool.compute_ms = 6.0
    for _ in range(100):
        await ask(known, model)
    assert look(known, model).compute_ms(1, None) == pytest.approx(6.0, rel=0.05)


async def test_what_waits_is_counted_and_travels_as_far_as_is_worth_it(known: Backends, pool: Pool) -> None:
    model = served(max_batch_size=4)
    state = look(known, model, replicas=1)
    assert (state.queued_rows, state.batch_rows) == (0, 4)
    one = known.get(model, state)
    tasks = [asyncio.create_task(one.infer(X, 1, time.monotonic() + 10, USUAL)) for _ in range(6)]
    await asyncio.sleep(0)
    assert look(known, model).queued_rows == 5
    await asyncio.gather(*tasks)
    assert pool.calls == 3
    # A new entry of the catalog is another `served`.
    assert look(known, served(max_batch_size=2)).batch_rows == 2


async def test_suspects_are_sent_one_at_a_time(known: Backends, pool: Pool) -> None:
    model = served()
    one = known.get(model, look(known, model))
    await asyncio.gather(*(one.infer_isolated(X, 1, time.monotonic() + 10) for _ in range(5)))
    assert (pool.calls, pool.most) == (5, 1)


async def test_those_that_nobody_asks_for_are_forgotten(known: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "FORGET_AFTER_S", 0.0)
    old, new = served(), served(version="2")
    await ask(known, old)
    await ask(known, new)
    assert [key for key in known._backends] == [("p", "m@2")]
    await ask(known, old)


async def test_models_on_the_same_hardware_hear_of_its_crowd_from_each_other(known: Backends, pool: Pool) -> None:
    asked, other = served(), served(name="other")
    nodes = frozenset({"n"})
    before = look(known, other, nodes=nodes).compute_ms(1, None)
    elsewhere = look(known, other, pool="q", nodes=frozenset({"m"})).compute_ms(1, None)
    pool.compute_ms = 3 * TIMES[0][1]
    for _ in range(10):
        await known.get(asked, look(known, asked, nodes=nodes)).infer(X, 1, time.monotonic() + 1, USUAL)
    assert look(known, other, nodes=nodes).compute_ms(1, None) > 1.3 * before
    assert look(known, other, pool="q", nodes=frozenset({"m"})).compute_ms(1, None) == elsewhere
