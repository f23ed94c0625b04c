"""The replicas of every pool as this process sees them, its connections to them, and what they are for the policy.

Every replica publishes its models and its address through Serve's `record_routing_stats`; the controller pulls that and
broadcasts changes to every process that holds a handle to the pool. Reading it costs microseconds and no RPC, while
`serve.status()` costs ~25 ms and lags (Ray Serve 2.60). A report is used only while this process is connected to its
replica.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from enginehouse.contract.bounds import InputBounds, described, narrower
from enginehouse.contract.errors import EngineUnavailable
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import EngineKind, Manifest
from enginehouse.pools.report import ModelReport, ModelState
from enginehouse.routing.policy import BackendState
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
    #: Where its process records crashes, as far as it has said.
    record: str = ""
    #: Whether it listens on all interfaces of its machine, since the node's address is none of them.
    is_everywhere: bool = False
    #: Why the last try to connect has failed.
    error: str = ""

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
                known.record = stats.get("record", known.record)
            elif stats.get("address"):
                # Before its first report it is of no use.
                channel = Channel(self.pool)
                self.by_id[replica_id] = Replica(
                    replica_id,
                    stats["models"],
                    stats["address"],
                    channel,
                    stats["node"],
                    record=stats.get("record", ""),
                    is_everywhere=stats.get("everywhere", False),
                )


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


def record_of(app: str, pool: str, channel: Channel) -> str:
    """Where the replica at the other end of a connection records crashes; "" when that is not known."""
    return next((replica.record for replica in of_pool(app, pool) if replica.channel is channel), "")


def out_of_reach(app: str, pool: str) -> list[Replica]:
    """The replicas of a pool that run, but that this process tried in vain to connect to."""
    known = _pools.get((app, pool))
    if known is None:
        return []
    return [
        replica
        for replica in list(known.by_id.values())
        if replica.is_listed and replica.error and not replica.channel.is_open and not replica.channel.is_draining
    ]


def listening_everywhere(app: str, pool: str) -> list[str]:
    """`host:port` of the replicas of a pool that listen on all interfaces, as routers know them."""
    found = [replica.address for replica in of_pool(app, pool) if replica.is_everywhere]
    return sorted(f"{address['host']}:{address['port']}" for address in found)


def why_out_of_reach(apart: Sequence[Replica]) -> str:
    """Why those that are `out_of_reach` are, for people; "" where there are none."""
    if not apart:
        return ""
    reasons = "; ".join(sorted({replica.error for replica in apart}))
    return f"{len(apart)} of its replicas cannot be reached from this router: {reasons}"


def reports_of(app: str, pool: str, model_key: str, state: ModelState) -> list[ModelReport]:
    """What the connected replicas of a pool report of a model that is in this state there."""
    reports = [replica.reports[model_key] for replica in of_pool(app, pool) if model_key in replica.reports]
    return [report for report in reports if report["state"] == state]


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
        replica.error = ""
    except Exception as error:
        # Also what a node lacks, such as the certificates that its environment names: it is tried again.
        replica.error = str(
            error.args[1] if isinstance(error, EngineUnavailable) else f"{type(error).__name__}: {error}"
        )
        logger.warning("replica %s: %s", replica.id, replica.error)
    finally:
        del _connecting[replica.id]


def backend_state(
    pool: str, manifest: Manifest, warm: Sequence[ModelReport], nodes: Iterable[str], wait_ms: float
) -> BackendState:
    """A backend whose replicas have the model `warm`, on `nodes`.

    The first of them speaks for all, but each may be the one that is asked: the bounds are those that keep every one's.
    """
    ready = warm[0]
    artifact = manifest.artifact(ready["artifact"])
    engine = cast(EngineKind, ready["engine"])
    return BackendState(
        pool=pool,
        engine=engine,
        artifact=artifact.name,
        precision=ready["precision"] or artifact.precision,
        numerics=artifact.numerics_class,
        replicas=len(warm),
        # A replica measures its engine only where no table of the manifest holds for its node.
        table=_measured(ready) or manifest.latency_of(engine, artifact.name),
        nodes=frozenset(nodes),
        wait_ms=wait_ms,
        inputs_only=functools.reduce(narrower, [_bounds(manifest, report) for report in warm]),
        lanes=min(report.get("lanes", 1) for report in warm),
        pads=all(report.get("pads", False) for report in warm),
    )


def described_bounds(manifest: Manifest, report: ModelReport | None) -> str:
    """For which values of inputs it answers, for people; "" where nothing is loaded, and for all."""
    return described(_bounds(manifest, report)) if report and report["artifact"] else ""


def _bounds(manifest: Manifest, report: ModelReport) -> InputBounds:
    """Those of the loaded engine, which replicas of the release before do not publish; else of the artifact."""
    known = report.get("inputs_only")
    if known is not None:
        return known
    return manifest.artifact(report["artifact"]).bounds_on(cast(EngineKind, report["engine"]))


def _measured(report: ModelReport) -> LatencyTable | None:
    return _table(report["artifact"], tuple((rows, time_ms) for rows, time_ms in report["measured"]))


@functools.lru_cache(maxsize=256)
def _table(artifact: str, measured: tuple[tuple[int, float], ...]) -> LatencyTable | None:
    """A replica's own measurements as a latency table; kept, because every request needs it."""
    if not measured:
        return None
    points = [LatencyPoint(rows=rows, median_ms=ms, p90_ms=ms, min_ms=ms, count=3) for rows, ms in measured]
    return LatencyTable(engine="", artifact=artifact, threads=0, host="", points=tuple(points))
