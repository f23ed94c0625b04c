"""The pool: one Serve deployment around one engine kind, whose replicas host many models.

Models arrive through `reconfigure`, which only records them: a replica inside a slow reconfigure gets no traffic, so
loading, retrying and unloading happen in a background task beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray import serve

from enginehouse import availability, memory
from enginehouse.autoscaling import BUSY
from enginehouse.batching import Answer, LoadedModel
from enginehouse.config import Catalog, PoolConfig
from enginehouse.hosting import HostedModels
from enginehouse.tensors import Tensors


class Pool:
    """Serve deployment: hosts every model of the catalog that its engine kind can run.

    `engines_per_node` is how many CPU engine replicas a node may come to hold; it sets the default threads.
    """

    def __init__(self, name: str, config: dict[str, Any], engines_per_node: int) -> None:
        memory.keep_freed()
        pool = PoolConfig.model_validate(config)
        self._threads = pool.threads or availability.threads_per_engine(pool.num_cpus, engines_per_node)
        self._hosted = HostedModels(
            name,
            (pool.engine,),
            self._threads,
            lambda model: pool.models is None or model.name in pool.models,
            pool.unload_after_s,
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Record the catalog and return at once; loading goes on beside it."""
        self._hosted.follow(
            Catalog.parse(user_config), self.engine, lambda model_id: availability.unload(self, model_id)
        )

    def record_routing_stats(self) -> dict[str, Any]:
        """What every router gets to know of this replica; the controller pulls it about once a second."""
        return {"models": dict(self._hosted.reports), "threads": self._threads}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Share of the time since the last call that this replica computed; the controller scales by it."""
        return {BUSY: self._hosted.busy_share()}

    def check_health(self) -> None:
        """Fail, and so be replaced, when the task that loads models has died."""
        self._hosted.check_health()

    async def infer(self, requests: Sequence[Tensors], rows: int, budget_s: float) -> Answer:
        """Run checked requests of `rows` rows in all on the model that the call's multiplexed model id names.

        Raises ModelNotFound, DeadlineExceeded, EngineUnavailable, a BundleError, or InferenceFailed.
        """
        model_id = serve.get_multiplexed_model_id()
        loaded = self._hosted.models.get(model_id) or await self.engine(model_id)
        return await loaded.infer(requests, rows, budget_s)

    @serve.multiplexed(max_num_models_per_replica=-1)  # type: ignore[untyped-decorator]
    async def engine(self, model_id: str) -> LoadedModel:
        """Load a model and warm it up. Serve calls this once per id and tells every router where it is."""
        return await self._hosted.load(model_id)
