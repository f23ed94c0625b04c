"""A request that the engine cannot bear fails alone, with a reason: those beside it get their answers."""

from __future__ import annotations

import asyncio
import time

import httpx
from tests.integration.bundles import CRASHES, RAISES, publish_poisonous
from tests.integration.conftest import House

#: Together with one poisonous request they are more than leave at once.
NEIGHBOURS = range(9, 33)


def body(x: int) -> dict[str, object]:
    return {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [x]}]}


async def ask(url: str, values: list[int]) -> list[httpx.Response]:
    """All at once."""
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        return await asyncio.gather(
            *(client.post(f"http://{url}/v2/models/poisonous/infer", json=body(x)) for x in values)
        )


def test_one_row_that_raises_and_one_that_crashes_the_process_fail_alone(house: House) -> None:
    publish_poisonous(house.store, "poisonous")
    house.add("poisonous", "1")
    house.wait_live("poisonous", "gpu-pool")
    for poison, told in ((RAISES, "Integer division by zero"), (CRASHES, "two replicas were lost while they computed")):
        before = house.cluster.replicas("gpu-pool")
        began = time.monotonic()
        values = [*NEIGHBOURS]
        values.insert(len(values) // 2, poison)
        answers = dict(zip(values, asyncio.run(ask(house.url, values)), strict=True))
        print(f"{poison}: the last answer after {time.monotonic() - began:.1f} s")
        assert (answers[poison].status_code, told in answers[poison].text) == (500, True), answers[poison].text
        for x in NEIGHBOURS:
            assert answers[x].status_code == 200, answers[x].text
            assert answers[x].json()["outputs"][0]["data"] == [-(2**63 // (x - RAISES))]
        after = house.cluster.replicas("gpu-pool")
        assert (before == after) == (poison == RAISES), "a crash costs a replica, and nothing else does"
    house.wait_live("scale", "gpu-pool", "cpu-pool")
    house.remove("poisonous")
