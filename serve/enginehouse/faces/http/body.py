"""Request bodies: read within limits of time and size, decompressed as they arrive, in one buffer."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from starlette.requests import ClientDisconnect, Request

from enginehouse.contract.elements import NUMBER_BYTES
from enginehouse.contract.errors import BodyTimeout, InvalidInput, RequestTooLarge, UnsupportedEncoding
from enginehouse.faces import oip
from enginehouse.faces.http.one_write import cycle_of
from enginehouse.faces.http.transfer import CROWDED_RATE, LEAST_RATE, Transfer, Transfers, Whole

BINARY_HEADER = "Inference-Header-Content-Length"
RAW_BINARY_HEADER = BINARY_HEADER.lower().encode()
#: Seconds that a client may take to send its body.
BODY_TIMEOUT_S = 60.0
#: Bodies of clients that have no token, of which nothing is read but what is under way: apart, so that they are no
#: reason to end others, and for so many seconds.
STRANGERS, STRANGERS_S = Transfers(64), 5.0
#: Bytes; that of numpy's allocations, and enough for every datatype.
_ALIGNMENT = 16
#: Content-Encoding -> zlib's window bits.
_ENCODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
#: Bytes that are decompressed at a time, in less than a millisecond.
_PIECE = 1 << 17


class Limits(NamedTuple):
    """Bytes that a body may have, and its JSON (see `RouterConfig`); bodies and answers under way in this process."""

    body: int
    json: int
    arriving: Transfers = Transfers(256)
    leaving: Transfers = Transfers(1 << 20, 256 << 20)

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


class Head(NamedTuple):
    """What the headers say of a body: bytes of JSON before the binary tensors (None: it says nothing), and of all."""

    json_length: int | None
    length: int | None
    encoding: str

    @classmethod
    def of(cls, headers: Sequence[tuple[bytes, bytes]]) -> Head:
        """From raw headers, as ASGI has them. Raises InvalidInput, UnsupportedEncoding for others than gzip, deflate.

        One dict in the place of Starlette's `Headers`, which goes through all of them for each that is asked for.
        """
        # Of a repeated one the first counts.
        named = dict(reversed(headers))
        before, length = named.get(RAW_BINARY_HEADER), named.get(b"content-length")
        encoding = named.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        if encoding not in ("identity", *_ENCODINGS):
            raise UnsupportedEncoding(f"content encoding {encoding!r} is not supported; use gzip, deflate or none")
        json_length = None if before is None else oip.parse_header_length(before.decode("latin-1"))
        return cls(json_length, int(length) if length else None, encoding)


async def read(request: Request, head: Head, limits: Limits, take: Callable[[int], None]) -> bytes | memoryview:
    """Read the whole body and decompress it; aligned so that the tensors after its JSON decode without a copy.

    `take` is called with the size of every chunk, and of every one that is decompressed; it may raise to refuse them.
    Raises RequestTooLarge before more than the limit is held, InvalidInput for a corrupt compressed body, BodyTimeout
    after `BODY_TIMEOUT_S` or when it comes too slowly (see transfer.py), and ClientDisconnect.
    """
    limit, why = limits.of(head.json_length)
    if head.length is not None and head.length > limit:
        raise RequestTooLarge(f"the body of {head.length} bytes is larger than {limit} bytes{why}")
    receive = request.receive
    cycle = cycle_of(receive)
    is_there = cycle is not None and not cycle.more_body
    transfer = Whole() if is_there else Transfer(limits.arriving, BODY_TIMEOUT_S)
    chunks = _Chunks(head)
    inflater = Inflater(head.encoding) if head.encoding != "identity" else None
    try:
        with transfer:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = message.get("body", b""), message.get("more_body", False)
                transfer.moved += len(chunk)
                if transfer.moved > limit:
                    raise RequestTooLarge(f"the body is larger than {limit} bytes{why}")
                take(len(chunk))
                if inflater is None:
                    chunks.add(chunk, is_last=not more)
                    continue
                for plain in inflater.pieces(chunk):
                    if chunks.size + len(plain) > limit:
                        raise RequestTooLarge(f"the body is larger than {limit} bytes when decompressed{why}")
                    take(len(plain))
                    chunks.add(plain)
                    if len(plain) == _PIECE:
                        await asyncio.sleep(0)
    except TimeoutError:
        raise _too_slow(transfer) from None
    if inflater is not None:
        inflater.end()
    return await chunks.joined()


def _too_slow(transfer: Transfer | Whole) -> BodyTimeout:
    taken_s = time.monotonic() - transfer.began
    if taken_s >= BODY_TIMEOUT_S:
        return BodyTimeout(f"the body did not arrive within {BODY_TIMEOUT_S:g} s ({transfer.moved} bytes so far)")
    return BodyTimeout(
        f"the body comes too slowly: {transfer.moved} bytes in {taken_s:.1f} s; at least {LEAST_RATE} bytes a second "
        f"are waited for, and {CROWDED_RATE} while many others are under way; send it again"
    )


class _Chunks:
    """What has arrived of a body, if its length is known in the memory where it will stay.

    Each chunk is copied there while the cache still has it. A body that comes at once stays as it is.
    """

    def __init__(self, head: Head) -> None:
        self.size = 0
        self._offset = -(head.json_length or 0) % _ALIGNMENT
        # Of large ones hardly anything may ever come: there is no memory for what was only announced.
        known = head.encoding == "identity" and (head.length or 0) <= NUMBER_BYTES
        self._length = head.length if known else None
        self._chunks: deque[bytes] = deque()
        self._whole: memoryview | None = None

    def add(self, chunk: bytes, is_last: bool = False) -> None:
        """The next one. Raises InvalidInput when there are more bytes than were announced."""
        begin, self.size = self.size, self.size + len(chunk)
        if self._length is None or (is_last and not begin):
            if chunk:
                self._chunks.append(chunk)
            return
        if self.size > self._length:
            raise InvalidInput(f"the body is longer than the {self._length} bytes of its Content-Length")
        if self._whole is None:
            self._whole = np.empty(self._offset + self._length, np.uint8).data[self._offset :]
        self._whole[begin : self.size] = chunk

    async def joined(self) -> bytes | memoryview:
        """All of it."""
        if self._whole is not None:
            return self._whole[: self.size].toreadonly()
        return self._chunks[0] if len(self._chunks) == 1 else await _joined(self._chunks, self.size, self._offset)


async def _joined(chunks: deque[bytes], size: int, offset: int) -> memoryview:
    """Concatenate the chunks, `offset` bytes into aligned memory.

    Each is freed when it was copied, so that a large body is not held twice.
    """
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
