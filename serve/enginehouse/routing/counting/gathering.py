"""Gathering: any router comes to know what all processes of the application have counted.

It reads what its own node has counted, asks a replica of each other node, and every router, which tells all that it
knows. What does not answer in time is taken as it was last known: so what is told never goes down, and a node that is
gone counts as far as any router has heard of it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Coroutine, Iterable, Mapping
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from enginehouse.contract.config import APP_NAME
from enginehouse.contract.counts import node
from enginehouse.contract.counts.ledger import Ledger
from enginehouse.contract.counts.node import Told
from enginehouse.contract.counts.rows import Key, total
from enginehouse.routing import ray_private, replicas

logger = logging.getLogger("ray.serve")

#: Seconds for which other processes may take to answer.
WITHIN_S = 1.0


class Gathering:
    """What is known here of all counts. `ledger` is that of this process, on the node `here`; `pools` are all pools."""

    def __init__(self, ledger: Ledger, here: str, pools: Iterable[str]) -> None:
        self._ledger = ledger
        self._here = here
        self._pools = list(pools)
        self._has_cleared = False
        self._known: dict[str, Told] = {}
        self._routers: DeploymentHandle | None = None
        self._under_way: asyncio.Task[Mapping[Key, list[int]]] | None = None

    async def all(self) -> Mapping[Key, list[int]]:
        """Everything that is counted, by row, within about WITHIN_S seconds. Those who ask at once get one answer."""
        if self._under_way is None or self._under_way.done():
            # A context of its own: it belongs to none of the requests that wait for it.
            self._under_way = asyncio.create_task(self._gathered(), context=contextvars.Context())
        return await asyncio.shield(self._under_way)

    async def told(self, known: Iterable[str]) -> list[Any]:
        """What is known here, as plain data: of this node what it has counted by now, unless it is `known`."""
        known = set(known)
        if self._here not in known:
            await self._read_own()
        return [told.plain() for told in self._known.values() if told.place not in known]

    async def _gathered(self) -> Mapping[Key, list[int]]:
        works: list[Coroutine[Any, Any, None]] = [self._read_own()]
        works += [self._ask(replica) for replica in self._elsewhere()]
        works.append(self._ask_routers())
        tasks = [asyncio.create_task(work) for work in works]
        _, late = await asyncio.wait(tasks, timeout=WITHIN_S)
        for task in late:
            task.cancel()
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
        for told in several:
            before = self._known.get(told.place)
            if before is None or before.at < told.at:
                self._known[told.place] = told
