"""Loading: makes warm engines of a process side by side, bounded in number and time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from enginehouse.contract.choice import choose_artifact
from enginehouse.contract.config import ModelConfig
from enginehouse.contract.errors import ArtifactMissing, BundleError, EngineUnavailable
from enginehouse.contract.manifest import ACCELERATOR_OF, Artifact, EngineKind, Manifest
from enginehouse.contract.numerics import rule_of, why_nothing
from enginehouse.contract.store import Store
from enginehouse.counts.engines import BatchCounts
from enginehouse.engines import best_batch, load_engine, time_calls
from enginehouse.engines.hardware import int8_products
from enginehouse.engines.padding import Padder
from enginehouse.engines.recheck import needs_recheck, pads_here
from enginehouse.pools import crashes, isolation
from enginehouse.pools.batching import LoadedModel
from enginehouse.pools.cores import Cores
from enginehouse.pools.engine_threads import step_back
from enginehouse.pools.splitting import split_of

logger = logging.getLogger("ray.serve")

#: Loads at once in one process. Each takes a core, or the network: more would only make each of them slower.
LOADS_AT_ONCE = 4
#: Seconds without a note of progress after which a load is given up, so that others get its place.
LOAD_WITHIN_S = 1800.0
#: As LOAD_WITHIN_S after such a note: TensorRT builds an engine, for two hours at most.
BUILD_WITHIN_S = 9000.0


class Loader:
    """Loads models on the first of `engines` that `choose_artifact` prefers, with `threads` threads each.

    `name` is that of what hosts them, for errors. A `router` does not load what has crashed a process of this node.
    Their calls share `cores`, if there are any. Outside of Serve (not `in_serve`) a model has one caller, whose calls
    are full: they wait in a queue only where several of them are computed at once, or padded.
    """

    def __init__(
        self,
        name: str,
        engines: Sequence[EngineKind],
        threads: int,
        router: bool,
        cores: Cores | None = None,
        in_serve: bool = True,
    ) -> None:
        self._name = name
        #: The pool under which it is counted.
        self.counted_as = "resident" if router else name
        self._engines = engines
        self._threads = threads
        self._router = router
        self._cores = cores
        self._in_serve = in_serve
        self._places = asyncio.Semaphore(LOADS_AT_ONCE)
        # A thread for every place, and for every load that was given up, which ends when it ends.
        self._pool = ThreadPoolExecutor(1024, thread_name_prefix="load", initializer=step_back(*engines))
        self._given_up: dict[str, Future[LoadedModel]] = {}

    async def load(
        self, model_key: str, wanted: Callable[[], tuple[str, ModelConfig]], report_progress: Callable[[str], None]
    ) -> LoadedModel:
        """Load a model when there is a place; `wanted`, asked then, gives the store and the settings.

        `report_progress` is called from a thread. Raises what `wanted` raises, EngineUnavailable when it takes too long
        or one that was given up still runs, and whatever an engine library raises.
        """
        if (before := self._given_up.get(model_key)) is not None:
            if not before.done():
                raise EngineUnavailable(self._name, f"an earlier load of {model_key} has not ended yet")
            del self._given_up[model_key]
        last_note: list[float] = []

        def note(text: str) -> None:
            last_note[:] = [time.monotonic()]
            report_progress(text)

        # Bounded, since each of those before it is.
        async with self._places:
            began = time.monotonic()
            future = self._pool.submit(self.load_now, *wanted(), note)
            loading = asyncio.wrap_future(future)
            until = began + LOAD_WITHIN_S
            while not loading.done() and time.monotonic() < until:
                # In the place of `wait_for`, which would cancel it and so lose an engine that comes late.
                await asyncio.wait([loading], timeout=until - time.monotonic())
                until = last_note[0] + BUILD_WITHIN_S if last_note else until
        if loading.done():
            return loading.result()
        self._given_up[model_key] = future
        loading.add_done_callback(_close_late)
        raise EngineUnavailable(self._name, f"{model_key} was not loaded within {time.monotonic() - began:.3g} s")

    async def crashed(self, models: Mapping[str, LoadedModel]) -> list[str]:
        """Those of `models` that a router must not keep: they have crashed a process of this node meanwhile."""
        if not self._router or not models:
            return []
        record = crashes.of_this_process()
        # In a thread, for the folder may be slow.
        with suppress(OSError):
            await asyncio.to_thread(record.collect)
        return [key for key, loaded in models.items() if record.of(loaded.identity)]

    def load_now(self, url: str, config: ModelConfig, note: Callable[[str], None]) -> LoadedModel:
        """Load a model of the store at `url` in this thread, however long that takes; see `load`.

        Raises ArtifactMissing only where there is nothing for these engines, and any other EnginehouseError.
        """
        store = Store(url)
        manifest = store.manifest(config.name, config.version, config.digest).timed_for(int8_products())
        numerics = rule_of(config, manifest)
        choice = choose_artifact(manifest, self._engines, numerics)
        if choice is None:
            reasons = "; ".join(why_nothing(manifest, kind, numerics) for kind in self._engines)
            raise ArtifactMissing(config.id, f"nothing here for {self._name}: {reasons}")
        try:
            return self._loaded(store, config, manifest, *choice, note)
        except ArtifactMissing as error:
            # There is something to load: that a file of it is gone is a failure.
            raise BundleError(str(error)) from None

    def _loaded(
        self,
        store: Store,
        config: ModelConfig,
        manifest: Manifest,
        kind: EngineKind,
        artifact: Artifact,
        note: Callable[[str], None],
    ) -> LoadedModel:
        bundle = store.open(config.name, config.version, [artifact.name], config.digest)
        record = crashes.of_this_process()
        identity = crashes.engine_id(bundle.path, kind, artifact)
        if self._router and (crash := record.of(identity)):
            raise EngineUnavailable(self._name, f"{kind} with {artifact.name} {crash}; pools go on serving it")
        flag = record.flag(identity)
        with isolation.of_this_process.loading(time.monotonic() + LOAD_WITHIN_S), flag:
            # Only batches that will be made: warming up larger ones would take most of the start and keep the memory.
            rows = manifest.efficient_rows(kind, artifact.name)
            warm = manifest.rows_of_a_call(kind, artifact.name, config.max_batch_size)
            engine = load_engine(kind, bundle, artifact, threads=self._threads, warm_rows=warm, tell=note)
            try:
                table = manifest.latency_of(kind, artifact.name)
                if table is not None and table.threads != self._threads and ACCELERATOR_OF[kind] == "cpu":
                    rows = best_batch(engine, bundle, rows)
                # No table holds for an engine built here, or for int8 on another CPU kind: routers rank by `measured`.
                measured = time_calls(engine, bundle) if table is None else []
                splits = split_of(kind, bundle, artifact, engine, warm, self._cores.count) if self._cores else None
                # A router's own engine answered fewer with it (benchmarks/README.md, "Requests of every length").
                padder = None if self._router else Padder.of(manifest, artifact, kind, table)
                if padder is not None and needs_recheck(kind, manifest, artifact):
                    is_alike = engine.inputs_only == artifact.bounds_on(kind)
                    padder = padder if is_alike and pads_here(kind, engine.infer, bundle, artifact) else None
            except BaseException:
                engine.close()
                raise
        loaded = LoadedModel(
            engine,
            kind,
            manifest,
            artifact,
            rows,
            measured,
            flag,
            is_shared=not self._router and (self._in_serve or splits is not None or padder is not None),
            cores=self._cores,
            splits=splits,
            padder=padder,
            in_serve=self._in_serve,
        )
        loaded.identity = identity
        loaded.engine_calls.counts = BatchCounts(config.name, config.version, self.counted_as)
        return loaded


def _close_late(loading: asyncio.Future[LoadedModel]) -> None:
    """Of a load that was given up nobody waits for the engine any more."""
    if not loading.cancelled() and loading.exception() is None:
        asyncio.get_running_loop().run_in_executor(None, loading.result().engine.close)
