"""Every serving knob, in one typed place, checked before anything starts.

Two halves, because Ray Serve treats them differently:

- `AppConfig` (pools, router) is the fixed graph. It travels as the application's `args`; changing it restarts the
  whole application.
- `Catalog` (store, models) is what is served. It travels as `user_config` to every deployment; changing it keeps every
  process and every request.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from enginehouse.contract.config.access import CallerConfig
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.manifest import ACCELERATOR_OF, Accelerator, EngineKind, NumericsRule

APP_NAME = "enginehouse"
ROUTER = "Router"
#: Priorities of requests: as in Triton, a lower number is served before a higher one. The last one is for jobs: it has
#: what all others leave of the engines.
FIRST, USUAL, LAST = 1, 5, 9
#: Node label that says what a node has; set from a hardware probe for a local start, by cluster.yaml on clusters.
ACCELERATOR_LABEL = "enginehouse.io/accelerator"

#: What every Ray node and every driver needs in its environment *before* Ray is imported or started.
#: HAProxy takes HTTP off Python; without the raised gRPC limit, handle calls over 4 MiB fail (Ray Serve 2.60).
SERVING_ENV = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # The line above turns it off. Workers of users inherit that too: a handle call from a task or a sync actor, which
    # have no event loop, would fail. Our own requests use no handles.
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "2147483647",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # The short way through a router, and no log line of every request for Python to count: routers count themselves.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "enginehouse.shortcut:middlewares",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
}
#: What Serve is told of gRPC beside its port.
GRPC_OPTIONS = {"grpc_servicer_functions": ["enginehouse.faces.grpc.serving:add_to_server"], "enable_reflection": True}
#: Variable with the seconds between two rounds of Serve's controller while nothing is asked for and nothing changes;
#: without it they are as frequent as always.
ROUNDS_AT_REST = "ENGINEHOUSE_SECONDS_BETWEEN_ROUNDS_AT_REST"


def missing_flags(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What of `SERVING_ENV` is not in a process's environment, as `NAME=value`."""
    return [f"{name}={value}" for name, value in SERVING_ENV.items() if environment.get(name) != value]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolConfig(_Config):
    """One Serve deployment: one engine kind on one class of nodes, hosting many models.

    `nodes` are the values of the accelerator label that replicas accept; by default the engine's own accelerator.
    `num_cpus` and `num_gpus` are for placement only; `threads` are the cores that the models of a CPU replica
    share (default: the node's physical cores over the replicas of this pool that it can hold).
    With the hardware in the cluster there are `min_replicas` to `max_replicas`, as many as compute for `target_busy` of
    the time, after the delays; a pool with none at least is woken by the first request that wants it. Without the
    hardware there is none.
    `models` reserves the pool for the models named. `price` is what a second of a replica costs beside those of other
    pools: a request that states a deadline is answered by the cheapest backend that makes it. `starts_nodes` has Ray's
    cluster autoscaler start a node with the hardware when the pool is wanted and none lives.
    """

    engine: EngineKind
    nodes: tuple[Accelerator, ...] = ()
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=0.5, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    target_busy: float = Field(default=0.8, gt=0, le=1)
    upscale_delay_s: float = Field(default=1, ge=0)
    max_ongoing_requests: int = Field(default=256, ge=1)
    downscale_delay_s: float = Field(default=120, ge=0)
    unload_after_s: float = Field(default=10, ge=0)
    models: tuple[str, ...] | None = None
    price: float = Field(default=1.0, gt=0)
    starts_nodes: bool = False

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_engine(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("engine") in ACCELERATOR_OF:
            accelerator: Accelerator = ACCELERATOR_OF[values["engine"]]
            # Two pools share one GPU by default: TensorRT and ONNX Runtime.
            return {"nodes": (accelerator,), "num_gpus": 0.5 if accelerator == "gpu" else 0.0} | values
        return values

    @model_validator(mode="after")
    def _bounds(self) -> PoolConfig:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


class RouterConfig(_Config):
    """The ingress: replicas of the Router, and the bounds it puts on requests.

    Two, because Serve takes one out of rotation for ~0.1 s when its catalog changes, and a killed one for seconds.
    More requests, or bytes of inputs, than `max_ongoing_*` are refused. `max_json_bytes` and `max_strings` are for one
    HTTP request: a router does nothing else while it parses JSON, 4 ms per MiB of usual numbers (see
    `faces.oip.document`), and each string is a Python object, once or twice. `threads` is what a resident engine
    computes with (default: the node's physical cores over the routers).
    """

    num_replicas: int = Field(default=2, ge=1)
    num_cpus: float = Field(default=0.1, ge=0)
    max_ongoing_requests: int = Field(default=1024, ge=1)
    max_ongoing_bytes: int = Field(default=1 << 30, ge=1)
    default_deadline_s: float = Field(default=30, gt=0)
    max_body_bytes: int = Field(default=256 << 20, ge=1)
    max_json_bytes: int = Field(default=4 << 20, ge=1)
    max_strings: int = Field(default=1 << 17, ge=1)
    threads: int | None = Field(default=None, ge=1)


def _default_pools() -> dict[str, PoolConfig]:
    kinds: tuple[EngineKind, ...] = ("tensorrt", "onnxruntime-cuda", "openvino-cpu", "onnxruntime-cpu")
    return {kind: PoolConfig(engine=kind) for kind in kinds}


class AppConfig(_Config):
    """The fixed graph: one Router bound to these pools, by name."""

    pools: dict[str, PoolConfig] = Field(default_factory=_default_pools)
    router: RouterConfig = RouterConfig()

    @model_validator(mode="after")
    def _names(self) -> AppConfig:
        if not self.pools:
            raise ValueError("at least one pool is needed")
        if ROUTER in self.pools:
            raise ValueError(f"{ROUTER!r} is the router's own name; call the pool something else")
        return self

    @classmethod
    def parse(cls, values: Any) -> AppConfig:
        """Validate the application's `args`. Raises ConfigError naming the field."""
        return _parse(cls, values, "args")


class ModelConfig(_Config):
    """One model to serve. `numerics` says which artifacts may answer, and batching how: None is what the manifest says.

    A `resident` model is also loaded into every router, on its fastest CPU engine: requests that it is the best choice
    for save the hop to a pool. A crash of that engine takes a router with it.
    `digest` is `Store.digest` of the bundle that is meant: one that was rewritten since is not loaded in its place.
    Without it, whatever is there is. One that is `forced` takes over from the version before it with the engines that
    live, also where others fail to load it that have that one; it is no setting, and not kept.
    """

    name: str
    version: str
    numerics: NumericsRule | None = None
    max_batch_size: int | None = Field(default=None, ge=1)
    batch_wait_ms: float = Field(default=0, ge=0, le=10_000)
    resident: bool = False
    digest: str = ""
    forced: bool = False

    @property
    def id(self) -> str:
        """`name@version`: what users see."""
        return f"{self.name}@{self.version}"

    @property
    def key(self) -> str:
        """What is loaded: `id`, its `digest`, and one of numerics and batch size where they are not the defaults.

        Everything that a process keeps of a model is kept by this, so that one version with other settings is another
        one. Settings that change no engine (`batch_wait_ms`, `resident`) are not part of it.
        """
        digests = self.digest, _settings_digest(self.numerics, self.max_batch_size)
        return "+".join([self.id, *filter(None, digests)])

    def settings(self) -> dict[str, Any]:
        """What is not the default of it, besides name and version, as plain data."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"name", "version", "digest", "forced"})


class Catalog(_Config):
    """What is served: bundles of one store. The `user_config` of every deployment.

    `callers` are those who may ask routers over HTTP and gRPC; None: whoever reaches them.
    """

    store: str
    models: tuple[ModelConfig, ...] = ()
    callers: tuple[CallerConfig, ...] | None = None

    @model_validator(mode="after")
    def _one_version_each(self) -> Catalog:
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"model {name!r} is listed twice; a model has one version at a time")
        return self

    @classmethod
    def parse(cls, values: Any) -> Catalog:
        """Validate a `user_config`. Raises ConfigError naming the field."""
        return _parse(cls, values, "user_config")

    def find(self, name: str, version: str | None = None) -> ModelConfig | None:
        """The entry for `name`, of that version if one is given, if there is one."""
        return next((model for model in self.models if model.name == name and version in (None, model.version)), None)

    def with_model(self, model: ModelConfig) -> Catalog:
        """A copy with `model` added, or put in place of the entry of that name."""
        return self.with_models(*(other for other in self.models if other.name != model.name), model)

    def without(self, name: str) -> Catalog:
        """A copy without the model called `name`."""
        return self.with_models(*(model for model in self.models if model.name != name))

    def with_models(self, *models: ModelConfig) -> Catalog:
        """A copy with these models."""
        return Catalog(store=self.store, models=models, callers=self.callers)

    def with_callers(self, callers: tuple[CallerConfig, ...] | None) -> Catalog:
        """A copy with these callers."""
        return Catalog(store=self.store, models=self.models, callers=callers)

    def user_config(self, deployment: str) -> dict[str, Any]:
        """What of it a deployment is told, as plain data: pools need not know who asks, and go on when that changes."""
        left_out = None if deployment == ROUTER else {"callers"}
        return self.model_dump(mode="json", exclude_defaults=True, exclude=left_out)


def serve_config(
    app: AppConfig, catalog: Catalog, host: str = "127.0.0.1", port: int = 8000, grpc_port: int = 0
) -> dict[str, Any]:
    """The Ray Serve config file (`serve deploy`) for this application, as plain data; gRPC needs a port."""
    args = app.model_dump(mode="json", exclude_defaults=True)
    for name, pool in app.pools.items():
        if ACCELERATOR_OF[pool.engine] == "gpu" and not pool.num_gpus:
            # The default of the field, but not of an engine on a GPU.
            args["pools"][name]["num_gpus"] = 0.0
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        **({"grpc_options": {"port": grpc_port, **GRPC_OPTIONS}} if grpc_port else {}),
        "logging_config": {"enable_access_log": False},
        "applications": [
            {
                "name": APP_NAME,
                "route_prefix": "/",
                "import_path": "enginehouse.app:build",
                "args": args,
                "deployments": [
                    {"name": name, "user_config": catalog.user_config(name)} for name in (ROUTER, *app.pools)
                ],
            }
        ],
    }


@functools.lru_cache(maxsize=1024)
def _settings_digest(*settings: object) -> str:
    """Empty for the defaults of `ModelConfig`."""
    fields = ModelConfig.model_fields
    if settings == (fields["numerics"].default, fields["max_batch_size"].default):
        return ""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


_C = TypeVar("_C", bound=_Config)


def _parse(cls: type[_C], values: Any, what: str) -> _C:
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([what, *(str(part) for part in first["loc"])])
        # What was written where a hash belongs may be a token.
        given = f" (given: {first['input']!r})" if "input" in first and "callers" not in first["loc"] else ""
        raise ConfigError(f"{where}: {first['msg']}{given}") from None
