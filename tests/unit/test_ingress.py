"""The HTTP face refuses what is not a request, with one JSON error, before anything is decoded or held."""

from __future__ import annotations

import asyncio
import gzip
import re
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from httpx import ASGITransport, AsyncClient
from starlette.requests import ClientDisconnect, Request

from enginehouse.contract.config import AppConfig, Catalog
from enginehouse.contract.errors import BodyTimeout, InvalidInput, Overloaded, RequestTooLarge, UnsupportedEncoding
from enginehouse.counts.ledger import Ledger
from enginehouse.faces.http import body as request_body
from enginehouse.faces.http import routes
from enginehouse.pools import nodes
from enginehouse.routing.admission import Admission, Admitted
from enginehouse.routing.counting.gathering import Gathering
from enginehouse.routing.data_plane import DataPlane
from enginehouse.routing.router import Router
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import View

LIMIT = 10_000
LIMITS = request_body.Limits(LIMIT, LIMIT)
TEXT = b'{"inputs": []}'


def request(*chunks: bytes, hangs: bool = False, **headers: str) -> Request:
    """A request whose body arrives in these chunks, or stops arriving after them."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if not hangs:
        messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError("nothing more arrives")

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


async def read_body(request: Request, take: Any) -> bytes | memoryview:
    return await request_body.read(request, request_body.Head.of(request.scope["headers"]), LIMITS, take)


async def body(*chunks: bytes, hangs: bool = False, **headers: str) -> bytes | memoryview:
    with Admitted(Admission(8, 8 * LIMIT)) as admitted:
        return await read_body(request(*chunks, hangs=hangs, **headers), admitted.take)


async def test_a_body_in_pieces_arrives_whole() -> None:
    assert await body(b"{", b'"inputs"', b": []}") == TEXT
    assert await body() == b""


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP ", gzip.compress)]
)
async def test_a_compressed_body_is_inflated(encoding: str, compress: Any) -> None:
    packed = compress(TEXT)
    assert await body(packed[:7], packed[7:], content_encoding=encoding) == TEXT


async def test_a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    full = b"x" * LIMIT
    for headers, pack in (({}, bytes), ({"content_encoding": "gzip"}, gzip.compress)):
        assert await body(pack(full), **headers) == full
        with pytest.raises(RequestTooLarge, match=f"larger than {LIMIT} bytes"):
            await body(pack(full + b"x"), **headers)


async def test_a_body_announced_too_large_is_refused_unread() -> None:
    with pytest.raises(RequestTooLarge):
        # It would hang if it were waited for.
        await asyncio.wait_for(body(hangs=True, content_length=str(LIMIT + 1)), 1)


@pytest.mark.parametrize("length", [1, 13, 16, 117])
async def test_the_tensors_of_a_body_in_pieces_lie_aligned(length: int) -> None:
    whole = bytes(range(256)) * 8
    sent = await body(whole[:100], whole[100:1500], whole[1500:], inference_header_content_length=str(length))
    assert bytes(sent) == whole
    assert np.frombuffer(sent, np.uint8)[length:].ctypes.data % 16 == 0


@pytest.mark.parametrize("length", [1, 13, 16, 117])
async def test_a_body_of_a_known_length_is_put_where_it_stays(length: int) -> None:
    whole = bytes(range(256)) * 8
    said = {"inference_header_content_length": str(length), "content_length": str(len(whole))}
    sent = await body(whole[:100], whole[100:1500], whole[1500:], **said)
    assert bytes(sent) == whole
    assert np.frombuffer(sent, np.uint8)[length:].ctypes.data % 16 == 0
    with pytest.raises(InvalidInput, match="longer than the 2048 bytes of its Content-Length"):
        await body(whole[:100], whole, **said)


async def test_a_client_that_leaves_amid_its_body_ends_the_request() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    gone = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
    with pytest.raises(ClientDisconnect):
        await read_body(gone, lambda _: None)


async def test_bodies_count_while_they_arrive_and_no_longer() -> None:
    admission = Admission(max_requests=2, max_bytes=100)

    async def read(*chunks: bytes, **headers: str) -> None:
        with Admitted(admission) as admitted:
            await read_body(request(*chunks, **headers), admitted.take)

    with Admitted(admission) as other:
        other.take(60)
        await read(b"x" * 40)
        # Announced, sent in pieces without a length, or compressed: all of it counts.
        for sent, headers in (
            (b"x" * 41, {"content_length": "41"}),
            (b"x" * 41, {}),
            (gzip.compress(b"x" * 41), {"content_encoding": "gzip"}),
        ):
            with pytest.raises(Overloaded, match="0 MiB are under way; try again in 1 s"):
                await read(sent, **headers)
        with Admitted(admission), pytest.raises(Overloaded, match="2 requests are under way"):
            await read(b"")
    assert (admission.requests, admission.bytes) == (0, 0)
    # Alone, a request may be of any size that a body may have.
    await read(b"x" * 500)


async def test_a_body_that_grows_too_large_is_refused_while_it_arrives() -> None:
    with pytest.raises(RequestTooLarge):
        await asyncio.wait_for(body(b"x" * LIMIT, b"x", hangs=True), 1)


#: Without the time, which would be in the names of tests.
PACKED = gzip.compress(TEXT, mtime=0)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_bomb_is_refused_before_it_is_inflated(encoding: str, compress: Any) -> None:
    bomb = compress(bytes(8 << 20))
    assert len(bomb) < LIMIT
    tracemalloc.start()
    try:
        with pytest.raises(RequestTooLarge):
            await body(bomb, content_encoding=encoding)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (PACKED[:-4], "the gzip body is truncated"),
        (PACKED[:12], "the gzip body is truncated"),
        (b"", "the gzip body is truncated"),
        (TEXT, "not valid gzip"),
        (PACKED[:-8] + bytes(8), "not valid gzip"),
        (PACKED + b"more", "4 bytes follow the end"),
    ],
)
async def test_a_broken_compressed_body_is_told(content: bytes, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        await body(content, content_encoding="gzip")


async def test_an_unknown_encoding_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedEncoding, match="'br' is not supported; use gzip, deflate") as caught:
        await body(TEXT, content_encoding="br")
    assert caught.value.status == 415


async def test_a_body_that_stops_arriving_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "BODY_TIMEOUT_S", 0.02)
    with pytest.raises(BodyTimeout, match=r"did not arrive within 0.02 s \(3 bytes so far\)") as caught:
        await body(b"abc", hangs=True)
    assert caught.value.status == 408


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """The routes over a real router that serves nothing yet: one model is wanted and its bundle is not there."""
    monkeypatch.setattr(nodes, "count_with", lambda _: 1)
    config = AppConfig()
    view = View(config.pools, None, "here")
    versions = LiveVersions(view)
    ledger = Ledger(None)
    plane = DataPlane(Router(config, versions, view, {}), versions, 8, 8 * LIMIT, counts=ledger)
    counts = Gathering(ledger, "here", ())
    # There are no others, and no Serve to find them by.
    monkeypatch.setattr(counts, "_ask_routers", lambda: asyncio.sleep(0))
    ingress = SimpleNamespace(plane=plane, versions=versions, limits=LIMITS, max_strings=100, counts=counts)
    monkeypatch.setattr(routes, "_ingress", lambda: ingress)
    versions.apply(Catalog.parse({"store": str(tmp_path), "models": [{"name": "cold", "version": "1"}]}))
    async with AsyncClient(transport=ASGITransport(routes.http), base_url="http://here") as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "extra", "status", "told"),
    [
        ("GET", "/nowhere", {}, 404, "'/nowhere' is not a path of this server; inference is at /v2/models/"),
        (
            "POST",
            "/v2/repository/models/cold/load",
            {},
            404,
            "not supported by this server, .* `enginehouse models add` l",
        ),
        (
            "POST",
            "/v2/repository/models/cold/unload",
            {},
            404,
            "not supported by this server, .* `enginehouse models rem",
        ),
        *(
            ("GET", path, {}, 404, f"'{path}' is not supported by this server, which has no {what}")
            for path, what in {
                "/v2/systemsharedmemory/status": "shared memory",
                "/v2/cudasharedmemory/region/a/status": "shared memory",
                "/v2/trace/setting": "traces$",
                "/v2/models/cold/trace/setting": "traces$",
                "/v2/logging": "log settings$",
                "/v2/models/cold/generate_stream": "generating",
            }.items()
        ),
        ("GET", "/v2/loggings", {}, 404, "is not a path of this server"),
        ("GET", "/v2/models/cold/infer", {}, 405, "GET is not allowed on '/v2/models/cold/infer'"),
        ("POST", "/v2", {}, 405, "POST is not allowed"),
        ("GET", "/v2/models/nobody", {}, 404, "model 'nobody' is not served here"),
        ("POST", "/v2/models/nobody/infer", {"content": TEXT}, 404, "model 'nobody' is not served here"),
        ("POST", "/v2/models/nobody/versions/2/infer", {"content": TEXT}, 404, "version '2'"),
        ("GET", "/v2/models/cold", {}, 503, "model 'cold@1' is not warm yet"),
        ("GET", "/v2/models/cold/config", {}, 503, "model 'cold@1' is not warm yet"),
        ("GET", "/v2/models/nobody/versions/2/config", {}, 404, "version '2'"),
        ("POST", "/v2/models/cold/infer", {"content": TEXT}, 503, "model 'cold@1' is not warm yet"),
        ("GET", "/v2/models/cold/ready", {}, 400, "model 'cold' has no live backend"),
        ("GET", "/v2/health/ready", {}, 400, "not ready: cold"),
        ("POST", "/v2/models/cold/infer", {"content": bytes(LIMIT + 1)}, 413, f"larger than {LIMIT} bytes"),
        (
            "POST",
            "/v2/models/cold/infer",
            {"content": TEXT, "headers": {"Content-Encoding": "br"}},
            415,
            "'br' is not supported",
        ),
        (
            "POST",
            "/v2/models/cold/infer",
            {"content": PACKED[:-3], "headers": {"Content-Encoding": "gzip"}},
            400,
            "truncated",
        ),
    ],
)
async def test_what_is_refused_is_one_json_error_with_its_status(
    client: AsyncClient, method: str, path: str, extra: dict[str, Any], status: int, told: str
) -> None:
    answer = await client.request(method, path, **extra)
    assert answer.status_code == status, answer.text
    document = orjson.loads(answer.content)
    assert document.keys() == {"error"}
    assert re.search(told, document["error"]) or told in document["error"]
    assert answer.headers["content-type"] == "application/json"


async def test_only_what_may_help_asks_for_a_retry(client: AsyncClient) -> None:
    assert "retry-after" in (await client.get("/v2/models/cold")).headers
    assert "retry-after" not in (await client.get("/v2/models/nobody")).headers


async def test_a_405_says_what_is_allowed(client: AsyncClient) -> None:
    assert "POST" in (await client.get("/v2/models/cold/infer")).headers["allow"]


async def test_the_server_lives_and_tells_its_name_while_no_model_is_ready(client: AsyncClient) -> None:
    assert (await client.get("/v2/health/live")).status_code == 200
    assert (await client.get("/v2")).json()["name"] == "enginehouse"
    (entry,) = (await client.post("/v2/repository/index")).json()
    assert (entry["name"], entry["version"], entry["state"]) == ("cold", "1", "UNAVAILABLE")


async def test_a_server_that_ends_says_everywhere_that_it_is_not_ready(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes._ingress().plane.drain(refuse=True)
    for path in ("/v2/health/ready", "/v2/models/cold/ready"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()) == (503, {"error": "not ready: this server is ending"})
    refused = await client.post("/v2/models/cold/infer", content=TEXT)
    assert refused.status_code == 503
    assert "this server is ending" in refused.json()["error"]
    assert refused.headers["retry-after"] == "1"
    # It lives: who restarts what does not live would cut off what is under way.
    assert (await client.get("/v2/health/live")).status_code == 200


@pytest.mark.parametrize("path", ["/v2/models/stats", "/v2/models/cold/stats", "/v2/models/cold/versions/1/stats"])
async def test_what_is_not_warm_yet_has_statistics_too(client: AsyncClient, path: str) -> None:
    for _ in range(2):
        assert (await client.post("/v2/models/cold/infer", json={"inputs": []})).status_code == 503
    (known,) = (await client.get(path)).json()["model_stats"]
    assert (known["name"], known["version"]) == ("cold", "1")
    assert known["inference_stats"]["fail"]["count"] == 2
    text = (await client.get("/metrics")).text
    assert 'nv_inference_request_failure{model="cold",reason="REJECTED",version="1"} 2.0' in text
    assert 'enginehouse_requests_failed_total{error="NoBackend",model="cold",version="1"} 2.0' in text
