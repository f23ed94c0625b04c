"""The backends of a model version now, from what replicas publish and what this process hosts itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from enginehouse.contract.choice import choose_artifact
from enginehouse.contract.config import ACCELERATOR_LABEL, APP_NAME, ModelConfig, PoolConfig
from enginehouse.contract.latency import LatencyTable
from enginehouse.contract.manifest import Artifact, EngineKind, Manifest, NumericsRule
from enginehouse.contract.numerics import rule_of, why_nothing
from enginehouse.contract.tensors import Signature
from enginehouse.pools import nodes
from enginehouse.pools.hosting import HostedModels
from enginehouse.pools.report import ModelReport, ModelState
from enginehouse.routing import replicas
from enginehouse.routing.policy import BackendState, Demand, unfit

logger = logging.getLogger("ray.serve")

#: Seconds for which a list of live backends is used again: a busy router asks thousands of times a second.
LIVE_FOR_S = 0.005

#: Prefix of the engine kind in the name of a backend in the router's own process.
RESIDENT = "resident-"

#: `cold`: no replica yet; `idle`: scaled to zero, the first request that wants it wakes it; `loading`: replicas without
#: a result; `unavailable`: no artifact for this pool.
BackendKind = Literal["live", "loading", "failing", "unavailable", "cold", "idle", "no-hardware"]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model, with the settings that it is served with and what its manifest says."""

    config: ModelConfig
    manifest: Manifest
    signature: Signature
    #: `ModelConfig.key`, kept: every request needs it.
    key: str = field(init=False)

    #: Which numerics class may answer.
    numerics: NumericsRule = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.config.key)
        object.__setattr__(self, "numerics", rule_of(self.config, self.manifest))

    @property
    def max_batch(self) -> int:
        """Most rows of an engine call."""
        return self.config.max_batch_size or self.manifest.max_batch


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """One model version on one pool: replicas, how many have it `ready`, why it is not live or load notes.

    `reason` also says why this router has no connection to some of the replicas, which count as well.
    `inputs_only` says for which values of inputs it answers, "" for all.
    """

    pool: str
    engine: str
    state: BackendKind
    replicas: int
    ready: int
    artifact: str
    precision: str
    reason: str
    inputs_only: str = ""


class _Live(NamedTuple):
    version: ModelVersion
    until: float
    backends: list[BackendState]


class View:
    """The backends of every model version.

    `residents` are the models that this process, on the node with id `node`, hosts itself.
    """

    def __init__(self, pools: Mapping[str, PoolConfig], residents: HostedModels | None, node: str) -> None:
        self._pools = pools
        self._residents = residents
        self._node = node
        #: Live nodes with the hardware of each pool, and the pools that have had any since this process began.
        self._nodes: dict[str, int] = {}
        self._had_nodes: set[str] = set()
        self._live: dict[str, _Live] = {}
        # The last latency tables of pools that scale to zero, by pool and `ModelVersion.key`.
        self._measured: dict[tuple[str, str], LatencyTable] = {}
        # By the same: why such a pool could not load it when it was last awake.
        self._failed: dict[tuple[str, str], str] = {}

    def pools(self) -> list[dict[str, Any]]:
        """The pools as plain data."""
        return [
            {
                "name": name,
                "engine": pool.engine,
                "nodes": self._nodes.get(name, 0),
                "replicas": len(replicas.of_pool(APP_NAME, name)),
                "everywhere": replicas.listening_everywhere(APP_NAME, name),
            }
            for name, pool in self._pools.items()
        ]

    def backends(self, version: ModelVersion) -> list[BackendStatus]:
        """The status of the version on every pool, and in this process if it is resident."""
        resident = [self._resident(version)] if version.config.resident else []
        return [*resident, *(self._backend(name, pool, version) for name, pool in self._pools.items())]

    def live(self, version: ModelVersion, fresh: bool = False) -> list[BackendState]:
        """The backends that can answer now, as states for the policy. On the path of every request: no RPC.

        A list is used again for `LIVE_FOR_S`, unless it is to be `fresh`.
        """
        now = time.monotonic()
        known = self._live.get(version.key)
        if known is None or fresh or known.version is not version or now > known.until:
            known = _Live(version, now + LIVE_FOR_S, self._live_now(version))
            self._live[version.key] = known
        return known.backends

    def idle(self, version: ModelVersion) -> list[BackendState]:
        """The idle backends that could be woken, as they would be with one replica."""
        states = []
        for name, pool in self._pools.items():
            if pool.min_replicas or not self._may_run(name) or replicas.of_pool(APP_NAME, name):
                continue
            if planned := self._planned(name, version):
                states.append(planned)
        return states

    def is_coming(self, version: ModelVersion, demand: Demand) -> bool:
        """Whether a pool that may be idle is idle or loading, and may answer such a request when it is up.

        One that failed to load the model when it was last awake does not count.
        """
        return any(
            self._backend(name, pool, version).state in ("idle", "loading") and self._suits(name, version, demand)
            for name, pool in self._pools.items()
            if not pool.min_replicas and (name, version.key) not in self._failed
        )

    def may_come(self, version: ModelVersion, demand: Demand) -> bool:
        """Whether a backend that may answer such a request could still come up: it loads, or has hardware."""
        # A node may have joined since they were counted; a replica proves that it has.
        return self._resident_may_come(version, demand) or any(
            (self._may_run(name) or replicas.of_pool(APP_NAME, name)) and self._suits(name, version, demand)
            for name in self._pools
        )

    def could_answer(self, version: ModelVersion, demand: Demand) -> bool:
        """Whether a pool that ever had hardware, or has it started, loads what may answer such a request."""
        now = (name for name in self._pools if self._may_run(name) or replicas.of_pool(APP_NAME, name))
        real = self._had_nodes.union(now)
        return self._resident_may_come(version, demand) or any(self._suits(name, version, demand) for name in real)

    def would_load(self, version: ModelVersion, demand: Demand) -> bool:
        """Whether a pool would load what may answer such a request, if it had hardware."""
        return any(self._suits(name, version, demand) for name in self._pools)

    def engines(self, version: ModelVersion, pool: str | None = None) -> set[EngineKind]:
        """The engines of the pools that are open to the version, or of `pool` alone."""
        pools = self._pools.items()
        return {config.engine for name, config in pools if pool in (None, name) and _is_open_to(config, version)}

    def forget(self) -> None:
        """Drop the cached lists: the catalog has changed."""
        self._live.clear()
        self._failed.clear()

    def _live_now(self, version: ModelVersion) -> list[BackendState]:
        model_key = version.key
        states = []
        resident = self._resident_report(model_key) if version.config.resident else None
        if self._residents and resident and resident["state"] == "ready":
            pool = f"{RESIDENT}{resident['engine']}"
            state = replicas.backend_state(
                pool, version.manifest, [resident], {self._node}, self._residents.backlog_ms(model_key)
            )
            states.append(state._replace(resident=True))
        now = time.monotonic()
        for name, pool_config in self._pools.items():
            warm = [replica for replica in replicas.of_pool(APP_NAME, name) if replica.has(model_key)]
            if warm:
                on_nodes = {replica.node for replica in warm}
                wait_ms = min(replica.channel.wait_ms(now, model_key) for replica in warm)
                state = replicas.backend_state(
                    name, version.manifest, [replica.reports[model_key] for replica in warm], on_nodes, wait_ms
                )
                states.append(state._replace(price=pool_config.price))
                self._failed.pop((name, model_key), None)
                if state.table is not None and not pool_config.min_replicas:
                    self._measured[name, model_key] = state.table
            elif not pool_config.min_replicas and (failed := replicas.reports_of(APP_NAME, name, model_key, "failed")):
                self._failed[name, model_key] = f"when it was last awake: {failed[0]['reason']}"
        return states

    async def count_nodes(self) -> None:
        """Count the nodes with each pool's hardware: an RPC. Statuses, waking and waiting depend on it."""
        for name, pool in self._pools.items():
            try:
                self._nodes[name] = await asyncio.to_thread(nodes.count_with, pool.nodes)
                if self._nodes[name]:
                    self._had_nodes.add(name)
            except Exception as error:
                # For instance while Ray's control plane restarts: the last count, if there is one, stands.
                logger.warning("the nodes of pool %s could not be counted: %s", name, error)

    def _backend(self, name: str, pool: PoolConfig, version: ModelVersion) -> BackendStatus:
        model_key = version.key
        known, apart = replicas.of_pool(APP_NAME, name), replicas.out_of_reach(APP_NAME, name)
        ready = replicas.reports_of(APP_NAME, name, model_key, "ready")
        state: BackendKind
        shown: ModelReport | None = None
        reason = ""
        if ready:
            state, shown = "live", ready[0]
        elif failed := replicas.reports_of(APP_NAME, name, model_key, "failed"):
            state, shown = "failing", failed[0]
        elif unavailable := replicas.reports_of(APP_NAME, name, model_key, "unavailable"):
            state, shown = "unavailable", unavailable[0]
        elif self._choice(name, version) is None:
            # With or without replicas, which run for other models too: this one will never be loaded there.
            state, reason = "unavailable", self._why_nothing(name, version)
        elif known:
            state, reason = "loading", self._failed.get((name, model_key), "")
        elif not self._may_run(name):
            label = f"{ACCELERATOR_LABEL}={'|'.join(pool.nodes)}"
            state, reason = "no-hardware", f"no live node has the label {label} (ray start --labels)"
        elif pool.min_replicas:
            state = "cold"
        else:
            state, reason = "idle", self._failed.get((name, model_key), "")
        return BackendStatus(
            pool=name,
            engine=pool.engine,
            state=state,
            replicas=len(known) + len(apart),
            ready=len(ready),
            artifact=shown["artifact"] if shown else "",
            precision=shown["precision"] if shown else "",
            reason="; ".join(filter(None, (shown["reason"] if shown else reason, replicas.why_out_of_reach(apart)))),
            inputs_only=replicas.described_bounds(version.manifest, shown),
        )

    def _planned(self, name: str, version: ModelVersion) -> BackendState | None:
        """The backend that a pool would be with one replica; None where it would load nothing."""
        choice = self._choice(name, version)
        if choice is None:
            return None
        engine, artifact = choice
        table = self._measured.get((name, version.key)) or version.manifest.latency_of(engine, artifact.name)
        precision, numerics, price = artifact.precision, artifact.numerics_class, self._pools[name].price
        return BackendState(
            name,
            engine,
            artifact.name,
            precision,
            numerics,
            1,
            table,
            price=price,
            inputs_only=artifact.bounds_on(engine),
        )

    def _suits(self, name: str, version: ModelVersion, demand: Demand) -> bool:
        # What its replicas have found on their nodes counts, and not what the manifest says of others.
        warm = (state for state in self.live(version) if state.pool == name)
        state = next(warm, None) or self._planned(name, version)
        return state is not None and not unfit(state, demand)

    def _resident_may_come(self, version: ModelVersion, demand: Demand) -> bool:
        report = self._resident_report(version.key) if version.config.resident else None
        is_allowed = demand.pool is None or demand.pool.startswith(RESIDENT)
        return is_allowed and report is not None and report["state"] == "loading"

    def _may_run(self, name: str) -> bool:
        # Before its nodes were counted a pool may: a request would be refused for hardware that is there.
        return self._nodes.get(name) != 0 or self._pools[name].starts_nodes

    def _choice(self, name: str, version: ModelVersion) -> tuple[EngineKind, Artifact] | None:
        """The engine and artifact that the pool would load."""
        pool = self._pools[name]
        if not _is_open_to(pool, version):
            return None
        return choose_artifact(version.manifest, (pool.engine,), version.numerics)

    def _why_nothing(self, name: str, version: ModelVersion) -> str:
        pool = self._pools[name]
        if not _is_open_to(pool, version):
            return f"the pool is kept for {', '.join(pool.models or ())}"
        return why_nothing(version.manifest, pool.engine, version.numerics)

    def _resident_report(self, model_key: str) -> ModelReport | None:
        return self._residents.reports.get(model_key) if self._residents else None

    def _resident(self, version: ModelVersion) -> BackendStatus:
        report = self._resident_report(version.key)
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
            inputs_only=replicas.described_bounds(version.manifest, report),
        )


def _is_open_to(pool: PoolConfig, version: ModelVersion) -> bool:
    """Whether the pool is not reserved for other models."""
    return pool.models is None or version.config.name in pool.models
