"""Changes what a running cluster serves, and leaves other Serve applications as they are.

Serve's declarative deploy deletes every declarative application that the new config omits. So a change reads the live
config, replaces our application and writes everything back. One named actor per cluster runs changes one after the
other, so that of two at the same time neither is lost.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.serve.handle import DeploymentHandle

from enginehouse.cluster import moves, ray_private, tokens
from enginehouse.cluster.ray_private import Applications
from enginehouse.contract.config import APP_NAME, ROUTER, AppConfig, Catalog, ModelConfig, serve_config
from enginehouse.contract.config.access import CallerConfig
from enginehouse.contract.errors import ConfigError, NoBackend

Change = Callable[[Applications], Applications]

_NAMESPACE = "enginehouse"
_TRIES = 10
#: Seconds for one exchange with Serve's controller, for a change, which waits for others', and for Serve to start.
ASK_S, CHANGE_S, START_S = 30.0, 90.0, 180.0

_T = TypeVar("_T")


class _Writer:
    """The cluster's only writer of Serve's config: as an actor it runs one `apply` at a time."""

    def apply(self, change: Change) -> None:
        # Each within a bound: one that hung would hold up the changes of everybody for ever.
        live = _within(ASK_S, ray_private.live_applications)
        wanted = change(live)
        if wanted != live:
            _within(ASK_S, functools.partial(ray_private.put_applications, wanted))


def apply(change: Change) -> None:
    """Run `change` on the live applications, in the writer, and deploy the result; it must be idempotent and picklable.

    Raises what `change` raises, and NoBackend when the cluster does not answer. It may run twice: the writer ends with
    the job that started it, and another repeats it.
    """
    writer = ray.remote(_Writer).options(
        name="writer", namespace=_NAMESPACE, get_if_exists=True, num_cpus=0, max_restarts=0
    )
    for attempt in range(_TRIES):
        try:
            # In a variable, since the actor ends with its last handle.
            actor = writer.remote()
            ray.get(actor.apply.remote(change), timeout=CHANGE_S)
            return
        except GetTimeoutError:
            raise NoBackend(
                f"the change was not made within {CHANGE_S:g} s; it may still be (`enginehouse status`)"
            ) from None
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError:
            # The actor belonged to a job that has ended; the next one belongs to this job.
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.2 * (attempt + 1))


def deploy(app: AppConfig, catalog: Catalog, host: str, port: int, force: bool = False, grpc_port: int = 0) -> None:
    """Start Serve if it is not running, and deploy or replace our application.

    `host` and `port` are for Serve's HTTP, `grpc_port` for gRPC, 0 for none; they take effect only when it is started
    here. Raises ConfigError when a model may not be set as the catalog says (`moves.check_settings`), when Serve does
    not start, or, without `force`, when the clients of a version that is served now could not go on. With it, versions
    take over with what lives.
    """
    if force:
        catalog = catalog.with_models(*(model.model_copy(update={"forced": True}) for model in catalog.models))
    for model in catalog.models:
        if model.numerics or model.max_batch_size:
            moves.check_settings(catalog.store, model)
    if not force and (before := deployed_catalog()):
        for model in catalog.models:
            moves.check_signature(before, catalog.store, model)
    config = serve_config(app, catalog, host, port, grpc_port)
    start = functools.partial(
        serve.start,
        proxy_location=config["proxy_location"],
        http_options=config["http_options"],
        grpc_options=config.get("grpc_options"),
        logging_config=config["logging_config"],
    )
    try:
        _within(START_S, start)
    except RayError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        # HAProxy says which port it is before it says that it gives up.
        why = next((line for line in lines if "cannot bind" in line), lines[-1] if lines else type(error).__name__)
        raise ConfigError(f"Serve does not start: {why.strip()}") from error
    (application,) = config["applications"]
    apply(functools.partial(_put, application | {"logging_config": config["logging_config"]}))


def grpc_port() -> int:
    """The port of Serve's gRPC on this cluster, 0 for none."""
    return _within(ASK_S, ray_private.grpc_port)


def http_host() -> str | None:
    """Host of Serve's HTTP on this cluster; None while Serve does not run."""
    return _within(ASK_S, ray_private.http_host)


def http_address() -> tuple[str, int]:
    """Host and port of Serve's HTTP on this cluster."""
    options = _within(ASK_S, ray_private.http_options)
    return str(options["host"]), int(options["port"])


def add_model(model: ModelConfig, force: bool = False) -> None:
    """Serve `model`, or change its version or settings; no process restarts.

    Raises ConfigError when nothing is deployed, when it may not be set so (`moves.check_settings`), or, without
    `force`, when the clients of the version that is served now could not go on.
    """
    before = live_catalog()
    model = moves.pinned(before.store, model)
    moves.check_settings(before.store, model)
    if not force:
        moves.check_signature(before, before.store, model)
    apply(functools.partial(_change_catalog, functools.partial(_with_model, model, before.find(model.name), force)))


def remove_model(name: str) -> None:
    """Stop serving `name`. Raises ConfigError when it is not served."""
    catalog = live_catalog()
    if catalog.find(name) is None:
        raise ConfigError(f"model {name!r} is not served; served: {', '.join(m.id for m in catalog.models) or 'none'}")
    apply(functools.partial(_change_catalog, functools.partial(_without_model, name)))


def set_callers(callers: tuple[CallerConfig, ...] | None) -> None:
    """Let these ask over HTTP and gRPC from now on; None: whoever reaches a router. No request under way is lost.

    Raises ConfigError when nothing is deployed.
    """
    apply(functools.partial(_change_catalog, functools.partial(_with_callers, callers)))


def take_back(model: ModelConfig, before: ModelConfig | None) -> None:
    """Put `before` in the place of `model`, or nothing if that is None; what others changed since stays as it is."""
    apply(functools.partial(_change_catalog, functools.partial(_with_back, model, before)))


def undeploy() -> None:
    """Remove our application; Serve and other applications continue."""
    apply(_drop)


def live_catalog() -> Catalog:
    """The deployed catalog. Raises ConfigError when our application is not deployed."""
    return _catalog_of(_live_application())


def deployed_catalog() -> Catalog | None:
    """The deployed catalog; None when our application is not deployed."""
    application = _application()
    return None if application is None else _catalog_of(application)


def live_app() -> AppConfig:
    """The deployed configuration of pools and router. Raises ConfigError when our application is not deployed."""
    return AppConfig.parse(_live_application().get("args") or {})


def router_handle() -> DeploymentHandle:
    """Handle of the ingress.

    Raises NoBackend when our application is not running, or nobody answers; ConfigError for a cluster that asks for a
    token which this process would not send.
    """
    tokens.check_usual()
    try:
        return _within(ASK_S, functools.partial(serve.get_app_handle, APP_NAME))
    except Exception as error:
        raise NoBackend(f"application {APP_NAME!r} is not running on this cluster: {error}") from None


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """The result of `call`, which asks Serve's controller: its client has no bound of its own. Raises NoBackend.

    It connects this process to a cluster if need be: ConfigError as of `tokens.check`.
    """
    tokens.check_usual()
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    # A daemon, and no pool's: one that hangs must not keep the process from ending.
    threading.Thread(target=run, name="enginehouse-ask", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise
        raise NoBackend(f"Serve's controller did not answer within {seconds:g} s") from None


def _application() -> dict[str, Any] | None:
    return _within(ASK_S, ray_private.live_applications).get(APP_NAME)


def _live_application() -> dict[str, Any]:
    application = _application()
    if application is None:
        raise ConfigError(
            f"application {APP_NAME!r} is not deployed on this cluster; start it with `enginehouse serve`"
        )
    return application


def _put(application: dict[str, Any], live: Applications) -> Applications:
    return live | {APP_NAME: application}


def _drop(live: Applications) -> Applications:
    return {name: application for name, application in live.items() if name != APP_NAME}


def _with_model(model: ModelConfig, before: ModelConfig | None, force: bool, catalog: Catalog) -> Catalog:
    # Somebody else has changed the model since it was compared with what was served `before`.
    if not force and catalog.find(model.name) not in (before, model):
        moves.check_signature(catalog, catalog.store, model)
    return catalog.with_model(model)


def _with_back(model: ModelConfig, before: ModelConfig | None, catalog: Catalog) -> Catalog:
    if catalog.find(model.name) != model:
        return catalog
    return catalog.without(model.name) if before is None else catalog.with_model(before)


def _without_model(name: str, catalog: Catalog) -> Catalog:
    return catalog.without(name)


def _with_callers(callers: tuple[CallerConfig, ...] | None, catalog: Catalog) -> Catalog:
    return catalog.with_callers(callers)


def _change_catalog(change: Callable[[Catalog], Catalog], live: Applications) -> Applications:
    if APP_NAME not in live:
        raise ConfigError(
            f"application {APP_NAME!r} is not deployed on this cluster; start it with `enginehouse serve`"
        )
    application = live[APP_NAME]
    changed = change(_catalog_of(application))
    deployments = [
        deployment | {"user_config": changed.user_config(deployment["name"])}
        for deployment in application["deployments"]
    ]
    return live | {APP_NAME: application | {"deployments": deployments}}


def _catalog_of(application: dict[str, Any]) -> Catalog:
    for deployment in application.get("deployments", []):
        if deployment["name"] == ROUTER:
            return Catalog.parse(deployment.get("user_config"))
    raise ConfigError(f"the live config of {APP_NAME!r} has no deployment {ROUTER!r} with a user_config")
