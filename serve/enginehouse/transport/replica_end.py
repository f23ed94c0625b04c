"""Listener: where a pool's replica takes the calls of routers."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence

from enginehouse.contract.errors import EnginehouseError, InferenceFailed
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.transport import frames
from enginehouse.transport.frames import Connection, Kind, Message
from enginehouse.transport.handshake import KEY_BYTES, ReplicaHandshake, tls
from enginehouse.transport.router_end import CONNECT_S, PING_S, Address

#: Answers requests of so many rows for a model within so many seconds.
Infer = Callable[[str, Sequence[Tensors], int, float], Awaitable[Computed]]
#: As that, with nothing else in the engine: calls the last argument, on the event loop, right before it computes.
InferAlone = Callable[[str, Sequence[Tensors], int, float, Callable[[], None]], Awaitable[Computed]]


class Listener:
    """Takes calls from everybody who knows its key: `infer` answers `max_calls` of them at a time, the rest fails.

    Every answer says how long the model will be busy with what it still has.
    """

    def __init__(
        self,
        pool: str,
        infer: Infer,
        max_calls: int,
        infer_alone: InferAlone | None = None,
        backlog_ms: Callable[[str], float] = lambda _: 0.0,
    ) -> None:
        self.pool = pool
        self.infer = infer
        self.infer_alone = infer_alone
        self.max_calls = max_calls
        self.backlog_ms = backlog_ms
        #: What routers were asked for, so far: milliseconds of an engine.
        self.demand_ms = 0.0
        self.is_draining = False
        self.calls: set[asyncio.Task[None]] = set()
        self.served: set[Accepted] = set()
        self.key = secrets.token_bytes(KEY_BYTES)
        self._server: asyncio.Server | None = None

    async def start(self, host: str) -> Address:
        """Listen on a free port of this node's address, which other nodes reach: `host`."""
        try:
            self._server = await self._listen(host)
        except OSError:
            # The address is not one of this machine's own: that of a container's host, say.
            self._server = await self._listen(None)
        return Address(host=host, port=self._server.sockets[0].getsockname()[1], key=self.key.hex())

    def _listen(self, host: str | None) -> asyncio.Task[asyncio.Server]:
        loop = asyncio.get_running_loop()
        # In a context of its own: Serve would count what connections do as part of whatever runs now.
        return loop.create_task(
            loop.create_server(lambda: Accepted(self), host, 0, family=socket.AF_UNSPEC, ssl=tls(is_server=True)),
            context=contextvars.Context(),
        )

    async def stop(self, within_s: float) -> None:
        """Ask for no more calls, and answer those under way for so long."""
        self.is_draining = True
        for served in self.served:
            served.send(Kind.DRAINING)
        give_up = time.monotonic() + within_s
        # A call that crosses the word is refused, and made elsewhere.
        while self.calls and time.monotonic() < give_up:
            await asyncio.wait(self.calls, timeout=give_up - time.monotonic())
        # What they said is not sent yet.
        while any(served.unsent for served in self.served) and time.monotonic() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if self._server is not None:
            self._server.close()


class Accepted(Connection):
    """The replica's end of a connection."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener
        self._handshake = ReplicaHandshake(listener.key)
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._late: asyncio.TimerHandle | None = None
        self._said = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.served.add(self)
        self._late = asyncio.get_running_loop().call_later(CONNECT_S, self.end, "no proof in time")
        self.send(Kind.HELLO, 0, self._handshake.hello())

    @property
    def unsent(self) -> int:
        """Bytes that were not taken by the network yet."""
        return self.transport.get_write_buffer_size() if self.transport else 0

    def buffer_updated(self, count: int) -> None:
        super().buffer_updated(count)
        # A message that takes long to read keeps the questions behind it waiting.
        if self._body is not None and self.is_proven and self.last_received - self._said > PING_S:
            self._said = self.last_received
            self.send(Kind.PONG)

    def received(self, message: Message) -> None:
        if not self.is_proven:
            if message.kind != Kind.PROOF:
                raise frames.WireError(f"{message.kind.name} before the proof")
            welcome = self._handshake.welcome(message.content)
            self.is_proven = True
            self.send(Kind.WELCOME, 0, welcome)
            if self._late is not None:
                self._late.cancel()
            if self._listener.is_draining:
                self.send(Kind.DRAINING)
        elif message.kind == Kind.PING:
            self.send(Kind.PONG)
        elif message.kind == Kind.CANCEL:
            if task := self._calls.get(message.call):
                task.cancel()
        elif message.kind == Kind.CALL:
            self._take(message)

    def lost(self, _: str) -> None:
        self._listener.served.discard(self)
        if self._late is not None:
            self._late.cancel()
        for task in self._calls.values():
            # Nobody waits for them any more.
            task.cancel()

    def _take(self, message: Message) -> None:
        listener = self._listener
        if listener.is_draining or len(listener.calls) >= listener.max_calls:
            reason = "it is going" if listener.is_draining else f"{listener.max_calls} are under way"
            self.send(Kind.FULL, message.call, reason)
            return
        task = asyncio.create_task(self._answer(message), context=contextvars.Context())
        self._calls[message.call] = task
        listener.calls.add(task)
        task.add_done_callback(lambda done: self._done(message.call, done))

    def _done(self, call: int, task: asyncio.Task[None]) -> None:
        self._calls.pop(call, None)
        self._listener.calls.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # No answer could be given, which the other end has to hear.
            self.end(f"{type(error).__name__}: {error}")

    async def _answer(self, message: Message) -> None:
        model_key, rows, budget_s, alone, demand_ms, metas = message.content
        try:
            self._listener.demand_ms += demand_ms
            inputs = await frames.decode_aside(metas, message.tensors)
            if alone and self._listener.infer_alone:
                begun = functools.partial(self.send, Kind.BEGUN, message.call)
                outputs, timing = await self._listener.infer_alone(model_key, [inputs], rows, budget_s, begun)
            else:
                outputs, timing = await self._listener.infer(model_key, [inputs], rows, budget_s)
            made, buffers = await frames.encode_aside([outputs])
        except EnginehouseError as error:
            self._fail(message.call, model_key, error)
        except Exception as error:
            self._fail(
                message.call, model_key, InferenceFailed(f"{self._listener.pool}: {type(error).__name__}: {error}")
            )
        else:
            self.send(Kind.ANSWER, message.call, [timing, made, self._backlog_ms(model_key)], buffers)

    def _fail(self, call: int, model_key: str, error: EnginehouseError) -> None:
        arguments = [_plain(argument) for argument in error.args]
        self.send(Kind.FAILURE, call, [type(error).__name__, arguments, self._backlog_ms(model_key)])

    def _backlog_ms(self, model_key: str) -> float:
        return round(self._listener.backlog_ms(model_key), 3)


def _plain(argument: object) -> object:
    """What JSON can carry of an error's argument."""
    if argument is None or isinstance(argument, int | float):
        return argument
    if isinstance(argument, list | tuple):
        return [_plain(part) for part in argument]
    return str(argument).encode("utf-8", "replace").decode()
