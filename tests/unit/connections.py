"""A Listener and a Channel in this process, connected over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from enginehouse.contract.tensors import Computed, Tensors, Timing
from enginehouse.transport.replica_end import Infer, Listener
from enginehouse.transport.router_end import Address, Channel

#: Runs an awaitable on the event loop under test (asyncio or uvloop).
Run: TypeAlias = Callable[[Awaitable[Any]], Any]
TIMING = Timing(1.5, 2.5, 3)


async def echo(_: str, requests: Sequence[Tensors], __: int, ___: float) -> Computed:
    (request,) = requests
    return dict(request), TIMING


@contextlib.asynccontextmanager
async def pool(infer: Infer = echo, max_calls: int = 8) -> AsyncIterator[tuple[Listener, Address]]:
    listener = Listener("pool", infer, max_calls)
    address = await listener.start("127.0.0.1")
    try:
        yield listener, address
    finally:
        await listener.stop(0)


@contextlib.asynccontextmanager
async def connected(infer: Infer = echo, max_calls: int = 8) -> AsyncIterator[tuple[Listener, Channel]]:
    async with pool(infer, max_calls) as (listener, address):
        channel = Channel("pool")
        await channel.open(address)
        try:
            yield listener, channel
        finally:
            channel.close()


async def bounded(work: Awaitable[Any]) -> Any:
    async with asyncio.timeout(20):
        return await work
