"""A long answer, sent as the parts that it was made of: joined, it would be there twice, and copied in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

#: Bytes of one message to the server, which waits until the client has taken most of them.
MESSAGE_BYTES = 1 << 18


class InParts(Response):
    """A response whose body is `parts` one after the other."""

    def __init__(self, parts: Sequence[bytes | memoryview], headers: Mapping[str, str], media_type: str) -> None:
        super().__init__(None, 200, {**headers, "content-length": str(sum(map(len, parts)))}, media_type)
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
