"""The pool: one Serve deployment around one engine kind, whose replicas host many models.

Models arrive through `reconfigure`, which only records them: loading, retrying and unloading happen in a background
task beside it. Requests arrive through the replica's listener, whose address routers know by what the replica reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from enginehouse.contract.config import Catalog, PoolConfig
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.engines import allocator
from enginehouse.pools import nodes
from enginehouse.pools.autoscaling import BUSY, DEMAND
from enginehouse.pools.hosting import HostedModels
from enginehouse.transport.replica_end import Listener
from enginehouse.transport.router_end import Address

#: Seconds for calls under way when a replica is stopped; Serve kills it 20 s after the stop.
DRAIN_S = 10.0


class Pool:
    """Serve deployment: hosts every model of the catalog that its engine kind can run.

    `engines_per_node` is how many CPU engine replicas a node may come to hold; it sets the default threads.
    """

    def __init__(self, name: str, config: dict[str, Any], engines_per_node: int) -> None:
        allocator.keep_freed()
        allocator.collect_less()
        pool = PoolConfig.model_validate(config)
        threads = pool.threads or nodes.threads_per_engine(pool.num_cpus, engines_per_node)
        self._address: Address | None = None
        self._node = nodes.own_id()
        self._demand = (time.monotonic(), 0.0)
        self._hosted = HostedModels(
            name,
            (pool.engine,),
            threads,
            lambda model: pool.models is None or model.name in pool.models,
            pool.unload_after_s,
        )
        self._listener = Listener(
            name, self.infer, pool.max_ongoing_requests, self.infer_isolated, self._hosted.backlog_ms
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Record the catalog and return at once; loading goes on beside it."""
        if self._address is None:
            self._address = await self._listener.start(ray.util.get_node_ip_address())
        self._hosted.follow(Catalog.parse(user_config))

    def record_routing_stats(self) -> dict[str, Any]:
        """What every router gets to know of this replica; the controller pulls it about once a second."""
        return {"models": dict(self._hosted.reports), "address": self._address, "node": self._node}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """How busy this replica was since the last call, and what was asked for; the controller scales by it."""
        now, demand_s = time.monotonic(), self._listener.demand_ms / 1e3
        (then, before), self._demand = self._demand, (now, demand_s)
        return {BUSY: self._hosted.busy_share(), DEMAND: (demand_s - before) / max(now - then, 1e-3)}

    async def wake(self) -> None:
        """Does nothing: that somebody calls is what brings a pool without replicas up."""

    def check_health(self) -> None:
        """Fail, and so be replaced, when the task that loads models has died."""
        self._hosted.check_health()

    async def infer(self, model_key: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        """Run checked requests of `rows` rows in all.

        Raises ModelNotFound, DeadlineExceeded, EngineUnavailable, a BundleError, or InferenceFailed.
        """
        loaded = self._hosted.models.get(model_key) or await self._hosted.get(model_key)
        return await loaded.infer(requests, rows, budget_s)

    async def infer_isolated(
        self, model_key: str, requests: Sequence[Tensors], rows: int, budget_s: float, begun: Callable[[], None]
    ) -> Computed:
        """As `infer`, for a request that may have crashed a replica; see `LoadedModel.infer_isolated`."""
        loaded = self._hosted.models.get(model_key) or await self._hosted.get(model_key)
        return await loaded.infer_isolated(requests, rows, budget_s, begun)

    async def __del__(self) -> None:
        """Serve awaits this before it ends a replica that it no longer wants."""
        await self._listener.stop(DRAIN_S)
