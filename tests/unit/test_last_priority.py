"""The last priority on its way: it holds no slot, no place and no queue that others need; the engine knows of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.unit.connections import bounded, connected, pool
from tests.unit.scoring_jobs import signature
from tests.unit.test_backends import TIMES, backend, served

from enginehouse.contract.config import LAST, USUAL
from enginehouse.contract.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InferenceFailed,
    Overloaded,
)
from enginehouse.contract.tensors import Computed, Tensors, Timing
from enginehouse.faces.scoring.rows.batches import Group
from enginehouse.faces.scoring.scorers.scorer import Scorer
from enginehouse.faces.scoring.ways import via_serve
from enginehouse.faces.scoring.ways.via_serve import ViaServe
from enginehouse.routing.backends import Backend, Backends, Sender
from enginehouse.routing.pool_call import freest
from enginehouse.transport.replica_end import LAST_TIMES, Accepted
from enginehouse.transport.router_end import Channel

X: list[Tensors] = [{"x": np.zeros((1, 4), np.float32)}]


async def test_the_replica_knows_it_and_keeps_places_of_their_own() -> None:
    held, seen = asyncio.Event(), list[str]()

    def computing(name: str) -> Any:
        async def infer(_: str, requests: Sequence[Tensors], rows: int, __: float) -> Computed:
            seen.append(name)
            await held.wait()
            return dict(requests[0]), Timing(0.0, 1.0, rows)

        return infer

    async def work() -> None:
        most = 2 * LAST_TIMES
        async with connected(computing("others"), most) as (listener, channel):
            listener.infer_last = computing("last")
            calls = [asyncio.create_task(channel.infer("m@1", X, 1, 10, 5.0, priority=LAST)) for _ in range(2)]
            await asyncio.sleep(0.05)
            with pytest.raises(Overloaded, match="2 are in flight"):
                await channel.infer("m@1", X, 1, 10, priority=LAST)
            now = time.monotonic()
            assert channel.is_full(now, LAST) and not channel.is_full(now)
            # They wait for the others, and others not for them.
            assert (channel.wait_ms(now, "m@1", LAST), channel.wait_ms(now, "m@1")) == (10.0, 0.0)
            assert freest([channel], "m@1", now) is channel
            calls += [asyncio.create_task(channel.infer("m@1", X, 1, 10)) for _ in range(most)]
            await asyncio.sleep(0.05)
            with pytest.raises(Overloaded, match=f"{most} are in flight"):
                await channel.infer("m@1", X, 1, 10)
            held.set()
            await asyncio.gather(*calls)
            assert seen == ["last"] * 2 + ["others"] * most
            assert channel.wait_ms(time.monotonic(), "m@1", LAST) == 0.0

    await bounded(work())


async def test_a_replica_of_the_release_before_computes_it_as_any_other() -> None:
    seen: list[list[Any]] = []
    start = Accepted._start

    async def work() -> None:
        async with pool() as (_, address):
            del address["takes_last"]
            channel = Channel("pool")
            await channel.open(address)
            await channel.infer("m@1", X, 1, 10, priority=LAST)
            channel.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accepted, "_start", lambda self, message: (seen.append(message.content), start(self, message)))
        await bounded(work())
    # As long as the one before had it, which takes no more.
    assert [len(content) for content in seen] == [6]


async def test_in_a_router_they_take_no_slot_from_the_others_and_share_no_call_with_them() -> None:
    calls, held = list[tuple[int, int]](), asyncio.Event()

    def call(_: Backend) -> Sender:
        async def send(
            requests: Sequence[Tensors], rows: int, budget_s: float, isolated: bool = False, priority: int = USUAL
        ) -> Computed:
            calls.append((priority, rows))
            if priority == LAST:
                await held.wait()
            return {"x": np.concatenate([request["x"] for request in requests])}, Timing(0.0, 1.0, rows)

        return send

    known, model = Backends(call, routers=2), served()
    (state,) = known.states(model, [backend("p", *TIMES)])
    asked = known.get(model, state)
    until = time.monotonic() + 10
    jobs = [asyncio.create_task(asked.infer(X[0], 1, until, LAST)) for _ in range(20)]
    await asyncio.sleep(0.01)
    for _ in range(3):
        await asyncio.wait_for(asked.infer(X[0], 1, until, USUAL), 1)
    assert [rows for priority, rows in calls if priority == USUAL] == [1, 1, 1]
    live = [backend("p", *TIMES)]
    assert known.states(model, live, USUAL)[0].queued_rows == 0
    assert known.states(model, live, LAST)[0].queued_rows > 0
    held.set()
    await asyncio.gather(*jobs)
    assert sum(rows for priority, rows in calls if priority == LAST) == 20


async def test_one_that_is_late_says_nothing_of_the_backend() -> None:
    def call(_: Backend) -> Sender:
        async def send(*_: Any, **__: Any) -> Computed:
            raise DeadlineExceeded("others went first")

        return send

    known, model = Backends(call, routers=2), served()
    (state,) = known.states(model, [backend("p", *TIMES)])
    asked = known.get(model, state)
    for _ in range(5):
        with pytest.raises(DeadlineExceeded):
            await asked.infer(X[0], 1, time.monotonic() + 60, LAST)
    assert not asked.failed_repeatedly


class Router:
    """In the place of `Client`: raises what it is told to, and is late for more than `most` rows."""

    def __init__(self, errors: list[Exception], most: int = 1000) -> None:
        self.errors, self.most, self.rows = errors, most, list[int]()

    async def answer_async(self, _: str, inputs: Tensors, **hints: Any) -> dict[str, Any]:
        assert hints["priority"] == LAST
        rows = len(inputs["x"])
        self.rows.append(rows)
        if self.errors:
            raise self.errors.pop(0)
        if rows > self.most:
            raise DeadlineExceeded("others went first")
        return {"outputs": {"y": inputs["x"]}, "backend": "b", "version": "1"}


async def test_rows_that_there_is_no_room_for_are_sent_until_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(via_serve, "_PAUSE_S", 0.0)
    asked: Tensors = {"x": np.arange(3)}
    router = Router([Overloaded("full")] * 20)
    answered = await ViaServe("m", "1", 8, router).answer(asked)
    np.testing.assert_array_equal(answered.outputs["y"], asked["x"])
    monkeypatch.setattr(via_serve, "_BUSY_S", -1.0)
    with pytest.raises(Overloaded):
        await ViaServe("m", "1", 8, Router([Overloaded("full")])).answer(asked)
    with pytest.raises(EngineUnavailable):
        await ViaServe("m", "1", 8, Router([EngineUnavailable("p", "gone")] * via_serve._TRIES)).answer(asked)
    with pytest.raises(InferenceFailed):
        await ViaServe("m", "1", 8, Router([InferenceFailed("bad")])).answer(asked)


async def test_what_is_late_is_asked_in_parts_that_are_in_time() -> None:
    answering = ViaServe("m", "1", 64, Router([], most=5))
    scorer = Scorer.__new__(Scorer)
    scorer._answering, scorer._turns = answering, asyncio.Semaphore(4)
    scorer._task = SimpleNamespace(signature=signature())  # type: ignore[assignment]
    x = np.arange(64, dtype=np.float32)
    parts, refused, _ = await scorer._ask(Group(np.arange(64), {"x": x}))
    assert not refused
    order = np.argsort(np.concatenate([part.rows for part in parts]))
    np.testing.assert_array_equal(np.concatenate([part.outputs["y"] for part in parts])[order], x)
    assert max(len(part.rows) for part in parts) <= 5 and answering.batch_rows < 64
