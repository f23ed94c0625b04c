"""Pools that come and go: with their hardware, when somebody wants them, and with the load."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tests.integration.bundles import WIDTH
from tests.integration.cluster import wait_for
from tests.integration.conftest import APP, House, deploy_app
from tests.integration.load import by_http, load
from tests.integration.test_nodes import restore, wait_dead

from enginehouse.contract.config import ACCELERATOR_LABEL, AppConfig

X = np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)
#: Seconds of an engine a second that a replica is to have.
TARGET = 0.2
#: The GPU pool may rest; the CPU pool has a replica for each fifth of a core, so that two cores hold several.
ELASTIC = AppConfig(
    pools={
        "gpu-pool": APP.pools["gpu-pool"].model_copy(update={"min_replicas": 0, "downscale_delay_s": 4}),
        "cpu-pool": APP.pools["cpu-pool"].model_copy(
            update={"max_replicas": 4, "target_busy": TARGET, "downscale_delay_s": 4}
        ),
    },
    router=APP.router,
)


@pytest.fixture(scope="module")
def elastic(house: House) -> Iterator[House]:
    """The house with pools that scale, deployed without a GPU node."""
    house.cluster.kill(house.gpu)
    wait_dead(house.gpu)
    redeploy(house, ELASTIC)
    house.wait_live("scale", "cpu-pool")
    yield house
    redeploy(house, APP)
    restore(house)


def redeploy(house: House, app: AppConfig) -> None:
    from ray import serve

    from enginehouse.cluster import deploy

    deploy.undeploy()
    wait_for(lambda: "enginehouse" not in serve.status().applications, 60, "undeployed")
    deploy_app(house.cluster, house.catalog, app)


def replicas(pool: str) -> int:
    from ray import serve

    found = serve.status().applications["enginehouse"].deployments[pool].replica_states
    return int(found.get("RUNNING", 0))


def test_a_pool_without_hardware_is_held_at_zero(elastic: House) -> None:
    from ray import serve

    def running() -> Any:
        # The Router answers before the controller has looked at it.
        application = serve.status().applications["enginehouse"]
        return application if application.status == "RUNNING" else None

    application = wait_for(running, 30, "the application runs")
    assert sum(application.deployments["gpu-pool"].replica_states.values()) == 0
    entry = next(backend for backend in elastic.model("scale")["backends"] if backend["pool"] == "gpu-pool")
    assert entry["state"] == "no-hardware"
    assert f"{ACCELERATOR_LABEL}=gpu" in entry["reason"]
    shown = elastic.cluster.cli("status")
    assert "no-hardware" in shown.stdout, shown.stderr
    assert f"{ACCELERATOR_LABEL}=gpu" in shown.stdout
    wait_for(elastic.healthy, 30, "HTTP")
    assert by_http(elastic.url, "scale")()(X)[1] == "cpu-pool"


def test_a_pool_that_rests_is_woken_while_another_answers_and_takes_over_when_it_is_warm(elastic: House) -> None:
    elastic.gpu = elastic.cluster.add("gpu")
    wait_for(lambda: elastic.state("scale", "gpu-pool") == "idle", 30, "nobody asked yet")
    assert replicas("gpu-pool") == 0
    with load("scale by HTTP", by_http(elastic.url, "scale"), [2], callers=2) as report:
        began = time.monotonic()
        wait_for(lambda: report.backends["gpu-pool"] > 20, 60, "the GPU pool takes over")
        print(f"took over after {time.monotonic() - began:.1f} s")
        assert report.backends["cpu-pool"], "meanwhile the CPU pool answered"
    assert report.problems == []
    wait_for(lambda: elastic.state("scale", "gpu-pool") == "idle", 60, "nobody asks any more")


def test_a_request_that_only_a_resting_pool_may_answer_waits_for_it(elastic: House) -> None:
    wait_for(lambda: replicas("gpu-pool") == 0, 60, "it rests")
    assert httpx.get(f"http://{elastic.url}/v2/models/scale/ready", timeout=10).status_code == 200
    answer = httpx.post(
        f"http://{elastic.url}/v2/models/scale/infer",
        json={"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": X.ravel().tolist()}]},
        headers={"enginehouse-backend": "gpu-pool"},
        timeout=40,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == (2 * X).ravel().tolist()
    assert answer.headers["enginehouse-backend"] == "gpu-pool"


def test_replicas_follow_a_load_that_rises_and_falls(elastic: House) -> None:
    """A model of some 10 ms a request, at a thirtieth of a core and then at four tenths: one replica, more, one."""
    elastic.publish("busy", "1", 5, idles=1, latency_ms={"openvino-cpu": 10})
    elastic.add("busy", "1")
    elastic.wait_live("busy", "cpu-pool")
    wait_for(lambda: replicas("cpu-pool") == 1, 30, "one replica")
    busy = by_http(elastic.url, "busy", backend="cpu-pool")
    with load("busy", busy, [5], callers=1, pause_s=0.3) as low:
        time.sleep(2)
        assert replicas("cpu-pool") == 1
    with load("busy", busy, [5], callers=4, pause_s=0.1) as high:
        wait_for(lambda: replicas("cpu-pool") > 1, 30, "more replicas")
    with load("busy", busy, [5], callers=1, pause_s=0.3) as after:
        wait_for(lambda: replicas("cpu-pool") == 1, 30, "one replica again")
    assert (low.problems, high.problems, after.problems) == ([], [], [])
    elastic.remove("busy")
