"""Request bodies: read within limits of time and size, decompressed, in one buffer."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

import numpy as np
from starlette.requests import Request

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


async def read(request: Request, limit: int, take: Callable[[int], None]) -> bytes | memoryview:
    """Read the whole body and decompress it.

    `take` is called with the size of every chunk, and with that of the decompressed body; it may raise to refuse them.
    Raises RequestTooLarge before more than `limit` bytes are held, InvalidInput for a corrupt compressed body,
    BodyTimeout after `BODY_TIMEOUT_S`, and UnsupportedEncoding for another encoding than gzip and deflate.
    """
    announced = int(request.headers.get("content-length") or 0)
    if announced > limit:
        raise _too_large(limit)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *_ENCODINGS):
        raise UnsupportedEncoding(f"content encoding {encoding!r} is not supported; use gzip, deflate or none")
    chunks: list[bytes] = []
    size = 0
    try:
        with Timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                take(len(chunk))
                if chunk:
                    chunks.append(chunk)
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {BODY_TIMEOUT_S:g} s ({size} bytes so far)") from None
    body = chunks[0] if len(chunks) == 1 else _joined(chunks, size, json_length(request))
    if encoding == "identity":
        return body
    plain = await asyncio.to_thread(_inflated, body, encoding, limit)
    take(len(plain))
    return plain


def json_length(request: Request) -> int | None:
    """Bytes of JSON before the binary tensors; None when the request has no such header. Raises InvalidInput."""
    return oip.parse_header_length(request.headers.get(BINARY_HEADER))


def _joined(chunks: list[bytes], size: int, before: int | None) -> memoryview:
    """Concatenate the chunks so that the tensors, `before` bytes into them, are aligned and decode without a copy."""
    offset = -(before or 0) % _ALIGNMENT
    body = np.empty(offset + size, np.uint8).data[offset:]
    at = 0
    for chunk in chunks:
        body[at : at + len(chunk)] = chunk
        at += len(chunk)
    return body.toreadonly()


def _inflated(body: bytes | memoryview, encoding: str, limit: int) -> bytes:
    inflater = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not valid {encoding}: {error}") from None
    if len(plain) > limit:
        raise _too_large(limit)
    if not inflater.eof:
        raise InvalidInput(f"the {encoding} body is truncated")
    if inflater.unused_data:
        raise InvalidInput(f"{len(inflater.unused_data)} bytes follow the end of the {encoding} body")
    return plain


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body is larger than {limit} bytes; send fewer rows in a request")
