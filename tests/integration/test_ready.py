"""Ready means that a request would be answered: every place that says so agrees with a real request, in every state."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from tests.integration.bundles import WIDTH, flip
from tests.integration.cluster import wait_for
from tests.integration.conftest import APP, House
from tests.integration.load import body
from tests.integration.test_elastic import redeploy

from enginehouse.contract.config import AppConfig, Catalog, ModelConfig, PoolConfig

# tests/unit/test_readiness.py has these and more situations without a cluster.
pytestmark = pytest.mark.slow

X = np.ones((1, WIDTH), np.float32)
OPEN = ("fine", "halved", "strict", "damaged", "stuck", "brief")
#: The usual pools, and for one model each: one without its engine library, one that may be idle, one of its own.
MANY = AppConfig(
    pools={
        "gpu-pool": APP.pools["gpu-pool"].model_copy(update={"models": OPEN, "num_gpus": 0.5}),
        "cpu-pool": APP.pools["cpu-pool"].model_copy(update={"models": OPEN}),
        "cuda-pool": PoolConfig(engine="onnxruntime-cuda", num_cpus=0.2, models=("cuda",)),
        "idle-pool": PoolConfig(
            engine="onnxruntime-cpu", nodes=("cpu",), threads=1, num_cpus=0.2, min_replicas=0, models=("idle",)
        ),
        "own-pool": PoolConfig(engine="onnxruntime-cpu", nodes=("cpu",), threads=1, num_cpus=0.2, models=("own",)),
    },
    router=APP.router,
)
#: What is to become of each model, and why.
EXPECTED = {
    "fine": (True, "warm on both pools"),
    "halved": (True, "one artifact is damaged, the other one answers"),
    "brief": (True, "warm on both pools, and removed later"),
    "idle": (True, "its pool is idle: a request wakes it"),
    "own": (True, "warm on its pool"),
    "strict": (False, "all that it has is int8, and nobody has said that this may answer"),
    "damaged": (False, "both artifacts are damaged"),
    "cuda": (False, "the library of its engine is absent"),
    "stuck": (False, "it is loading"),
}


@pytest.fixture(scope="module")
def many(house: House) -> Iterator[House]:
    """The house with a model in each of the states."""
    pipes = []
    for name in EXPECTED:
        folder = house.publish(name, "1", 2, precisions=("int8",) if name == "strict" else ("fp32",))
        if name in ("halved", "damaged"):
            flip(folder / "onnx-fp32" / "model.onnx")
        if name == "damaged":
            flip(folder / "openvino-fp32" / "model.xml")
        if name == "stuck":
            # Whoever reads it waits for somebody who writes.
            for file in (folder / "onnx-fp32" / "model.onnx", folder / "openvino-fp32" / "model.xml"):
                file.unlink()
                os.mkfifo(file)
                pipes.append(file)
    before = house.catalog
    models = tuple(ModelConfig(name=name, version="1") for name in EXPECTED)
    house.catalog = Catalog(store=str(house.store), models=models)
    try:
        redeploy(house, MANY)
        yield house
    finally:
        house.catalog = before
        for pipe in pipes:
            # Without waiting for a reader.
            os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
        redeploy(house, APP)
        for name in ("scale", "other"):
            house.wait_live(name, "gpu-pool", "cpu-pool", timeout=90)


def said(house: House, name: str) -> set[bool]:
    """What each of the places says about one model."""
    with httpx.Client(base_url=f"http://{house.url}", timeout=45) as client:
        index = {entry["name"]: entry["state"] == "READY" for entry in client.post("/v2/repository/index").json()}
        return {
            client.get(f"/v2/models/{name}/ready").status_code == 200,
            client.get(f"/v2/models/{name}/versions/1/ready").status_code == 200,
            index[name],
            house.model(name)["ready"],
            house.model(name)["state"] == "ready",
        }


def answered(house: House, name: str) -> bool:
    answer = httpx.post(f"http://{house.url}/v2/models/{name}/infer", json=body(X), timeout=45)
    assert answer.status_code in (200, 503), answer.text
    return answer.status_code == 200


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_said_is_what_a_request_meets(many: House, name: str) -> None:
    expected, why = EXPECTED[name]

    def agreed() -> bool:
        # Each of the two routers may answer.
        return all(said(many, name) == {expected} for _ in range(4))

    wait_for(agreed, 60, f"{name}: {why}", every=0.3)
    if not expected and name != "stuck":
        wait_for(lambda: many.model(name)["state"] == "failed", 90, f"{name} has failed")
    for _ in range(3):
        assert answered(many, name) == expected, why
    assert said(many, name) == {expected}


def test_the_house_is_ready_when_all_of_its_models_are(many: House) -> None:
    answer = httpx.get(f"http://{many.url}/v2/health/ready", timeout=10)
    assert answer.status_code == 400
    named = set(answer.json()["error"].removeprefix("not ready: ").split(", "))
    assert named == {name for name, (is_ready, _) in EXPECTED.items() if not is_ready}


def test_a_model_whose_only_replica_is_killed_is_ready_when_a_request_is_answered(many: House) -> None:
    (victim,) = many.cluster.replicas("own-pool")
    os.kill(victim, signal.SIGKILL)
    seen, until = [], time.monotonic() + 60
    while time.monotonic() < until and seen[-5:] != [True] * 5:
        first = said(many, "own")
        was_answered = answered(many, "own")
        # While it changes, or the routers differ, there is nothing to compare.
        if first == said(many, "own") and len(first) == 1:
            assert first == {was_answered}, seen
            seen.append(was_answered)
        time.sleep(0.2)
    assert seen[-5:] == [True] * 5, seen
    assert False in seen, "it was asked while no replica was there"


def test_a_model_that_is_removed_is_neither_ready_nor_answered(many: House) -> None:
    assert answered(many, "brief")
    many.remove("brief")
    for path, method in (("ready", "GET"), ("infer", "POST")):
        url = f"http://{many.url}/v2/models/brief/{path}"
        answer = wait_for(
            lambda url=url, method=method: (  # type: ignore[misc]
                found if (found := httpx.request(method, url, json=body(X))).status_code == 404 else None
            ),
            10,
            "unknown to both routers",
        )
        assert "'brief' is not served here" in answer.json()["error"]


def test_what_is_left_out_is_said_by_status_with_the_option(many: House) -> None:
    shown = " ".join(many.cluster.cli("status").stdout.split())
    told = "strict@1: onnx-int8, openvino-int8 left out: numerics 'full' is what answers; `--numerics int8` or"
    assert told in shown
    assert "onnx-int8 is of the numerics class 'int8' and not 'full'" in shown
