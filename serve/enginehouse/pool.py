"""The pool: one Serve deployment around one engine kind, whose replicas host many models.

Models arrive through `reconfigure`, which only records them: a replica inside a slow reconfigure gets no traffic, so
loading, retrying and unloading happen in a background task beside it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import ray
from ray import serve

from enginehouse import availability, hardware
from enginehouse.availability import ModelReport, ModelState
from enginehouse.batching import Answer, LoadedModel
from enginehouse.config import Catalog, ModelConfig, PoolConfig
from enginehouse.engines import load_engine, measure
from enginehouse.errors import (
    ArtifactMissing,
    EnginehouseError,
    EngineUnavailable,
    ModelNotFound,
)
from enginehouse.manifest import EngineKind, Manifest
from enginehouse.policy import choose_artifact
from enginehouse.store import Store
from enginehouse.tensors import Tensors

logger = logging.getLogger("ray.serve")

#: Seconds until a model that failed to load is tried again: its store may have been out of reach.
RETRY_AFTER_S = 15.0


class Pool:
    """Serve deployment: hosts every model of the catalog that its engine kind can run.

    `engines_per_node` is how many CPU engine replicas a node may come to hold; it sets the default threads.
    """

    def __init__(self, name: str, config: dict[str, Any], engines_per_node: int) -> None:
        self._name = name
        self._config = PoolConfig.model_validate(config)
        self._kind: EngineKind = self._config.engine
        self._threads = self._config.threads or _threads(self._config.num_cpus, engines_per_node)
        self._catalog: Catalog | None = None
        self._reports: dict[str, ModelReport] = {}
        self._models: dict[str, LoadedModel] = {}
        self._retry_at: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Record the catalog and return at once; loading goes on beside it."""
        self._catalog = Catalog.parse(user_config)
        self._retry_at.clear()
        for model in self._catalog.models:
            if loaded := self._models.get(model.id):
                loaded.set_batching(model)
        self._wake.set()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())

    def record_routing_stats(self) -> dict[str, Any]:
        """What every router gets to know of this replica; the controller pulls it about once a second."""
        return {"models": dict(self._reports), "threads": self._threads}

    def check_health(self) -> None:
        """Fail, and so be replaced, when the task that loads models has died."""
        if self._keeper is not None and self._keeper.done():
            raise RuntimeError("the model keeper stopped") from self._keeper.exception()

    async def infer(self, inputs: Tensors, rows: int, budget_s: float) -> Answer:
        """Run checked `inputs` on the model that the call's multiplexed model id names.

        Raises ModelNotFound, DeadlineExceeded, EngineUnavailable, a BundleError, or InferenceFailed.
        """
        model_id = serve.get_multiplexed_model_id()
        loaded = self._models.get(model_id) or await self.engine(model_id)
        return await loaded.infer(inputs, rows, budget_s)

    @serve.multiplexed(max_num_models_per_replica=-1)  # type: ignore[untyped-decorator]
    async def engine(self, model_id: str) -> LoadedModel:
        """Load a model and warm it up. Serve calls this once per id and tells every router where it is."""
        assert self._catalog is not None
        name, _, version = model_id.partition("@")
        config = self._catalog.find(name)
        if config is None:
            raise ModelNotFound(name, version, tuple(model.id for model in self._catalog.models))
        self._report(model_id, "loading")
        notes: list[str] = []
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(
                None, self._load, self._catalog.store, config, version, notes
            )
        except Exception as error:
            state: ModelState = "unavailable" if isinstance(error, ArtifactMissing) else "failed"
            self._report(model_id, state, f"{type(error).__name__}: {error}")
            self._retry_at[model_id] = time.monotonic() + RETRY_AFTER_S
            if isinstance(error, EnginehouseError):
                raise
            raise EngineUnavailable(self._kind, f"{type(error).__name__}: {error}") from error
        loaded.set_batching(config)
        self._models[model_id] = loaded
        self._reports[model_id] = ModelReport(
            state="ready",
            reason="; ".join(notes),
            artifact=loaded.artifact.name,
            precision=loaded.engine.precision,
            measured=loaded.measured,
        )
        return loaded

    def _load(self, url: str, config: ModelConfig, version: str, notes: list[str]) -> LoadedModel:
        def tell(note: str) -> None:
            # Building an engine on this node takes minutes, and is still worth knowing afterwards.
            notes[:] = [note]
            self._report(f"{config.name}@{version}", "loading", note)
            logger.info("%s@%s: %s", config.name, version, note)

        store = Store(url)
        manifest = store.manifest(config.name, version)
        artifact = choose_artifact(manifest, self._kind, config.numerics)
        if artifact is None:
            raise ArtifactMissing(
                f"{config.name}@{version}",
                f"nothing here for {self._kind}: {_why_nothing(manifest, self._kind)}",
            )
        bundle = store.open(config.name, version, [artifact.name])
        engine = load_engine(self._kind, bundle, artifact, threads=self._threads, tell=tell)
        # Made on this node, say: routers have to know how fast it is before they can prefer it.
        measured = [] if manifest.latency_of(self._kind, artifact.name) else measure(engine, manifest)
        return LoadedModel(engine, manifest, artifact, measured)

    def _report(self, model_id: str, state: ModelState, reason: str = "") -> None:
        self._reports[model_id] = ModelReport(state=state, reason=reason, artifact="", precision="", measured=[])

    async def _keep(self) -> None:
        """Bring the loaded models in line with the catalog, whenever that changes and once a second."""
        while True:
            assert self._catalog is not None
            mine = self._config.models
            wanted = [model.id for model in self._catalog.models if mine is None or model.name in mine]
            for model_id in wanted:
                if model_id not in self._models and time.monotonic() >= self._retry_at.get(model_id, 0.0):
                    try:
                        await self.engine(model_id)
                    except EnginehouseError as error:
                        logger.warning("%s cannot serve %s: %s", self._name, model_id, error)
            self._unload_all_but(set(wanted))
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), 1.0)
            except TimeoutError:
                continue

    def _unload_all_but(self, wanted: set[str]) -> None:
        """Let go of versions that the catalog no longer names, once their successor is warm and they are idle."""
        coming = {model_id.partition("@")[0] for model_id in wanted if model_id not in self._models}
        for model_id in [known for known in self._reports if known not in wanted]:
            loaded = self._models.get(model_id)
            if loaded is not None:
                idle_s = time.monotonic() - loaded.last_used
                if model_id.partition("@")[0] in coming or idle_s < self._config.unload_after_s:
                    continue
                # The engine frees its memory when the last running call drops its reference.
                del self._models[model_id]
                availability.unload(self, model_id)
            del self._reports[model_id]


def _threads(num_cpus: float, engines_per_node: int) -> int:
    """Physical cores of this node over the CPU engine replicas that it may come to hold."""
    me = ray.get_runtime_context().get_node_id()
    cpus = next((node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == me), 1.0)
    fits = int(cpus / num_cpus) if num_cpus else engines_per_node
    return max(1, hardware.physical_cores() // max(1, min(engines_per_node, fits)))


def _why_nothing(manifest: Manifest, kind: EngineKind) -> str:
    from enginehouse.manifest import FORMAT_OF

    reasons = [
        f"{artifact.name} is {artifact.status}" + (f" ({artifact.reason})" if artifact.reason else "")
        for artifact in manifest.artifacts
        if artifact.format == FORMAT_OF[kind]
    ]
    return "; ".join(reasons) or f"the bundle has no {FORMAT_OF[kind]} artifact"
