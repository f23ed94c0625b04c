"""Placement by label, nodes that die under load, pools whose hardware is absent and comes back."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import ray
from tests.integration.bundles import WIDTH
from tests.integration.cluster import Node, wait_for
from tests.integration.conftest import House
from tests.integration.load import body, by_http, load
from tests.integration.test_counts import metrics

from enginehouse.contract.config import ACCELERATOR_LABEL

X = np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)


@pytest.fixture
def whole(house: House) -> Iterator[House]:
    """The house with all its nodes, put back afterwards."""
    yield house
    restore(house)


def restore(house: House) -> None:
    if house.cpu not in house.cluster.nodes:
        house.cpu = house.cluster.add("cpu")
    if house.gpu not in house.cluster.nodes:
        house.gpu = house.cluster.add("gpu")
    for name in ("scale", "other"):
        house.wait_live(name, "gpu-pool", "cpu-pool", timeout=90)


def alive() -> set[str]:
    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def wait_dead(node: Node) -> None:
    wait_for(lambda: node.ip not in alive(), 60, f"Ray notices that {node.ip} is dead")


def pids_of(node: Node) -> set[int]:
    return {process.pid for process in node.processes()}


def executions(house: House) -> float:
    """Engine calls on the GPU node so far."""
    counted = metrics(house)["enginehouse_batch_rows_count"]
    return sum(count for (_, pool, _), count in counted.items() if pool == "gpu-pool")


def test_replicas_are_where_their_label_says(house: House) -> None:
    (gpu,), (cpu,) = house.cluster.replicas("gpu-pool"), house.cluster.replicas("cpu-pool")
    routers = house.cluster.replicas("Router")
    assert gpu in pids_of(house.gpu)
    assert cpu in pids_of(house.cpu)
    assert set(routers) < pids_of(house.cluster.head)
    nodes = {entry["name"]: entry["nodes"] for entry in house.status()["pools"]}
    assert nodes == {"gpu-pool": 1, "cpu-pool": 1}


def test_a_dead_node_of_the_preferred_pool_costs_no_request(whole: House) -> None:
    with load("scale by HTTP", by_http(whole.url, "scale"), [2], callers=4) as report:
        time.sleep(2)
        assert report.backends["gpu-pool"], "the victim serves"
        executed = executions(whole)
        killed = time.monotonic()
        whole.cluster.kill(whole.gpu)
        # What was told once stays told, whichever router is asked.
        assert min(executions(whole) for _ in range(6)) >= executed > 0
        wait_dead(whole.gpu)
        noticed = time.monotonic()
        wait_for(lambda: whole.state("scale", "gpu-pool") == "no-hardware", 30, "status says no-hardware")
        time.sleep(2)
        # With nobody asking for it, the pool rises once the node is back.
        whole.gpu = whole.cluster.add("gpu")
        whole.wait_live("scale", "gpu-pool", timeout=90)
        time.sleep(2)
    print(f"Ray noticed after {noticed - killed:.1f} s; worst meanwhile {report.worst_ms(killed, noticed):.0f} ms")
    assert report.problems == []
    # Long before Ray notices: callers go elsewhere as soon as the node does not answer.
    assert report.worst_ms(killed, noticed) < 1500
    assert set(report.backends) == {"gpu-pool", "cpu-pool"}
    assert by_http(whole.url, "scale")()(X)[1] == "gpu-pool"


def test_a_frozen_node_costs_no_request(whole: House) -> None:
    """Its connections stay open and nobody answers on them, as when its network is cut."""
    with load("scale by HTTP", by_http(whole.url, "scale", deadline_ms=5000), [2], callers=4) as report:
        time.sleep(2)
        assert report.backends["gpu-pool"], "the victim serves"
        frozen = time.monotonic()
        whole.gpu.freeze()
        time.sleep(6)
        over = time.monotonic()
    whole.cluster.kill(whole.gpu)
    # Since then each caller has waited for it once or twice, and not once more.
    slow = [(began - frozen, taken) for began, taken in report.latencies if taken > 1]
    print(f"worst {report.worst_ms(frozen, over):.0f} ms; over a second, by when they were sent: {slow}")
    assert report.problems == []
    assert report.worst_ms(frozen, over) < 3500
    assert max(began for began, _ in slow) < 2
    assert len(report.latencies) > 400


@pytest.mark.slow
def test_without_any_backend_the_refusal_is_quick_and_says_why(whole: House) -> None:
    url = f"http://{whole.url}/v2/models/scale/infer"
    began = time.monotonic()
    for node in (whole.gpu, whole.cpu):
        whole.cluster.kill(node)
    # What Serve has not noticed yet is tried again until the deadline, and no longer.
    first = httpx.post(url, json=body(X), headers={"enginehouse-deadline-ms": "3000"}, timeout=20)
    assert first.status_code in (503, 504), first.text
    assert time.monotonic() - began < 3 + 2
    for node in (whole.gpu, whole.cpu):
        wait_dead(node)
    for pool in ("gpu-pool", "cpu-pool"):
        wait_for(lambda pool=pool: whole.state("scale", pool) == "no-hardware", 30, f"{pool} has no hardware")  # type: ignore[misc]
    # Each Router counts nodes for itself, once a second; the status was that of one of them.
    time.sleep(3)
    client, taken = httpx.Client(timeout=20), []
    for _ in range(10):
        asked = time.monotonic()
        answer = client.post(url, json=body(X))
        taken.append(time.monotonic() - asked)
        assert taken[-1] < 1
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert "scale@1" in answer.json()["error"]
        assert f"{ACCELERATOR_LABEL}=gpu" in answer.json()["error"]
        assert f"{ACCELERATOR_LABEL}=cpu" in answer.json()["error"]
    assert statistics.median(taken) < 0.1
    assert httpx.get(f"http://{whole.url}/v2/health/ready", timeout=10).status_code == 400
    assert httpx.get(f"http://{whole.url}/v2/health/live", timeout=10).status_code == 200
    restore(whole)
    wait_for(whole.healthy, 30, "HTTP")
    np.testing.assert_array_equal(by_http(whole.url, "scale")()(X)[0], X * 2)
