"""Gathering: any router comes to know what all processes of the application have counted.

It reads what its own node has counted, asks a replica of each other node, and every router, which tells all that it
knows. What does not answer in time is taken as it was last known: so what is told never goes down, and a node that is
gone counts as far as any router has heard of it, which is until about a second before.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import time
from collections.abc import Awaitable, Coroutine, Iterable, Mapping
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from enginehouse.contract.config import APP_NAME
from enginehouse.counts import node
from enginehouse.counts.ledger import Ledger
from enginehouse.counts.node import Told
from enginehouse.counts.rows import Key, total
from enginehouse.routing import ray_private, replicas

logger = logging.getLogger("ray.serve")

#: Seconds for which other processes may take to answer.
WITHIN_S = 1.0
#: Seconds between two looks at what other nodes have counted, which may be gone the next; and every so many looks, all
#: routers are asked, wherever they are.
EVERY_S, ALL_ROUTERS = 1.0, 60
#: Seconds after which a node that was not heard of counts as gone.
GONE_S = 10.0


class Gathering:
    """What is known here of all counts. `ledger` is that of this process, on the node `here`; `pools` are all pools."""

    def __init__(self, ledger: Ledger, here: str, pools: Iterable[str]) -> None:
        self._ledger = ledger
        self._here = here
        self._pools = list(pools)
        self._has_cleared = False
        self._known: dict[str, Told] = {}
        # By place: when it was last told of anew.
        self._heard_at: dict[str, float] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._routers: DeploymentHandle | None = None
        # The gathering under way, or the last one; and the one that follows it, if anyone waits for that.
        self._present: asyncio.Task[Mapping[Key, list[int]]] | None = None
        self._next: asyncio.Task[Mapping[Key, list[int]]] | None = None

    def begin(self) -> None:
        """From now on know what other nodes have counted, whoever asks."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), context=contextvars.Context())

    async def _keep(self) -> None:
        for turn in itertools.count():
            await asyncio.sleep(EVERY_S)
            elsewhere = self._elsewhere()
            works: list[Coroutine[Any, Any, None]] = [self._ask(replica) for replica in elsewhere]
            if turn % ALL_ROUTERS == 0 or self._has_routers_beyond({replica.node for replica in elsewhere}):
                works.append(self._ask_routers())
            await _within(works)

    def _has_routers_beyond(self, nodes: set[str]) -> bool:
        """Whether there are routers on other nodes than this one and these, which have replicas that are asked."""
        lately = time.monotonic() - GONE_S
        return any(
            place not in nodes and place != self._here and "/" not in place and heard_at > lately
            for place, heard_at in self._heard_at.items()
        )

    async def all(self) -> Mapping[Key, list[int]]:
        """Everything that is counted, by row, up to what was counted right before; within WITHIN_S, or twice that."""
        if self._next is None:
            # A context of its own: it belongs to none of the requests that wait for it.
            self._next = asyncio.create_task(self._gathered(self._present), context=contextvars.Context())
        return await asyncio.shield(self._next)

    async def told(self, known: Iterable[str]) -> list[Any]:
        """What is known here, as plain data: of this node what it has counted by now, unless it is `known`."""
        known = set(known)
        if self._here not in known:
            await self._read_own()
        return [told.plain() for told in self._known.values() if told.place not in known]

    async def _gathered(self, before: asyncio.Task[Mapping[Key, list[int]]] | None) -> Mapping[Key, list[int]]:
        if before is not None:
            await asyncio.wait([before])
        # Who asks from here on may have been answered something after this began.
        self._present, self._next = self._next, None
        works: list[Coroutine[Any, Any, None]] = [self._read_own()]
        works += [self._ask(replica) for replica in self._elsewhere()]
        works.append(self._ask_routers())
        await _within(works)
        return total(told.rows for told in self._known.values())

    def _elsewhere(self) -> list[replicas.Replica]:
        """A replica of each other node."""
        found = {each.node: each for pool in self._pools for each in replicas.of_pool(APP_NAME, pool)}
        return [each for name, each in found.items() if name != self._here]

    async def _read_own(self) -> None:
        # In a thread, for the folder may be slow.
        await self._learn(asyncio.to_thread(self._own))

    def _own(self) -> list[Told]:
        if not self._has_cleared:
            self._has_cleared = True
            node.remove_left_over(self._ledger)
        return [node.read(self._ledger, self._here)]

    async def _ask(self, replica: replicas.Replica) -> None:
        async def asked() -> list[Told]:
            plain = await replica.channel.counts()
            return [] if plain is None else [Told.of(plain)]

        await self._learn(asked())

    async def _ask_routers(self) -> None:
        async def asked() -> list[Told]:
            if self._routers is None:
                self._routers = serve.get_app_handle(APP_NAME)
                ray_private.watch(self._routers)
            told = []
            # Those of this node need not read it again.
            asking = self._routers.broadcast("counted", [self._here])
            for answer in await asking.results_async(timeout_s=WITHIN_S, return_exceptions=True):
                if not isinstance(answer, BaseException):
                    told += [Told.of(plain) for plain in answer]
            return told

        await self._learn(asked())

    async def _learn(self, telling: Awaitable[list[Told]]) -> None:
        """Take what is told, as far as it is newer than what is known."""
        try:
            several = await telling
        except Exception as error:
            logger.info("some counts are not known anew: %s: %s", type(error).__name__, error)
            return
        self._take(several)

    def learn(self, plain: Any) -> None:
        """Take what another process tells of its own accord."""
        self._take([Told.of(plain)])

    def _take(self, several: Iterable[Told]) -> None:
        for told in several:
            before = self._known.get(told.place)
            if before is None or before.at < told.at:
                self._known[told.place] = told
                self._heard_at[told.place] = time.monotonic()


async def _within(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of this, as far as it ends in time."""
    tasks = [asyncio.create_task(work) for work in works]
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=WITHIN_S)
        for task in late:
            task.cancel()
