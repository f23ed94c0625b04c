"""Suspected requests in doubtful cases: something loads all the time, or processes are killed from outside."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from tests.integration.bundles import CRASHES, WIDTH, publish, publish_poisonous
from tests.unit.catalogs import Cluster, until
from tests.unit.test_blame import INNOCENTS, House, answered, poison

from enginehouse.contract.config import ModelConfig
from enginehouse.contract.errors import InferenceFailed, ReplicaLost

pytest.importorskip("onnxruntime")


async def test_what_was_lost_with_a_killed_replica_is_answered_as_soon_as_new_requests_are(
    cluster: Cluster, tmp_path: Path
) -> None:
    publish(tmp_path / "store", "slow", "1", 5.0, idles=2)
    house = House(cluster, tmp_path / "store", ModelConfig(name="slow", version="1"))
    house.replicas.environment["LOADS_FOR_EVER"] = "1"
    wide = np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)
    async with house.running():
        lost = [asyncio.create_task(house.ask("slow", wide * x)) for x in INNOCENTS]
        await asyncio.sleep(0.1)
        assert house.replicas.process is not None
        house.replicas.process.kill()
        await until(lambda: house.replicas.deaths == 1, 20)
        await until(lambda: bool(cluster.replicas["ort"]), 60)
        began = time.monotonic()
        new = await house.ask("slow", wide)
        new_s = time.monotonic() - began
        np.testing.assert_array_equal(new.outputs["y"], wide * 5)
        _, late = await asyncio.wait(lost, timeout=20)
        print(f"a new one after {new_s:.2f} s, all that were lost after {time.monotonic() - began:.2f} s")
        assert not late
        for x, task in zip(INNOCENTS, lost, strict=True):
            np.testing.assert_array_equal(task.result().outputs["y"], wide * x * 5)
        assert house.replicas.deaths == 1


@pytest.mark.parametrize(
    ("records", "error", "told", "deaths"),
    [
        (True, InferenceFailed, "three replicas were lost while they computed this request", 3),
        (False, ReplicaLost, "which of them is at fault is unknown", 4),
    ],
)
async def test_a_killer_ends_after_a_few_replicas_though_each_of_them_loads_all_the_time(
    cluster: Cluster, tmp_path: Path, records: bool, error: type[Exception], told: str, deaths: int
) -> None:
    """In whose thread the signal came is known on the node of the replica only."""
    publish_poisonous(tmp_path / "store", "p")
    house = House(cluster, tmp_path / "store", ModelConfig(name="p", version="1"))
    house.replicas.environment["LOADS_FOR_EVER"] = "1"
    house.replicas.records = records
    async with house.running():
        killer = asyncio.create_task(house.ask("p", poison(CRASHES)))
        innocents = {x: asyncio.create_task(house.ask("p", poison(x))) for x in INNOCENTS}
        with pytest.raises(error, match=told):
            await asyncio.wait_for(killer, 100)
        for x, task in innocents.items():
            assert (await asyncio.wait_for(task, 60)).outputs["y"].tolist() == [[answered(x)]]
        await until(lambda: house.replicas.deaths == deaths and bool(cluster.replicas["ort"]), 60)
        assert (await house.ask("p", poison(9))).outputs["y"].tolist() == [[answered(9)]]
        assert house.replicas.deaths == deaths


async def test_a_request_whose_replicas_are_killed_from_outside_is_not_blamed_for_two(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Nor when it was alone there; but one that ends every process that computes it is found all the same."""
    publish(tmp_path / "store", "slow", "1", 5.0, idles=20)
    house = House(cluster, tmp_path / "store", ModelConfig(name="slow", version="1"))
    wide = np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)

    async def kill(number: int) -> None:
        """The process in which the request computes: alone from the second one on."""
        if number == 1:
            await asyncio.sleep(0.2)
        else:
            await until(lambda: any(replica.channel._begun for replica in cluster.replicas["ort"]), 60)
        assert house.replicas.process is not None
        house.replicas.process.kill()
        await until(lambda: house.replicas.deaths == number, 20)

    async with house.running():
        innocent = asyncio.create_task(house.ask("slow", wide))
        for number in (1, 2):
            await kill(number)
        np.testing.assert_array_equal((await asyncio.wait_for(innocent, 60)).outputs["y"], wide * 5)
        house.replicas.deaths = 0
        killer = asyncio.create_task(house.ask("slow", wide))
        for number in (1, 2, 3):
            await kill(number)
        with pytest.raises(InferenceFailed, match="three replicas were lost while they computed this request"):
            await asyncio.wait_for(killer, 10)
