"""Requests that crash processes: real processes that really crash, with two models in each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.integration.bundles import CRASHES, RAISES, WIDTH, publish, publish_poisonous
from tests.unit.catalogs import POOLS, Cluster, until
from tests.unit.test_local_router import Deployed
from tests.unit.test_local_router import job as job
from tests.unit.test_policy import backend, ranked, reasons
from tests.unit.test_router import Handle

from enginehouse.contract.config import AppConfig, Catalog, ModelConfig, RouterConfig
from enginehouse.contract.errors import EngineUnavailable, InferenceFailed, NoBackend, ReplicaLost
from enginehouse.contract.tensors import Tensors
from enginehouse.faces.python.local_router import LocalRouter
from enginehouse.pools import crashes
from enginehouse.pools.hosting import HostedModels
from enginehouse.routing.answer import Answer
from enginehouse.routing.data_plane import DataPlane
from enginehouse.routing.hints import NO_HINTS, Hints
from enginehouse.routing.router import Router
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import LIVE_FOR_S, View
from enginehouse.transport.router_end import Channel

pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
INNOCENTS = range(9, 15)


class Replicas:
    """The one replica of pool `ort`: a process with the `models` of `store`, replaced when it dies."""

    def __init__(self, cluster: Cluster, store: Path, *models: ModelConfig) -> None:
        self.cluster, self.store, self.models = cluster, store, models
        #: Where its crashes are recorded: for none but itself.
        self.cache = store.with_name("cache")
        self.deaths = 0
        #: Whether routers can read its record of crashes; they are on its node.
        self.records = True
        #: More of its environment, and the process that runs.
        self.environment: dict[str, str] = {}
        self.process: asyncio.subprocess.Process | None = None
        self.is_replaced = True

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        up = asyncio.Event()
        keeper = asyncio.create_task(self._keep(up))
        try:
            await asyncio.wait_for(up.wait(), 60)
            yield
            assert not keeper.done(), keeper.exception()
        finally:
            keeper.cancel()
            await asyncio.wait([keeper])

    async def _keep(self, up: asyncio.Event) -> None:
        while True:
            command = ["-m", "tests.unit.replica_process", str(self.store), *(model.name for model in self.models)]
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                cwd=ROOT,
                env=os.environ | {"ENGINEHOUSE_CACHE": str(self.cache)} | self.environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            self.process, channel = process, Channel("ort")
            try:
                assert process.stdout is not None
                address = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
                await channel.open(address)
                self.cluster.report("ort", {model.key: "ready" for model in self.models})
                self.cluster.replicas["ort"][0].channel = channel
                self.cluster.replicas["ort"][0].record = address["record"] if self.records else ""
                up.set()
                await process.wait()
                self.cluster.replicas["ort"] = []
                self.deaths += 1
            finally:
                channel.close()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            if not self.is_replaced:
                await asyncio.Event().wait()


class House:
    """A router in this process above that replica, and perhaps with models of its own."""

    def __init__(self, cluster: Cluster, store: Path, *models: ModelConfig, has_residents: bool = False) -> None:
        self.replicas = Replicas(cluster, store, *models)
        pools = {"ort": POOLS["ort"]}
        self.residents = (
            HostedModels("a router", ["onnxruntime-cpu"], 1, lambda _: True, 60, router=True) if has_residents else None
        )
        view = View(pools, self.residents, "here")
        self.versions = LiveVersions(view)
        config = AppConfig(pools=pools, router=RouterConfig(default_deadline_s=120))
        router = Router(config, self.versions, view, {"ort": Handle()}, self.residents)  # type: ignore[dict-item]
        self.plane = DataPlane(router, self.versions, 1000, 1 << 30)
        self.catalog = Catalog(store=str(store), models=models)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.replicas.running():
            if self.residents is not None:
                self.residents.follow(self.catalog)
            self.versions.apply(self.catalog)
            await until(lambda: len(list(self.versions.answering)) == len(self.catalog.models), 20)
            yield

    async def ask(self, model: str, x: Any, hints: Hints = NO_HINTS) -> Answer:
        return await self.plane.infer("tests", model, {"x": x}, hints)


def poison(x: int) -> np.ndarray:
    return np.array([[x]], np.int64)


def answered(x: int) -> int:
    return -(2**63 // (x - RAISES))


@pytest.mark.parametrize("killers", [{"p": 1}, {"p": 2}, {"p": 1, "q": 1}])
async def test_of_two_models_that_die_together_only_the_killers_are_blamed(
    cluster: Cluster, tmp_path: Path, killers: dict[str, int]
) -> None:
    """The slow one computes at almost any time: whatever dies, it is in its engine as well."""
    for name in ("p", "q"):
        publish_poisonous(tmp_path / "store", name)
    publish(tmp_path / "store", "slow", "1", 5.0, idles=2)
    models = [ModelConfig(name=name, version="1") for name in ("p", "q", "slow")]
    house = House(cluster, tmp_path / "store", *models)
    wide = np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)
    async with house.running():
        sent: dict[tuple[str, int], asyncio.Task[Answer]] = {}
        for x in INNOCENTS:
            sent["slow", x] = asyncio.create_task(house.ask("slow", wide * x))
            for name in ("p", "q"):
                sent[name, x] = asyncio.create_task(house.ask(name, poison(x)))
            if x == INNOCENTS[2]:
                for name, count in killers.items():
                    for number in range(count):
                        sent[name, -1 - number] = asyncio.create_task(house.ask(name, poison(CRASHES)))
        await asyncio.wait(sent.values(), timeout=100)
        for (name, x), task in sent.items():
            if x < 0:
                with pytest.raises(InferenceFailed, match="two replicas were lost while they computed this request"):
                    task.result()
            elif name == "slow":
                np.testing.assert_array_equal(task.result().outputs["y"], wide * x * 5)
            else:
                assert task.result().outputs["y"].tolist() == [[answered(x)]]
        most = sum(killers.values())
        # Each once alone, and before that each at most once in company.
        await until(lambda: house.replicas.deaths > most and bool(cluster.replicas["ort"]), 60)
        assert house.replicas.deaths <= 2 * most
        # The models go on.
        assert (await house.ask("p", poison(9))).outputs["y"].tolist() == [[answered(9)]]


@pytest.mark.parametrize("is_replaced", [True, False])
async def test_what_a_replica_was_lost_with_never_comes_into_a_routers_process(
    cluster: Cluster, tmp_path: Path, is_replaced: bool
) -> None:
    publish_poisonous(tmp_path / "store", "p")
    config = ModelConfig(name="p", version="1", resident=True)
    house = House(cluster, tmp_path / "store", config, has_residents=True)
    computed: list[int] = []
    async with house.running():
        residents = house.residents
        assert residents is not None
        await until(lambda: config.key in residents.models, 20)
        engine = residents.models[config.key].engine
        infer = engine.infer

        def guarded(inputs: Tensors) -> dict[str, np.ndarray]:
            computed.extend(inputs["x"].ravel().tolist())
            assert CRASHES not in computed, "it would end this very process"
            return infer(inputs)

        engine.infer = guarded  # type: ignore[method-assign]
        # Usual requests are for the resident.
        assert (await house.ask("p", poison(9))).choice.backend.resident
        house.replicas.is_replaced = is_replaced
        # Into the replica first, as if the resident were being loaded.
        residents.reports[config.key]["state"] = "loading"
        await asyncio.sleep(2 * LIVE_FOR_S)
        killer = asyncio.create_task(house.ask("p", poison(CRASHES)))
        await until(lambda: house.replicas.deaths > 0, 20)
        residents.reports[config.key]["state"] = "ready"
        if is_replaced:
            with pytest.raises(InferenceFailed, match="two replicas were lost while they computed this request"):
                await asyncio.wait_for(killer, 60)
            await until(lambda: house.replicas.deaths == 2, 20)
        else:
            # No node can ever have another replica.
            cluster.accelerators.clear()
            with pytest.raises(ReplicaLost, match="kept out of the routers' processes") as caught:
                await asyncio.wait_for(killer, 20)
            assert (caught.value.status, caught.value.retryable) == (503, True)
        assert CRASHES not in computed
        # The router lives, and its own engine answers.
        assert (await house.ask("p", poison(11))).choice.backend.resident


async def test_a_router_gives_up_its_own_engine_when_that_crashes_another_process_of_the_node(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_poisonous(tmp_path / "store", "p")
    config = ModelConfig(name="p", version="1", resident=True)
    house = House(cluster, tmp_path / "store", config, has_residents=True)
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(house.replicas.cache))
    monkeypatch.setattr(crashes, "_records", [])
    async with house.running():
        residents = house.residents
        assert residents is not None
        await until(lambda: config.key in residents.models, 20)
        assert (await house.ask("p", poison(9))).choice.backend.resident
        with pytest.raises(InferenceFailed, match="two replicas were lost"):
            await house.ask("p", poison(CRASHES), Hints(backend="ort"))
        await until(lambda: residents.reports[config.key]["state"] == "failed", 20)
        assert "crashed process" in residents.reports[config.key]["reason"]
        # A new request does not wait for a replica that is not there yet.
        await until(lambda: bool(cluster.replicas["ort"]), 60)
        assert (await house.ask("p", poison(9))).choice.backend.pool == "ort"


def test_the_policy_leaves_residents_out_for_a_suspected_request_and_says_why() -> None:
    resident, pool = backend("resident", (1, 1.0), resident=True), backend("pool", (1, 9.0))
    assert ranked(resident, pool) == ["resident", "pool"]
    assert ranked(resident, pool, suspected=True) == ["pool"]
    assert "a replica was lost with the request" in reasons(resident, pool, suspected=True)["resident"]


async def test_a_lost_request_is_not_handed_to_a_router_that_would_not_know_it(job: list[str]) -> None:
    deployed = Deployed()
    deployed.answers = True
    router = LocalRouter(lambda: deployed)  # type: ignore[arg-type, return-value]

    class Plane:
        router = versions = SimpleNamespace(reaches=lambda _: True, get=lambda *_: None)
        error: Exception

        async def infer(self, *_: object) -> Answer:
            raise self.error

    for error, asked in (
        (ReplicaLost("ort", "gone"), 0),
        (EngineUnavailable("ort", "gone"), 1),
        (NoBackend("none"), 2),
    ):
        plane = Plane()
        plane.error = error
        router._plane = plane  # type: ignore[assignment]
        answer = asyncio.wrap_future(router.submit("m", {"x": poison(1)}, NO_HINTS, None))
        if asked:
            await asyncio.wait_for(answer, 5)
        else:
            with pytest.raises(ReplicaLost):
                await asyncio.wait_for(answer, 5)
        assert deployed.asked == asked
