"""Waking: a pool that rests at zero replicas is brought up by a call of its own, never with a user's request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from ray.serve.handle import DeploymentHandle

logger = logging.getLogger("ray.serve")

#: Seconds that a pool has to come up before it is called again: its node may have to be started.
WAKE_S = 600.0
#: Seconds after which another one is called as well when nothing lives.
SLOW_S = 10.0


class Waker:
    """Calls pools that rest; their handles by name. One call at a time to each."""

    def __init__(self, handles: Mapping[str, DeploymentHandle]) -> None:
        self._handles = handles
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._called_at: dict[str, float] = {}

    def is_slow(self, pool: str) -> bool:
        """Whether it was called some time ago and is not up yet."""
        return pool in self._calls and time.monotonic() - self._called_at[pool] > SLOW_S

    def wake(self, pool: str) -> None:
        """Have `pool` come up, if that is not on its way; returns at once."""
        if pool not in self._calls:
            logger.info("waking %s", pool)
            self._called_at[pool] = time.monotonic()
            self._calls[pool] = asyncio.create_task(self._call(pool))

    async def _call(self, pool: str) -> None:
        try:
            async with asyncio.timeout(WAKE_S):
                await self._handles[pool].wake.remote()
        except Exception as error:
            # It is called again when the next request wants it.
            logger.warning("%s was called and did not come up: %s", pool, error or type(error).__name__)
        finally:
            del self._calls[pool]
