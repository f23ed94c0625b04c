"""What is counted equals what clients counted, whoever is asked, whatever was killed meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.bundles import MAX_BATCH, WIDTH
from tests.integration.cluster import wait_for
from tests.integration.conftest import House
from tests.integration.load import body
from tritonclient.utils import InferenceServerException

#: By model: good requests, their rows, and those that failed by Triton's reason.
Expected = dict[str, Counter[str]]


@pytest.fixture(scope="module")
def grpc_client(house: House) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{house.cluster.grpc_port}") as client:
        yield client


def rows_of_ones(count: int) -> np.ndarray:
    return np.ones((count, WIDTH), np.float32)


def ask(house: House, client: triton_grpc.InferenceServerClient, model: str, mix: int) -> Expected:
    """A mix of good and bad requests over every face, each client's own count of them."""
    from ray import serve

    from enginehouse.contract.config import APP_NAME
    from enginehouse.contract.errors import InvalidInput
    from enginehouse.faces.python.client import Client

    url = f"http://{house.url}/v2/models/{model}/infer"
    counted: Counter[str] = Counter()
    handle, embedded = serve.get_app_handle(APP_NAME), Client()
    with httpx.Client(timeout=30) as http:
        for number in range(mix):
            count = 1 + number % (MAX_BATCH + 2)
            x = rows_of_ones(count)
            tensor = triton_grpc.InferInput("x", list(x.shape), "FP32")
            tensor.set_data_from_numpy(x)
            # Good ones.
            assert http.post(url, json=body(x)).status_code == 200
            client.infer(model, [tensor])
            handle.infer.remote(model, {"x": x}).result(timeout_s=30)
            embedded.infer(model, {"x": x})
            counted.update({"success": 4, "rows": 4 * count})
            # Bad ones: the shape, a hint, no JSON.
            assert http.post(url, json=body(x[:, 1:])).status_code == 400
            assert http.post(url, json=body(x), headers={"enginehouse-priority": "no"}).status_code == 400
            assert http.post(url, content=b"{").status_code == 400
            with pytest.raises(InferenceServerException):
                client.infer(model, [tensor], outputs=[triton_grpc.InferRequestedOutput("nothing")])
            with pytest.raises(InvalidInput):
                embedded.infer(model, {"y": x})
            counted.update({"OTHER": 5})
            # No time.
            assert http.post(url, json=body(x), headers={"enginehouse-deadline-ms": "0.000001"}).status_code == 504
            counted.update({"REJECTED": 1})
            # Of no model.
            assert http.post(url.replace(model, "nowhere"), json=body(x)).status_code == 404
    return {model: counted}


def stats(house: House, path: str = "/v2/models/stats") -> dict[str, dict[str, Any]]:
    answer = httpx.get(f"http://{house.url}{path}", timeout=10)
    answer.raise_for_status()
    return {f"{entry['name']}@{entry['version']}": entry for entry in answer.json()["model_stats"]}


def metrics(house: House) -> dict[str, dict[tuple[str, ...], float]]:
    """By name, by the values of the labels."""
    answer = httpx.get(f"http://{house.url}/metrics", timeout=10)
    answer.raise_for_status()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels[name] for name in sorted(sample.labels))] = (
                sample.value
            )
    return found


def observed(house: House, model: str) -> Counter[str]:
    """In the form of what clients count; over /metrics, which must say what the statistics do."""
    entry = None
    # Routers in clients may tell something in between.
    while entry != (entry := stats(house)[f"{model}@1"]):
        by_name = metrics(house)
    found = Counter(
        {
            "success": int(by_name["nv_inference_request_success_total"][model, "1"]),
            "rows": int(by_name["nv_inference_count_total"][model, "1"]),
        }
    )
    for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER"):
        found[reason] = int(by_name["nv_inference_request_failure_total"].get((model, reason, "1"), 0))
    assert entry["inference_count"] == found["rows"]
    assert entry["inference_stats"]["success"]["count"] == found["success"]
    failed = sum(found[reason] for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER"))
    assert entry["inference_stats"]["fail"]["count"] == failed
    return found


def check(house: House, before: dict[str, Counter[str]], expected: Expected) -> None:
    # Routers in clients tell once a second what they have counted.
    give_up = time.monotonic() + 4
    while True:
        now = {model: observed(house, model) for model in expected}
        for model, counted in now.items():
            counted.subtract(before[model])
        if {model: +counted for model, counted in now.items()} == expected or time.monotonic() > give_up:
            break
        time.sleep(0.2)
    assert {model: +counted for model, counted in now.items()} == expected


def test_what_is_counted_is_what_clients_count_whatever_is_killed(
    house: House, grpc_client: triton_grpc.InferenceServerClient
) -> None:
    before = {model: observed(house, model) for model in ("scale", "other")}
    expected: Expected = {}

    def asked(model: str, mix: int) -> None:
        for name, counted in ask(house, grpc_client, model, mix).items():
            expected[name] = expected.get(name, Counter()) + counted

    asked("scale", 10)
    asked("other", 2)
    check(house, before, expected)
    for title, pool in (("Router", ""), ("gpu-pool", "gpu-pool")):
        running = house.cluster.replicas(title)
        os.kill(running[0], signal.SIGKILL)
        wait_for(lambda: len(set(house.cluster.replicas(title)) - {running[0]}) == len(running), 60, f"a new {title}")  # noqa: B023
        for model in ("scale", "other"):
            house.wait_live(model, *([pool] if pool else []))
        wait_for(house.healthy, 30, "HTTP")
        asked("scale", 2)
        # Several times: any router may be asked, the new one too.
        for _ in range(4):
            check(house, before, expected)
    batches = stats(house)["scale@1"]
    sizes = {entry["batch_size"]: entry["compute_infer"]["count"] for entry in batches["batch_stats"]}
    assert sum(size * count for size, count in sizes.items()) >= batches["inference_count"]
    assert sum(sizes.values()) == batches["execution_count"]


def test_every_face_tells_the_same(house: House, grpc_client: triton_grpc.InferenceServerClient) -> None:
    by_http = stats(house)
    client = triton_http.InferenceServerClient(house.url)
    (one,) = client.get_inference_statistics("scale", "1")["model_stats"]
    assert one == by_http["scale@1"]
    by_grpc = grpc_client.get_inference_statistics().model_stats
    for entry in by_grpc:
        known = by_http[f"{entry.name}@{entry.version}"]
        assert (entry.inference_count, entry.execution_count) == (known["inference_count"], known["execution_count"])
        for name, duration in known["inference_stats"].items():
            told = getattr(entry.inference_stats, name)
            assert (told.count, told.ns) == (duration["count"], duration["ns"]), name
        assert [batch.batch_size for batch in entry.batch_stats] == [
            batch["batch_size"] for batch in known["batch_stats"]
        ]
    assert {f"{entry.name}@{entry.version}" for entry in by_grpc} == set(by_http)
    seen = metrics(house)
    assert seen["enginehouse_replicas"] == {("cpu-pool",): 1, ("gpu-pool",): 1}
    assert seen["enginehouse_loads_total"]["scale", "loaded", "cpu-pool", "1"] >= 1
    success = by_http["scale@1"]["inference_stats"]["success"]["count"]
    assert seen["enginehouse_request_latency_seconds_count"]["scale", "1"] == success
    assert seen["enginehouse_request_latency_seconds_bucket"]["+Inf", "scale", "1"] == success


def test_statistics_of_what_is_not_there(house: House, grpc_client: triton_grpc.InferenceServerClient) -> None:
    for path in ("nowhere/stats", "scale/versions/77/stats", "nowhere/versions/1/stats"):
        answer = httpx.get(f"http://{house.url}/v2/models/{path}", timeout=10)
        assert answer.status_code == 404 and "error" in answer.json()
    for arguments in (("nowhere",), ("scale", "77")):
        with pytest.raises(InferenceServerException) as refused:
            grpc_client.get_inference_statistics(*arguments)
        assert refused.value.status() == "StatusCode.NOT_FOUND"
    assert set(stats(house, "/v2/models/other/stats")) == {"other@1"}
