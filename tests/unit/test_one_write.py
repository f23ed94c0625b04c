"""An answer is one write to its connection, whatever becomes of that afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from enginehouse.faces.http.one_write import written

WRITES: list[bytes] = []
#: A request after which the server closes the connection.
LAST = b"GET /2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


class Counted(HttpToolsProtocol):
    """uvicorn's own protocol over a transport that remembers what is written."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Noting(transport))  # type: ignore[arg-type]


class _Noting:
    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        WRITES.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def answer(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/fails":
        raise RuntimeError("before anything was written")
    headers = {"/breaks": {"a": "b\r\nset-cookie: c"}}.get(scope["path"], {"a": "b"})
    response = Response(scope["path"].encode(), 201, headers)
    if not written(send, 201, response.raw_headers, response.body):
        await response(scope, receive, send)


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(answer, http=Counted, lifespan="off", log_level="critical")
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve([listening]))
    # It listens already: a request that comes before uvicorn accepts waits in the socket.
    await asyncio.sleep(0)
    WRITES.clear()
    try:
        yield listening.getsockname()[1]
    finally:
        running.should_exit = True
        await asyncio.wait_for(task, 10)


def asked(port: int, *paths: str, **headers: str) -> list[tuple[int, bytes]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    found = []
    for path in paths:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        found.append((response.status, response.read()))
    connection.close()
    return found


def heard(port: int, said: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(said)
        return b"".join(iter(lambda: client.recv(65536), b""))


async def test_headers_and_body_are_one_write() -> None:
    async with server() as port:
        found = await asyncio.to_thread(asked, port, "/one", "/two")
    assert found == [(201, b"/one"), (201, b"/two")]
    assert [write.endswith(path) for write, path in zip(WRITES, (b"/one", b"/two"), strict=True)] == [True, True]


async def test_a_connection_is_closed_only_after_its_answer() -> None:
    async with server() as port:
        assert await asyncio.to_thread(lambda: asked(port, "/last", connection="close")) == [(201, b"/last")]
    assert len(WRITES) == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with server() as port:
        got = await asyncio.to_thread(heard, port, b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n" + LAST)
    assert got.count(b"HTTP/1.1 201 Created") == 2
    assert got.index(b"\r\n\r\n/1") < got.index(b"\r\n\r\n/2")


async def test_an_answer_is_what_uvicorn_would_have_made_of_it() -> None:
    async with server() as port:
        ours = await asyncio.to_thread(heard, port, LAST)
        monkey = pytest.MonkeyPatch()
        monkey.setattr("tests.unit.test_one_write.written", lambda *_: False)
        theirs = await asyncio.to_thread(heard, port, LAST)
        monkey.undo()
    assert len(WRITES) == 1 + 2
    ours_lines, theirs_lines = (sorted(answer.split(b"\r\n")) for answer in (ours, theirs))
    dates = [line for line in ours_lines if line.startswith(b"date: ")]
    assert len(dates) == 1
    assert [line for line in ours_lines if line not in dates] == [
        line for line in theirs_lines if not line.startswith(b"date: ")
    ]


async def test_a_header_with_a_line_break_is_left_to_uvicorn_which_refuses_it() -> None:
    async with server() as port:
        with pytest.raises(http.client.RemoteDisconnected):
            await asyncio.to_thread(asked, port, "/breaks")
    assert WRITES == []


async def test_what_fails_inside_is_answered_as_without() -> None:
    async with server() as port:
        assert await asyncio.to_thread(asked, port, "/fails") == [(500, b"Internal Server Error")]


@pytest.mark.parametrize("send", [print, lambda message: None])
def test_another_server_sends_for_itself(send: Any) -> None:
    assert not written(send, 200, [], b"")
