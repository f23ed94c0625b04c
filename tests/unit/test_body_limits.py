"""JSON has a limit of its own, and what is compressed or long is counted and sent piece by piece."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import zlib
from typing import Any

import numpy as np
import orjson
import pytest
from starlette.requests import Request
from tests.unit.test_ingress import request

from enginehouse.contract.config import AppConfig
from enginehouse.contract.elements import finished
from enginehouse.contract.errors import InvalidInput, Overloaded, RequestTooLarge
from enginehouse.contract.tensors import DTYPES, Signature, TensorSpec
from enginehouse.faces import oip
from enginehouse.faces.http import body, routes
from enginehouse.faces.http.responses import MESSAGE_BYTES, InParts
from enginehouse.faces.oip import document
from enginehouse.tools.cli import infer

BODY, JSON = 1 << 20, 1000
LIMITS = body.Limits(BODY, JSON)
WAY = r"limit of JSON: .*Inference-Header-Content-Length .*binary_data=True\)\), or raise `--max-json-bytes` of"


async def read(*chunks: bytes, limits: body.Limits = LIMITS, take: Any = lambda _: None, **headers: Any) -> bytes:
    asked = request(*chunks, **headers)
    return bytes(await body.read(asked, body.Head.of(asked.scope["headers"]), limits, take))


@pytest.mark.parametrize("pack", [None, gzip.compress])
async def test_json_has_a_limit_apart_from_the_body(pack: Any) -> None:
    encoding = {"content_encoding": "gzip"} if pack else {}
    pack = pack or bytes
    fits, large = b"x" * JSON, os.urandom(BODY - JSON)
    assert await read(pack(fits), **encoding) == fits
    with pytest.raises(RequestTooLarge, match=f"larger than {JSON} bytes.*{WAY}"):
        await read(pack(fits + b"x"), **encoding)
    # Bytes of tensors are not JSON.
    for length in (0, 2, JSON):
        header = {"inference_header_content_length": str(length)}
        packed = pack(fits + large)
        assert await read(packed[:9999], packed[9999 : -BODY // 2], packed[-BODY // 2 :], **encoding, **header) == (
            fits + large
        )
        with pytest.raises(RequestTooLarge, match=f"larger than {BODY} bytes.*; send fewer rows"):
            await read(pack(fits + large + b"x"), **encoding, **header)


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"content_length": str(JSON + 1)}, f"the body of {JSON + 1} bytes is larger than {JSON} bytes"),
        ({"inference_header_content_length": str(JSON + 1)}, f"JSON of {JSON + 1} bytes is larger than {JSON} bytes"),
        ({"inference_header_content_length": "9", "content_length": str(BODY + 1)}, f"the body of {BODY + 1} bytes"),
    ],
)
async def test_what_says_that_it_is_too_large_is_refused_unread(headers: dict[str, str], told: str) -> None:
    with pytest.raises(RequestTooLarge, match=told):
        # It would hang if it were waited for.
        await asyncio.wait_for(read(hangs=True, **headers), 5)


def test_the_limit_of_json_is_an_option_and_of_some_mib() -> None:
    assert AppConfig().router.max_json_bytes == 4 << 20
    assert AppConfig.parse({"router": {"max_json_bytes": 5}}).router.max_json_bytes == 5


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
async def test_what_is_decompressed_is_counted_piece_by_piece_and_stops_when_it_is_refused(compress: Any) -> None:
    counted = 0

    def take(size: int) -> None:
        nonlocal counted
        assert size <= 1 << 17
        counted += size
        if counted > 1 << 20:
            raise Overloaded("enough")

    bomb = compress(b"{}" * (32 << 20))
    encoding = "gzip" if compress is gzip.compress else "deflate"
    header = {"content_encoding": encoding, "inference_header_content_length": "2"}
    with pytest.raises(Overloaded):
        await read(bomb, limits=body.Limits(1 << 30, JSON), take=take, **header)
    assert counted <= (1 << 20) + (1 << 17)


async def test_others_have_their_turn_while_a_body_is_decompressed_and_joined() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    limits = body.Limits(1 << 30, JSON)
    packed = gzip.compress(bytes(16 << 20))
    await read(packed, limits=limits, content_encoding="gzip", inference_header_content_length="2")
    # One for each piece of 128 KiB that was decompressed, and some for those that were joined.
    assert turns >= 128
    beside.cancel()


def signature(kind: str = "FP32") -> Signature:
    return Signature((TensorSpec("x", DTYPES[kind], (None,)),), (TensorSpec("y", DTYPES[kind], (None,)),))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            b'{"inputs":[' + b"{}," * document.MAX_ARRAYS + b"{}]}",
            "arrays and objects, and 131072 is the limit",
        ),
        (b"[" * 200_000, "has 200000 arrays and objects"),
        (b'{"a":[' + b'"",' * document.MAX_STRINGS + b'""]}', "262146 strings, and 262144 is the limit"),
        (b'{"a":[' + b"0.1," * (document.NON_FINITE_BYTES // 4) + b"NaN]}", "with NaN or infinities, and 1048576 is"),
    ],
)
def test_json_that_would_take_many_times_as_long_as_numbers_is_refused(text: bytes, told: str) -> None:
    with pytest.raises(RequestTooLarge, match=told):
        oip.decode_request(text, None, signature())


def test_text_with_quotes_and_brackets_in_it_is_not_taken_for_many_strings() -> None:
    prompts = [json.dumps({"a": ["b"] * 20}) for _ in range(8000)]
    text = orjson.dumps({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [len(prompts)], "data": prompts}]})
    assert text.count(b'"') > document.MAX_STRINGS
    assert oip.decode_request(text, None, signature("BYTES")).rows == len(prompts)


def test_json_of_the_largest_allowed_parses() -> None:
    rows = [[number] for number in range(document.MAX_ARRAYS - 10)]
    model = Signature((TensorSpec("x", DTYPES["INT64"], (None, 1)),), signature().outputs)
    tensor = {"name": "x", "datatype": "INT64", "shape": [len(rows), 1], "data": rows}
    assert oip.decode_request(orjson.dumps({"inputs": [tensor]}), None, model).rows == len(rows)


async def test_a_long_answer_is_sent_in_messages_of_a_size() -> None:
    parts = [b"{", bytes(3 * MESSAGE_BYTES + 5), memoryview(bytes(7)), *([b"ab"] * 10), bytes(MESSAGE_BYTES)]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    headers = [(b"a", b"b"), (b"content-type", b"application/json")]
    await InParts(parts, headers, LIMITS.leaving)({"type": "http"}, receive, send)
    start, *rest = sent
    size = sum(map(len, parts))
    assert (start["status"], dict(start["headers"])[b"content-length"]) == (200, str(size).encode())
    assert dict(start["headers"])[b"content-type"] == b"application/json"
    assert b"".join(message["body"] for message in rest) == b"".join(parts)
    assert max(len(message["body"]) for message in rest) < 2 * MESSAGE_BYTES
    assert [message["more_body"] for message in rest] == [True] * (len(rest) - 1) + [False]


async def test_an_unknown_model_is_a_404_before_its_body_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    from enginehouse.contract.errors import ModelNotFound
    from enginehouse.routing.data_plane import DataPlane

    class Nothing:
        def get(self, model: str, version: str | None = None) -> Any:
            raise ModelNotFound(model, version)

    plane = DataPlane(None, Nothing(), 8, 1000)  # type: ignore[arg-type]

    class Ingress:
        limits, max_strings = LIMITS, 9

    ingress: Any = Ingress()
    ingress.plane = plane
    monkeypatch.setattr(routes, "_ingress", lambda: ingress)
    hanging: Request = request(b"{", hangs=True)
    for application in (routes.http, lambda *call: routes.answer(ingress, *call)):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        path = "/v2/models/invented/infer"
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        scope["path_params"] = {"model": "invented"}
        await asyncio.wait_for(application(scope, hanging.receive, send), 5)  # type: ignore[operator]
        assert sent[0]["status"] == 404
    assert (plane.admission.requests, plane.admission.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "array", "is_binary"),
    [
        ("FP32", np.linspace(0, 1, 60_000), True),
        ("FP32", np.full(60_000, 1e300), False),
        ("FP32", np.full(60_000, np.nan), True),
        ("UINT8", np.arange(60_000) % 256, True),
        ("UINT8", np.arange(60_000), False),
        ("INT64", np.ones(60_000), False),
        ("BOOL", np.ones(60_000, bool), True),
        ("FP32", np.ones(60_000, bool), False),
        ("BYTES", np.array(["a\u6f22"] * 60_000), True),
        ("FP32", np.arange(10.0), False),
    ],
)
def test_infer_sends_much_as_binary_data_unless_a_value_would_become_another(
    kind: str, array: np.ndarray, is_binary: bool
) -> None:
    content, headers = infer._body([{"name": "x", "datatype": kind, "shape": [-1]}], {"x": array})
    length = oip.parse_header_length(headers.get("Inference-Header-Content-Length"))
    assert (length is not None) == is_binary
    if is_binary:
        made = finished(oip.decoding(content, length, signature(kind))).inputs["x"]
        wanted = [text.encode() for text in array] if kind == "BYTES" else array.astype(DTYPES[kind])
        np.testing.assert_array_equal(made, np.asarray(wanted, made.dtype))
    elif array.size > 10:
        # The server names the value at fault.
        with pytest.raises(InvalidInput, match="input 'x' has the element"):
            oip.decode_request(content, None, signature(kind))
