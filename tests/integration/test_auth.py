"""A local server with tokens and mutual TLS, as clients of every kind see it, while tokens and certificates change."""

from __future__ import annotations

import queue
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration import bundles
from tests.integration.certificates import Authority
from tests.integration.cluster import adopt_orphans, clean_env, wait_for
from tests.integration.door import ADMIN, BODY, GONE, INFER, READ, SLOW, SOME, TOKENS, Door, code, message, of
from tests.integration.local_server import LocalServer
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    adopt_orphans()
    door = Door(tmp_path_factory.mktemp("door"))
    try:
        door.server.wait_ready()
        yield door
    finally:
        door.server.stop()


ASKED = [
    ("", "POST", "/v2/models/scale/infer", 401),
    ("wrong-0123456789abcdef", "POST", "/v2/models/scale/infer", 401),
    (READ, "POST", "/v2/models/scale/infer", 403),
    (SOME, "POST", "/v2/models/other/infer", 403),
    (SOME, "POST", "/v2/models/nobody/infer", 403),
    (INFER, "POST", "/v2/models/scale/infer", 200),
    (SOME, "POST", "/v2/models/scale/infer", 200),
    (GONE, "POST", "/v2/models/scale/infer", 200),
    ("", "GET", "/v2/models/scale", 401),
    (INFER, "GET", "/v2/models/scale", 403),
    (INFER, "POST", "/v2/repository/index", 403),
    (INFER, "POST", "/v2/repository/models/scale/load", 403),
    (READ, "POST", "/v2/repository/models/scale/unload", 403),
    (ADMIN, "POST", "/v2/repository/models/scale/unload", 404),
    (READ, "GET", "/v2/models/scale/config", 200),
    (SOME, "GET", "/v2/models/other", 403),
    ("", "GET", "/v2/health/live", 200),
    ("", "GET", "/v2/health/ready", 200),
    ("", "GET", "/v2", 200),
]


@pytest.mark.parametrize(("token", "method", "path", "status"), ASKED)
def test_http_asks_for_a_token_with_its_role_and_model(
    door: Door, token: str, method: str, path: str, status: int
) -> None:
    assert door.status(token, method, path) == status


def test_over_its_rate_a_token_waits_and_others_do_not(door: Door) -> None:
    with door.client(SLOW) as client:
        answers = [client.post("/v2/models/scale/infer", json=BODY) for _ in range(6)]
    codes = [answer.status_code for answer in answers]
    # Each router lets its share through.
    assert 1 <= codes.count(200) <= 2 and codes.count(429) == 6 - codes.count(200)
    assert all(int(answer.headers["retry-after"]) > 1 for answer in answers if answer.status_code == 429)
    assert door.status(INFER, "POST", "/v2/models/scale/infer") == 200
    with door.channel() as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        codes = [code(lambda: call(message(), metadata=of(SLOW), timeout=30)) for _ in range(4)]
    assert "RESOURCE_EXHAUSTED" in codes[2:] and set(codes) <= {"OK", "RESOURCE_EXHAUSTED"}


def test_each_of_pipelined_requests_is_asked(door: Door) -> None:
    text = httpx.Request("POST", door.url, json=BODY).content
    tokens = [INFER, "", READ, "wrong-0123456789abcdef", SOME]
    sent = b"".join(
        b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n%s\r\n%s"
        % (len(text), f"authorization: Bearer {token}\r\n".encode() if token else b"", text)
        for token in tokens
    )
    with door.connection() as connection:
        connection.sendall(sent)
        answer = b""
        while answer.count(b"HTTP/1.1 ") < len(tokens) or not answer.endswith(b"}"):
            part = connection.recv(1 << 16)
            assert part, answer
            answer += part
    lines = [line for line in answer.split(b"\r\n") if b"HTTP/1.1 " in line]
    assert [int(line.rpartition(b"HTTP/1.1 ")[2].split()[0]) for line in lines] == [200, 401, 403, 401, 200]
    assert answer.lower().count(b"www-authenticate: bearer") == 2


def test_the_body_of_a_stranger_is_not_waited_for(door: Door) -> None:
    with door.connection() as connection:
        head = b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 268435456\r\n\r\n"
        connection.sendall(head + bytes(1000))
        began = time.monotonic()
        assert connection.recv(1 << 12).startswith(b"HTTP/1.1 401 ")
        assert time.monotonic() - began < 2


def test_grpc_asks_for_a_token_with_its_role_and_model(door: Door) -> None:
    service = "/inference.GRPCInferenceService/"
    empty, named = b"", bytes(pb.ModelMetadataRequest(name="scale").SerializeToString())
    other = bytes(pb.ModelMetadataRequest(name="other").SerializeToString())
    asked = [
        ("", "ModelInfer", message(), "UNAUTHENTICATED"),
        ("wrong-0123456789abcdef", "ModelInfer", message(), "UNAUTHENTICATED"),
        (READ, "ModelInfer", message(), "PERMISSION_DENIED"),
        (SOME, "ModelInfer", message("other"), "PERMISSION_DENIED"),
        (SOME, "ModelInfer", message("nobody"), "PERMISSION_DENIED"),
        (SOME, "ModelInfer", message(), "OK"),
        (INFER, "ModelMetadata", named, "PERMISSION_DENIED"),
        (INFER, "RepositoryIndex", empty, "PERMISSION_DENIED"),
        ("", "RepositoryIndex", empty, "UNAUTHENTICATED"),
        (READ, "ModelMetadata", named, "OK"),
        (READ, "ModelConfig", named, "OK"),
        (READ, "ModelReady", named, "OK"),
        (SOME, "ModelReady", other, "PERMISSION_DENIED"),
        ("", "ModelReady", named, "UNAUTHENTICATED"),
        ("", "ServerLive", empty, "OK"),
        ("", "ServerReady", empty, "OK"),
        ("", "ServerMetadata", empty, "OK"),
    ]
    with door.channel() as channel:
        for token, method, request, expected in asked:
            call = channel.unary_unary(service + method)
            found = code(lambda call=call, request=request, token=token: call(request, metadata=of(token), timeout=30))
            assert found == expected, (token, method)
        index = channel.unary_unary(f"{service}RepositoryIndex")(empty, metadata=of(SOME), timeout=30)
        assert [model.name for model in pb.RepositoryIndexResponse.FromString(index).models] == ["scale"]
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == serving
        scale = health_pb2.HealthCheckRequest(service="scale")
        assert code(lambda: health.Check(scale, timeout=30)) == "UNAUTHENTICATED"
        assert code(lambda: next(health.Watch(scale, timeout=30))) == "UNAUTHENTICATED"
        assert health.Check(scale, metadata=of(READ), timeout=30).status == serving


def test_the_message_of_a_stranger_is_not_waited_for(door: Door) -> None:
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(30)
        yield message()

    with door.channel() as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        for token, expected in (("", "UNAUTHENTICATED"), (READ, "PERMISSION_DENIED"), (INFER, "DEADLINE_EXCEEDED")):
            assert code(lambda token=token: call(nothing(), metadata=of(token), timeout=3)) == expected
        never.set()


def test_each_message_of_a_stream_is_asked(door: Door) -> None:
    with door.channel() as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        assert code(lambda: next(call(iter([message()]), timeout=30))) == "UNAUTHENTICATED"
        assert code(lambda: next(call(iter([message()]), metadata=of(READ), timeout=30))) == "PERMISSION_DENIED"
        models = ["scale", "other", "scale"]
        found = [
            pb.ModelStreamInferResponse.FromString(answer).error_message
            for answer in call(iter(map(message, models)), metadata=of(SOME), timeout=30)
        ]
    assert found == ["", "the token of this request is not for this model", ""]


def test_tritonclient_asks_over_tls_with_its_token(door: Door) -> None:
    x = np.ones((2, 4), np.float32)
    given = triton.InferInput("x", [2, 4], "FP32")
    given.set_data_from_numpy(x)
    headers = {"authorization": f"Bearer {INFER}"}
    with door.triton() as client:
        assert client.is_server_live()
        np.testing.assert_array_equal(client.infer("scale", [given], headers=headers).as_numpy("y"), 2 * x)
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.infer("scale", [given])
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        client.async_stream_infer("scale", [given])
        result, error = answers.get(timeout=30)
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)
    options = {"keyfile": str(door.client_key), "certfile": str(door.client_cert), "ca_certs": str(door.authority.path)}
    http = triton_http.InferenceServerClient(
        door.url.removeprefix("https://"), ssl=True, ssl_context_factory=door.context, ssl_options=options
    )
    given = triton_http.InferInput("x", [2, 4], "FP32")
    given.set_data_from_numpy(x)
    np.testing.assert_array_equal(http.infer("scale", [given], headers=headers).as_numpy("y"), 2 * x)
    http.close()


def test_who_has_no_certificate_of_the_authority_is_refused(door: Door) -> None:
    strange = Authority(door.folder, "strange")
    cert, key = strange.vouch("stranger")
    context = ssl.create_default_context(cafile=door.authority.path)
    for _ in range(2):
        with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
            httpx.get(f"{door.url}/v2/health/live", verify=context, timeout=10)
        context.load_cert_chain(cert, key)
    roots = door.authority.path.read_bytes()
    for credentials in (
        grpc.ssl_channel_credentials(roots),
        grpc.ssl_channel_credentials(roots, key.read_bytes(), cert.read_bytes()),
    ):
        with grpc.secure_channel(door.grpc_at, credentials) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert code(lambda call=call: call(b"", timeout=10)) == "UNAVAILABLE"
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{door.server.url}/v2/health/live", timeout=10)


def _serial(door: Door) -> int:
    with door.connection() as connection:
        return int(str((connection.getpeercert() or {})["serialNumber"]), 16)


def test_a_new_certificate_is_used_without_a_restart_and_a_wrong_one_is_not(door: Door) -> None:
    first = _serial(door)
    with door.client(INFER) as client:
        assert client.post("/v2/models/scale/infer", json=BODY).status_code == 200
        kept = door.cert.read_bytes()
        door.cert.write_text("no certificate")
        wait_for(lambda: "--tls-cert" in door.server.said(), 15, "the wrong file is told")
        assert _serial(door) == first
        door.cert.write_bytes(kept)
        door.authority.vouch("server")
        wait_for(lambda: _serial(door) != first, 15, "the new certificate")
        assert client.post("/v2/models/scale/infer", json=BODY).status_code == 200
    with door.channel() as channel:
        assert code(lambda: channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=30)) == "OK"


def test_a_token_that_is_taken_out_is_refused_while_all_others_are_answered(door: Door) -> None:
    stop, codes = threading.Event(), []

    def ask(tokens: Sequence[str]) -> None:
        with door.client() as client:
            while not stop.is_set():
                for token in tokens:
                    answer = client.post(
                        "/v2/models/scale/infer", json=BODY, headers={"Authorization": f"Bearer {token}"}
                    )
                    codes.append((token, answer.status_code))
                time.sleep(0.005)

    sent: queue.Queue[bytes | None] = queue.Queue()
    threads = [threading.Thread(target=ask, args=((INFER, SOME),)) for _ in range(3)]
    with door.channel() as channel:
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
            iter(sent.get, None), metadata=of(GONE), timeout=60
        )

        def streamed() -> str:
            sent.put(message())
            return str(pb.ModelStreamInferResponse.FromString(next(stream)).error_message)

        assert streamed() == ""
        for thread in threads:
            thread.start()
        try:
            door.write({token: rest for token, rest in TOKENS.items() if token != GONE})
            refused = lambda: door.status(GONE, "POST", "/v2/models/scale/infer") == 401  # noqa: E731
            wait_for(refused, 20, "it is refused")
            # By every router.
            wait_for(lambda: all(refused() for _ in range(10)), 20, "it is refused by all")
            assert "not known here" in streamed()
            assert "5 tokens from now on" in door.server.said()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            sent.put(None)
            door.write(TOKENS)
    print(f"{len(codes)} requests meanwhile")
    assert len(codes) > 100
    assert {status for _, status in codes} == {200}


def test_no_token_and_no_key_is_in_any_output_or_log(door: Door) -> None:
    assert "0123456789abcdef" not in door.server.said()
    assert "PRIVATE KEY" not in door.server.said()
    folders = [Path(door.server.temporary) / f"ray-{door.folder.stat().st_uid}" / "ray"]
    logs = [path for folder in folders for path in folder.glob("session_latest/logs/**/*") if path.is_file()]
    assert len(logs) > 10
    for log in logs:
        text = log.read_bytes()
        assert b"0123456789abcdef" not in text, log
        assert b"PRIVATE KEY" not in text, log


@pytest.mark.slow
def test_off_loopback_a_token_is_made_and_shown_once(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    adopt_orphans()
    store = tmp_path / "store"
    bundles.publish(store, "scale", "1", 2)
    server = LocalServer(tmp_path, store, host="0.0.0.0")
    request.addfinalizer(server.stop)
    server.wait_ready()
    assert server.infer("scale").status_code == 401
    shown = [line for line in server.said().splitlines() if "shown only this once" in line]
    token = shown[0].rpartition(" ")[2]
    assert server.said().count(token) == len(shown) == 1
    variables = clean_env(HOME=str(tmp_path), ENGINEHOUSE_TOKEN=token)
    for given, returned in ((variables, 0), (clean_env(HOME=str(tmp_path)), 1)):
        command = [sys.executable, "-m", "enginehouse", "infer", "scale", '{"x": [[1, 2, 3, 4]]}', "--url", server.url]
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == returned, done.stderr
        assert ("[2.0, 4.0, 6.0, 8.0]" in done.stdout) == (not returned) == ("401" not in done.stderr)
        assert token not in done.stdout + done.stderr
