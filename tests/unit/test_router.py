"""The router above its connections: what is tried again elsewhere, and which pool is woken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.unit.catalogs import POOLS, Cluster, answers, catalog, publish, until
from tests.unit.connections import connected, echo
from tests.unit.test_policy import table

from enginehouse.contract.bounds import InputBound
from enginehouse.contract.config import AppConfig, Catalog, ModelConfig, PoolConfig
from enginehouse.contract.errors import DeadlineExceeded, InferenceFailed, ModelNotFound, NoBackend, ReplicaLost
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.routing import waking
from enginehouse.routing.answer import Answer
from enginehouse.routing.data_plane import DataPlane
from enginehouse.routing.hints import NO_HINTS, Hints
from enginehouse.routing.router import Router
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import View
from enginehouse.transport.replica_end import Infer
from enginehouse.transport.router_end import Channel

X = {"x": np.zeros((1, 4), np.float32)}
#: Of the one version that is served here.
KEY = ModelConfig(name="m", version="1", numerics="any").key
#: ONNX Runtime is preferred.
TIMES = (
    table((1, 1.0), engine="onnxruntime-cpu", artifact="onnx-fp32"),
    table((1, 5.0), engine="openvino-cpu", artifact="openvino-int8"),
)


class Engine:
    """Echoes, or fails: always, or at a negative number."""

    def __init__(self, is_broken: bool = False) -> None:
        self.is_broken = is_broken
        self.calls = 0

    async def __call__(self, model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        self.calls += 1
        if self.is_broken or min(request["x"].min() for request in requests) < 0:
            raise InferenceFailed("no kernel")
        return await echo(model, requests, rows, budget_s)


class Handle:
    """What the router asks of Serve's handle to a pool; who calls it waits until the pool is up."""

    is_initialized = True

    def __init__(self) -> None:
        self.woken = 0
        self.wake = SimpleNamespace(remote=self._wake)

    async def _wake(self) -> None:
        self.woken += 1
        await asyncio.Event().wait()


def come_up(cluster: Cluster, pool: str, channel: Channel, key: str = KEY) -> None:
    """A replica on a node of its own has the model and is connected to."""
    cluster.report(pool, {key: "ready"})
    (replica,) = cluster.replicas[pool]
    replica.channel, replica.node = channel, pool


class Asked:
    """The data plane as a face that asks for model `m`, and what is below it."""

    def __init__(self, pools: Mapping[str, PoolConfig], view: View, versions: LiveVersions) -> None:
        self.handles = {name: Handle() for name in pools}
        self.view = view
        router = Router(AppConfig(pools=dict(pools)), versions, view, self.handles)  # type: ignore[arg-type]
        self.plane = DataPlane(router, versions, 1000, 1 << 30)

    async def infer(self, model: str, inputs: Tensors, hints: Hints = NO_HINTS) -> Answer:
        return await self.plane.infer("tests", model, inputs, hints)


@contextlib.asynccontextmanager
async def routed(
    cluster: Cluster,
    store: Path,
    engines: Mapping[str, Infer],
    bounds: Mapping[str, dict[str, InputBound]] | None = None,
    numerics: str = "any",
    **pool: Any,
) -> AsyncIterator[tuple[Asked, dict[str, Handle]]]:
    """A router that is connected to a replica of each pool that has an engine."""
    publish(store, "1", TIMES, bounds)
    pools = {name: config.model_copy(update=pool) for name, config in POOLS.items()}
    view = View(pools, None, "here")
    models = LiveVersions(view)
    async with contextlib.AsyncExitStack() as stack:
        wanted = catalog(store, "1", numerics=numerics)
        for name, infer in engines.items():
            _, channel = await stack.enter_async_context(connected(infer))
            come_up(cluster, name, channel, wanted.models[0].key)
        models.apply(wanted)
        await until(lambda: answers(models) == "1")
        asked = Asked(pools, view, models)
        yield asked, asked.handles


async def test_what_fails_in_a_backend_that_fails_others_too_is_tried_in_another_one(
    cluster: Cluster, store: Path
) -> None:
    broken, works = Engine(is_broken=True), Engine()
    async with routed(cluster, store, {"ort": broken, "vino": works}) as (router, _):
        # Of the first nobody knows whose fault it is.
        with pytest.raises(InferenceFailed, match="no kernel"):
            await router.infer("m", X)
        for _ in range(20):
            answer = await router.infer("m", X)
            assert answer.choice.backend.pool == "vino"
        assert answer.attempts == 1, "it is no longer asked"
        with pytest.raises(InferenceFailed, match="no kernel"):
            await router.infer("m", X, Hints(backend="ort"))


async def test_what_fails_in_two_backends_is_not_tried_in_more_nor_again(cluster: Cluster, store: Path) -> None:
    first, second = Engine(), Engine()
    async with routed(cluster, store, {"ort": first, "vino": second}) as (router, _):
        poison = {"x": -np.ones((1, 4), np.float32)}
        for _ in range(2):
            with pytest.raises(InferenceFailed, match="no kernel"):
                await router.infer("m", poison)
        assert (first.calls, second.calls) == (2, 1)
        # Between requests that are answered it is at fault itself.
        await router.infer("m", X)
        with pytest.raises(InferenceFailed, match="no kernel"):
            await router.infer("m", poison)
        assert first.calls + second.calls == 5


async def test_those_that_wait_for_a_backend_are_answered_by_another_one_that_comes_up(
    cluster: Cluster, store: Path
) -> None:
    release = asyncio.Event()

    async def held(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        await release.wait()
        return await echo(model, requests, rows, budget_s)

    async with routed(cluster, store, {"vino": held}) as (router, _):
        sent = [asyncio.create_task(router.infer("m", X)) for _ in range(20)]
        await asyncio.sleep(0.05)
        async with connected() as (__, channel):
            come_up(cluster, "ort", channel)
            router.view.forget()
            # The first that comes finds it, and the others are told.
            sent.append(asyncio.create_task(router.infer("m", X)))
            await asyncio.sleep(0.1)
            answered = [task.result() for task in sent if task.done()]
            release.set()
            await asyncio.gather(*sent)
    assert len(answered) > 10
    assert {(answer.choice.backend.pool, answer.attempts) for answer in answered} == {("ort", 1)}


async def test_a_model_is_reached_while_this_process_is_connected_to_a_replica_of_it(
    cluster: Cluster, store: Path
) -> None:
    async with routed(cluster, store, {"ort": Engine()}) as (router, _):
        version = router.plane.versions.get("m")
        assert router.plane.router.reaches(version)
        cluster.report("ort")
        router.view.forget()
        assert not router.plane.router.reaches(version)
        with pytest.raises(NoBackend, match="no live backend for 'm@1'"):
            await router.infer("m", X)


async def test_the_best_idle_pool_is_woken_and_another_one_when_it_does_not_come(
    cluster: Cluster, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with routed(cluster, store, {}, min_replicas=0) as (router, handles):
        await until(lambda: len(router.view.idle(router.plane.versions.get("m"))) == 2)
        woken = lambda: {name: handle.woken for name, handle in handles.items()}  # noqa: E731
        first = asyncio.create_task(router.infer("m", X))
        await asyncio.sleep(0.02)
        assert woken() == {"ort": 1, "vino": 0}
        # The next request finds it on its way, and does not call it once more.
        second = asyncio.create_task(router.infer("m", X))
        await asyncio.sleep(0.02)
        assert woken() == {"ort": 1, "vino": 0}
        monkeypatch.setattr(waking, "SLOW_S", 0.0)
        third = asyncio.create_task(router.infer("m", X))
        await asyncio.sleep(0.02)
        assert woken() == {"ort": 1, "vino": 1}
        async with connected() as (_, channel):
            come_up(cluster, "vino", channel)
            waited = await asyncio.gather(first, second, third)
        assert {answer.choice.backend.pool for answer in waited} == {"vino"}


async def test_what_is_under_way_when_the_last_node_goes_hears_so_and_does_not_wait_for_its_deadline(
    cluster: Cluster, store: Path
) -> None:
    async def held(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        await asyncio.Event().wait()
        raise AssertionError

    publish(store, "1", TIMES)
    view = View(POOLS, None, "here")
    models = LiveVersions(view)
    async with connected(held) as (_, channel):
        come_up(cluster, "ort", channel)
        models.apply(catalog(store, "1", numerics="any"))
        await until(lambda: answers(models) == "1")
        router = Asked(POOLS, view, models)
        sent = asyncio.create_task(router.infer("m", X, Hints(deadline_s=20.0)))
        await asyncio.sleep(0.05)
        cluster.replicas.clear()
        channel.close()
        await asyncio.sleep(0.2)
        assert not sent.done(), "Serve may start another replica on a node that lives"
        cluster.accelerators.clear()
        await view.count_nodes()
        with pytest.raises(ReplicaLost, match="no live backend"):
            await asyncio.wait_for(sent, 2)


async def test_a_request_for_a_model_that_is_removed_meanwhile_is_told_so_at_once(
    cluster: Cluster, store: Path
) -> None:
    async def unloaded(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        raise ModelNotFound("m", "1")

    async with routed(cluster, store, {"ort": unloaded}) as (asked, _):
        sent = asyncio.create_task(asked.infer("m", X))
        await asyncio.sleep(0.1)
        assert not sent.done(), "another replica may have it"
        asked.plane.versions.apply(Catalog(store=str(store)))  # type: ignore[attr-defined]
        with pytest.raises(ModelNotFound, match="served: none"):
            await asyncio.wait_for(sent, 2)


async def test_who_was_asked_until_the_deadline_is_told_with_the_model(cluster: Cluster, store: Path) -> None:
    async def slow(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        await asyncio.sleep(0.5)
        return await echo(model, requests, rows, budget_s)

    async with routed(cluster, store, {"ort": slow}) as (asked, _):
        with pytest.raises(DeadlineExceeded, match=r"^m@1(: no answer within 0.05 s after 1 attempt)? in ort"):
            await asked.infer("m", X, Hints(0.05))
