"""A request that the engine cannot bear fails alone, with a reason: those beside it get their answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import pytest
from tests.integration.bundles import CRASHES, RAISES, publish_poisonous
from tests.integration.conftest import House

#: Together with one poisonous request they are more than leave at once.
NEIGHBOURS = range(9, 33)


def body(x: int) -> dict[str, object]:
    return {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [x]}]}


async def ask(url: str, values: list[int], hopeless: int = 0, model: str = "poisonous") -> list[httpx.Response]:
    """All at once; the value `hopeless` with a deadline that nothing on this earth makes."""
    async with httpx.AsyncClient(timeout=150, limits=httpx.Limits(max_connections=None)) as client:
        # Two or three replicas start one after the other meanwhile, on a machine that may be busy.
        hurry, patience = {"enginehouse-deadline-ms": "0.3"}, {"enginehouse-deadline-ms": "120000"}
        return await asyncio.gather(
            *(
                client.post(
                    f"http://{url}/v2/models/{model}/infer", json=body(x), headers=hurry if x == hopeless else patience
                )
                for x in values
            )
        )


@pytest.fixture(scope="module")
def poisonous(house: House) -> Iterator[House]:
    """The house with a model that some inputs break."""
    publish_poisonous(house.store, "poisonous")
    house.add("poisonous", "1")
    house.wait_live("poisonous", "gpu-pool")
    yield house
    house.remove("poisonous")


def test_what_cannot_be_in_time_never_reaches_an_engine(poisonous: House) -> None:
    """It would crash the engine that computed it."""
    before = poisonous.cluster.replicas("gpu-pool")
    values = [*NEIGHBOURS, *[CRASHES] * 10] * 3
    answers = asyncio.run(ask(poisonous.url, values, hopeless=CRASHES))
    for x, answer in zip(values, answers, strict=True):
        assert answer.status_code == (504 if x == CRASHES else 200), answer.text
    assert poisonous.cluster.replicas("gpu-pool") == before
    poisonous.wait_live("poisonous", "gpu-pool")


def test_one_row_that_raises_and_one_that_crashes_the_process_fail_alone(poisonous: House) -> None:
    house = poisonous
    for poison, status, told in (
        (RAISES, 400, "Integer division by zero"),
        (CRASHES, 500, "two replicas were lost while they computed"),
    ):
        before = house.cluster.replicas("gpu-pool")
        began = time.monotonic()
        values = [*NEIGHBOURS]
        values.insert(len(values) // 2, poison)
        answers = dict(zip(values, asyncio.run(ask(house.url, values)), strict=True))
        print(f"{poison}: the last answer after {time.monotonic() - began:.1f} s")
        assert (answers[poison].status_code, told in answers[poison].text) == (status, True), answers[poison].text
        for x in NEIGHBOURS:
            assert answers[x].status_code == 200, answers[x].text
            assert answers[x].json()["outputs"][0]["data"] == [-(2**63 // (x - RAISES))]
        after = house.cluster.replicas("gpu-pool")
        assert (before == after) == (poison == RAISES), "a crash costs a replica, and nothing else does"
    house.wait_live("scale", "gpu-pool", "cpu-pool")


def test_a_killer_of_one_model_and_one_of_another_in_the_same_process_fail_alone(poisonous: House) -> None:
    house = poisonous
    publish_poisonous(house.store, "poisonous2")
    house.add("poisonous2", "1")
    try:
        house.wait_live("poisonous2", "gpu-pool")
        values = [*NEIGHBOURS]
        values.insert(len(values) // 2, CRASHES)

        async def ask_both() -> list[list[httpx.Response]]:
            return await asyncio.gather(*(ask(house.url, values, model=name) for name in ("poisonous", "poisonous2")))

        for answers in asyncio.run(ask_both()):
            for x, answer in zip(values, answers, strict=True):
                if x == CRASHES:
                    assert (answer.status_code, "two replicas were lost" in answer.text) == (500, True), answer.text
                else:
                    assert answer.json()["outputs"][0]["data"] == [-(2**63 // (x - RAISES))], answer.text
        house.wait_live("scale", "gpu-pool", "cpu-pool")
    finally:
        house.remove("poisonous2")
