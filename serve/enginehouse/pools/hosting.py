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

from enginehouse.contract.config import Catalog, ModelConfig
from enginehouse.contract.errors import (
    ArtifactMissing,
    DeadlineExceeded,
    EnginehouseError,
    EngineUnavailable,
    ModelNotFound,
)
from enginehouse.contract.manifest import ACCELERATOR_OF, EngineKind
from enginehouse.contract.shown import redacted
from enginehouse.counts import ledger
from enginehouse.counts.rows import Loads
from enginehouse.pools.batching import LoadedModel
from enginehouse.pools.cores import Cores
from enginehouse.pools.loading import LOAD_WITHIN_S, Loader
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
    `threads` threads. Models are loaded side by side, so that one that takes long holds up no other. A version that is
    no longer wanted is unloaded once any successor is loaded and it was unused for `unload_after_s` seconds, and its
    engine closed after the calls in flight. CPU engines share `threads` cores, whichever models are asked for. In a
    `router`'s process the router is the engines' only caller, and an engine that has crashed a process of this node is
    not loaded, nor kept. `name` is the pool's, for errors and logs.
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
        share_cores = not router and all(ACCELERATOR_OF[engine] == "cpu" for engine in engines)
        self._loader = Loader(name, engines, threads, router, Cores(threads) if share_cores else None)
        self._wants = wants
        self._unload_after_s = unload_after_s
        self._catalog = Catalog(store="")
        # By key: the models of the catalog, and earlier versions that are still loaded.
        self._configs: dict[str, ModelConfig] = {}
        self._retry_at: dict[str, float] = {}
        self._loading: dict[str, asyncio.Task[LoadedModel]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._busy = (time.monotonic(), 0.0)
        self._catalog_changed = asyncio.Event()
        self._reconciler: asyncio.Task[None] | None = None

    def follow(self, catalog: Catalog) -> None:
        """Record the catalog and return; a background task brings the loaded models in line with it."""
        self._catalog = catalog
        kept = {key: config for key, config in self._configs.items() if key in self.reports or key in self._loading}
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

    def loadable(self) -> int:
        """How many models of the catalog there is something to load for here, as far as is known."""
        wanted = [self.reports.get(model.key) for model in self._catalog.models if self._wants(model)]
        return sum(report is None or report["state"] != "unavailable" for report in wanted)

    def backlog_ms(self, model_key: str) -> float:
        """Predicted milliseconds until a model has computed all calls that it holds; 0 when it is not loaded."""
        loaded = self.models.get(model_key)
        return loaded.backlog_ms if loaded else 0.0

    def check_health(self) -> None:
        """Raise RuntimeError when the background task has ended or a stuck call has run STUCK_FOR_GOOD_S."""
        for model_key, loaded in self.models.items():
            if loaded.stuck_s > 0:
                loaded.free_cores()
            if loaded.stuck_s > STUCK_FOR_GOOD_S:
                raise RuntimeError(f"{model_key}: one call of its engine takes {loaded.stuck_s:.0f} s")
        if self._reconciler is not None and self._reconciler.done():
            raise RuntimeError("the task that loads models has ended") from self._reconciler.exception()

    async def get(self, model_key: str, budget_s: float = LOAD_WITHIN_S) -> LoadedModel:
        """A model, loaded first if need be: a router with an older catalog may ask for one just unloaded.

        Raises ModelNotFound, DeadlineExceeded after `budget_s` seconds, or another EnginehouseError.
        """
        if (loaded := self.models.get(model_key)) is not None:
            return loaded
        self._check_in_catalog(model_key)
        loading = self._start_loading(model_key)
        # Not `wait_for`: a caller that is cancelled or late must not cancel loading, which others may await.
        await asyncio.wait([loading], timeout=budget_s)
        if not loading.done():
            raise DeadlineExceeded(f"{self._name} was still loading {model_key} after {budget_s:.3f} s")
        return loading.result()

    def _start_loading(self, model_key: str) -> asyncio.Task[LoadedModel]:
        def ended(task: asyncio.Task[LoadedModel]) -> None:
            del self._loading[model_key]
            if not task.cancelled() and (error := task.exception()):
                logger.warning("%s cannot serve %s: %s", self._name, model_key, error)
            # What waits for this one, for instance to be unloaded.
            self._catalog_changed.set()

        if model_key not in self._loading:
            self._loading[model_key] = asyncio.create_task(self._load(model_key))
            self._loading[model_key].add_done_callback(ended)
        return self._loading[model_key]

    async def _load(self, model_key: str) -> LoadedModel:
        self._report(model_key, "loading")
        began = time.monotonic()
        notes: list[str] = []

        def report_progress(note: str) -> None:
            # Building an engine here takes minutes; the last note stays in the report of the loaded model.
            notes[:] = [note]
            self._report(model_key, "loading", note)
            logger.info("%s: %s", model_key, note)

        try:
            # The present catalog when its turn comes: others may be loaded before it, for minutes.
            loaded = await self._loader.load(
                model_key, lambda: (self._catalog.store, self._check_in_catalog(model_key)), report_progress
            )
        except ModelNotFound:
            # Removed while it waited for its turn.
            self.reports.pop(model_key, None)
            raise
        except Exception as error:
            state: ModelState = "unavailable" if isinstance(error, ArtifactMissing) else "failed"
            self._report(model_key, state, f"{type(error).__name__}: {error}")
            self._retry_at[model_key] = time.monotonic() + RETRY_AFTER_S
            if state == "failed":
                self._counts(model_key)[Loads.FAILED] += 1
            if isinstance(error, EnginehouseError):
                raise
            raise EngineUnavailable(self._name, f"{type(error).__name__}: {error}") from error
        # The present catalog: loading may have taken minutes.
        loaded.set_batching(self._configs[model_key])
        self.models[model_key] = loaded
        counts = self._counts(model_key)
        counts[Loads.LOADED] += 1
        counts[Loads.LOAD_NS] += int((time.monotonic() - began) * 1e9)
        self.reports[model_key] = ModelReport(
            state="ready",
            reason="; ".join(notes),
            engine=loaded.kind,
            artifact=loaded.artifact.name,
            precision=loaded.engine.precision,
            measured=loaded.measured,
            inputs_only=dict(loaded.engine.inputs_only),
            lanes=loaded.lanes,
            pads=loaded.pads,
        )
        return loaded

    def _check_in_catalog(self, model_key: str) -> ModelConfig:
        """Its settings. Raises ModelNotFound for what is not, and whose successor is not, in the catalog."""
        config = self._configs.get(model_key)
        if config is None or self._catalog.find(config.name) is None:
            # The settings in a key are no part of what users know.
            name, _, version = model_key.partition("+")[0].partition("@")
            raise ModelNotFound(name, version, tuple(model.id for model in self._catalog.models))
        return config

    def _report(self, model_key: str, state: ModelState, reason: str = "") -> None:
        self.reports[model_key] = ModelReport(
            state=state, reason=redacted(reason), engine="", artifact="", precision="", measured=[]
        )

    async def _reconcile(self) -> None:
        """Load and unload models as the catalog asks: when it changes, and once a second."""
        while True:
            self._catalog_changed.clear()
            for model_key in await self._loader.crashed(dict(self.models)):
                # Loading it again below says why it is not kept.
                self._unload(model_key)
                self._report(model_key, "loading")
            wanted = [model.key for model in self._catalog.models if self._wants(model)]
            for model_key in wanted:
                if model_key not in self.models and time.monotonic() >= self._retry_at.get(model_key, 0.0):
                    self._start_loading(model_key)
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
            if model_key in self._loading:
                # Unloaded once it is loaded: a thread cannot be stopped.
                continue
            if loaded is not None:
                idle_s = time.monotonic() - loaded.last_used
                if self._configs[model_key].name in awaited or idle_s < self._unload_after_s:
                    continue
                self._unload(model_key)
            del self.reports[model_key]

    def _counts(self, model_key: str) -> memoryview:
        # The settings in a key are no part of what is counted.
        name, _, version = model_key.partition("+")[0].partition("@")
        return ledger.here().row("loads", name, version, self._loader.counted_as)

    def _unload(self, model_key: str) -> None:
        self._counts(model_key)[Loads.UNLOADED] += 1
        task = asyncio.create_task(_close(model_key, self.models.pop(model_key)))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _close(model_key: str, loaded: LoadedModel) -> None:
    try:
        await loaded.close()
    except Exception:
        logger.exception("%s: its engine could not be closed", model_key)
    # Engine and batch queue refer to each other: collect soon, or what is left waits for the next collection.
    asyncio.get_running_loop().call_later(1.0, gc.collect)
