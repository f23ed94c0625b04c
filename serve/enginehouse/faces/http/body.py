"""Request bodies: read within limits of time and size, decompressed as they arrive, in one buffer."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from starlette.requests import Request

from enginehouse.contract.elements import NUMBER_BYTES
from enginehouse.contract.errors import BodyTimeout, InvalidInput, RequestTooLarge, UnsupportedEncoding
from enginehouse.faces import oip
from enginehouse.routing.timeout import Timeout

BINARY_HEADER = "Inference-Header-Content-Length"
#: Seconds that a client may take to send its body.
BODY_TIMEOUT_S = 60.0
#: Bytes; that of numpy's allocations, and enough for every datatype.
_ALIGNMENT = 16
#: Content-Encoding -> zlib's window bits.
_ENCODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
#: Bytes that are decompressed at a time, in less than a millisecond.
_PIECE = 1 << 17


class Limits(NamedTuple):
    """Bytes that a body may have, and its JSON (see `RouterConfig`)."""

    body: int
    json: int

    def of(self, json_length: int | None) -> tuple[int, str]:
        """The limit of a body with such a header, and why it has that one. Raises RequestTooLarge."""
        if json_length is not None and json_length <= self.json:
            return self.body, "; send fewer rows in a request"
        why = (
            ", the limit of JSON: all others wait while it is parsed. Send the tensors as binary data behind a short "
            f"JSON, with the header {BINARY_HEADER} (tritonclient: set_data_from_numpy(array, binary_data=True)), or "
            "raise `--max-json-bytes` of `enginehouse serve`"
        )
        if json_length is not None:
            raise RequestTooLarge(f"JSON of {json_length} bytes is larger than {self.json} bytes{why}")
        return min(self.json, self.body), why


async def read(request: Request, limits: Limits, take: Callable[[int], None]) -> bytes | memoryview:
    """Read the whole body and decompress it.

    `take` is called with the size of every chunk, and of every one that is decompressed; it may raise to refuse them.
    Raises RequestTooLarge before more than the limit is held, InvalidInput for a corrupt compressed body,
    BodyTimeout after `BODY_TIMEOUT_S`, and UnsupportedEncoding for another encoding than gzip and deflate.
    """
    before = json_length(request)
    limit, why = limits.of(before)
    announced = int(request.headers.get("content-length") or 0)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *_ENCODINGS):
        raise UnsupportedEncoding(f"content encoding {encoding!r} is not supported; use gzip, deflate or none")
    if announced > limit:
        raise RequestTooLarge(f"the body of {announced} bytes is larger than {limit} bytes{why}")
    chunks: deque[bytes] = deque()
    received = size = 0
    inflater = Inflater(encoding) if encoding != "identity" else None
    try:
        with Timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                received += len(chunk)
                if received > limit:
                    raise RequestTooLarge(f"the body is larger than {limit} bytes{why}")
                take(len(chunk))
                if inflater is None:
                    size = received
                    if chunk:
                        chunks.append(chunk)
                    continue
                for plain in inflater.pieces(chunk):
                    size += len(plain)
                    if size > limit:
                        raise RequestTooLarge(f"the body is larger than {limit} bytes when decompressed{why}")
                    take(len(plain))
                    chunks.append(plain)
                    if len(plain) == _PIECE:
                        await asyncio.sleep(0)
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {BODY_TIMEOUT_S:g} s ({received} bytes so far)") from None
    if inflater is not None:
        inflater.end()
    return chunks[0] if len(chunks) == 1 else await _joined(chunks, size, before)


def json_length(request: Request) -> int | None:
    """Bytes of JSON before the binary tensors; None when the request has no such header. Raises InvalidInput."""
    return oip.parse_header_length(request.headers.get(BINARY_HEADER))


async def _joined(chunks: deque[bytes], size: int, before: int | None) -> memoryview:
    """Concatenate the chunks so that the tensors, `before` bytes into them, are aligned and decode without a copy.

    Each is freed when it was copied, so that a large body is not held twice.
    """
    offset = -(before or 0) % _ALIGNMENT
    body = np.empty(offset + size, np.uint8).data[offset:]
    at = pause = 0
    while chunks:
        chunk = chunks.popleft()
        body[at : at + len(chunk)] = chunk
        at += len(chunk)
        if at - pause >= NUMBER_BYTES:
            pause = at
            await asyncio.sleep(0)
    return body.toreadonly()


class Inflater:
    """Decompresses a body chunk by chunk."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._zlib = zlib.decompressobj(_ENCODINGS[encoding])

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """What `chunk` adds, in pieces of at most `_PIECE` bytes. Raises InvalidInput."""
        # zlib copies what is left of its input with each piece.
        for start in range(0, len(chunk), _PIECE):
            packed = chunk[start : start + _PIECE]
            while packed:
                try:
                    plain = self._zlib.decompress(packed, _PIECE)
                except zlib.error as error:
                    raise InvalidInput(f"the body is not valid {self._encoding}: {error}") from None
                if extra := len(self._zlib.unused_data):
                    raise InvalidInput(f"{extra} bytes follow the end of the {self._encoding} body")
                packed = self._zlib.unconsumed_tail
                if plain:
                    yield plain

    def end(self) -> None:
        """Raises InvalidInput if the body ended too early."""
        if not self._zlib.eof:
            raise InvalidInput(f"the {self._encoding} body is truncated")
