"""The replicas of every pool as this process sees them, and its connections to them.

Every replica publishes its models and its address through Serve's `record_routing_stats`; the controller pulls that and
broadcasts changes to every process that holds a handle to the pool. Reading it costs microseconds and no RPC, while
`serve.status()` costs ~25 ms and lags (Ray Serve 2.60). A report is used only while this process is connected to its
replica.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from enginehouse.contract.errors import EngineUnavailable
from enginehouse.pools.report import ModelReport
from enginehouse.transport.router_end import Address, Channel

logger = logging.getLogger("ray.serve")

#: Seconds until a replica that could not be reached is tried again.
RETRY_AFTER_S = 1.0


@dataclass(slots=True, eq=False)
class Replica:
    """One replica of a pool as this process sees it, with its connection to it."""

    id: str
    reports: Mapping[str, ModelReport]
    address: Address
    channel: Channel
    #: Id of the node that it is on.
    node: str = ""
    #: Whether Serve lists it as running.
    is_listed: bool = True
    #: When a connection may be tried again, on the clock of `time.monotonic`.
    retry_at: float = 0.0

    def has(self, model_key: str) -> bool:
        """Whether the model is warm there."""
        return model_key in self.reports and self.reports[model_key]["state"] == "ready"


@dataclass(slots=True)
class KnownReplicas:
    """The replicas of one pool that Serve has listed, by id, until they are gone for good."""

    pool: str
    by_id: dict[str, Replica] = field(default_factory=dict)

    def update(self, listed: Mapping[str, Mapping[str, Any]]) -> None:
        """Receive Serve's new list: what each replica that runs published last, by its id.

        Serve leaves out a replica that it reconfigures or stops: a connected one stays here until the connection
        ends. A restarted controller lists replicas whose reports it has not pulled yet: their last ones stand.
        """
        # One assignment each: `connect` may run in another thread and forgets what is unlisted.
        for replica in list(self.by_id.values()):
            replica.is_listed = replica.id in listed
        for replica_id, stats in listed.items():
            known = self.by_id.get(replica_id)
            if known is not None:
                known.reports = stats.get("models", known.reports)
            elif stats.get("address"):
                # Before its first report it is of no use.
                channel = Channel(self.pool)
                self.by_id[replica_id] = Replica(replica_id, stats["models"], stats["address"], channel, stats["node"])


#: (application, deployment) -> its replicas, for every handle of this process.
_pools: dict[tuple[str, str], KnownReplicas] = {}
#: Connections that are being made, by replica.
_connecting: dict[str, asyncio.Task[None]] = {}


def register(app: str, pool: str) -> KnownReplicas:
    """Begin anew with the replicas of a pool, for a new handle to it."""
    known = _pools[app, pool] = KnownReplicas(pool)
    return known


def of_pool(app: str, pool: str) -> list[Replica]:
    """The replicas of a pool that this process is connected to, without those that drain."""
    known = _pools.get((app, pool))
    if known is None:
        return []
    return [
        replica for replica in list(known.by_id.values()) if replica.channel.is_open and not replica.channel.is_draining
    ]


def connect() -> None:
    """Connect to every replica that has no connection, forget those that are gone. To be called several times a second.

    This is also how a replica that was given up comes back: it has to let this process in again.
    """
    now = time.monotonic()
    for known in list(_pools.values()):
        for replica in list(known.by_id.values()):
            if replica.channel.is_open or replica.id in _connecting:
                continue
            if not replica.is_listed:
                known.by_id.pop(replica.id, None)
            elif now >= replica.retry_at and not replica.channel.is_draining:
                replica.retry_at = now + RETRY_AFTER_S
                replica.channel = Channel(known.pool)
                _connecting[replica.id] = asyncio.create_task(_open(replica), context=contextvars.Context())


async def _open(replica: Replica) -> None:
    try:
        await replica.channel.open(replica.address)
    except EngineUnavailable as error:
        logger.warning("replica %s: %s", replica.id, error)
    finally:
        del _connecting[replica.id]
