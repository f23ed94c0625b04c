"""The served models: follows the catalog, reads manifests, and switches versions when their successors are warm."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from enginehouse import availability
from enginehouse.availability import ModelReport, ModelState
from enginehouse.config import ACCELERATOR_LABEL, APP_NAME, Catalog, ModelConfig, PoolConfig
from enginehouse.errors import ModelNotFound, NoBackend
from enginehouse.latency import LatencyPoint, LatencyTable
from enginehouse.manifest import Manifest
from enginehouse.policy import BackendState
from enginehouse.store import Store
from enginehouse.tensors import Signature

logger = logging.getLogger("ray.serve")

#: How long a new version may keep loading on one pool after it is warm on another, before it takes over regardless.
PATIENCE_S = 60.0
#: Seconds until a manifest that could not be read is tried again.
RETRY_AFTER_S = 5.0
#: How often the pools' reports are compared with the catalog.
PERIOD_S = 0.1
#: How old the list of live backends may be when a request is routed: a busy router asks thousands of times a second.
LIVE_FOR_S = 0.005
#: How often the nodes with each pool's hardware are counted (an RPC; only status and reasons need it).
COUNT_NODES_S = 1.0

#: Before the engine kind: the backend of a model that the router hosts itself.
RESIDENT = "resident-"

State = Literal["ready", "loading", "failed"]
#: `cold`: the hardware is there and no replica runs (yet); `unavailable`: the bundle has nothing for this engine.
BackendKind = Literal["live", "loading", "failing", "unavailable", "cold", "no-hardware"]


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


class ServedModels:
    """Which version answers for each model. A version that cannot be loaded leaves the one before it in place."""

    def __init__(self, pools: Mapping[str, PoolConfig], residents: Mapping[str, ModelReport]) -> None:
        self._pools = pools
        #: What this process itself hosts, by model id.
        self._residents = residents
        #: Live nodes with the hardware of each pool.
        self._nodes: dict[str, int] = {}
        self._catalog = Catalog(store="")
        self._serving: dict[str, Served] = {}
        self._coming: dict[str, Served] = {}
        self._unreadable: dict[str, str] = {}
        self._retry_at: dict[str, float] = {}
        self._warm_since: dict[str, float] = {}
        self._live: dict[str, _Live] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._connector: asyncio.Task[None] | None = None

    def apply(self, catalog: Catalog) -> None:
        """Record the catalog and return at once; a model it no longer names stops answering now."""
        self._catalog = catalog
        self._serving = {name: served for name, served in self._serving.items() if catalog.find(name)}
        self._coming, self._unreadable, self._retry_at, self._warm_since = {}, {}, {}, {}
        self._live.clear()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
            self._connector = asyncio.create_task(_keep_connected())

    def check_health(self) -> None:
        """Raise when the task that follows the catalog has died."""
        if self._keeper is not None and self._keeper.done():
            raise RuntimeError("the catalog is no longer followed") from self._keeper.exception()
        if self._connector is not None and self._connector.done():
            raise RuntimeError("replicas are no longer connected to") from self._connector.exception()

    def get(self, model: str, version: str | None = None) -> Served:
        """The version that answers for `model`. Raises ModelNotFound, or NoBackend for one that is not warm yet."""
        if model in self._coming and model not in self._serving:
            # Warm since the last round, perhaps, and known to others, who send their first requests.
            self._switch_versions()
        served = self._serving.get(model)
        if served is not None and version in (None, served.config.version):
            return served
        wanted = self._catalog.find(model)
        if wanted is not None and served is None and version in (None, wanted.version):
            raise NoBackend(f"model {wanted.id!r} is not warm yet: {self._why_not(wanted)}")
        raise ModelNotFound(model, version, tuple(sorted(served.config.id for served in self._serving.values())))

    def backends(self, served: Served) -> list[BackendStatus]:
        """The model version on every pool, from the reports of their replicas, and in this process if it is to be."""
        model_id = served.config.id
        resident = [self._resident(model_id)] if served.config.resident else []
        return [*resident, *(self._backend(name, pool, model_id) for name, pool in self._pools.items())]

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

    def _live_now(self, served: Served) -> list[BackendState]:
        model_id = served.config.id
        states = []
        resident = self._residents.get(model_id) if served.config.resident else None
        if resident is not None and resident["state"] == "ready":
            states.append(_state(f"{RESIDENT}{resident['engine']}", served, [resident], resident=True))
        reports = {name: _reports(name, model_id, "ready") for name in self._pools}
        return [*states, *(_state(name, served, ready) for name, ready in reports.items() if ready)]

    def status(self) -> dict[str, Any]:
        """Models, versions, pools, backends and reasons, as plain data."""
        return {
            "store": self._catalog.store,
            "models": [self._model_status(model) for model in self._catalog.models],
            "pools": [
                {
                    "name": name,
                    "engine": pool.engine,
                    "nodes": self._nodes.get(name, 0),
                    "replicas": len(availability.replicas(APP_NAME, name)),
                }
                for name, pool in self._pools.items()
            ],
        }

    def _model_status(self, model: ModelConfig) -> dict[str, Any]:
        serving, coming = self._serving.get(model.name), self._coming.get(model.name)
        shown = coming or serving
        backends = self.backends(shown) if shown else []
        problem = self._unreadable.get(model.id, "")
        states = {backend.state for backend in backends}
        hopeless = "failing" in states and not states & {"live", "loading", "cold"}
        state: State = "loading"
        if serving is not None and serving.config == model:
            state = "ready" if self.live(serving, fresh=True) else "failed"
        elif problem or hopeless:
            state = "failed"
        return {
            "name": model.name,
            "wanted": model.version,
            "serving": serving.config.version if serving else None,
            "state": state,
            "reason": problem,
            "backends": [asdict(backend) for backend in backends],
        }

    def _backend(self, name: str, pool: PoolConfig, model_id: str) -> BackendStatus:
        replicas = availability.replicas(APP_NAME, name)
        ready = _reports(name, model_id, "ready")
        state: BackendKind
        shown: ModelReport | None = None
        if ready:
            state, shown = "live", ready[0]
        elif failed := _reports(name, model_id, "failed"):
            state, shown = "failing", failed[0]
        elif unavailable := _reports(name, model_id, "unavailable"):
            state, shown = "unavailable", unavailable[0]
        elif replicas:
            state = "loading"
        else:
            state = "cold" if self._nodes.get(name) else "no-hardware"
        reason = (
            f"no live node has the label {ACCELERATOR_LABEL}={'|'.join(pool.nodes)} (ray start --labels)"
            if state == "no-hardware"
            else ""
        )
        return BackendStatus(
            pool=name,
            engine=pool.engine,
            state=state,
            replicas=len(replicas),
            ready=len(ready),
            artifact=shown["artifact"] if shown else "",
            precision=shown["precision"] if shown else "",
            reason=shown["reason"] if shown else reason,
        )

    def _resident(self, model_id: str) -> BackendStatus:
        report = self._residents.get(model_id)
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

    def _why_not(self, model: ModelConfig) -> str:
        if problem := self._unreadable.get(model.id):
            return problem
        coming = self._coming.get(model.name)
        if coming is None:
            return "its manifest is being read"
        return "; ".join(f"{status.pool}: {status.reason or status.state}" for status in self.backends(coming))

    async def _keep(self) -> None:
        count_at = 0.0
        while True:
            if time.monotonic() >= count_at:
                await self._count_nodes()
                count_at = time.monotonic() + COUNT_NODES_S
            await self._read_manifests(self._catalog)
            self._switch_versions()
            await asyncio.sleep(PERIOD_S)

    async def _count_nodes(self) -> None:
        for name, pool in self._pools.items():
            try:
                self._nodes[name] = await asyncio.to_thread(availability.nodes_with, pool.nodes)
            except Exception as error:
                # Ray's control plane is restarting, say: requests do not need the count, so the last one stands.
                logger.warning("the nodes of pool %s could not be counted: %s", name, error)

    async def _read_manifests(self, catalog: Catalog) -> None:
        for model in catalog.models:
            current = self._serving.get(model.name)
            known = model.name in self._coming or (current is not None and current.config == model)
            if known or time.monotonic() < self._retry_at.get(model.id, 0.0):
                continue
            try:
                manifest = await asyncio.to_thread(Store(catalog.store).manifest, model.name, model.version)
            except Exception as error:
                # Whatever an fsspec backend raises: the model is reported, the others are not held up.
                self._unreadable[model.id] = f"{type(error).__name__}: {error}"
                self._retry_at[model.id] = time.monotonic() + RETRY_AFTER_S
                continue
            if catalog is not self._catalog:
                return
            self._unreadable.pop(model.id, None)
            self._coming[model.name] = Served(model, manifest, manifest.signature.signature())

    def _switch_versions(self) -> None:
        for name, served in list(self._coming.items()):
            current = self._serving.get(name)
            # Only settings of the same version changed, or: warm somewhere and no pool is still loading it.
            if (current is not None and current.config.id == served.config.id) or self._is_warm(served, current):
                self._serving[name] = self._coming.pop(name)

    def _is_warm(self, served: Served, current: Served | None) -> bool:
        backends = self.backends(served)
        if not any(backend.ready for backend in backends):
            return False
        since = self._warm_since.setdefault(served.config.id, time.monotonic())
        waited = time.monotonic() - since > PATIENCE_S
        return current is None or waited or all(backend.state != "loading" for backend in backends)


async def _keep_connected() -> None:
    """Beside the catalog, whose store may take its time."""
    while True:
        availability.connect()
        await asyncio.sleep(PERIOD_S)


def _state(pool: str, served: Served, ready: Sequence[ModelReport], resident: bool = False) -> BackendState:
    artifact = served.manifest.artifact(ready[0]["artifact"])
    engine = ready[0]["engine"]
    return BackendState(
        pool=pool,
        engine=engine,
        artifact=artifact.name,
        precision=ready[0]["precision"],
        numerics=artifact.numerics_class,
        replicas=len(ready),
        table=served.manifest.latency_of(engine, artifact.name) or _measured(ready[0]),
        resident=resident,
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
    replicas = availability.replicas(APP_NAME, pool)
    reports = [replica.reports[model_id] for replica in replicas if model_id in replica.reports]
    return [report for report in reports if report["state"] == state]
