"""`enginehouse serve`: the application on a local Ray, or on a running cluster."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from enginehouse.cluster import connect, local
from enginehouse.cluster.moves import check_settings, pinned
from enginehouse.cluster.ports import listen_error
from enginehouse.contract.config import AppConfig, Catalog, ModelConfig, serve_config
from enginehouse.contract.config.access import tag
from enginehouse.contract.errors import ConfigError, EnginehouseError, NoBackend, StoreUnavailable
from enginehouse.contract.manifest import NumericsRule
from enginehouse.contract.shown import redacted
from enginehouse.contract.store import Store
from enginehouse.tools.cli import access, options
from enginehouse.tools.cli.console import out, say
from enginehouse.tools.cli.status import say_what_failed, show

#: Every answer comes from one Router or another; so many in a row have very likely asked them all.
_AGREEING_ANSWERS = 5


def serve(
    store: Annotated[str, typer.Argument(help="Folder or fsspec URL that holds the bundles.")],
    models: Annotated[str, typer.Option(help="Models to serve, `name` or `name@version`, by comma; default all.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="HTTP port.")] = 8000,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="gRPC port, 0 for none; default: the one after --port, on a cluster none."),
    ] = None,
    address: Annotated[str, typer.Option(help="`local`: start Ray here; `auto` or host:port: a running cluster.")] = (
        "local"
    ),
    threads: Annotated[
        int | None, typer.Option(min=1, help="Cores that a CPU pool computes with on a node; default: all of it.")
    ] = None,
    min_replicas: Annotated[
        int, typer.Option(min=0, help="Fewest replicas of a pool, where its hardware is; 0: it rests when idle.")
    ] = 1,
    max_replicas: Annotated[int, typer.Option(min=1, help="Most replicas of a pool; it scales by load.")] = 1,
    resident: Annotated[
        str, typer.Option(help="Models that routers also host themselves, by comma, or `all`: saves the hop to a pool.")
    ] = "",
    numerics: Annotated[
        NumericsRule | None,
        typer.Option(help="Which artifacts may answer; default: what each bundle says, else full, without int8."),
    ] = None,
    max_json_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Largest JSON of a request (4 MiB), for which all others wait; not of binary data."),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="File of tokens, one of which each request needs; default: one is made if HOST is no loopback."
        ),
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="No token, also where other machines reach it.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="TLS: certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="TLS: its key, PEM without a password.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="TLS: certificates that one of has to have signed each client's, PEM.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also versions that clients of those served now could not go on with.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(callback=options.seconds, help="Seconds to wait until every model answers.")
    ] = 180,
    grace: Annotated[
        float,
        typer.Option(
            callback=options.grace, help="Seconds that requests under way have left when a local server ends."
        ),
    ] = 30,
    print_config: Annotated[bool, typer.Option(help="Print the Serve config file for `serve deploy`, and stop.")] = (
        False
    ),
) -> None:
    """Serve the models of STORE over HTTP (Open Inference Protocol v2) and by Ray handle."""
    if min_replicas > max_replicas:
        raise ConfigError(f"--min-replicas {min_replicas} is above --max-replicas {max_replicas}")
    app = local.default_app(threads, min_replicas, max_replicas, max_json_bytes)
    host = host.strip("[]")
    tls = access.certificates(tls_cert, tls_key, tls_client_ca, address)
    followed = access.Followed(tokens, tls)
    if print_config:
        callers = access.chosen(tokens, no_auth, access.is_reached(host, grpc_port or 0, False), say)
        catalog = catalog_of(store, models, resident, numerics).with_callers(callers)
        shown = Catalog(store=redacted(catalog.store), models=catalog.models, callers=callers)
        if shown.store != catalog.store:
            say("the credentials in the store's URL are left out: give nodes them in their environment")
        config = serve_config(app, shown, host, port, grpc_port or 0)
        typer.echo(yaml.safe_dump(config, sort_keys=False))
        return
    started = time.monotonic()
    if address != "local":
        if ":" in host:
            raise ConfigError(f"--host {host}: on a cluster Serve listens on addresses of IPv4 only")
        with connect.connected(address) as found:
            from enginehouse.cluster import deploy

            say(f"on the cluster at {found}")
            live = deploy.deployed_catalog()
            running = deploy.http_host()
            routers = deploy.grpc_port() if running else grpc_port or 0
            is_reached = access.is_reached(running or host, routers, is_local=False)
            catalog = catalog_of(store, models, resident, numerics, live)
            catalog = catalog.with_callers(access.chosen(tokens, no_auth, is_reached, access.on_stdout, live))
            _deploy(app, catalog, host, port, grpc_port or 0, timeout, started, live=live, force=force)
        return
    catalog = catalog_of(store, models, resident, numerics)
    catalog = catalog.with_callers(access.chosen(tokens, no_auth, access.is_reached(host), access.on_stdout))
    if grpc_port is None:
        grpc_port = _next_port(host, port)
    say("starting a local Ray")
    with local.local(host, port, app, grpc_port, tls) as cluster:
        from enginehouse.cluster import ending

        # After Ray has started, which puts its own handler for SIGTERM.
        stop = ending.Signals().asked
        _deploy(local.on_this_machine(app), catalog, host, port, grpc_port, timeout, started, stop, tls=tls is not None)
        if stop.is_set():
            say("stopping")
            return
        drain = ending.Drain()
        out.print(f"other commands: --address {cluster.address}", highlight=False, soft_wrap=True)
        token = f" with {cluster.variable}" if cluster.variable else ""
        jobs = f"RAY_AUTH_MODE=token, ray.init({cluster.address!r}){token}"
        out.print(f"other Ray jobs: {jobs}", highlight=False, soft_wrap=True)
        out.print(f"Ctrl-C ends it when requests under way are answered, or after {grace:g} s; a second one at once.")
        followed.wait(stop, cluster.folder)
        say("stopping")
        if cut_off := drain.run(cluster.folder, grace):
            say(f"not answered within {grace:g} s: {cut_off} request{'s' if cut_off > 1 else ''}")


def catalog_of(
    store: str, models: str, resident: str = "", numerics: NumericsRule | None = None, live: Catalog | None = None
) -> Catalog:
    """The catalog for `--models` and `--resident`; without the former all of the store, the newest versions.

    Models that are served `live` already keep the settings that no option names.
    """
    root = Store(store).absolute_url()
    wanted = [entry.strip() for entry in models.split(",") if entry.strip()] or Store(root).models()
    if not wanted:
        raise ConfigError(_inside(root) or f"no bundles in {root!r}; make one with `enginehouse build`")
    names = {entry.partition("@")[0] for entry in wanted}
    residents = names if resident == "all" else {entry.strip() for entry in resident.split(",") if entry.strip()}
    if unknown := sorted(residents - names):
        raise ConfigError(f"--resident {', '.join(unknown)}: not served; served are {', '.join(sorted(names))}")
    chosen = []
    for entry in wanted:
        name = entry.partition("@")[0]
        is_resident = name in residents if resident else None
        chosen.append(model_of(root, entry, live.find(name) if live else None, resident=is_resident, numerics=numerics))
    return Catalog.parse({"store": root, "models": [model.model_dump() for model in chosen]})


def model_of(store: str, entry: str, before: ModelConfig | None = None, **options: Any) -> ModelConfig:
    """The catalog entry for `name` (its newest version) or `name@version`; an option that is None is as `before`.

    Raises ConfigError, InvalidInput.
    """
    name, _, version = entry.partition("@")
    versions = Store(store).versions(name)
    if not versions:
        if before is not None and not Store(store).is_there():
            raise StoreUnavailable(f"store {store!r}, which is served, is not there any more")
        have = ", ".join(Store(store).models())
        raise ConfigError((not have and _inside(store)) or f"{store} has no model {name!r}; it has {have or 'nothing'}")
    if version and version not in versions:
        raise ConfigError(f"{store} has no version {version!r} of {name!r}; it has {', '.join(versions)}")
    version = version or versions[-1]
    named = {key: value for key, value in options.items() if value is not None}
    kept = before.settings() if before else {}
    model = pinned(store, ModelConfig.model_validate(kept | named | {"name": name, "version": version}))
    if model.numerics or model.max_batch_size:
        check_settings(store, model)
    return model


def _inside(url: str) -> str:
    """What to say where `url` is not a store but a model or a version in one, else ""."""
    parent, _, name = url.rstrip("/").rpartition("/")
    grandparent, _, model = parent.rpartition("/")
    for store, entry in ((parent, name), (grandparent, f"{model}@{name}")):
        with contextlib.suppress(EnginehouseError):
            versions = Store(store).versions(entry.partition("@")[0])
            if versions and ("@" not in entry or name in versions):
                return f"{url!r} is no store but what is in one; give the store: {store} --models {entry}"
    return ""


def moved(model: ModelConfig, live: ModelConfig | None) -> str:
    """The model as `name@version`; where another version of it is live, that one and the new one."""
    if live is None or live.version == model.version:
        return model.id
    return f"{model.name} {live.version} -> {model.version}"


def wait_until_served(
    catalog: Catalog,
    timeout: float,
    stop: threading.Event | None = None,
    check: Callable[[], None] = lambda: None,
    callers: str | None = None,
) -> dict[str, Any]:
    """Wait until every model is settled on every pool whose hardware is there, and return the status document.

    With `callers`, the tag of those who may ask, also until routers know them.

    Raises NoBackend after `timeout` seconds, naming what is still missing, and what `check` raises, which is called
    once a second and before that.
    """
    from enginehouse.faces.python.client import Client

    give_up = time.monotonic() + timeout
    missing = "the router is not up"
    settled, check_at = 0, time.monotonic() + 1
    # Of those that are settled: routers that host models themselves may differ.
    failed: dict[str, Any] | None = None
    while time.monotonic() < give_up and not (stop and stop.is_set()):
        if time.monotonic() >= check_at:
            check()
            check_at = time.monotonic() + 1
        try:
            document = Client(is_embedded=False).status()
        except EnginehouseError as error:
            missing = str(error)
        except Exception as error:
            missing = f"{type(error).__name__}: {error}"
        else:
            known = {entry["name"]: entry for entry in document["models"]}
            waiting = [
                model.id
                for model in catalog.models
                if not _is_wanted(model, known.get(model.name)) or not _settled(known[model.name])
            ]
            if callers is not None and document.get("callers", "") != callers:
                waiting.append("who may ask")
            settled = 0 if waiting else settled + 1
            if not settled:
                failed = None
            elif any(known[model.name]["state"] == "failed" for model in catalog.models):
                failed = failed or document
            if settled == _AGREEING_ANSWERS:
                return failed or document
            missing = f"still loading: {', '.join(waiting)}"
        time.sleep(0.1)
    if stop and stop.is_set():
        return {"store": catalog.store, "models": [], "pools": [], "missing_flags": []}
    check()
    raise NoBackend(f"not served within {timeout:g} s: {missing} (see `enginehouse status`)")


def _is_wanted(model: ModelConfig, entry: dict[str, Any] | None) -> bool:
    """Whether the router that answered has the catalog with this version and these settings."""
    if entry is None or (entry["wanted"], entry["settings"]) != (model.version, model.settings()):
        return False
    return not model.digest or entry.get("digest") == model.digest


def _settled(entry: dict[str, Any]) -> bool:
    states = {backend["state"] for backend in entry["backends"]}
    if entry["state"] == "loading":
        # No hardware for any engine is an answer too: the nodes may come later.
        return bool(states) and "no-hardware" in states and not states & {"live", "loading", "cold"}
    return not states & {"loading", "cold"}


def _next_port(host: str, port: int) -> int:
    """The port for gRPC that nobody asked for; 0, and why, when it is taken."""
    if port == 65535 or (reason := listen_error(host, port + 1)):
        say(f"no gRPC: port {port + 1} is taken: {reason}" if port < 65535 else "no gRPC: no port is left above --port")
        return 0
    return port + 1


def _deploy(
    app: AppConfig,
    catalog: Catalog,
    host: str,
    port: int,
    grpc_port: int,
    timeout: float,
    started: float,
    stop: threading.Event | None = None,
    live: Catalog | None = None,
    force: bool = False,
    tls: bool = False,
) -> None:
    from enginehouse.cluster import deploy
    from enginehouse.cluster.haproxy import serve_host

    say(f"deploying {', '.join(moved(model, live.find(model.name) if live else None) for model in catalog.models)}")
    for model in catalog.models:
        if settings := model.settings():
            say(f"{model.id} with {', '.join(f'{key} {value}' for key, value in settings.items())}")
    deploy.deploy(app, catalog, serve_host(host), port, force, grpc_port)
    document = wait_until_served(catalog, timeout, stop, callers=tag(catalog.callers))
    if stop and stop.is_set():
        return
    show(document)
    for entry in document["models"]:
        say_what_failed(entry)
    ready = [entry["name"] for entry in document["models"] if entry["ready"]]
    if not ready:
        say("deployed, but no model answers yet; `enginehouse status` shows when one does")
        return
    if ":" not in host:
        host, port = deploy.http_address()
    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    out.print(f"ready after {time.monotonic() - started:.1f} s: http{'s' if tls else ''}://{at}/v2/models/{ready[0]}")
    if grpc_port := deploy.grpc_port():
        out.print(f"gRPC: {at.rpartition(':')[0]}:{grpc_port}{' with TLS' if tls else ''}", highlight=False)
