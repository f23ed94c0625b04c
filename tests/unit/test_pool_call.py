"""Which replica a call goes to, and what a refusal means."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.unit.connections import Run, connected, echo, pool
from tests.unit.test_errors import CLASSES, example

from enginehouse.contract.config import APP_NAME
from enginehouse.contract.errors import DeadlineExceeded, EnginehouseError, EngineUnavailable, Overloaded
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.routing import replicas
from enginehouse.routing.pool_call import PoolCall
from enginehouse.routing.replicas import Replica
from enginehouse.transport.replica_end import Infer
from enginehouse.transport.router_end import FULL_S, Channel

X = [{"x": np.zeros((1, 2), np.float32)}]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Replica]:
    """The replicas of `pool` that Serve is taken to have told of."""
    known = replicas.KnownReplicas("pool")
    monkeypatch.setitem(replicas._pools, (APP_NAME, "pool"), known)
    return known.by_id


def replica(name: str, channel: Channel) -> Replica:
    report = {"state": "ready", "reason": "", "engine": "", "artifact": "", "precision": "", "measured": []}
    return Replica(name, {"m@1": report}, {"host": "", "port": 0, "key": ""}, channel)  # type: ignore[dict-item]


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls.fault.help == "another"])
def test_what_one_replica_cannot_read_another_one_may(
    run: Run, known: dict[str, Replica], cls: type[EnginehouseError]
) -> None:
    async def broken(*_: object) -> Computed:
        raise example(cls)

    async def work() -> None:
        async with connected(broken) as (_, one), connected() as (__, other):
            known["one"] = replica("one", one)
            call = PoolCall("pool", "m@1")
            with pytest.raises(cls):
                await call(X, 1, 10)
            known["other"] = replica("other", other)
            for _ in range(10):
                await call(X, 1, 10)

    run(work())


def test_a_replica_that_refuses_is_left_alone_for_a_moment_and_stays_live(run: Run, known: dict[str, Replica]) -> None:
    async def work() -> None:
        release = asyncio.Event()

        async def held(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
            await release.wait()
            return await echo(model, requests, rows, budget_s)

        async with connected(held, max_calls=1) as (_, full), connected() as (__, free):
            known["full"] = replica("full", full)
            call = PoolCall("pool", "m@1")
            first = asyncio.create_task(call(X, 1, 10))
            await asyncio.sleep(0.05)
            with pytest.raises(Overloaded, match="takes no more calls: 1 are in flight"):
                await call(X, 1, 10)
            with pytest.raises(Overloaded, match="its replicas take no more calls"):
                await call(X, 1, 10)
            assert len(replicas.of_pool(APP_NAME, "pool")) == 1
            known["free"] = replica("free", free)
            await call(X, 1, 10)
            release.set()
            await first
            del known["free"]
            # uvloop's sleep may end a millisecond early.
            await asyncio.sleep(FULL_S + 0.02)
            await call(X, 1, 10)

    run(work())


def test_a_call_goes_to_the_replica_that_is_free_first_and_ends_in_time(run: Run, known: dict[str, Replica]) -> None:
    async def work() -> None:
        async def forever(*_: object) -> Computed:
            await asyncio.sleep(60)
            raise AssertionError

        async with connected(forever) as (_, busy), connected() as (__, idle):
            known["busy"] = replica("busy", busy)
            call = PoolCall("pool", "m@1", lambda _, rows: 5.0 * rows)
            stuck = asyncio.create_task(call(X, 1, 0.5))
            await asyncio.sleep(0.05)
            known["idle"] = replica("idle", idle)
            for _ in range(20):
                await call(X, 1, 10)
            with pytest.raises(DeadlineExceeded, match="did not answer within the 0.500 s"):
                await stuck
            with pytest.raises(DeadlineExceeded, match="no time was left"):
                await call(X, 1, 0)
            with pytest.raises(EngineUnavailable, match="none of its replicas has other@1"):
                await PoolCall("pool", "other@1")(X, 1, 10)

    run(work())


def test_of_replicas_that_are_as_free_any_answers_but_one_that_has_other_models_to_do(
    run: Run, known: dict[str, Replica]
) -> None:
    async def work() -> None:
        release, asked = asyncio.Event(), list[int]()

        def counted(number: int) -> Infer:
            async def infer(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
                if model == "other@1":
                    await release.wait()
                asked.append(number)
                return await echo(model, requests, rows, budget_s)

            return infer

        async with contextlib.AsyncExitStack() as stack:
            for number in range(4):
                _, channel = await stack.enter_async_context(connected(counted(number)))
                known[str(number)] = replica(str(number), channel)
            other = asyncio.create_task(known["0"].channel.infer("other@1", X, 1, 10, expected_ms=5.0))
            await asyncio.sleep(0)
            for _ in range(100):
                await PoolCall("pool", "m@1")(X, 1, 10)
            assert set(asked) == {1, 2, 3}
            release.set()
            await other

    run(work())


def test_what_one_replica_refuses_another_answers(run: Run, known: dict[str, Replica]) -> None:
    async def work() -> None:
        release = asyncio.Event()

        async def held(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
            await release.wait()
            return await echo(model, requests, rows, budget_s)

        async with pool(held, max_calls=1) as (_, address), connected() as (__, free):
            mine, others = Channel("pool"), Channel("pool")
            await asyncio.gather(mine.open(address), others.open(address))
            first = asyncio.create_task(others.infer("m@1", X, 1, 10))
            await asyncio.sleep(0.05)
            known["full"], known["free"] = replica("full", mine), replica("free", free)
            for _ in range(20):
                await PoolCall("pool", "m@1")(X, 1, 10)
            assert mine.is_full(time.monotonic())
            release.set()
            await first
            mine.close()
            others.close()

    run(work())


def test_how_long_a_replica_is_busy_is_known_from_its_answers(run: Run) -> None:
    async def work() -> None:
        release = asyncio.Event()

        async def held(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
            if rows > 1:
                await release.wait()
            return await echo(model, requests, rows, budget_s)

        async with connected(held) as (listener, channel):
            listener.backlog_ms = lambda _: 5000.0
            x = [{"x": np.zeros(1)}]
            long = asyncio.create_task(channel.infer("m@1", x, 2, 10, expected_ms=3000.0))
            await channel.infer("m@1", x, 1, 10, expected_ms=7.0)
            now = time.monotonic()
            # Of the 5 s it told of, 3 are this router's own; what others sent gets done meanwhile.
            assert channel.wait_ms(now, "m@1") == pytest.approx(5000, abs=50)
            assert channel.wait_ms(now + 1, "m@1") == pytest.approx(4000, abs=50)
            assert channel.wait_ms(now + 9, "m@1") == 3000
            # Another model does not wait for this one, but of two replicas the one with less to do is taken.
            assert channel.wait_ms(now, "other@1") == 0
            assert channel.load_ms(now) == pytest.approx(5000, abs=50)
            listener.backlog_ms = lambda _: 0.0
            release.set()
            await long
            assert channel.wait_ms(time.monotonic(), "m@1") == 0

    run(work())


def test_an_isolated_call_goes_where_it_can_be_alone_and_else_where_it_cannot(
    run: Run, known: dict[str, Replica]
) -> None:
    """What replicas are asked is said as integers, and old ones take both for one thing."""
    asked: list[tuple[str, bool]] = []

    def isolated(name: str, loads: bool) -> Any:
        async def infer(
            model: str, requests: Sequence[Tensors], rows: int, budget_s: float, begun: Any, company: bool
        ) -> Computed:
            asked.append((name, company))
            if loads and not company:
                raise Overloaded("an engine is being loaded")
            begun(not loads)
            return await echo(model, requests, rows, budget_s)

        return infer

    async def work() -> None:
        async with connected() as (one_end, one), connected() as (other_end, other):
            one_end.infer_isolated, other_end.infer_isolated = isolated("one", True), isolated("other", True)
            known["one"], known["other"] = replica("one", one), replica("other", other)
            call = PoolCall("pool", "m@1")
            await call(X, 1, 10, isolated=True)
            assert sorted(asked[:2]) == [("one", False), ("other", False)] and asked[2][1]
            other_end.infer_isolated = isolated("other", False)
            for _ in range(10):
                asked.clear()
                await call(X, 1, 10, isolated=True)
                assert asked[-1] == ("other", False)
            # One that is full is left alone: what is lasting is another matter.
            one_end.max_calls = other_end.max_calls = 0
            with pytest.raises(Overloaded, match="take no more calls"):
                await call(X, 1, 10, isolated=True)

    run(work())
