"""Answering by an engine in the scorer's own process: loaded, verified and called as in a pool of serving."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass

from enginehouse.contract.bounds import Values, described
from enginehouse.contract.config import ModelConfig
from enginehouse.contract.elements import NUMBER_BYTES
from enginehouse.contract.errors import CapacityError, EngineError, EnginehouseError, EngineUnavailable, InvalidInput
from enginehouse.contract.manifest import ACCELERATOR_OF, EngineKind, Manifest
from enginehouse.contract.store import Store
from enginehouse.contract.tensors import Computed, Tensors, nbytes
from enginehouse.engines import allocator
from enginehouse.faces.scoring.answering import Answered, ScorerPool
from enginehouse.faces.scoring.ways.engine_pools import EnginePool, Plan
from enginehouse.pools.batching import LoadedModel
from enginehouse.pools.cores import Cores
from enginehouse.pools.hosting import STUCK_FOR_GOOD_S
from enginehouse.pools.loading import BUILD_WITHIN_S, LOAD_WITHIN_S, Loader

logger = logging.getLogger(__name__)

#: A call is made of so many full batches that computing it takes about so long, which makes what a call costs besides
#: nothing, in at most so many bytes of inputs.
CALL_MS, CALL_BYTES = 25.0, 32 << 20
#: Calls at a time for each call that is computed: one more is ready when it ends. Of several lengths some find company.
CALLS, CALLS_TO_PAD = 2, 16
#: Seconds for one call with its waits, which end before only for an engine that is stuck, looked for so often.
WITHIN_S, LOOK_S = 24 * 3600.0, 5.0
#: Tries of a call that may pass another time, and seconds between them.
TRIES, PAUSE_S = 3, 1.0


@dataclass(frozen=True, slots=True)
class OwnEngineOf:
    """Makes an `OwnEngine` when called, in the process of a scorer of `pool`; picklable."""

    store: str
    config: ModelConfig
    pool: EnginePool

    def __call__(self) -> OwnEngine:
        return OwnEngine(self)


def scorer_pools(
    store: str, config: ModelConfig, plan: Plan, least: int = 1, most: int | None = None
) -> list[ScorerPool]:
    """The pools of a plan as the job runs them: `least` to `most` scorers each, as far as their nodes have room."""
    return [
        ScorerPool(
            name=pool.name,
            answering=OwnEngineOf(store, config, pool),
            least=min(least, pool.most if most is None else min(most, pool.most)),
            most=pool.most if most is None else min(most, pool.most),
            actor_options=pool.actor_options(),
            load_s=BUILD_WITHIN_S if "tensorrt" in pool.kinds[:1] else LOAD_WITHIN_S,
        )
        for pool in plan.pools
    ]


class OwnEngine:
    """`Answering` by the engine of a pool. Loading it takes seconds, and minutes where TensorRT builds one.

    Rows whose values its artifact is not right for are answered by the next of the pool's kinds that is, as the router
    would have it: that one is loaded when the first such rows come. Raises what `Loader.load_now` raises.
    """

    def __init__(self, made: OwnEngineOf) -> None:
        allocator.keep_freed()
        allocator.collect_less()
        self._made = made
        self._cores = Cores(made.pool.threads)
        self._manifest = Store(made.store).manifest(made.config.name, made.config.version, made.config.digest)
        self._signature = self._manifest.request_signature()
        self._loading = asyncio.Lock()
        self._loaded: dict[EngineKind, LoadedModel | EnginehouseError] = {}
        self._engine = self._load(made.pool.kinds[0])
        self._batch_rows = _call_rows(self._manifest, self._engine)

    @property
    def batch_rows(self) -> int:
        """Rows of some full batches: see CALL_MS."""
        return self._batch_rows

    @property
    def in_flight(self) -> int:
        """Enough that one waits whenever a call ends."""
        return CALLS_TO_PAD if self._engine.pads else CALLS * self._engine.lanes

    @property
    def busy_s(self) -> float:
        """Seconds of computing so far; a call that has a share of the cores counts for that share."""
        return sum(loaded.busy_s for loaded in self._loaded.values() if isinstance(loaded, LoadedModel))

    async def answer(self, inputs: Tensors) -> Answered:
        """See `Answering.answer`.

        Raises InvalidInput for values that no engine is right for, and EngineUnavailable when the engine is stuck for
        good: this process has then to be replaced.
        """
        rows = self._signature.check(inputs)
        kind, loaded = await self._right_for(inputs)
        for attempt in range(1, TRIES + 1):
            try:
                outputs, _ = await _watched(loaded, inputs, rows)
                break
            except CapacityError:
                if attempt == TRIES:
                    raise
                await asyncio.sleep(PAUSE_S)
        name = self._made.pool.name if loaded is self._engine else kind
        return Answered(outputs, name, self._made.config.version)

    def close(self) -> None:
        """Release the engines."""
        for loaded in self._loaded.values():
            if isinstance(loaded, LoadedModel):
                loaded.close_engines()

    async def _right_for(self, inputs: Tensors) -> tuple[EngineKind, LoadedModel]:
        """The first engine that is right for all values in `inputs`."""
        values, reasons = Values(inputs), []
        for kind in self._made.pool.kinds:
            loaded = await self._get(kind)
            if isinstance(loaded, EnginehouseError):
                reasons.append(str(loaded))
                continue
            bounds = loaded.engine.inputs_only
            if not bounds:
                return kind, loaded
            # Looking at many takes long, and numpy lets others compute meanwhile.
            is_large = nbytes(inputs) > NUMBER_BYTES
            value = await asyncio.to_thread(values.beyond, bounds) if is_large else values.beyond(bounds)
            if not value:
                return kind, loaded
            reasons.append(f"{loaded.artifact.name} answers {described(bounds)} only, and {values.place(bounds)}")
        raise InvalidInput(f"nothing of {self._made.config.id} is right for it: {'; '.join(reasons)}")

    async def _get(self, kind: EngineKind) -> LoadedModel | EnginehouseError:
        """The engine of this kind, loaded if need be; the error for one that cannot be. Raises what may pass."""
        async with self._loading:
            if kind not in self._loaded:
                try:
                    return await asyncio.to_thread(self._load, kind)
                except EnginehouseError as error:
                    if error.retryable and not isinstance(error, EngineError):
                        raise
                    self._loaded[kind] = error
        return self._loaded[kind]

    def _load(self, kind: EngineKind) -> LoadedModel:
        pool, config = self._made.pool, self._made.config
        cores = self._cores if ACCELERATOR_OF[kind] == "cpu" else None
        loader = Loader(pool.name, (kind,), pool.threads, router=False, cores=cores, in_serve=False)
        began = time.monotonic()
        loaded = loader.load_now(self._made.store, config, lambda note: logger.warning("%s: %s", config.id, note))
        loaded.set_batching(config)
        self._loaded[kind] = loaded
        logger.info("%s of %s loaded in %.1f s", loaded.artifact.name, config.id, time.monotonic() - began)
        return loaded


async def _watched(loaded: LoadedModel, inputs: Tensors, rows: int) -> Computed:
    """The answer of an engine, which may take as long as it likes unless it is stuck."""
    while loaded.stuck_s > 0:
        _check_stuck(loaded)
        await asyncio.sleep(PAUSE_S)
    call = asyncio.create_task(loaded.infer([inputs], rows, WITHIN_S))
    try:
        while not call.done():
            await asyncio.wait([call], timeout=LOOK_S)
            if not call.done():
                _check_stuck(loaded)
        return call.result()
    finally:
        call.cancel()


def _check_stuck(loaded: LoadedModel) -> None:
    if (stuck_s := loaded.stuck_s) > STUCK_FOR_GOOD_S:
        raise EngineUnavailable(loaded.kind, f"one call takes {stuck_s:.0f} s")


def _call_rows(manifest: Manifest, loaded: LoadedModel) -> int:
    """Rows of one call: full batches that take about CALL_MS together, within CALL_BYTES."""
    if not loaded.engine.signature.batched:
        return 1
    rows, table = loaded.max_rows, manifest.latency_of(loaded.kind, loaded.artifact.name)
    size = manifest.axes[0].opt if manifest.axes else None
    batch_ms = table.predict_ms(rows, size) if table else loaded.measured[-1][1]
    row_bytes = max(1, nbytes(manifest.example(1)))
    batches = min(math.ceil(CALL_MS / max(batch_ms, 1e-3)), CALL_BYTES // (row_bytes * rows))
    return rows * max(1, batches)
