"""Responses to inference requests, of status 200.

A long one is sent as the parts that it was made of: joined, it would be there twice, and copied in one go.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

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
    """A response whose body is `parts` one after the other."""

    def __init__(self, parts: Sequence[bytes | memoryview], headers: Headers) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = [*headers, (b"content-length", b"%d" % sum(map(len, parts)))]
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
                    gathered, size = [], 0
        await send({"type": "http.response.body", "body": b"".join(gathered), "more_body": False})
