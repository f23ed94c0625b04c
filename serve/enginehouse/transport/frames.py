"""The wire between routers and pools: messages with tensors as raw bytes, many calls at a time over one connection.

Serve's own way costs a router 1.2 and a replica 1.1 ms of CPU a call and copies every tensor several times (Ray Serve
2.60: request router, gRPC in Python, two rounds of pickle). Here a tensor is written from where it lies and read to
where it stays. Serve still says which replicas there are, starts and ends them and looks after their health.

A message is a header, JSON and tensors:

    kind u8 | 3 bytes | bytes of JSON u32 | call u64 | bytes of tensors u64     little-endian
    JSON, spaces up to a multiple of 64 bytes
    the elements of each tensor as the Open Inference Protocol sends them, each with zeros up to a multiple of 64 bytes

    replica                                     router
    HELLO [version, nonce]               ─>
                                         <─     PROOF [HMAC of the nonce with the replica's key, another nonce]
    WELCOME [HMAC of that]               ─>
                                         <─     CALL [model id, rows, seconds left, alone, demand, tensors]      CANCEL
    ANSWER [timing, tensors, backlog in ms] | FAILURE [error, backlog] | FULL  ─>
    BEGUN                                ─>     the engine computes the call, which is to be `alone` in it
    PONG                                 ─> <─  PING, while calls are under way
    DRAINING                             ─>     no more calls, please: the replica ends when those it has are answered
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple, cast

import numpy as np
import orjson

from enginehouse.contract.elements import from_bytes, to_bytes
from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import DTYPES, Tensors, datatype

_HEADER = struct.Struct("<BxxxIQQ")
_ALIGNMENT = 64
_PADDING = bytes(_ALIGNMENT)
#: What is read at once when it is not known what comes.
_SCRATCH_BYTES = 1 << 16
#: Up to this size a message is joined and written in one piece: less work than a list of buffers.
_JOINED_BYTES = 1 << 15
#: Most JSON and most tensors of a message.
MAX_JSON_BYTES, MAX_TENSOR_BYTES = 1 << 24, 1 << 33
#: Most bytes of a message before the other side has shown that it belongs here.
MAX_UNPROVEN_BYTES = 256
#: Of this description; both ends have the same.
VERSION = 2
#: Strings that are coded on the event loop: a few milliseconds.
_INLINE_STRINGS = 10_000
#: Datatype of strings that are text in Python; BYTES are bytes there.
_TEXT = "TEXT"

#: Asked every second after a second of silence, given up after three questions; other systems than Linux take hours.
_KEEP_ALIVE = (
    {socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3} if sys.platform == "linux" else {}
)

#: Name, datatype, shape and bytes of a tensor.
TensorMeta = tuple[str, str, list[int], int]
Buffer = bytes | memoryview


class Kind(IntEnum):
    """What a message is."""

    HELLO = 1
    PROOF = 2
    CALL = 3
    CANCEL = 4
    ANSWER = 5
    FAILURE = 6
    PING = 7
    PONG = 8
    DRAINING = 9
    WELCOME = 10
    FULL = 11
    BEGUN = 12


class Message(NamedTuple):
    """One message as it was read; `content` is the parsed JSON."""

    kind: Kind
    call: int
    content: Any
    tensors: memoryview


class WireError(Exception):
    """The other side does not speak as it should; the connection is given up."""


def encode(requests: Sequence[Tensors]) -> tuple[list[TensorMeta], list[Buffer]]:
    """`requests` as one, stacked along dim 0, without a copy: what describes them, and the bytes to be written.

    Raises InvalidInput for elements of an object array that are no strings.
    """
    metas: list[TensorMeta] = []
    buffers: list[Buffer] = []
    for name, first in requests[0].items():
        arrays = [request[name] for request in requests]
        kind = datatype(first.dtype)
        if kind == "BYTES" and _is_text(name, arrays):
            kind = _TEXT
        parts = [to_bytes(array) for array in arrays]
        size = sum(len(part) for part in parts)
        shape = list(first.shape)
        if len(arrays) > 1:
            shape[0] = sum(array.shape[0] for array in arrays)
        metas.append((name, kind, shape, size))
        buffers += [part for part in parts if len(part)]
        if padding := -size % _ALIGNMENT:
            buffers.append(_PADDING[:padding])
    return metas, buffers


def decode(metas: Sequence[TensorMeta], data: memoryview) -> dict[str, np.ndarray]:
    """The tensors that `metas` describe, as views on `data` where their datatype allows. Raises WireError."""
    tensors = {}
    offset = 0
    for name, kind, shape, size in metas:
        end = offset + size
        if size < 0 or end > len(data):
            raise WireError(f"tensor {name!r} ends after the message")
        dtype = DTYPES["BYTES" if kind == _TEXT else kind]
        array = from_bytes(name, dtype, shape, data[offset:end])
        if kind == _TEXT:
            array = np.array([element.decode("utf-8", "surrogatepass") for element in array.ravel()], object)
            array = array.reshape(shape)
        tensors[name] = array
        offset = end + -end % _ALIGNMENT
    return tensors


async def encode_aside(requests: Sequence[Tensors]) -> tuple[list[TensorMeta], list[Buffer]]:
    """`encode`, beside the event loop where there are many strings."""
    strings = sum(array.size for request in requests for array in request.values() if array.dtype.hasobject)
    return await asyncio.to_thread(encode, requests) if strings > _INLINE_STRINGS else encode(requests)


async def decode_aside(metas: Sequence[TensorMeta], data: memoryview) -> dict[str, np.ndarray]:
    """`decode`, beside the event loop where there may be many strings: each has a length of 4 bytes."""
    has_strings = any(kind in (_TEXT, "BYTES") for _, kind, _, _ in metas)
    is_large = has_strings and len(data) > 4 * _INLINE_STRINGS
    return await asyncio.to_thread(decode, metas, data) if is_large else decode(metas, data)


class Connection(asyncio.BufferedProtocol, ABC):
    """One end of a connection: reads messages into memory of their own and hands them to `received`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        #: When the other side was last last_received, on the clock of `time.monotonic`.
        self.last_received = time.monotonic()
        #: Whether the other side has shown that it belongs here.
        self.is_proven = False
        self._scratch = memoryview(b"")
        self._filled = 0
        self._header: tuple[int, int, int, int] = (0, 0, 0, 0)
        self._body: memoryview | None = None
        self._read = 0

    @abstractmethod
    def received(self, message: Message) -> None:
        """Take one message. What it raises ends the connection."""

    @abstractmethod
    def lost(self, reason: str) -> None:
        """Hear, once, that the connection is over."""

    def send(self, kind: Kind, call: int = 0, content: Any = None, buffers: Sequence[Buffer] = ()) -> None:
        """Write a message; nothing happens when the connection is over."""
        if self.transport is None or self.transport.is_closing():
            return
        text = orjson.dumps(content)
        text += b" " * (-len(text) % _ALIGNMENT)
        size = sum(len(buffer) for buffer in buffers)
        head = _HEADER.pack(kind, len(text), call, size) + text
        if size <= _JOINED_BYTES:
            self.transport.write(b"".join([head, *buffers]))
        else:
            self.transport.writelines([head, *buffers])

    def end(self, reason: str) -> None:
        """Give the connection up at once."""
        if self.transport is not None:
            transport, self.transport = self.transport, None
            transport.abort()
            self.lost(reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked: uvloop's are no subclass.
        self.transport = cast(asyncio.Transport, transport)
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        # So that an idle end hears within seconds of another whose node is gone.
        line: socket.socket = transport.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            line.setsockopt(socket.IPPROTO_TCP, option, value)

    def connection_lost(self, error: Exception | None) -> None:
        if self.transport is not None:
            self.transport = None
            self.lost(f"the connection broke: {error}" if error else "the connection was closed")

    def get_buffer(self, _: int) -> memoryview:
        return self._scratch[self._filled :] if self._body is None else self._body[self._read :]

    def buffer_updated(self, count: int) -> None:
        self.last_received = time.monotonic()
        try:
            if self._body is None:
                self._filled += count
                self._parse()
            else:
                self._read += count
                self._deliver_if_whole(self._body)
        except Exception as error:
            self.end(f"{type(error).__name__}: {error}")

    def _parse(self) -> None:
        """Take every message that begins in the scratch memory; the rest of the last one is read to its own."""
        start = 0
        while self._body is None and self._filled - start >= _HEADER.size:
            self._header = _HEADER.unpack_from(self._scratch, start)
            _, json_bytes, _, tensor_bytes = self._header
            size = json_bytes + tensor_bytes
            if json_bytes > MAX_JSON_BYTES or tensor_bytes > MAX_TENSOR_BYTES:
                raise WireError(f"a message of {size} bytes")
            if not self.is_proven and size > MAX_UNPROVEN_BYTES:
                raise WireError(f"a message of {size} bytes before the proof")
            start += _HEADER.size
            body = np.empty(size, np.uint8).data
            self._read = min(size, self._filled - start)
            body[: self._read] = self._scratch[start : start + self._read]
            start += self._read
            self._body = body
            self._deliver_if_whole(body)
        left = self._filled - start
        self._scratch[:left] = self._scratch[start : self._filled]
        self._filled = left

    def _deliver_if_whole(self, body: memoryview) -> None:
        if self._read < len(body):
            return
        self._body = None
        kind, json_bytes, call, _ = self._header
        content = orjson.loads(body[:json_bytes]) if json_bytes else None
        self.received(Message(Kind(kind), call, content, body[json_bytes:]))


def _is_text(name: str, arrays: Sequence[np.ndarray]) -> bool:
    kinds = {type(element) for array in arrays for element in array.ravel().tolist()}
    if strays := kinds - {str, bytes}:
        raise InvalidInput(f"{name!r} holds a {strays.pop().__name__}; BYTES tensors hold strings or bytes")
    return kinds == {str}
