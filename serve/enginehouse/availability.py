"""What is alive: warm models per pool, read in-process, and hardware per cluster. All that is Ray-private lives here.

Every replica of a pool reports its models through Serve's `record_routing_stats`; the controller pulls the report and
broadcasts changes to every process that holds a handle to the pool. Reading it costs microseconds and no RPC, while
`serve.status()` costs ~25 ms and lags (Ray Serve 2.60).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import ray
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.handle import DeploymentHandle

from enginehouse import hardware
from enginehouse.config import ACCELERATOR_LABEL

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


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One running replica of a pool as this process sees it. `queued` counts calls sent to it and not answered."""

    id: str
    node: str
    models: Mapping[str, ModelReport]
    queued: int
    capacity: int


#: Deployment -> the request router of this process's handle to it.
_request_routers: dict[tuple[str, str], LiveReplicas] = {}


class LiveReplicas(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]
    """Serve's own request router, which also lets this process read the replicas that it chooses among.

    Serve leaves a replica out of its list while it reconfigures it. Ours answer all the while (reconfigure only takes
    notes), so a replica that vanishes is kept for `KEEP_S`: if it died instead, the first call to it says so.
    A restarted controller lists replicas whose reports it has not pulled yet: the last ones seen stand for them.
    A replica that could not be reached is doubted for `DOUBT_S`, or until it answers: of a node that lost its power Ray
    knows only seconds later, and until then Serve would go on probing it instead of failing the call.
    """

    #: Below the 2 s for which Serve lets a stopping replica finish its calls.
    KEEP_S = 1.0
    DOUBT_S = 5.0

    def initialize_state(self, **_: object) -> None:
        # Serve pickles this class by value, so the registry must be reached through the module's name.
        from enginehouse import availability

        self._listed: list[Any] = []
        self._missing_since: dict[Any, float] = {}
        self.reports: dict[Any, Mapping[str, ModelReport]] = {}
        self.doubted_until: dict[Any, float] = {}
        availability.register(self)

    def update_replicas(self, replicas: list[Any]) -> None:
        """Take Serve's new list, plus those that vanished from it a moment ago."""
        now = time.monotonic()
        self._listed = replicas
        listed = {replica.replica_id for replica in replicas}
        missing = {known: replica for known, replica in self.curr_replicas.items() if known not in listed}
        self._missing_since = {known: self._missing_since.get(known, now) for known in missing}
        kept = [replica for known, replica in missing.items() if now - self._missing_since[known] < self.KEEP_S]
        super().update_replicas([*replicas, *kept])
        current = self.curr_replicas
        new = {known: current[known].routing_stats["models"] for known in current if current[known].routing_stats}
        self.reports = {known: report for known, report in self.reports.items() if known in current} | new
        if kept:
            asyncio.get_running_loop().call_later(self.KEEP_S, lambda: self.update_replicas(self._listed))
        self.doubted_until = {known: until for known, until in self.doubted_until.items() if known in current}

    def is_doubted(self, replica_id: Any) -> bool:
        # Serve forgets the queue length of a replica that it could not reach, and learns it anew from its answer.
        unheard = self.replica_queue_len_cache.get(replica_id) is None
        return unheard and time.monotonic() < self.doubted_until.get(replica_id, 0.0)

    def on_replica_actor_unavailable(self, replica_id: Any) -> None:
        """Hear from Serve that a replica could not be reached."""
        super().on_replica_actor_unavailable(replica_id)
        self.doubted_until[replica_id] = time.monotonic() + self.DOUBT_S


def register(router: LiveReplicas) -> None:
    """Remember a request router by the deployment it serves."""
    deployment = router._deployment_id
    _request_routers[deployment.app_name, deployment.name] = router


def watch(handle: DeploymentHandle) -> None:
    """Start receiving the replicas of a handle's deployment, which Serve otherwise does at the first call."""
    if not handle.is_initialized:
        handle._init()


def replicas(app: str, pool: str) -> list[ReplicaView]:
    """The running replicas of a pool; empty when there is none or this process has not heard of it yet."""
    router = _request_routers.get((app, pool))
    if router is None:
        return []
    queue_lengths = router.replica_queue_len_cache
    return [
        ReplicaView(
            id=replica_id.unique_id,
            node=replica.node_id or "",
            models=router.reports.get(replica_id, {}),
            queued=queue_lengths.get(replica_id) or 0,
            capacity=replica.max_ongoing_requests,
        )
        for replica_id, replica in list(router.curr_replicas.items())
        if not router.is_doubted(replica_id)
    ]


def unload(pool: object, model_id: str) -> None:
    """Drop a model from a replica's multiplexed models; Serve itself only unloads the least recently used one."""
    wrapper = getattr(pool, "__serve_multiplex_wrapper", None)
    if wrapper is not None and wrapper.models.pop(model_id, None) is not None:
        wrapper._push_multiplexed_replica_info = True


def threads_per_engine(num_cpus: float, engines_per_node: int) -> int:
    """Physical cores of this node over the CPU engines that it may come to hold, each of which takes `num_cpus`."""
    me = ray.get_runtime_context().get_node_id()
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
