"""Hosting: a background task loads and unloads the models of one process as the catalog asks.

Used by a pool's replica, which has one engine kind, and by a router for its resident models.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Sequence

from enginehouse.contract.choice import choose_artifact
from enginehouse.contract.config import Catalog, ModelConfig
from enginehouse.contract.errors import ArtifactMissing, EnginehouseError, EngineUnavailable, ModelNotFound
from enginehouse.contract.manifest import ACCELERATOR_OF, FORMAT_OF, EngineKind, Manifest
from enginehouse.contract.store import Store
from enginehouse.engines import best_batch, load_engine, time_calls
from enginehouse.engines.hardware import int8_products
from enginehouse.pools import crashes
from enginehouse.pools.batching import LoadedModel
from enginehouse.pools.report import ModelReport, ModelState

logger = logging.getLogger("ray.serve")

#: Seconds until a model that failed to load is tried again; its store may have been unreachable.
RETRY_AFTER_S = 15.0
#: Seconds that a stuck engine call may take in all before the process is replaced.
STUCK_FOR_GOOD_S = 60.0
#: Least engine seconds reported while a model loads, so that its pool is not scaled to zero.
LOADING = 0.01


class HostedModels:
    """The models of this process, by `ModelConfig.key`.

    Of each model that `wants` accepts, the artifact that `choose_artifact` prefers on `engines` is loaded with
    `threads` threads. A version that is no longer wanted is unloaded once any successor is loaded and it was
    unused for `unload_after_s` seconds. In a `router`'s process the router is the engines' only caller, and an engine
    that has crashed a process of this node is not loaded. `name` is the pool's, for errors and logs.
    """

    def __init__(
        self,
        name: str,
        engines: Sequence[EngineKind],
        threads: int,
        wants: Callable[[ModelConfig], bool],
        unload_after_s: float,
        router: bool = False,
    ) -> None:
        self.reports: dict[str, ModelReport] = {}
        self.models: dict[str, LoadedModel] = {}
        self._name = name
        self._engines = engines
        self._threads = threads
        self._wants = wants
        self._unload_after_s = unload_after_s
        self._router = router
        self._catalog = Catalog(store="")
        # By key: the models of the catalog, and earlier versions that are still loaded.
        self._configs: dict[str, ModelConfig] = {}
        self._retry_at: dict[str, float] = {}
        self._loading: dict[str, asyncio.Task[LoadedModel]] = {}
        self._busy = (time.monotonic(), 0.0)
        self._catalog_changed = asyncio.Event()
        self._reconciler: asyncio.Task[None] | None = None

    def follow(self, catalog: Catalog) -> None:
        """Record the catalog and return; a background task brings the loaded models in line with it."""
        self._catalog = catalog
        kept = {key: config for key, config in self._configs.items() if key in self.reports}
        self._configs = kept | {model.key: model for model in catalog.models}
        self._retry_at.clear()
        for model in catalog.models:
            if loaded := self.models.get(model.key):
                loaded.set_batching(model)
        self._catalog_changed.set()
        if self._reconciler is None:
            self._reconciler = asyncio.create_task(self._reconcile())

    def busy_share(self) -> float:
        """Engine time per second since the last call to this; above 1 when several engines computed at once."""
        now, busy_s = time.monotonic(), sum(model.busy_s for model in self.models.values())
        (then, before), self._busy = self._busy, (now, busy_s)
        # Else a pool that may be idle would be scaled to zero while it loads the model that it was started for.
        least = LOADING if any(report["state"] == "loading" for report in self.reports.values()) else 0.0
        return max(least, busy_s - before) / max(now - then, 1e-3)

    def backlog_ms(self, model_key: str) -> float:
        """Predicted milliseconds until a model has computed all calls that it holds; 0 when it is not loaded."""
        loaded = self.models.get(model_key)
        return loaded.backlog_ms if loaded else 0.0

    def check_health(self) -> None:
        """Raise RuntimeError when the background task has ended or a stuck call has run STUCK_FOR_GOOD_S."""
        for model_key, loaded in self.models.items():
            if loaded.stuck_s > STUCK_FOR_GOOD_S:
                raise RuntimeError(f"{model_key}: one call of its engine takes {loaded.stuck_s:.0f} s")
        if self._reconciler is not None and self._reconciler.done():
            raise RuntimeError("the task that loads models has ended") from self._reconciler.exception()

    async def get(self, model_key: str) -> LoadedModel:
        """A model, loaded first if need be: a router with an older catalog may ask for one just unloaded.

        Raises ModelNotFound or another EnginehouseError.
        """
        if model_key not in self.models:
            loading = self._loading.get(model_key)
            if loading is None:
                loading = self._loading[model_key] = asyncio.create_task(self._load(model_key))
                loading.add_done_callback(lambda _: self._loading.pop(model_key))
            # A caller that is cancelled must not cancel loading, which others may await.
            return await asyncio.shield(loading)
        return self.models[model_key]

    async def _load(self, model_key: str) -> LoadedModel:
        config = self._configs.get(model_key)
        if config is None or self._catalog.find(config.name) is None:
            # The settings in a key are no part of what users know.
            name, _, version = model_key.partition("+")[0].partition("@")
            raise ModelNotFound(name, version, tuple(model.id for model in self._catalog.models))
        self._report(model_key, "loading")
        notes: list[str] = []
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(
                None, self._engine, self._catalog.store, config, notes
            )
        except Exception as error:
            state: ModelState = "unavailable" if isinstance(error, ArtifactMissing) else "failed"
            self._report(model_key, state, f"{type(error).__name__}: {error}")
            self._retry_at[model_key] = time.monotonic() + RETRY_AFTER_S
            if isinstance(error, EnginehouseError):
                raise
            raise EngineUnavailable(self._name, f"{type(error).__name__}: {error}") from error
        # The present catalog: loading may have taken minutes.
        loaded.set_batching(self._configs.get(model_key, config))
        self.models[model_key] = loaded
        self.reports[model_key] = ModelReport(
            state="ready",
            reason="; ".join(notes),
            engine=loaded.kind,
            artifact=loaded.artifact.name,
            precision=loaded.engine.precision,
            measured=loaded.measured,
        )
        return loaded

    def _engine(self, url: str, config: ModelConfig, notes: list[str]) -> LoadedModel:
        def report_progress(note: str) -> None:
            # Building an engine here takes minutes; the last note stays in the report of the loaded model.
            notes[:] = [note]
            self._report(config.key, "loading", note)
            logger.info("%s: %s", config.id, note)

        store = Store(url)
        manifest = store.manifest(config.name, config.version).timed_for(int8_products())
        choice = choose_artifact(manifest, self._engines, config.numerics)
        if choice is None:
            reasons = "; ".join(_why_nothing(manifest, kind) for kind in self._engines)
            raise ArtifactMissing(config.id, f"nothing here for {self._name}: {reasons}")
        kind, artifact = choice
        bundle = store.open(config.name, config.version, [artifact.name])
        record = crashes.of_this_process()
        identity = crashes.engine_id(bundle.path, kind, artifact)
        if self._router and (crash := record.of(identity)):
            raise EngineUnavailable(self._name, f"{kind} with {artifact.name} {crash}; pools go on serving it")
        flag = record.flag(identity)
        with flag:
            # Only batches that will be made: warming up larger ones would take most of the start and keep the memory.
            rows = manifest.efficient_rows(kind, artifact.name)
            warm = config.max_batch_size or rows
            engine = load_engine(kind, bundle, artifact, threads=self._threads, warm_rows=warm, tell=report_progress)
            table = manifest.latency_of(kind, artifact.name)
            if table is not None and table.threads != self._threads and ACCELERATOR_OF[kind] == "cpu":
                rows = best_batch(engine, manifest, rows)
        # No table holds for an engine built here, or for int8 on another CPU kind: routers then rank by `measured`.
        measured = time_calls(engine, manifest) if table is None else []
        return LoadedModel(engine, kind, manifest, artifact, rows, measured, flag, is_shared=not self._router)

    def _report(self, model_key: str, state: ModelState, reason: str = "") -> None:
        self.reports[model_key] = ModelReport(
            state=state, reason=reason, engine="", artifact="", precision="", measured=[]
        )

    async def _reconcile(self) -> None:
        """Load and unload models as the catalog asks: when it changes, and once a second."""
        while True:
            # A catalog that comes while models are loaded below is not waited for.
            self._catalog_changed.clear()
            wanted = [model.key for model in self._catalog.models if self._wants(model)]
            for model_key in wanted:
                if model_key not in self.models and time.monotonic() >= self._retry_at.get(model_key, 0.0):
                    try:
                        await self.get(model_key)
                    except EnginehouseError as error:
                        logger.warning("%s cannot serve %s: %s", self._name, model_key, error)
            self._unload_all_but(set(wanted))
            # Not `wait_for`, which may swallow a cancellation that comes just when the event is set (Python 3.11).
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._catalog_changed.wait()

    def _unload_all_but(self, wanted: set[str]) -> None:
        """Unload unused versions that are not `wanted`, unless a wanted successor is not loaded yet."""
        awaited = {self._configs[model_key].name for model_key in wanted if model_key not in self.models}
        for model_key in [known for known in self.reports if known not in wanted]:
            loaded = self.models.get(model_key)
            if loaded is not None:
                idle_s = time.monotonic() - loaded.last_used
                if self._configs[model_key].name in awaited or idle_s < self._unload_after_s:
                    continue
                del self.models[model_key]
                # Engine and batch queue refer to each other: collect soon, or the memory waits for the next collection.
                asyncio.get_running_loop().call_later(1.0, gc.collect)
            del self.reports[model_key]


def _why_nothing(manifest: Manifest, kind: EngineKind) -> str:
    reasons = [
        f"{artifact.name} is {artifact.status}" + (f" ({artifact.reason})" if artifact.reason else "")
        for artifact in manifest.artifacts
        if artifact.format == FORMAT_OF[kind]
    ]
    return "; ".join(reasons) or f"the bundle has no {FORMAT_OF[kind]} artifact"
