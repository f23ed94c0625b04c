"""HTTP as a client sees it: tritonclient unmodified, many callers at once, hostile requests."""

from __future__ import annotations

import concurrent.futures
import gzip
import http.client
import json
import time

import httpx
import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton
from tests.integration.bundles import MAX_BATCH, WIDTH
from tests.integration.cluster import wait_for
from tests.integration.conftest import House
from tests.integration.load import body, value


@pytest.fixture(scope="module")
def client(house: House) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(house.url, concurrency=8)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH), dtype=np.float32)


def test_tritonclient_sees_a_live_server_and_its_model(house: House, client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scale")
    assert client.is_model_ready("scale", "1")
    assert client.get_server_metadata()["name"] == "enginehouse"
    metadata = client.get_model_metadata("scale")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, WIDTH]}]
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, WIDTH]}]
    assert {"scale", "other"} <= set(httpx.get(f"http://{house.url}/v2/models", timeout=10).json()["models"])
    config = client.get_model_config("scale")
    assert config["max_batch_size"] == MAX_BATCH and config["input"][0]["dims"] == [WIDTH]
    assert {(entry["name"], entry["state"]) for entry in client.get_model_repository_index()} >= {
        ("scale", "READY"),
        ("other", "READY"),
    }


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("count", [1, 7, MAX_BATCH, MAX_BATCH + 1, 3 * MAX_BATCH + 1])
def test_tritonclient_infers(client: triton.InferenceServerClient, count: int, binary: bool) -> None:
    x = rows(count)
    given = triton.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x, binary_data=binary)
    answer = client.infer(
        "scale", [given], outputs=[triton.InferRequestedOutput("y", binary_data=binary)], request_id=f"r-{count}"
    )
    np.testing.assert_array_equal(answer.as_numpy("y"), x * 2)
    assert answer.get_response()["id"] == f"r-{count}"
    assert answer.get_response()["model_version"] == "1"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_compresses(client: triton.InferenceServerClient, algorithm: str) -> None:
    x = rows(3)
    given = triton.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    answer = client.infer("scale", [given], request_compression_algorithm=algorithm)
    np.testing.assert_array_equal(answer.as_numpy("y"), x * 2)


def test_tritonclient_is_told_about_an_unknown_model(client: triton.InferenceServerClient) -> None:
    given = triton.InferInput("x", [1, WIDTH], "FP32")
    given.set_data_from_numpy(rows(1))
    with pytest.raises(triton.InferenceServerException, match="nowhere"):
        client.infer("nowhere", [given])
    assert not client.is_model_ready("nowhere")


def test_64_requests_at_once_each_get_their_own_answer(house: House) -> None:
    session = onnxruntime.InferenceSession(
        house.store / "scale" / "1" / "onnx-fp32" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    inputs = [rows(1 + seed % 5, seed) for seed in range(64)]
    with (
        httpx.Client(timeout=30, limits=httpx.Limits(max_connections=64)) as http_client,
        concurrent.futures.ThreadPoolExecutor(64) as callers,
    ):
        url = f"http://{house.url}/v2/models/scale/infer"
        answers = list(callers.map(lambda x: http_client.post(url, json=body(x)), inputs))
    assert [answer.status_code for answer in answers] == [200] * 64
    for x, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(value(answer), session.run(None, {"x": x})[0])


def test_headers_say_who_answered(house: House) -> None:
    answer = httpx.post(f"http://{house.url}/v2/models/scale/infer", json=body(rows(1)))
    headers = {name: text for name, text in answer.headers.items() if name.startswith("enginehouse-")}
    assert headers["enginehouse-backend"] == "gpu-pool"
    assert headers["enginehouse-version"] == "1"
    assert headers["enginehouse-precision"] == "f32" or headers["enginehouse-precision"] == "fp32"
    assert float(headers["enginehouse-compute-ms"]) > 0
    forced = httpx.post(
        f"http://{house.url}/v2/models/scale/infer", json=body(rows(1)), headers={"enginehouse-backend": "cpu-pool"}
    )
    assert forced.headers["enginehouse-backend"] == "cpu-pool"


GOOD = json.dumps(body(np.ones((1, WIDTH), np.float32))).encode()
WRONG_DTYPE = GOOD.replace(b"FP32", b"INT64").replace(b"1.0", b"1")
WRONG_SHAPE = json.dumps(body(np.ones((1, WIDTH + 1), np.float32))).encode()
OVERFLOW = GOOD.replace(b"[1, 4]", b"[16, 1152921504606846978]")
TRUNCATED = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "parameters": {"binary_data_size": 16}}]}
).encode()

HOSTILE = {
    "malformed JSON": (b'{"inputs": [', {}, 400, "JSON"),
    "empty body": (b"", {}, 400, ""),
    "not an object": (b"[1]", {}, 400, ""),
    "wrong dtype": (WRONG_DTYPE, {}, 400, "INT64"),
    "wrong shape": (WRONG_SHAPE, {}, 400, "5"),
    "overflowing shape": (OVERFLOW, {}, 400, "1152921504606846978"),
    "negative dimension": (GOOD.replace(b"[1, 4]", b"[-1, 4]"), {}, 400, "-1"),
    "unknown input": (GOOD.replace(b'"x"', b'"z"'), {}, 400, "z"),
    "nested 10000 deep": (b"[" * 10_000 + b"]" * 10_000, {}, 400, ""),
    "truncated binary": (
        TRUNCATED + b"\0" * 9,
        {"Inference-Header-Content-Length": str(len(TRUNCATED))},
        400,
        "9",
    ),
    "trailing bytes": (
        TRUNCATED + b"\0" * 17,
        {"Inference-Header-Content-Length": str(len(TRUNCATED))},
        400,
        "1 bytes after",
    ),
    "header length beyond the body": (TRUNCATED, {"Inference-Header-Content-Length": "99999"}, 400, "99999"),
    "negative header length": (TRUNCATED, {"Inference-Header-Content-Length": "-4"}, 400, "-4"),
    "not gzip": (GOOD, {"Content-Encoding": "gzip"}, 400, "gzip"),
    "truncated gzip": (gzip.compress(GOOD)[:-9], {"Content-Encoding": "gzip"}, 400, "gzip"),
    "unsupported encoding": (GOOD, {"Content-Encoding": "br"}, 415, "br"),
    "deadline that is no number": (GOOD, {"enginehouse-deadline-ms": "soon"}, 400, "soon"),
    "deadline that is no time": (GOOD, {"enginehouse-deadline-ms": "nan"}, 400, "nan"),
    "unknown backend": (GOOD, {"enginehouse-backend": "moon"}, 400, "moon"),
    "deadline that no engine makes": (GOOD, {"enginehouse-deadline-ms": "0.01"}, 504, "gpu-pool takes 0."),
    "priority that is none": (GOOD, {"enginehouse-priority": "10"}, 400, "priority 10"),
    "precision that is none": (GOOD, {"enginehouse-min-precision": "fp8"}, 400, "'fp8'"),
    "deadline that has passed": (GOOD, {"enginehouse-deadline-ms": "-1"}, 504, "-1"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_by_name(house: House, name: str) -> None:
    content, headers, status, named = HOSTILE[name]
    began = time.monotonic()
    answer = httpx.post(f"http://{house.url}/v2/models/scale/infer", content=content, headers=headers, timeout=10)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert named in answer.json()["error"]
    assert time.monotonic() - began < 2
    assert house.healthy()


@pytest.mark.parametrize(
    ("method", "path", "status", "named"),
    [
        ("POST", "/v2/models/nowhere/infer", 404, "nowhere"),
        ("POST", "/v2/models/scale/versions/99/infer", 404, "99"),
        ("GET", "/v2/models/nowhere", 404, "nowhere"),
        ("GET", "/v2/models/%2e%2e", 404, ".."),
        ("POST", "/v2/models/%2e%2e/infer", 404, ".."),
        ("POST", "/v2/models/..%2f..%2fetc%2fpasswd/infer", 404, "passwd"),
        ("POST", "/v2/models/../infer", 404, ""),
        ("POST", "/v2/models/%20/infer", 404, ""),
        ("GET", "/v2/models/scale/infer", 405, "GET"),
        ("DELETE", "/v2/models/scale", 405, "DELETE"),
        ("GET", "/v3", 404, "/v3"),
    ],
)
def test_a_strange_path_is_refused_by_name(house: House, method: str, path: str, status: int, named: str) -> None:
    # http.client sends the path as it is; httpx would tidy it up first.
    connection = http.client.HTTPConnection(house.url, timeout=10)
    connection.request(method, path, body=GOOD if method == "POST" else None)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == status, text
    assert named in json.loads(text)["error"]
    assert house.healthy()


@pytest.mark.parametrize(("headers", "limit"), [({}, 4 << 20), ({"Inference-Header-Content-Length": "2"}, 256 << 20)])
def test_a_gzip_bomb_stops_at_the_limit(house: House, headers: dict[str, str], limit: int) -> None:
    bomb = gzip.compress(b"\0" * ((256 << 20) + 1), 9)
    assert len(bomb) < 1 << 20
    answer = httpx.post(
        f"http://{house.url}/v2/models/scale/infer",
        content=bomb,
        headers={"Content-Encoding": "gzip"} | headers,
        timeout=30,
    )
    assert answer.status_code == 413, answer.text
    assert f"larger than {limit} bytes when decompressed" in answer.json()["error"]
    assert house.healthy()


def test_a_body_declared_too_large_is_refused_unread(house: House) -> None:
    connection = http.client.HTTPConnection(house.url, timeout=10)
    connection.putrequest("POST", "/v2/models/scale/infer")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders(b"{")
    answer = connection.getresponse()
    assert answer.status == 413
    assert f"the body of {1 << 40} bytes is larger than" in json.loads(answer.read())["error"]
    connection.close()
    assert house.healthy()


def test_rays_prometheus_endpoint_counts_the_requests_by_model_backend_and_outcome(
    house: House, client: triton.InferenceServerClient
) -> None:
    import ray

    def counts(outcome: str) -> dict[str, float]:
        """By series. Those of a router that is gone, which earlier tests kill, go as well some time later."""
        found: dict[str, float] = {}
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            for line in httpx.get(url, timeout=10).text.splitlines():
                if line.startswith("ray_enginehouse_requests") and 'model="scale"' in line and f'"{outcome}"' in line:
                    series, value = line.rsplit(" ", 1)
                    found[series] = float(value)
        return found

    before = {outcome: counts(outcome) for outcome in ("ok", "DeadlineExceeded")}

    def more(outcome: str) -> float:
        known = before[outcome]
        return sum(max(0.0, value - known.get(series, 0.0)) for series, value in counts(outcome).items())

    url = f"http://{house.url}/v2/models/scale/infer"
    for _ in range(20):
        assert httpx.post(url, json=body(rows(1)), timeout=10).status_code == 200
    late = httpx.post(url, json=body(rows(1)), headers={"enginehouse-deadline-ms": "0.001"}, timeout=10)
    assert late.status_code == 504
    wait_for(lambda: more("ok") >= 20, 60, "20 answers are counted", every=1)
    wait_for(lambda: more("DeadlineExceeded") >= 1, 60, "the late one is counted", every=1)
