"""Ready means that a request would be answered: whatever the pools report, one that is sent finds it so."""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.unit.catalogs import POOLS, Cluster, catalog, entry, publish, turns, until
from tests.unit.connections import connected
from tests.unit.test_router import TIMES, Asked, Engine, X, routed

from enginehouse.contract.config import Catalog, ModelConfig
from enginehouse.contract.errors import CapacityError, EngineError, EnginehouseError, ModelNotFound
from enginehouse.contract.manifest import NumericsRule
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import View
from enginehouse.transport.router_end import Channel

#: What a pool has of a model: no replica; one without a report, or with one.
STATES = ("none", "silent", "loading", "failed", "unavailable", "ready")


class Situation(NamedTuple):
    """The reports of both pools, what may answer, whether pools may be idle, and what was there before."""

    ort: str
    vino: str
    numerics: NumericsRule
    may_be_idle: bool
    has_answered: bool
    has_nodes: bool


ALL = [
    Situation(*one)
    for one in itertools.product(
        STATES, STATES, ("full", "int8", "any"), (False, True), (False, True), (True, True, False)
    )
]


def report(cluster: Cluster, situation: Situation, key: str, channel: Channel) -> None:
    for pool, state in (("ort", situation.ort), ("vino", situation.vino)):
        if state == "ready" and situation.numerics not in ("any", {"ort": "full", "vino": "int8"}[pool]):
            # A replica has nothing to load then.
            state = "unavailable"
        reports = {"none": [], "silent": [{}]}.get(state, [{key: state}])
        cluster.report(pool, *reports)  # type: ignore[arg-type]
        for replica in cluster.replicas[pool]:
            replica.channel, replica.node = channel, pool


async def is_answered(asked: Asked, cluster: Cluster, key: str, channel: Channel) -> bool:
    """Whether a request is answered; a pool that it wakes comes up, and so does one that loads and may be idle."""
    sent = asyncio.create_task(asked.infer("m", X))
    await asyncio.sleep(0.01)
    for pool, handle in asked.handles.items():
        loads = any(
            replica.reports.get(key, {"state": "loading"})["state"] == "loading" for replica in cluster.replicas[pool]
        )
        waits = not sent.done() and loads and asked.view._choice(pool, asked.plane.versions.get("m"))
        if handle.woken or waits:
            cluster.report(pool, {key: "ready"})
            for replica in cluster.replicas[pool]:
                replica.channel, replica.node = channel, pool
    try:
        await asyncio.wait_for(sent, 3)
    except (CapacityError, EngineError):
        return False
    return True


@pytest.mark.parametrize("seed", range(4))
async def test_ready_is_what_a_request_meets(cluster: Cluster, store: Path, seed: int) -> None:
    publish(store, "1", TIMES)
    seen = set()
    async with connected(Engine()) as (_, channel):
        for situation in random.Random(seed).sample(ALL, 40):
            key = ModelConfig(name="m", version="1", numerics=situation.numerics).key
            idle = {"min_replicas": 0} if situation.may_be_idle else {}
            pools = {name: pool.model_copy(update=idle) for name, pool in POOLS.items()}
            cluster.accelerators = {"cpu"} if situation.has_nodes else set()
            view = View(pools, None, "here")
            versions = LiveVersions(view)
            asked = Asked(pools, view, versions)
            if situation.has_answered:
                report(cluster, situation._replace(ort="ready", vino="ready"), key, channel)
                versions.apply(catalog(store, "1", numerics=situation.numerics))
                await until(lambda versions=versions: versions.answering.get("m") is not None)  # type: ignore[misc]
            report(cluster, situation, key, channel)
            versions.apply(catalog(store, "1", numerics=situation.numerics))
            await turns()
            is_ready = asked.plane.is_ready("m")
            (model,) = versions.status(asked.plane.router.is_ready)["models"]
            assert model["ready"] == is_ready, situation
            assert (model["state"] == "ready") == is_ready, situation
            assert await is_answered(asked, cluster, key, channel) == is_ready, (situation, model)
            seen.add(is_ready)
            _end(versions)
    assert seen == {True, False}


def _end(versions: LiveVersions) -> None:
    for task in (versions._keeper, versions._connector):
        assert task is not None
        task.cancel()


async def test_a_backend_whose_calls_fail_is_not_ready_and_heals(cluster: Cluster, store: Path) -> None:
    engine = Engine(is_broken=True)
    async with routed(cluster, store, {"ort": engine}) as (asked, _):
        assert asked.plane.is_ready("m")
        for _ in range(3):
            with pytest.raises(EnginehouseError):
                await asked.infer("m", X)
        assert not asked.plane.is_ready("m")
        engine.is_broken = False
        await asked.infer("m", X)
        assert asked.plane.is_ready("m")


async def test_a_removed_model_is_unknown_and_another_version_that_loads_does_not_make_the_old_one_unready(
    cluster: Cluster, store: Path
) -> None:
    async with routed(cluster, store, {"ort": Engine()}) as (asked, _):
        versions = asked.plane.versions
        assert isinstance(versions, LiveVersions)
        for settings in ({"version": "2"}, {"version": "1", "numerics": "int8"}, {"version": "1", "max_batch_size": 2}):
            versions.apply(catalog(store, **settings))  # type: ignore[arg-type]
            await turns()
            model = versions.status(asked.plane.router.is_ready)["models"][0]
            assert (model["ready"], model["state"]) == (True, "loading"), settings
            assert (await asked.infer("m", X)).origin()["version"] == "1"
        versions.apply(Catalog(store=str(store)))
        with pytest.raises(ModelNotFound):
            asked.plane.is_ready("m")
        with pytest.raises(ModelNotFound):
            await asked.infer("m", X)


async def test_a_pool_that_could_not_load_it_when_it_was_last_awake_is_not_ready_and_is_woken_again(
    cluster: Cluster, store: Path
) -> None:
    async with routed(cluster, store, {}, min_replicas=0) as (asked, handles):
        await until(lambda: len(asked.view.idle(asked.plane.versions.get("m"))) == 2)
        assert asked.plane.is_ready("m")
        key = asked.plane.versions.get("m").key
        for pool in POOLS:
            cluster.report(pool, {key: "failed"})
        assert not asked.plane.is_ready("m")
        for pool in POOLS:
            cluster.report(pool)
        assert not asked.plane.is_ready("m")
        with pytest.raises(CapacityError, match="when it was last awake: why failed"):
            await asked.infer("m", X)
        await until(lambda: handles["ort"].woken == 1)
        async with connected() as (_, channel):
            cluster.report("ort", {key: "ready"})
            cluster.replicas["ort"][0].channel = channel
            await asked.infer("m", X)
        assert asked.plane.is_ready("m")


@pytest.mark.parametrize(("numerics", "told"), [("full", "left out"), ("any", ""), ("int8", "left out")])
async def test_what_numerics_leave_out_is_said_with_what_lets_it_in(
    cluster: Cluster, store: Path, numerics: NumericsRule, told: str
) -> None:
    models = LiveVersions(View(POOLS, None, "here"))
    key = ModelConfig(name="m", version="1", numerics=numerics).key
    cluster.report("ort", {} if numerics == "int8" else {key: "ready"})
    cluster.report("vino", {} if numerics == "full" else {key: "ready"})
    models.apply(catalog(store, "1", numerics=numerics))
    await until(lambda: entry(models)["ready"])
    assert told in entry(models)["left_out"]
    other = {"full": "int8", "int8": "full", "any": ""}[numerics]
    assert (f"--numerics {other}" in entry(models)["left_out"]) == bool(other)
    states = {backend["pool"]: (backend["state"], backend["reason"]) for backend in entry(models)["backends"]}
    if numerics == "full":
        assert states["vino"] == ("unavailable", "openvino-int8 is of the numerics class 'int8' and not 'full'")
    if numerics == "int8":
        assert states["ort"] == ("unavailable", "onnx-fp32 is of the numerics class 'full' and not 'int8'")


async def test_settings_that_nothing_meets_fail_with_the_reason_while_the_old_ones_answer(
    cluster: Cluster, store: Path
) -> None:
    publish(store, "1", numerics="full")
    pools = {"ort": POOLS["ort"]}
    models = LiveVersions(View(pools, None, "here"))
    cluster.report("ort", {"m@1": "ready"})
    models.apply(catalog(store, "1"))
    await until(lambda: entry(models)["ready"])
    models.apply(catalog(store, "1", numerics="int8"))
    await turns()
    model = entry(models)
    assert (model["ready"], model["state"], model["serving"]) == (True, "failed", "1")
    assert models.get("m").numerics == "full"
