"""Waking: an idle pool, one with zero replicas, is started by a call of its own, never by a user's request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from ray.serve.handle import DeploymentHandle

logger = logging.getLogger("ray.serve")

#: Seconds after which a call to an idle pool is given up: its node may have to be started first.
WAKE_S = 600.0
#: Seconds after which another pool is woken as well, when no backend lives.
SLOW_S = 10.0


class Waker:
    """Wakes idle pools through their handles, by name; one call at a time to each."""

    def __init__(self, handles: Mapping[str, DeploymentHandle]) -> None:
        self._handles = handles
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._called_at: dict[str, float] = {}

    def is_slow(self, pool: str) -> bool:
        """Whether it was called `SLOW_S` ago and is not up yet."""
        return pool in self._calls and time.monotonic() - self._called_at[pool] > SLOW_S

    def wake(self, pool: str) -> None:
        """Start `pool` unless that is under way; returns at once."""
        if pool not in self._calls:
            logger.info("waking %s", pool)
            self._called_at[pool] = time.monotonic()
            self._calls[pool] = asyncio.create_task(self._call(pool))

    async def _call(self, pool: str) -> None:
        try:
            async with asyncio.timeout(WAKE_S):
                await self._handles[pool].wake.remote()
        except Exception as error:
            # The next request that wants it calls it again.
            logger.warning("%s was called and did not come up: %s", pool, error or type(error).__name__)
        finally:
            del self._calls[pool]
