"""Wire format between routers and replicas: tensors as raw bytes, many calls in flight on one connection.

A call through Serve's own handle costs a router 1.2 and a replica 1.1 ms of CPU and copies every tensor several times
(Ray Serve 2.60: request router, gRPC in Python, two rounds of pickle). Here tensors are written from the memory of
their arrays and received into memory that the new arrays keep. Serve still starts, stops, lists and health-checks
replicas.

A message, integers in little-endian order:

    u8 kind | 3 bytes unused | u32 length of JSON | u64 call number | u64 length of tensors
    JSON, padded with spaces to a multiple of 64 bytes
    tensors in the binary form of the Open Inference Protocol, each padded with zeros to a multiple of 64 bytes

    replica                                     router
    HELLO, WELCOME                       ─> <─  PROOF    see handshake.py
                                         <─     CALL [model key, rows, seconds left, Isolated, demand in ms, metas]
                                                     and LAST for one of the last priority, if the replica takes it
                                         <─     CANCEL   the call's answer is no longer needed
    ANSWER [timing, metas, backlog]      ─>     metas: `TensorMeta`s; backlog: ms that the model's queue takes
    FAILURE [error, arguments, backlog]  ─>     name and arguments of an EnginehouseError
    FULL reason                          ─>     the call was refused
    BEGUN is alone                       ─>     the engine is about to compute an isolated call
    COUNTS counts or null                ─> <─  COUNTS   what the replica's node has counted (`counts`)
    PONG                                 ─> <─  PING     heartbeat
    DRAINING                             ─>     send no more calls: the replica stops once those in flight are answered
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
#: Bytes of the receive buffer for headers and whatever arrives with them.
_SCRATCH_BYTES = 1 << 16
#: Up to this many tensor bytes, a message is copied into one buffer: cheaper than writing a list of buffers.
_JOINED_BYTES = 1 << 15
#: Limits of one message: a longer one ends the connection.
MAX_JSON_BYTES, MAX_TENSOR_BYTES = 1 << 24, 1 << 33
#: Limit of one message before the other end has proven the key.
MAX_UNPROVEN_BYTES = 256
#: Version of this format; both ends must have the same.
VERSION = 3
#: Up to this many strings are en- or decoded on the event loop (a few ms); more in a thread.
_INLINE_STRINGS = 10_000
#: Datatype of tensors whose elements are `str` in Python; those of BYTES are `bytes`.
_TEXT = "TEXT"

#: TCP keepalive: after 1 s without traffic a probe every second; closed after 3 without reply. Systems other than
#: Linux keep their defaults, which take hours.
_KEEP_ALIVE = (
    {socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3} if sys.platform == "linux" else {}
)

#: Name, datatype, shape and size in bytes of a tensor.
TensorMeta = tuple[str, str, list[int], int]
Buffer = bytes | memoryview


class Kind(IntEnum):
    """Kind of a message; the numbers are part of the wire format."""

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
    COUNTS = 13


class Isolated(IntEnum):
    """How a call is computed: beside others; alone in its process, or refused where that cannot be; alone if it can."""

    NO = 0
    STRICTLY = 1
    IF_POSSIBLE = 2


class Message(NamedTuple):
    """One message as received: `content` is the parsed JSON, `tensors` the bytes after it."""

    kind: Kind
    call: int
    content: Any
    tensors: memoryview


class WireError(Exception):
    """The other end broke the protocol; the connection is closed."""


def encode(requests: Sequence[Tensors]) -> tuple[list[TensorMeta], list[Buffer]]:
    """Encode `requests` as one, concatenated along dim 0: metadata of the tensors, and the buffers to write.

    Buffers are views on the arrays where these are contiguous. Raises InvalidInput when an object array has elements
    that are neither str nor bytes.
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
    """Decode the tensors that `metas` describe, as views on `data` unless they are strings.

    Raises WireError when `data` is too short, InvalidInput or KeyError for metadata wrong in other ways.
    """
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


async def encode_async(requests: Sequence[Tensors]) -> tuple[list[TensorMeta], list[Buffer]]:
    """`encode`, in a thread when there are many strings."""
    strings = sum(array.size for request in requests for array in request.values() if array.dtype.hasobject)
    return await asyncio.to_thread(encode, requests) if strings > _INLINE_STRINGS else encode(requests)


async def decode_async(metas: Sequence[TensorMeta], data: memoryview) -> dict[str, np.ndarray]:
    """`decode`, in a thread when there may be many strings."""
    # Each string has a length prefix of 4 bytes.
    has_strings = any(kind in (_TEXT, "BYTES") for _, kind, _, _ in metas)
    is_large = has_strings and len(data) > 4 * _INLINE_STRINGS
    return await asyncio.to_thread(decode, metas, data) if is_large else decode(metas, data)


class Connection(asyncio.BufferedProtocol, ABC):
    """One end of a connection: passes each whole message to `received`, in its own memory.

    An exception in `received` or in parsing closes the connection.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        #: `time.monotonic()` at the last bytes from the other end.
        self.last_received = time.monotonic()
        #: Whether the other end has proven the key.
        self.is_proven = False
        # Receive buffer between messages, and how many bytes are in it.
        self._scratch = memoryview(b"")
        self._filled = 0
        # Of the message that is being received: header, JSON and tensors, and how many bytes of these are there.
        self._header: tuple[int, int, int, int] = (0, 0, 0, 0)
        self._body: memoryview | None = None
        self._read = 0

    @abstractmethod
    def received(self, message: Message) -> None:
        """Handle one message. Any exception closes the connection."""

    @abstractmethod
    def lost(self, reason: str) -> None:
        """Called once when the connection has ended, by either end."""

    def send(self, kind: Kind, call: int = 0, content: Any = None, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message for writing; does nothing once the connection has ended."""
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
        """Close the connection now, dropping what is not yet sent, and call `lost(reason)`."""
        if self.transport is not None:
            transport, self.transport = self.transport, None
            transport.abort()
            self.lost(reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, since uvloop's transports do not inherit from asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        # Detects within seconds, on an idle connection, that the other end's node is gone.
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
        """Deliver the complete messages in the receive buffer; later reads complete a partial one in its memory."""
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
