"""The whole application on one screen: an ingress bound to one pool per engine kind and hardware class.

    HTTP ──┐                                        ┌─ Pool tensorrt          gpu nodes
           ├─> Ingress: data plane: router ─────────┼─ Pool onnxruntime-cuda  gpu nodes
    handle ┘   admit, check, rank, fail over        ├─ Pool openvino-cpu      cpu nodes
                                                    └─ Pool onnxruntime-cpu   cpu nodes

The graph is fixed by `args`; the models come and go through `user_config`, which keeps every process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from starlette.types import Receive, Scope, Send

from enginehouse.contract.config import ACCELERATOR_LABEL, ROUTER, USUAL, AppConfig, Catalog, PoolConfig, missing_flags
from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.manifest import ACCELERATOR_OF, Precision
from enginehouse.counts import ledger
from enginehouse.engines import allocator
from enginehouse.faces.http import body, routes
from enginehouse.faces.http.transfer import Transfers
from enginehouse.pools import nodes
from enginehouse.pools.deployment import Pool
from enginehouse.pools.hosting import HostedModels
from enginehouse.routing import remote_versions, router
from enginehouse.routing.admission.callers import Callers
from enginehouse.routing.counting.gathering import Gathering
from enginehouse.routing.data_plane import DataPlane
from enginehouse.routing.hints import NO_HINTS, Hints
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import View
from enginehouse.routing.waking import Waker


@serve.ingress(routes.http)
class Ingress:
    """The deployment around the data plane: HTTP through `routes.http`, handle calls through its methods.

    Serve knows it as `Router`, the name that it has always had there.
    """

    def __init__(self, args: dict[str, Any], **handles: DeploymentHandle) -> None:
        allocator.keep_freed()
        allocator.collect_less()
        self.config = AppConfig.parse(args)
        node = nodes.own_id()
        # Before anything that counts.
        counts = ledger.begin(node)
        cpu_engines = [pool.engine for pool in self.config.pools.values() if ACCELERATOR_OF[pool.engine] == "cpu"]
        settings = self.config.router
        self.limits = body.Limits(
            settings.max_body_bytes,
            settings.max_json_bytes,
            # More of them are too many only where they are slow.
            arriving=Transfers(settings.max_ongoing_requests // 4),
            leaving=Transfers(settings.max_ongoing_requests, settings.max_ongoing_bytes // 4),
        )
        self.max_strings = settings.max_strings
        self._residents = HostedModels(
            "a router",
            cpu_engines,
            settings.threads or nodes.threads_per_engine(0, settings.num_replicas),
            lambda model: model.resident,
            unload_after_s=10,
            router=True,
        )
        pools = {name: handles[_keyword(name)] for name in self.config.pools}
        view = View(self.config.pools, self._residents, node)
        waker = Waker(pools)
        self.versions = LiveVersions(view, waker.wake)
        self._served: Catalog | None = None
        self.plane = DataPlane(
            router.Router(self.config, self.versions, view, pools, self._residents, waker=waker),
            self.versions,
            settings.max_ongoing_requests,
            settings.max_ongoing_bytes,
            Callers(settings.num_replicas),
        )
        self.counts = Gathering(counts, node, list(self.config.pools))

    async def enginehouse_infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: an inference request, handed over by shortcut.py."""
        await routes.answer(self, scope, receive, send)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new catalog; returns at once."""
        catalog = Catalog.parse(user_config)
        # First: what is new may not be for everybody.
        self.plane.callers.follow(catalog.callers)
        self.counts.begin()
        if (served := catalog.with_callers(None)) == self._served:
            return
        self._served = served
        self.versions.apply(served)
        self._residents.follow(served)

    def check_health(self) -> None:
        """Fail, and so be replaced, when the catalog is no longer followed."""
        self.versions.check_health()
        self._residents.check_health()

    async def infer(
        self,
        model: str,
        inputs: dict[str, np.ndarray],
        version: str | None = None,
        deadline_s: float | None = None,
        backend: str | None = None,
        priority: int = USUAL,
        min_precision: Precision = "int8",
        **others: Any,
    ) -> dict[str, np.ndarray]:
        """Outputs by name, for callers that have only Ray and numpy.

        Raises ValueError (the request is wrong), LookupError (no such model), TimeoutError (deadline) or RuntimeError,
        each with the text `Class: message`: a class of ours could not be unpickled where this package is missing.
        """
        try:
            with self.plane.refusals("handle", model, version):
                known = {"deadline_s": deadline_s, "priority": priority, "backend": backend}
                hints = Hints.named(known | {"min_precision": min_precision} | others)
            answer = await self.plane.infer("handle", model, inputs, hints, version)
        except EnginehouseError as error:
            raise _builtin(error) from None
        return answer.outputs

    async def answer(
        self, model: str, inputs: dict[str, np.ndarray], hints: Hints = NO_HINTS, version: str | None = None
    ) -> dict[str, Any]:
        """As `infer` with who answered, for callers that have this package: they get its own errors."""
        answer = await self.plane.infer("handle", model, inputs, hints, version)
        return {"outputs": answer.outputs, **answer.origin()}

    async def explain(
        self, model: str, rows: int, size: int | None, hints: Hints, version: str | None = None
    ) -> dict[str, Any]:
        """How a request would be routed now, as plain data; see `Router.explain`."""
        return self.plane.explain(model, rows, size, hints, version).document()

    async def status(self) -> dict[str, Any]:
        """Models, versions, backends, why a backend is not live, and flags that this process was started without."""
        facts = {"missing_flags": missing_flags(), "callers": self.plane.callers.tag}
        return {**self.versions.status(self.plane.answers), **facts}

    async def drain(self, refuse: bool) -> int:
        """For `enginehouse serve`, which ends: see `DataPlane.drain`."""
        return self.plane.drain(refuse)

    async def counted(self, known: list[str]) -> list[Any]:
        """For another router: what this one knows to be counted, anew on its own node unless that is `known`."""
        return await self.counts.told(known)

    async def learn(self, counts: list[Any]) -> None:
        """For routers in other processes: take what one has counted."""
        self.counts.learn(counts)

    async def served(self, tag: str) -> dict[str, Any]:
        """For routers in other processes: what this one answers for, once that is not what `tag` stands for."""
        return await remote_versions.publish(self.config, lambda: self.versions.answering, tag)


#: For one release: the name by which live deployments of the release before start their routers.
Router = Ingress


def _builtin(error: EnginehouseError) -> Exception:
    text = f"{type(error).__name__}: {error}"
    if error.status == 404:
        return LookupError(text)
    if error.status == 504:
        return TimeoutError(text)
    if error.retryable:
        return RuntimeError(f"{text} (retryable)")
    return ValueError(text) if error.status < 500 else RuntimeError(text)


def build(args: dict[str, Any]) -> serve.Application:
    """The application from its `args` (see AppConfig). Raises ConfigError."""
    config = AppConfig.parse(args)
    pools = {
        _keyword(name): serve.deployment(Pool)
        .options(**pool_options(name, pool))
        .bind(name, pool.model_dump(mode="json"))
        for name, pool in config.pools.items()
    }
    ingress = serve.deployment(Ingress).options(
        name=ROUTER,
        num_replicas=config.router.num_replicas,
        max_ongoing_requests=config.router.max_ongoing_requests,
        ray_actor_options={"num_cpus": config.router.num_cpus},
        health_check_period_s=2,
        health_check_timeout_s=5,
    )
    return ingress.bind(args, **pools)


def pool_options(name: str, pool: PoolConfig) -> dict[str, Any]:
    """Serve deployment options of one pool: placement by label, replicas by hardware and load, health."""
    return {
        "name": name,
        "max_ongoing_requests": pool.max_ongoing_requests,
        "autoscaling_config": AutoscalingConfig(
            # The policy decides; zero is what it needs while the hardware is absent.
            min_replicas=0,
            max_replicas=pool.max_replicas,
            upscale_delay_s=pool.upscale_delay_s,
            downscale_delay_s=pool.downscale_delay_s,
            # At once when the hardware is gone.
            downscale_to_zero_delay_s=0 if pool.min_replicas else pool.downscale_delay_s,
            # Demand is reported to the controller only to be decided upon.
            metrics_interval_s=1 if pool.min_replicas < pool.max_replicas else 10,
            look_back_period_s=5 if pool.min_replicas < pool.max_replicas else 30,
            policy=AutoscalingPolicy(
                policy_function="enginehouse.pools.autoscaling:HardwareAndLoad",
                policy_kwargs={
                    "nodes": list(pool.nodes),
                    "min_replicas": pool.min_replicas,
                    "max_replicas": pool.max_replicas,
                    "target_busy": pool.target_busy,
                    "starts_nodes": pool.starts_nodes,
                },
            ),
        ),
        "ray_actor_options": {
            "num_cpus": pool.num_cpus,
            "num_gpus": pool.num_gpus,
            "label_selector": {ACCELERATOR_LABEL: _selector(pool)},
        },
        "request_router_config": RequestRouterConfig(
            request_router_class="enginehouse.routing.ray_private:LiveReplicas",
            request_routing_stats_period_s=1,
            request_routing_stats_timeout_s=5,
        ),
        "health_check_period_s": 2,
        "health_check_timeout_s": 5,
        # 0 would stop the old replica first, which is downtime.
        "max_surge_percent": 100,
    }


def _selector(pool: PoolConfig) -> str:
    return pool.nodes[0] if len(pool.nodes) == 1 else f"in({','.join(pool.nodes)})"


def _keyword(pool: str) -> str:
    # Serve names nested deployments by init argument; keywords cannot hold every character of a pool's name.
    return f"pool_{pool.replace('-', '_')}"
