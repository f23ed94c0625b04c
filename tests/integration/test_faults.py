"""`kill -9` of replicas, the Router and the Serve controller while requests are under way."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import httpx
import numpy as np
import psutil
import pytest
from tests.integration.bundles import WIDTH
from tests.integration.cluster import wait_for
from tests.integration.conftest import House
from tests.integration.load import body, by_handle, by_http, load, value

X = np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)
FACTOR = {"scale": 2, "other": 7}


@pytest.mark.parametrize(("model", "pool"), [("scale", "gpu-pool"), ("other", "cpu-pool")])
def test_a_killed_replica_costs_no_request(house: House, model: str, pool: str) -> None:
    house.wait_live(model, "gpu-pool", "cpu-pool")
    (victim,) = house.cluster.replicas(pool)
    factors = [FACTOR[model]]
    with (
        load(f"{model} by HTTP", by_http(house.url, model), factors, callers=3) as http,
        load(f"{model} by handle", by_handle(model), factors, callers=3) as handle,
    ):
        time.sleep(2)
        assert http.backends[pool] and handle.backends[pool], "the victim serves"
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: [pid for pid in house.cluster.replicas(pool) if pid != victim], 60, f"a new {pool} replica")
        house.wait_live(model, pool)
        time.sleep(2)
    assert http.problems == []
    assert handle.problems == []
    # Serve alone would keep them until a new replica is up, about six seconds.
    assert max(http.worst_ms(), handle.worst_ms()) < 1000
    assert set(http.backends) == {"gpu-pool", "cpu-pool"}, "the other pool stood in"


def test_a_frozen_replica_costs_no_request(house: House) -> None:
    """Nothing closes its connections, but it no longer answers: its calls go elsewhere before Serve replaces it."""
    house.wait_live("scale", "gpu-pool", "cpu-pool")
    (victim,) = house.cluster.replicas("gpu-pool")
    with load("scale by HTTP", by_http(house.url, "scale"), [2], callers=3) as report:
        time.sleep(1)
        assert report.backends["gpu-pool"], "the victim serves"
        os.kill(victim, signal.SIGSTOP)
        try:
            wait_for(
                lambda: [pid for pid in house.cluster.replicas("gpu-pool") if pid != victim],
                60,
                "a new gpu-pool replica",
            )
            house.wait_live("scale", "gpu-pool")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        time.sleep(1)
    assert report.problems == []
    assert set(report.backends) == {"gpu-pool", "cpu-pool"}
    # SILENT_S, and how often it is looked; Serve needs about 17 s.
    assert report.worst_ms() < 4000


def test_a_killed_controller_loses_nothing(house: House) -> None:
    (victim,) = house.cluster.pids("ray::ServeController")
    before = {name: house.cluster.replicas(name) for name in ("Router", "gpu-pool", "cpu-pool")}
    with (
        load("scale by HTTP", by_http(house.url, "scale"), [2]) as http,
        load("other by handle", by_handle("other", is_embedded=False), [7]) as handle,
    ):
        time.sleep(1)
        os.kill(victim, signal.SIGKILL)
        wait_for(
            lambda: [pid for pid in house.cluster.pids("ray::ServeController") if pid != victim], 60, "a new controller"
        )
        time.sleep(8)
    assert http.problems == []
    assert handle.problems == []
    assert {name: house.cluster.replicas(name) for name in before} == before
    assert {entry["name"] for entry in house.status()["models"]} >= {"scale", "other"}
    # The new controller still takes changes to where they belong.
    house.publish("after", "1", 17)
    house.add("after", "1")
    np.testing.assert_array_equal(by_http(house.url, "after")()(X)[0], X * 17)
    house.remove("after")


def _both(pids: list[int]) -> list[int] | None:
    return pids if len(pids) == 2 else None


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_router_is_covered_by_the_other_and_comes_back_with_its_models(house: House) -> None:
    before = wait_for(lambda: _both(house.cluster.replicas("Router")), 60, "two Routers")
    pools = {name: house.cluster.replicas(name) for name in ("gpu-pool", "cpu-pool")}
    url = f"http://{house.url}/v2/models/scale/infer"
    failed: list[float] = []

    def ask() -> None:
        """One request on a connection of its own."""
        try:
            answer = httpx.post(url, json=body(X), timeout=5)
            answer.raise_for_status()
        except httpx.HTTPError:
            failed.append(time.monotonic() - killed)
        else:
            np.testing.assert_array_equal(value(answer), X * 2)

    killed = time.monotonic()
    os.kill(before[0], signal.SIGKILL)
    # Until its memory is given back it takes connections, and a request that is on its way to it dies with it.
    wait_for(lambda: _is_gone(before[0]), 5, "the killed Router is gone", every=0.005)
    asked = 0
    while len(set(house.cluster.replicas("Router")) - {before[0]}) < 2:
        ask()
        asked += 1
        assert time.monotonic() - killed < 60, "no new Router"
    print(f"{asked} new connections while one Router of two was away: {len(failed)} failed at {failed}")
    assert failed == []
    for _ in range(40):
        ask()
    assert failed == []
    assert {entry["name"] for entry in house.status()["models"]} >= {"scale", "other"}
    assert {name: house.cluster.replicas(name) for name in pools} == pools
