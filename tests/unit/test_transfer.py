"""Bodies and answers that are too slow are ended, early answers arrive, and nobody else loses a connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from enginehouse.faces.http import transfer
from enginehouse.faces.http.responses import InParts, answer_early
from enginehouse.faces.http.transfer import Transfer, Transfers

#: Bytes of a long answer: more than the sockets on its way take.
LONG = 64 << 20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the usual times."""
    for name, value in {"FIRST_LOOK_S": 0.05, "LOOK_S": 0.1, "WINDOW_S": 0.5, "CROWDED_S": 1.0}.items():
        monkeypatch.setattr(transfer, name, value)


async def moves(transfers: Transfers, rate: float, seconds: float, **options: Any) -> float:
    """Move so many bytes a second for so long; when it was ended, at most `seconds`."""
    began = time.monotonic()
    with contextlib.suppress(TimeoutError), Transfer(transfers, **options) as one:
        while time.monotonic() < began + seconds:
            await asyncio.sleep(0.01)
            one.moved = round(rate * (time.monotonic() - began))
    return time.monotonic() - began


@pytest.mark.parametrize(("rate", "is_ended"), [(0, True), (100, True), (400, False), (1e6, False)])
async def test_who_is_alone_has_to_keep_up_the_least_rate(rate: float, is_ended: bool) -> None:
    transfers = Transfers(most=1)
    took_s = await moves(transfers, rate, 1.3)
    assert (took_s < 1.0) == is_ended
    assert took_s > 0.4
    assert (transfers.under_way, transfers.bytes) == (0, 0)


async def test_what_was_sent_at_first_does_not_count_for_ever() -> None:
    transfers = Transfers(most=1)
    began = time.monotonic()
    with pytest.raises(TimeoutError), Transfer(transfers) as one:
        one.moved = 1 << 30
        await asyncio.sleep(3)
    assert 0.9 < time.monotonic() - began < 1.5


async def test_it_has_an_end_however_fast_it_is() -> None:
    assert 0.3 <= await moves(Transfers(most=1), 1e6, 2, most_s=0.3) < 0.5


async def test_of_too_many_the_slow_ones_go_until_few_enough_are_left() -> None:
    transfers = Transfers(most=4)
    slow = [asyncio.create_task(moves(transfers, 1000, 1)) for _ in range(8)]
    fast = [asyncio.create_task(moves(transfers, 1e5, 1)) for _ in range(3)]
    took = [await task for task in slow]
    assert sum(seconds < 0.2 for seconds in took) == 7
    assert min([await task for task in fast]) >= 1


async def test_of_answers_that_hold_too_much_those_go_that_would_take_long() -> None:
    transfers = Transfers(most=100, most_bytes=10_000)
    slow = [asyncio.create_task(moves(transfers, 3000, 1, size=4000)) for _ in range(4)]
    fast = asyncio.create_task(moves(transfers, 5000, 1, size=4000))
    took = [await task for task in slow]
    assert sum(seconds < 0.2 for seconds in took) == 3
    assert await fast >= 1


async def test_a_look_that_comes_late_says_nothing() -> None:
    transfers = Transfers(most=0)
    with Transfer(transfers) as one:
        time.sleep(0.3)  # noqa: ASYNC251
        # What came meanwhile is read now.
        await asyncio.sleep(0.02)
        one.moved = 1 << 20
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def server(answer: Callable[..., Any]) -> AsyncIterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(answer, lifespan="off"))
    task = asyncio.create_task(running.serve([listening]))
    await asyncio.sleep(0)
    try:
        yield listening.getsockname()[1]
    finally:
        running.should_exit = True
        await asyncio.wait_for(task, 10)


def refusing(arriving: Transfers) -> Callable[..., Any]:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await answer_early(PlainTextResponse("no", 404), receive, send, arriving, 5)

    return answer


HEAD = b"POST /%d HTTP/1.1\r\nhost: a\r\ncontent-length: 2000000\r\n\r\n"


async def test_who_is_refused_amid_his_body_gets_the_answer_and_keeps_the_connection() -> None:
    async with server(refusing(Transfers(most=10))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(3):
            writer.write(HEAD % number + bytes(1_000_000))
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\nno"), 5)).startswith(b"HTTP/1.1 404")
            writer.write(bytes(1_000_000))
        writer.close()


async def test_who_does_not_go_on_with_it_loses_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    arriving = Transfers(most=10)
    async with server(refusing(arriving)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD % 0 + b"x")
        assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"\r\n\r\nno")
        writer.close()
    assert arriving.under_way == 0
    assert not caplog.records or all(record.levelno < logging.ERROR for record in caplog.records)


async def test_who_does_not_take_his_answer_loses_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    leaving = Transfers(most=10, most_bytes=LONG)
    took: list[float] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        began = time.monotonic()
        await InParts([bytes(LONG)], [], leaving)(scope, receive, send)
        took.append(time.monotonic() - began)

    async with server(answer) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port, limit=1) for _ in range(2)]
        for _, writer in silent:
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        while len(took) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert len(await asyncio.wait_for(reader.read(), 20)) > LONG
        for _, each in [*silent, (reader, writer)]:
            each.close()
    assert max(took[:2]) < 1.5
    assert leaving.under_way == leaving.bytes == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
