"""The pool: a Serve deployment of one engine kind, whose replicas each host many models.

The catalog arrives through `reconfigure`; a background task loads, retries and unloads models. Requests do not come
through Serve's handles but through a Listener, whose address every replica publishes in its routing stats.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from enginehouse.contract.config import Catalog, PoolConfig
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.counts import ledger, node
from enginehouse.engines import allocator
from enginehouse.pools import crashes, nodes
from enginehouse.pools.autoscaling import BUSY, DEMAND, MODELS
from enginehouse.pools.hosting import HostedModels
from enginehouse.transport.replica_end import Listener
from enginehouse.transport.router_end import Address

#: Seconds to drain calls in flight when a replica is stopped; Serve kills it 20 s after the stop.
DRAIN_S = 10.0


class Pool:
    """Serve deployment: hosts every model of the catalog that its engine kind can run.

    `config` is a PoolConfig as plain data. By default its replicas on a node share all cores of the node, whatever
    other pools are there: the policy sends nothing to an engine whose node has a faster one for the model. Deployments
    of the release before pass a third argument, which means nothing any more.
    """

    def __init__(self, name: str, config: dict[str, Any], *_: object) -> None:
        allocator.keep_freed()
        allocator.collect_less()
        pool = PoolConfig.model_validate(config)
        threads = pool.threads or nodes.threads_per_engine(pool.num_cpus, pool.max_replicas)
        self._address: Address | None = None
        self._node = nodes.own_id()
        # Before anything that counts.
        self._counts = ledger.begin(self._node)
        self._demand = (time.monotonic(), 0.0)
        self._hosted = HostedModels(
            name,
            (pool.engine,),
            threads,
            lambda model: pool.models is None or model.name in pool.models,
            pool.unload_after_s,
        )
        self._listener = Listener(
            name,
            self.infer,
            pool.max_ongoing_requests,
            self.infer_isolated,
            self._hosted.backlog_ms,
            self.infer_last,
            self._counted,
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve's hook for `user_config`, which is a Catalog: record it; a background task loads its models."""
        if self._address is None:
            self._address = await self._listener.start(ray.util.get_node_ip_address())
        self._hosted.follow(Catalog.parse(user_config))

    def record_routing_stats(self) -> dict[str, Any]:
        """Serve's hook for what a replica publishes to routers; the controller calls it about once a second."""
        return {
            "models": dict(self._hosted.reports),
            "address": self._address,
            "node": self._node,
            "everywhere": self._listener.is_everywhere,
            "record": crashes.path_here(),
        }

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's hook for autoscaling metrics: MODELS, and BUSY and DEMAND since the last call; see `autoscaling`."""
        now, demand_s = time.monotonic(), self._listener.demand_ms / 1e3
        (then, before), self._demand = self._demand, (now, demand_s)
        demand = (demand_s - before) / max(now - then, 1e-3)
        return {BUSY: self._hosted.busy_share(), DEMAND: demand, MODELS: float(self._hosted.loadable())}

    async def wake(self) -> None:
        """Does nothing: the queued call itself makes the autoscaling policy start a replica of a pool without any."""

    def check_health(self) -> None:
        """Serve's hook: raise, and so have this replica replaced, when it cannot recover by itself."""
        self._hosted.check_health()

    async def infer(self, model_key: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        """Compute requests that have passed the signature check; arguments and result are those of `LoadedModel.infer`.

        Loads the model if need be. Raises what `HostedModels.get` and `LoadedModel.infer` raise.
        """
        began = time.monotonic()
        loaded = self._hosted.models.get(model_key) or await self._hosted.get(model_key, budget_s)
        return await loaded.infer(requests, rows, budget_s - (time.monotonic() - began))

    async def infer_last(self, model_key: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        """As `infer`, after all others: see `LoadedModel.infer_last`."""
        began = time.monotonic()
        loaded = self._hosted.models.get(model_key) or await self._hosted.get(model_key, budget_s)
        return await loaded.infer_last(requests, rows, budget_s - (time.monotonic() - began))

    async def infer_isolated(
        self,
        model_key: str,
        requests: Sequence[Tensors],
        rows: int,
        budget_s: float,
        begun: Callable[[bool], None],
        company: bool,
    ) -> Computed:
        """As `infer`, for a request that may have crashed a replica: see `LoadedModel.infer_isolated`."""
        began = time.monotonic()
        loaded = self._hosted.models.get(model_key) or await self._hosted.get(model_key, budget_s)
        return await loaded.infer_isolated(requests, rows, budget_s - (time.monotonic() - began), begun, company)

    async def _counted(self) -> list[Any]:
        # In a thread, for the folder may be slow.
        return (await asyncio.to_thread(node.read, self._counts, self._node)).plain()

    async def __del__(self) -> None:
        """Drain: Serve awaits this before it stops a replica."""
        await self._listener.stop(DRAIN_S)
