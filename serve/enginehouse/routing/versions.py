"""The served models: follows the catalog, reads manifests, and switches versions when their successors are warm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from enginehouse.contract.config import Catalog, ModelConfig
from enginehouse.contract.errors import ModelNotFound, NoBackend
from enginehouse.contract.store import Store
from enginehouse.routing import replicas
from enginehouse.routing.view import Reports, Served

#: How long a new version may keep loading on one pool after it is warm on another, before it takes over regardless.
PATIENCE_S = 60.0
#: Seconds until a manifest that could not be read is tried again.
RETRY_AFTER_S = 5.0
#: How often the pools' reports are compared with the catalog.
PERIOD_S = 0.1
#: How often the nodes with each pool's hardware are counted (an RPC; only status and reasons need it).
COUNT_NODES_S = 1.0

State = Literal["ready", "loading", "failed"]


class ServedModels:
    """Which version answers for each model. A version that cannot be loaded leaves the one before it in place."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._catalog = Catalog(store="")
        self._serving: dict[str, Served] = {}
        self._coming: dict[str, Served] = {}
        self._unreadable: dict[str, str] = {}
        self._retry_at: dict[str, float] = {}
        self._warm_since: dict[str, float] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._connector: asyncio.Task[None] | None = None

    def apply(self, catalog: Catalog) -> None:
        """Record the catalog and return at once; a model it no longer names stops answering now."""
        self._catalog = catalog
        self._serving = {name: served for name, served in self._serving.items() if catalog.find(name)}
        self._coming, self._unreadable, self._retry_at, self._warm_since = {}, {}, {}, {}
        self._reports.forget()
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

    def serving(self) -> Mapping[str, Served]:
        """Every version that answers, by model."""
        return self._serving

    def status(self) -> dict[str, Any]:
        """Models, versions, pools, backends and reasons, as plain data."""
        return {
            "store": self._catalog.store,
            "models": [self._model_status(model) for model in self._catalog.models],
            "pools": self._reports.pools(),
        }

    def _model_status(self, model: ModelConfig) -> dict[str, Any]:
        serving, coming = self._serving.get(model.name), self._coming.get(model.name)
        shown = coming or serving
        backends = self._reports.backends(shown) if shown else []
        problem = self._unreadable.get(model.id, "")
        states = {backend.state for backend in backends}
        hopeless = "failing" in states and not states & {"live", "loading", "cold", "resting"}
        state: State = "loading"
        if serving is not None and serving.config == model:
            state = "ready" if states & {"live", "resting"} else "failed"
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

    def _why_not(self, model: ModelConfig) -> str:
        if problem := self._unreadable.get(model.id):
            return problem
        coming = self._coming.get(model.name)
        if coming is None:
            return "its manifest is being read"
        return "; ".join(f"{status.pool}: {status.reason or status.state}" for status in self._reports.backends(coming))

    async def _keep(self) -> None:
        count_at = 0.0
        while True:
            if time.monotonic() >= count_at:
                await self._reports.count_nodes()
                count_at = time.monotonic() + COUNT_NODES_S
            await self._read_manifests(self._catalog)
            self._switch_versions()
            await asyncio.sleep(PERIOD_S)

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
        backends = self._reports.backends(served)
        states = {backend.state for backend in backends}
        if "live" not in states and ("resting" not in states or states & {"loading", "failing", "cold"}):
            return False
        since = self._warm_since.setdefault(served.config.id, time.monotonic())
        waited = time.monotonic() - since > PATIENCE_S
        return current is None or waited or all(backend.state != "loading" for backend in backends)


async def _keep_connected() -> None:
    """Beside the catalog, whose store may take its time."""
    while True:
        replicas.connect()
        await asyncio.sleep(PERIOD_S)
