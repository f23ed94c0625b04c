"""Responses to inference requests, of status 200.

A long one is sent as the parts that it was made of: joined, it would be there twice, and copied in one go.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from enginehouse.faces.http.one_write import cycle_of
from enginehouse.faces.http.transfer import Transfer, Transfers

#: Bytes of one message to the server, which waits until the client has taken most of them.
MESSAGE_BYTES = 1 << 18

#: Names in lower case and values, as ASGI wants them.
Headers = Sequence[tuple[bytes, bytes]]


class AtOnce(Response):
    """A response that is sent as one, with `headers` beside its length. Starlette's would look at each of them."""

    def __init__(self, body: bytes, headers: Headers) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = [*headers, (b"content-length", b"%d" % len(body))]


class InParts(Response):
    """A response whose body is `parts` one after the other; a client that takes it too slowly does not get it all."""

    def __init__(self, parts: Sequence[bytes | memoryview], headers: Headers, leaving: Transfers) -> None:
        self.status_code = 200
        self.background = None
        self._size = sum(map(len, parts))
        self.raw_headers = [*headers, (b"content-length", b"%d" % self._size)]
        self._parts = parts
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with Transfer(self._leaving, size=self._size) as transfer:
                await self._sent(send, transfer)
        except TimeoutError:
            if (cycle := cycle_of(send)) is None:
                raise
            # Nothing else tells the client that this is not all.
            cycle.transport.abort()
            cycle.disconnected = True

    async def _sent(self, send: Send, transfer: Transfer) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        gathered: list[bytes | memoryview] = []
        size = 0
        for part in self._parts:
            for start in range(0, len(part), MESSAGE_BYTES):
                some = part[start : start + MESSAGE_BYTES]
                gathered.append(some)
                size += len(some)
                if size >= MESSAGE_BYTES:
                    await send({"type": "http.response.body", "body": b"".join(gathered), "more_body": True})
                    transfer.moved += size
                    gathered, size = [], 0
        await send({"type": "http.response.body", "body": b"".join(gathered), "more_body": False})


async def answer_early(response: Response, receive: Receive, send: Send, arriving: Transfers, most_s: float) -> None:
    """Send `response` to a request whose body is still under way, and take what comes of that for `most_s` at most.

    Most clients listen only once they have sent it all: the connection would be broken to them, with no answer.
    """
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    cycle = cycle_of(send)
    try:
        with Transfer(arriving, most_s) as rest:
            while (message := await receive()).get("more_body"):
                rest.moved += len(message["body"])
    except TimeoutError:
        if cycle is not None:
            cycle.keep_alive = False
    await send({"type": "http.response.body", "body": b""})
