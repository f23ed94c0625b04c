"""Calls to one pool: each goes to the replica that is predicted to be free first, within a time limit."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from enginehouse.contract.config import APP_NAME, USUAL
from enginehouse.contract.errors import DeadlineExceeded, EnginehouseError, EngineUnavailable, Overloaded, ReplicaLost
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.pools import crashes
from enginehouse.pools.crashes import Death
from enginehouse.pools.isolation import STILL_S
from enginehouse.routing import replicas
from enginehouse.routing.timers import Timeout
from enginehouse.transport.frames import Isolated
from enginehouse.transport.router_end import CRASHED, IN_COMPANY, ISOLATED, UNDER_WAY, Channel

#: Timeout in seconds for what a lost replica has left.
LOOK_S = 1.0


class PoolCall:
    """Sends requests for one model version to `pool`; a `backends.Sender`.

    `expected_ms` predicts the engine's time for a call. `take_demand_ms` returns the demand since the last call, which
    is sent along for the autoscaler. An isolated call goes where it can be alone, if there is such a replica. A call
    raises Overloaded when every replica refuses it, DeadlineExceeded, and whatever else `Channel.infer` raises.
    """

    def __init__(
        self,
        pool: str,
        model_key: str,
        expected_ms: Callable[[Sequence[Tensors], int], float] = lambda _, __: 0.0,
        take_demand_ms: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._pool = pool
        self._model_key = model_key
        self._expected_ms = expected_ms
        self._take_demand_ms = take_demand_ms

    async def __call__(
        self, requests: Sequence[Tensors], rows: int, budget_s: float, isolated: bool = False, priority: int = USUAL
    ) -> Computed:
        if budget_s <= 0:
            raise DeadlineExceeded(f"{self._pool} was not tried: no time was left")
        began = time.monotonic()
        free = self.free(began, priority)
        how, record = Isolated.STRICTLY if isolated else Isolated.NO, ""
        try:
            with Timeout(budget_s):
                while True:
                    now = time.monotonic()
                    channel = freest(free, self._model_key, now, priority)
                    expected_ms, demand_ms = self._expected_ms(requests, rows), round(self._take_demand_ms(), 3)
                    record = replicas.record_of(APP_NAME, self._pool, channel) if isolated else ""
                    try:
                        return await channel.infer(
                            self._model_key,
                            requests,
                            rows,
                            budget_s - (now - began),
                            expected_ms,
                            how,
                            demand_ms,
                            priority,
                        )
                    except EnginehouseError as error:
                        # Full, stuck or too long a queue; or it cannot read the bundle, and the next one may.
                        if not isinstance(error, Overloaded) and error.fault.help != "another":
                            raise
                        free.remove(channel)
                        waited_s = time.monotonic() - began
                        if (
                            how == Isolated.STRICTLY
                            and isinstance(error, Overloaded)
                            and (not free or waited_s > STILL_S)
                        ):
                            # All of them load something, or compute what takes long: that may never end.
                            how, free = Isolated.IF_POSSIBLE, self.free(time.monotonic(), priority)
                        if not free:
                            raise
        except ReplicaLost as error:
            pool, reason, stage = error.args
            raise ReplicaLost(pool, reason, await _refined(stage, record)) from None
        except TimeoutError:
            raise DeadlineExceeded(f"{self._pool} did not answer within the {budget_s:.3f} s that were left") from None

    def free(self, now: float, priority: int = USUAL) -> list[Channel]:
        """The replicas that accept such a call now. Raises EngineUnavailable or Overloaded when there is none."""
        model_key = self._model_key
        ready = [replica.channel for replica in replicas.of_pool(APP_NAME, self._pool) if replica.has(model_key)]
        if not ready:
            raise EngineUnavailable(self._pool, f"none of its replicas has {self._model_key} any more")
        # A full replica is alive: the backend must not count as failed.
        free = [channel for channel in ready if not channel.is_full(now, priority)]
        if not free:
            raise Overloaded(f"{self._pool}: its replicas take no more calls")
        return free


async def _refined(stage: str, record: str) -> str:
    """The stage of a call that was lost, with what the `record` of the lost replica's process says."""
    if stage == UNDER_WAY:
        return stage
    # In a thread, for the folder may be slow.
    looking = asyncio.ensure_future(asyncio.to_thread(crashes.death_of, record))
    await asyncio.wait([looking], timeout=LOOK_S)
    return stage_of(stage, looking.result() if looking.done() else Death.UNKNOWN)


def stage_of(stage: str, death: Death) -> str:
    """How far a request was that was lost at `stage` with a process that ended so."""
    if stage == ISOLATED and death in (Death.IN_ISOLATED_CALL, Death.SOMEWHERE):
        return CRASHED
    if stage == IN_COMPANY and death == Death.IN_ISOLATED_CALL:
        # What was beside it may have broken what it found there.
        return ISOLATED
    return stage


def freest(channels: Sequence[Channel], model_key: str, now: float, priority: int = USUAL) -> Channel:
    """The replica with the smallest backlog for the model; among equals the smallest total backlog, then at random."""
    if len(channels) == 1:
        return channels[0]
    waits = [channel.wait_ms(now, model_key, priority) for channel in channels]
    least = min(waits)
    equal = [channel for channel, wait_ms in zip(channels, waits, strict=True) if wait_ms == least]
    start = random.randrange(len(equal))
    return min(equal[start:] + equal[:start], key=lambda channel: channel.load_ms(now))
