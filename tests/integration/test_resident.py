"""Models that routers host themselves: answered without a hop, and given up for the pools when they crash a router."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from tests.integration.bundles import CRASHES, WIDTH, publish_poisonous
from tests.integration.cluster import wait_for
from tests.integration.conftest import House
from tests.integration.load import body, by_handle, by_http, load, value

X = np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)


@pytest.fixture
def restored(house: House) -> Iterator[House]:
    yield house
    house.add("scale", "1")


def ask(house: House, model: str, **headers: str) -> tuple[np.ndarray, str]:
    answer = httpx.post(f"http://{house.url}/v2/models/{model}/infer", json=body(X), headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    return value(answer), answer.headers["enginehouse-backend"]


def test_a_resident_model_answers_in_the_router_and_its_pools_stand_by(restored: House) -> None:
    house = restored
    before = {name: house.cluster.replicas(name) for name in ("Router", "gpu-pool", "cpu-pool")}
    with (
        load("scale by HTTP", by_http(house.url, "scale"), [2, 3], callers=3) as http,
        load("scale by handle", by_handle("scale", is_embedded=False), [2, 3], callers=3) as handle,
    ):
        house.add("scale", "1", resident=True)
        resident = "resident-onnxruntime-cpu"
        wait_for(lambda: min(http.backends[resident], handle.backends[resident]) > 100, 30, "answers without a hop")
        answer, backend = ask(house, "scale", **{"enginehouse-backend": "cpu-pool"})
        assert backend == "cpu-pool"
        np.testing.assert_array_equal(answer, X * 2)
        assert house.state("scale", resident) == "live"
        house.add("scale", "2", resident=True)
        house.add("scale", "1")
        wait_for(lambda: {ask(house, "scale")[1] for _ in range(10)} == {"gpu-pool"}, 30, "answers from the pool again")
    assert http.problems == []
    assert handle.problems == []
    assert {name: house.cluster.replicas(name) for name in before} == before


@pytest.mark.slow
def test_a_model_that_crashed_its_router_is_left_to_the_pools(house: House) -> None:
    house.publish("heavy", "1", 5, idles=30)
    house.add("heavy", "1", resident=True)
    try:
        wait_for(lambda: answered_by(house, "heavy") == {"resident-onnxruntime-cpu"}, 120, "both routers host it")
        routers = house.cluster.replicas("Router")
        # Some are lost with the router that they were in: this is about what comes after.
        callers = [threading.Thread(target=lost, args=(house,)) for _ in range(8)]
        for caller in callers:
            caller.start()
        wait_for(lambda: all(busy(pid) for pid in routers), 20, "both routers compute")
        for pid in routers:
            os.kill(pid, signal.SIGSEGV)
        for caller in callers:
            caller.join()
        wait_for(lambda: len(set(house.cluster.replicas("Router")) - set(routers)) == 2, 60, "new routers")
        wait_for(house.healthy, 60, "HTTP again")
        wait_for(lambda: house.state("heavy", "resident-") == "failing", 60, "the crash is known")
        answer, backend = ask(house, "heavy")
        assert backend in ("gpu-pool", "cpu-pool")
        np.testing.assert_array_equal(answer, X * 5)
        (status,) = [known for known in house.model("heavy")["backends"] if known["pool"] == "resident-"]
        assert "crashed process" in status["reason"]
        assert "Segmentation fault" in status["reason"]
    finally:
        house.remove("heavy")


def test_a_request_that_crashes_its_engine_costs_one_router_and_from_then_on_none(house: House) -> None:
    publish_poisonous(house.store, "killed")
    house.add("killed", "1", resident=True)
    url = f"http://{house.url}/v2/models/killed/infer"

    def send(x: int) -> httpx.Response | None:
        document = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [x]}]}
        try:
            return httpx.post(url, json=document, headers={"enginehouse-deadline-ms": "120000"}, timeout=150)
        except httpx.HTTPError:
            return None

    def backends() -> set[str]:
        answers = [send(10) for _ in range(6)]
        return {answer.headers.get("enginehouse-backend", "") if answer else "" for answer in answers}

    try:
        wait_for(lambda: backends() == {"resident-onnxruntime-cpu"}, 120, "both routers host it")
        routers = set(house.cluster.replicas("Router"))
        # Its connection breaks with the router.
        send(CRASHES)
        wait_for(lambda: len(set(house.cluster.replicas("Router")) - routers) == 1, 60, "a new router")
        wait_for(lambda: backends() == {"gpu-pool"}, 60, "no router hosts it, the old one neither")
        routers = set(house.cluster.replicas("Router"))
        for _ in range(2):
            house.wait_live("killed", "gpu-pool")
            wait_for(lambda: backends() == {"gpu-pool"}, 60, "both routers know that its pool is back")
            answer = send(CRASHES)
            assert answer is not None
            assert (answer.status_code, "two replicas were lost" in answer.text) == (500, True), answer.text
        assert set(house.cluster.replicas("Router")) == routers
        house.wait_live("scale", "gpu-pool", "cpu-pool")
    finally:
        house.remove("killed")


def answered_by(house: House, model: str) -> set[str]:
    url = f"http://{house.url}/v2/models/{model}/infer"
    # Each over a connection of its own, so that both routers are asked.
    return {httpx.post(url, json=body(X), timeout=30).headers.get("enginehouse-backend", "") for _ in range(6)}


def lost(house: House) -> None:
    try:
        # Else they would go where nobody waits.
        headers = {"enginehouse-backend": "resident-onnxruntime-cpu"}
        httpx.post(f"http://{house.url}/v2/models/heavy/infer", json=body(X), headers=headers, timeout=30)
    except httpx.HTTPError:
        return


def busy(pid: int) -> bool:
    import psutil

    return psutil.Process(pid).cpu_percent(0.2) > 30
