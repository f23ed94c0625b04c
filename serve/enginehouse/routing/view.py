"""Reports: what replicas, and this process, say of a model, as the backends that it has."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from enginehouse.contract.choice import choose_artifact
from enginehouse.contract.config import ACCELERATOR_LABEL, APP_NAME, ModelConfig, PoolConfig
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import Artifact, EngineKind, Manifest
from enginehouse.contract.tensors import Signature
from enginehouse.pools import nodes
from enginehouse.pools.hosting import HostedModels
from enginehouse.pools.report import ModelReport, ModelState
from enginehouse.routing import replicas
from enginehouse.routing.policy import BackendState

logger = logging.getLogger("ray.serve")

#: How old the list of live backends may be when a request is routed: a busy router asks thousands of times a second.
LIVE_FOR_S = 0.005

#: Before the engine kind: the backend of a model that the router hosts itself.
RESIDENT = "resident-"

#: `cold`: the hardware is there and no replica runs (yet); `resting`: none has to run, the first request that wants it
#: wakes it; `unavailable`: the bundle has nothing for this engine.
BackendKind = Literal["live", "loading", "failing", "unavailable", "cold", "resting", "no-hardware"]


@dataclass(frozen=True, slots=True)
class Served:
    """One model version with what its manifest says."""

    config: ModelConfig
    manifest: Manifest
    signature: Signature


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """One model version on one pool: its replicas, how many of them are warm, and why it is not live."""

    pool: str
    engine: str
    state: BackendKind
    replicas: int
    ready: int
    artifact: str
    precision: str
    reason: str


class _Live(NamedTuple):
    served: Served
    until: float
    backends: list[BackendState]


class Reports:
    """The backends of models, by what is reported of them.

    `residents` is what this process, on `node`, hosts itself.
    """

    def __init__(self, pools: Mapping[str, PoolConfig], residents: HostedModels | None, node: str) -> None:
        self._pools = pools
        self._residents = residents
        self._node = node
        #: Live nodes with the hardware of each pool.
        self._nodes: dict[str, int] = {}
        self._live: dict[str, _Live] = {}
        # What replicas of pools that may rest timed themselves.
        self._measured: dict[tuple[str, str], LatencyTable] = {}

    def pools(self) -> list[dict[str, Any]]:
        """The pools as plain data."""
        return [
            {
                "name": name,
                "engine": pool.engine,
                "nodes": self._nodes.get(name, 0),
                "replicas": len(replicas.of_pool(APP_NAME, name)),
            }
            for name, pool in self._pools.items()
        ]

    def backends(self, served: Served) -> list[BackendStatus]:
        """The model version on every pool, from the reports of their replicas, and in this process if it is to be."""
        model_id = served.config.id
        resident = [self._resident(model_id)] if served.config.resident else []
        return [*resident, *(self._backend(name, pool, served) for name, pool in self._pools.items())]

    def live(self, served: Served, fresh: bool = False) -> list[BackendState]:
        """The backends that can answer now, as the policy wants them. On the path of every request: no RPC.

        What it said within the last `LIVE_FOR_S` is said again, unless it is to be `fresh`.
        """
        now = time.monotonic()
        known = self._live.get(served.config.id)
        if known is None or fresh or known.served is not served or now > known.until:
            known = _Live(served, now + LIVE_FOR_S, self._live_now(served))
            self._live[served.config.id] = known
        return known.backends

    def resting(self, served: Served) -> list[BackendState]:
        """The backends that could be woken, as they would be."""
        states = []
        for name, pool in self._pools.items():
            if pool.min_replicas or not self._may_run(name) or replicas.of_pool(APP_NAME, name):
                continue
            if choice := self._choice(name, served):
                engine, artifact = choice
                table = served.manifest.latency_of(engine, artifact.name)
                table = table or self._measured.get((name, served.config.id))
                precision, numerics = artifact.precision, artifact.numerics_class
                states.append(
                    BackendState(name, engine, artifact.name, precision, numerics, 1, table, price=pool.price)
                )
        return states

    def is_coming(self, served: Served) -> bool:
        """Whether a backend rests, or has been woken and loads."""
        return any(
            self._backend(name, pool, served).state in ("resting", "loading")
            for name, pool in self._pools.items()
            if not pool.min_replicas
        )

    def may_come(self, served: Served, pool: str | None = None) -> bool:
        """Whether a backend could still come up, of `pool` if it is named: there is hardware for it, or it loads."""
        resident = self._resident_report(served.config.id) if served.config.resident else None
        if resident and resident["state"] == "loading" and (pool is None or pool.startswith(RESIDENT)):
            return True
        # Nodes may have come since they were counted: a replica on one is hardware enough.
        return not self._nodes or any(
            (self._may_run(name) or replicas.of_pool(APP_NAME, name)) and self._choice(name, served)
            for name in self._pools
            if pool in (None, name)
        )

    def forget(self) -> None:
        """Look anew, whatever was said."""
        self._live.clear()

    def _live_now(self, served: Served) -> list[BackendState]:
        model_id = served.config.id
        states = []
        resident = self._resident_report(model_id) if served.config.resident else None
        if self._residents and resident and resident["state"] == "ready":
            pool = f"{RESIDENT}{resident['engine']}"
            states.append(
                _state(pool, served, resident, 1, {self._node}, self._residents.backlog_ms(model_id))._replace(
                    resident=True
                )
            )
        now = time.monotonic()
        for name, pool_config in self._pools.items():
            warm = [replica for replica in replicas.of_pool(APP_NAME, name) if replica.has(model_id)]
            if warm:
                nodes = {replica.node for replica in warm}
                wait_ms = min(replica.channel.wait_ms(now, model_id) for replica in warm)
                state = _state(name, served, warm[0].reports[model_id], len(warm), nodes, wait_ms)
                states.append(state._replace(price=pool_config.price))
                if state.table is not None and not pool_config.min_replicas:
                    self._measured[name, model_id] = state.table
        return states

    async def count_nodes(self) -> None:
        """Count the nodes with each pool's hardware anew: an RPC, which only statuses and reasons need."""
        for name, pool in self._pools.items():
            try:
                self._nodes[name] = await asyncio.to_thread(nodes.count_with, pool.nodes)
            except Exception as error:
                # Ray's control plane is restarting, say: requests do not need the count, so the last one stands.
                logger.warning("the nodes of pool %s could not be counted: %s", name, error)

    def _backend(self, name: str, pool: PoolConfig, served: Served) -> BackendStatus:
        model_id = served.config.id
        known = replicas.of_pool(APP_NAME, name)
        ready = _reports(name, model_id, "ready")
        state: BackendKind
        shown: ModelReport | None = None
        if ready:
            state, shown = "live", ready[0]
        elif failed := _reports(name, model_id, "failed"):
            state, shown = "failing", failed[0]
        elif unavailable := _reports(name, model_id, "unavailable"):
            state, shown = "unavailable", unavailable[0]
        elif known:
            state = "loading"
        elif not self._may_run(name):
            state = "no-hardware"
        elif pool.min_replicas:
            state = "cold"
        else:
            state = "resting" if self._choice(name, served) else "unavailable"
        reason = (
            f"no live node has the label {ACCELERATOR_LABEL}={'|'.join(pool.nodes)} (ray start --labels)"
            if state == "no-hardware"
            else ""
        )
        return BackendStatus(
            pool=name,
            engine=pool.engine,
            state=state,
            replicas=len(known),
            ready=len(ready),
            artifact=shown["artifact"] if shown else "",
            precision=shown["precision"] if shown else "",
            reason=shown["reason"] if shown else reason,
        )

    def _may_run(self, name: str) -> bool:
        return bool(self._nodes.get(name)) or self._pools[name].starts_nodes

    def _choice(self, name: str, served: Served) -> tuple[EngineKind, Artifact] | None:
        """What the pool would load of the model."""
        pool = self._pools[name]
        if pool.models is not None and served.config.name not in pool.models:
            return None
        return choose_artifact(served.manifest, (pool.engine,), served.config.numerics)

    def _resident_report(self, model_id: str) -> ModelReport | None:
        return self._residents.reports.get(model_id) if self._residents else None

    def _resident(self, model_id: str) -> BackendStatus:
        report = self._resident_report(model_id)
        states: dict[ModelState, BackendKind] = {"ready": "live", "failed": "failing", "unavailable": "unavailable"}
        return BackendStatus(
            pool=f"{RESIDENT}{report['engine']}" if report else RESIDENT,
            engine=report["engine"] if report else "",
            state=states.get(report["state"], "loading") if report else "loading",
            replicas=1,
            ready=int(report is not None and report["state"] == "ready"),
            artifact=report["artifact"] if report else "",
            precision=report["precision"] if report else "",
            reason=report["reason"] if report else "",
        )


def _state(
    pool: str, served: Served, ready: ModelReport, replicas: int, nodes: Iterable[str], wait_ms: float
) -> BackendState:
    artifact = served.manifest.artifact(ready["artifact"])
    engine = cast(EngineKind, ready["engine"])
    return BackendState(
        pool=pool,
        engine=engine,
        artifact=artifact.name,
        precision=ready["precision"] or artifact.precision,
        numerics=artifact.numerics_class,
        replicas=replicas,
        table=served.manifest.latency_of(engine, artifact.name) or _measured(ready),
        nodes=frozenset(nodes),
        wait_ms=wait_ms,
    )


def _measured(report: ModelReport) -> LatencyTable | None:
    return _table(report["artifact"], tuple((rows, time_ms) for rows, time_ms in report["measured"]))


@functools.lru_cache(maxsize=256)
def _table(artifact: str, measured: tuple[tuple[int, float], ...]) -> LatencyTable | None:
    """What a replica timed itself, as a table: on the path of every request, hence kept."""
    if not measured:
        return None
    points = [LatencyPoint(rows=rows, median_ms=ms, p90_ms=ms, min_ms=ms, count=3) for rows, ms in measured]
    return LatencyTable(engine="", artifact=artifact, threads=0, host="", points=tuple(points))


def _reports(pool: str, model_id: str, state: ModelState) -> list[ModelReport]:
    known = replicas.of_pool(APP_NAME, pool)
    reports = [replica.reports[model_id] for replica in known if model_id in replica.reports]
    return [report for report in reports if report["state"] == state]
