"""gRPC as a client sees it: tritonclient unmodified, sync, async and streaming; health checks; bad requests."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.integration.bundles import MAX_BATCH, WIDTH
from tests.integration.cluster import wait_for
from tests.integration.conftest import House
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def address(house: House) -> str:
    return f"127.0.0.1:{house.cluster.grpc_port}"


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        wait_for(lambda: _is_live(client), 60, "gRPC")
        yield client


def _is_live(client: triton.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_live())
    except InferenceServerException:
        return False


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH), dtype=np.float32)


def given(x: np.ndarray) -> list[triton.InferInput]:
    tensor = triton.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return [tensor]


def test_tritonclient_sees_a_live_server_and_its_models(client: triton.InferenceServerClient) -> None:
    assert client.is_server_ready()
    assert client.is_model_ready("scale") and client.is_model_ready("scale", "1")
    assert not client.is_model_ready("nowhere") and not client.is_model_ready("scale", "77")
    assert client.get_server_metadata().name == "enginehouse"
    metadata = client.get_model_metadata("scale")
    (tensor,) = metadata.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("x", "FP32", [-1, WIDTH])
    config = client.get_model_config("scale").config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("scale", MAX_BATCH, [WIDTH])
    assert config.HasField("dynamic_batching")
    index = {(entry.name, entry.state) for entry in client.get_model_repository_index().models}
    assert index >= {("scale", "READY"), ("other", "READY")}


@pytest.mark.parametrize("count", [1, 7, MAX_BATCH + 1, 30_000])
def test_tritonclient_infers(client: triton.InferenceServerClient, count: int) -> None:
    x = rows(count)
    answer = client.infer("scale", given(x), request_id=f"r-{count}")
    np.testing.assert_array_equal(answer.as_numpy("y"), x * 2)
    response = answer.get_response()
    assert (response.id, response.model_name, response.model_version) == (f"r-{count}", "scale", "1")
    assert response.parameters["backend"].string_param in ("gpu-pool", "cpu-pool")


def test_hints_are_metadata_or_parameters(client: triton.InferenceServerClient) -> None:
    for hint in ({"headers": {"enginehouse-backend": "cpu-pool"}}, {"parameters": {"backend": "cpu-pool"}}):
        answer = client.infer("scale", given(rows(1)), **hint)
        assert answer.get_response().parameters["backend"].string_param == "cpu-pool"


@pytest.mark.parametrize(
    ("model", "x", "arguments", "code", "named"),
    [
        ("nowhere", rows(1), {}, "NOT_FOUND", "nowhere"),
        ("scale", rows(1), {"model_version": "77"}, "NOT_FOUND", "77"),
        ("scale", rows(1)[:, 1:], {}, "INVALID_ARGUMENT", f"{WIDTH - 1}"),
        ("scale", rows(1).astype(np.float64), {}, "INVALID_ARGUMENT", "FP64"),
        ("scale", rows(1), {"priority": 77}, "INVALID_ARGUMENT", "77"),
        ("scale", rows(1), {"headers": {"enginehouse-backend": "none"}}, "INVALID_ARGUMENT|UNAVAILABLE", "none"),
        ("scale", rows(1), {"outputs": [triton.InferRequestedOutput("z")]}, "INVALID_ARGUMENT", "z"),
        ("scale", rows(1), {"timeout": 1}, "RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED", ""),
        ("scale", rows(1), {"client_timeout": 0.0005}, "RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED", ""),
    ],
)
def test_what_is_wrong_has_its_code_and_names_the_value(
    client: triton.InferenceServerClient, model: str, x: np.ndarray, arguments: dict[str, object], code: str, named: str
) -> None:
    tensor = triton.InferInput("x", list(x.shape), _datatype(x))
    tensor.set_data_from_numpy(x)
    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, [tensor], **arguments)
    assert refused.value.status().removeprefix("StatusCode.") in code.split("|")
    assert named in refused.value.message()
    assert client.infer("scale", given(rows(1))).as_numpy("y").shape == (1, WIDTH)


def _datatype(x: np.ndarray) -> str:
    return {"float32": "FP32", "float64": "FP64"}[x.dtype.name]


def test_500_good_and_bad_requests_at_once(client: triton.InferenceServerClient) -> None:
    def ask(number: int) -> str:
        x = rows(1 + number % 5, seed=number)
        if number % 3:
            answer = client.infer("scale", given(x), request_id=str(number))
            assert answer.get_response().id == str(number)
            np.testing.assert_array_equal(answer.as_numpy("y"), x * 2)
            return "OK"
        wide = np.zeros((len(x), WIDTH + 1 + number), np.float32)
        wrong = triton.InferInput("x" if number % 2 else "w", list(wide.shape), "FP32")
        wrong.set_data_from_numpy(wide)
        with pytest.raises(InferenceServerException) as refused:
            client.infer("scale", [wrong])
        return refused.value.status()

    with concurrent.futures.ThreadPoolExecutor(64) as threads:
        codes = Counter(threads.map(ask, range(500)))
    assert codes == {"OK": 333, "StatusCode.INVALID_ARGUMENT": 167}


def test_a_stream_is_answered_in_order_and_survives_what_is_wrong(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[triton.InferResult | None, InferenceServerException | None]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(200):
        client.async_stream_infer(
            "nowhere" if number % 20 == 7 else "scale",
            given(np.full((1, WIDTH), number, np.float32)),
            request_id=str(number),
            enable_empty_final_response=number % 2 == 0,
        )
    for number in range(200):
        result, error = answers.get(timeout=60)
        if number % 20 == 7:
            assert error is not None and "nowhere" in error.message()
            continue
        assert result is not None, error
        assert result.get_response().id == str(number)
        assert result.as_numpy("y")[0, 0] == 2 * number
        assert ("triton_final_response" in result.get_response().parameters) == (number % 2 == 0)
    client.stop_stream()


async def test_the_async_client_infers_and_streams(address: str) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        xs = [rows(1 + number % 3, seed=number) for number in range(64)]
        answers = await asyncio.gather(*(client.infer("scale", given(x)) for x in xs))
        for x, answer in zip(xs, answers, strict=True):
            np.testing.assert_array_equal(answer.as_numpy("y"), x * 2)

        async def requests() -> AsyncIterator[dict[str, object]]:
            for number, x in enumerate(xs):
                yield {"model_name": "scale", "inputs": given(x), "request_id": str(number)}

        number = 0
        async for result, error in client.stream_infer(requests()):
            assert error is None
            np.testing.assert_array_equal(result.as_numpy("y"), xs[number] * 2)
            number += 1
        assert number == len(xs)


async def test_what_is_cancelled_or_closed_harms_nobody(address: str) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        for _ in range(50):
            task = asyncio.create_task(client.infer("scale", given(rows(20_000))))
            await asyncio.sleep(0.002)
            task.cancel()
        answer = await client.infer("scale", given(rows(1)))
        assert answer.as_numpy("y").shape == (1, WIDTH)
    channel = grpc.aio.insecure_channel(address)
    stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
    for _ in range(100):
        await stream.write(_request(rows(1000)))
    stream.cancel()
    await channel.close()
    async with triton_aio.InferenceServerClient(address) as client:
        assert (await client.infer("scale", given(rows(1)))).as_numpy("y").shape == (1, WIDTH)


def _request(x: np.ndarray) -> bytes:
    message = pb.ModelInferRequest(model_name="scale", raw_input_contents=[x.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    serialized: bytes = message.SerializeToString()
    return serialized


def test_bytes_that_are_no_message_are_an_invalid_argument(address: str, client: object) -> None:
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for data in (b"\xff" * 50, b"\x3a\xff", b"\x3a\x00" * 20_000, _request(rows(3))[:-5]):
            with pytest.raises(grpc.RpcError) as refused:
                ask(data)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, refused.value
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/inference.GRPCInferenceService/LogSettings")(b"")
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_health_checks_and_reflection(address: str, client: object) -> None:
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService", "scale"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as refused:
            health.Check(health_pb2.HealthCheckRequest(service="nowhere"))
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        watching = health.Watch(health_pb2.HealthCheckRequest(service="nowhere"))
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watching.cancel()
        described = ProtoReflectionDescriptorDatabase(channel)
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(described.get_services())
        service = DescriptorPool(described).FindServiceByName("inference.GRPCInferenceService")
        assert "ModelInfer" in service.methods_by_name


def test_a_killed_router_loses_only_what_was_under_way_on_it(house: House, address: str) -> None:
    pair = wait_for(lambda: (pids := house.cluster.replicas("Router")) and len(pids) == 2 and pids, 60, "two routers")
    codes: Counter[str] = Counter()
    wrong: list[str] = []
    ends = threading.Event()

    def ask(number: int) -> None:
        with triton.InferenceServerClient(address) as client:
            while not ends.is_set():
                x = rows(1, seed=number)
                try:
                    y = client.infer("scale", given(x), client_timeout=20).as_numpy("y")
                except InferenceServerException as error:
                    codes[str(error.status())] += 1
                    continue
                codes["OK"] += 1
                if not np.array_equal(y, x * 2):
                    wrong.append("wrong")

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    try:
        time.sleep(2)
        os.kill(pair[0], signal.SIGKILL)
        time.sleep(8)
        wait_for(lambda: len(house.cluster.replicas("Router")) == 2, 60, "two routers")
    finally:
        ends.set()
        for caller in callers:
            caller.join(60)
    assert not wrong and set(codes) <= {"OK", "StatusCode.UNAVAILABLE"}, codes
    # Four callers with one request each; HAProxy may try a second one of each while it does not know yet.
    assert codes["OK"] > 100 and codes["StatusCode.UNAVAILABLE"] <= 12, codes
