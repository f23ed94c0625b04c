"""What is alive: warm models per pool, read in-process, and hardware per cluster. All that is Ray-private lives here.

Every replica of a pool reports its models and its address through Serve's `record_routing_stats`; the controller pulls
the report and broadcasts changes to every process that holds a handle to the pool. Reading it costs microseconds and no
RPC, while `serve.status()` costs ~25 ms and lags (Ray Serve 2.60). What is reported counts while this process has a
connection to the replica.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import ray
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.handle import DeploymentHandle

from enginehouse import hardware
from enginehouse.channel import Address, Channel
from enginehouse.config import ACCELERATOR_LABEL
from enginehouse.errors import EngineUnavailable

logger = logging.getLogger("ray.serve")

#: Seconds until a replica that could not be reached is tried again.
RETRY_AFTER_S = 1.0

ModelState = Literal["loading", "ready", "failed", "unavailable"]


class ModelReport(TypedDict):
    """What one replica says about one `model@version`; `engine` is the kind that it is loaded in, if it is.

    `measured` are (rows, milliseconds) that it timed itself, for an engine that the bundle has no latency table of.
    """

    state: ModelState
    reason: str
    engine: str
    artifact: str
    precision: str
    measured: list[tuple[int, float]]


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

    def has(self, model_id: str) -> bool:
        """Whether the model is warm there."""
        return model_id in self.reports and self.reports[model_id]["state"] == "ready"


#: Deployment -> the request router of this process's handle to it.
_request_routers: dict[tuple[str, str], LiveReplicas] = {}


class LiveReplicas(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]
    """Serve's own request router, which also lets this process read the replicas of a pool.

    Serve leaves a replica out of its list while it reconfigures it, or when it stops it: one that was connected stays
    until it closes the connection. A restarted controller lists replicas whose reports it has not pulled yet: the last
    ones seen stand for them.
    """

    def initialize_state(self, **_: object) -> None:
        # Serve pickles this class by value, so the registry must be reached through the module's name.
        from enginehouse import availability

        self.known: dict[str, Replica] = {}
        availability.register(self)

    def update_replicas(self, replicas: list[Any]) -> None:
        """Take Serve's new list."""
        from enginehouse import availability

        super().update_replicas(replicas)
        for replica in self.known.values():
            replica.is_listed = False
        for replica_id, listed in self.curr_replicas.items():
            availability.take(self, replica_id.unique_id, listed.routing_stats)


def take(router: LiveReplicas, replica_id: str, stats: Mapping[str, Any]) -> None:
    """Note what Serve says of one replica; before its first report it is of no use."""
    known = router.known.get(replica_id)
    if known is not None:
        known.is_listed = True
        known.reports = stats.get("models", known.reports)
    elif stats.get("address"):
        pool = router._deployment_id.name
        router.known[replica_id] = Replica(replica_id, stats["models"], stats["address"], Channel(pool), stats["node"])


def register(router: LiveReplicas) -> None:
    """Remember a request router by the deployment it serves."""
    deployment = router._deployment_id
    _request_routers[deployment.app_name, deployment.name] = router


def watch(handle: DeploymentHandle) -> None:
    """Start receiving the replicas of a handle's deployment, which Serve otherwise does at the first call."""
    if not handle.is_initialized:
        handle._init()


def replicas(app: str, pool: str) -> list[Replica]:
    """The replicas of a pool that this process has a connection to, those that are going left out."""
    router = _request_routers.get((app, pool))
    if router is None:
        return []
    return [
        replica for replica in list(router.known.values()) if replica.channel.is_open and not replica.channel.is_going
    ]


def connect() -> None:
    """Connect to every replica that has no connection, forget those that are gone. To be called several times a second.

    This is also how a replica that was given up comes back: it has to let this process in again.
    """
    now = time.monotonic()
    for router in list(_request_routers.values()):
        for replica in list(router.known.values()):
            if replica.channel.is_open or replica.id in _connecting:
                continue
            if not replica.is_listed:
                del router.known[replica.id]
            elif now >= replica.retry_at and not replica.channel.is_going:
                replica.retry_at = now + RETRY_AFTER_S
                replica.channel = Channel(router._deployment_id.name)
                _connecting[replica.id] = asyncio.create_task(_open(replica), context=contextvars.Context())


async def _open(replica: Replica) -> None:
    try:
        await replica.channel.open(replica.address)
    except EngineUnavailable as error:
        logger.warning("replica %s: %s", replica.id, error)
    finally:
        del _connecting[replica.id]


#: Connections that are being made, by replica.
_connecting: dict[str, asyncio.Task[None]] = {}


def this_node() -> str:
    """Id of the node that this process is on."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def job() -> str:
    """Id of the Ray job of this process, empty while there is none. The public way to ask would start a Ray then."""
    worker = ray._private.worker.global_worker
    return worker.current_job_id.hex() if worker.connected else ""


def threads_per_engine(num_cpus: float, engines_per_node: int) -> int:
    """Physical cores of this node over the CPU engines that it may come to hold, each of which takes `num_cpus`."""
    me = this_node()
    cpus = next((node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == me), 1.0)
    fits = int(cpus / num_cpus) if num_cpus else engines_per_node
    return max(1, hardware.physical_cores() // max(1, min(engines_per_node, fits)))


def nodes_with(accelerators: Iterable[str]) -> int:
    """Number of live nodes whose accelerator label is one of these, at most `NODES_S` old; a fresh look is 0.6 ms."""
    wanted = set(accelerators)
    return sum(1 for label in _labels_of_live_nodes() if label in wanted)


#: Every pool asks in every round of Serve's control loop (10 a second).
NODES_S = 0.5
_labels: tuple[float, list[str | None]] = (float("-inf"), [])


def _labels_of_live_nodes() -> list[str | None]:
    from enginehouse import availability

    now = time.monotonic()
    if now - availability._labels[0] > NODES_S:
        found = [node["Labels"].get(ACCELERATOR_LABEL) for node in ray.nodes() if node["Alive"]]
        availability._labels = now, found
    return availability._labels[1]
