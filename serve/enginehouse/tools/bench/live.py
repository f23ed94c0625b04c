"""The cluster that is measured: what it serves on which engines, and which processes of this host belong to it.

The connection to it ends before anything is measured: a Ray driver has threads of its own.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from enginehouse.cluster import connect
from enginehouse.contract.config import ROUTER, AppConfig, ModelConfig
from enginehouse.contract.errors import ConfigError, NoBackend
from enginehouse.contract.manifest import EngineKind


@dataclass(frozen=True, slots=True)
class TargetBackend:
    """A live backend of the model: what each of its `engines` engines loaded, with `threads` threads each."""

    name: str
    kind: EngineKind
    artifact: str
    engines: int
    threads: int


@dataclass(frozen=True, slots=True)
class Target:
    """A served model: its bundle, its live backends by name, and the serving processes of this host.

    `url` is where the cluster listens. `processes` are roots: what runs below them belongs to them.
    """

    url: str
    model: str
    version: str
    store: str
    backends: dict[str, TargetBackend]
    processes: list[psutil.Process]


def look(address: str, model: str, version: str | None) -> Target:
    """Ask the cluster at `address` about `model`. Raises ConfigError, NoBackend."""
    with connect.connected(address):
        from enginehouse.cluster import deploy, ray_private
        from enginehouse.faces.python.client import Client
        from enginehouse.pools import nodes

        status = Client(is_embedded=False).status()
        app = deploy.live_app()
        # A status shows no credentials.
        store = deploy.live_catalog().store
        host, port = deploy.http_address()
        threads = {
            name: asked or nodes.threads_per_engine(cpus, engines) for name, asked, cpus, engines in _engines(app)
        }
        session = ray_private.session()
    entry = next((entry for entry in status["models"] if entry["name"] == model), None)
    if entry is None or entry["serving"] is None or version not in (None, entry["serving"]):
        served = ", ".join(f"{entry['name']}@{entry['serving'] or '-'}" for entry in status["models"]) or "nothing"
        wanted = ModelConfig(name=model, version=version).id if version else model
        raise ConfigError(f"{wanted!r} is not served by this cluster, which serves {served}")
    backends = {
        backend["pool"]: TargetBackend(
            name=backend["pool"],
            kind=backend["engine"],
            artifact=backend["artifact"],
            # Every router that answers holds a resident engine, and tells only of its own.
            engines=backend["ready"] if backend["pool"] in app.pools else app.router.num_replicas,
            threads=threads.get(backend["pool"], threads[ROUTER]),
        )
        for backend in entry["backends"]
        if backend["state"] == "live"
    }
    if not backends:
        raise NoBackend(f"{model!r} has no live backend; see `enginehouse status`")
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    return Target(url, model, entry["serving"], store, backends, processes_of(session))


def processes_of(session: str) -> list[psutil.Process]:
    """Processes of this host that belong to a Ray session (`session_DATE_TIME_PID`): those that others are below of.

    That is what has its name in its command line, the command that started it and stays, and HAProxy.
    """
    known = list(psutil.process_iter(["cmdline", "name", "ppid"]))
    ray = {p.pid: p for p in known if any(session in argument for argument in p.info["cmdline"] or ())}
    parents = {p.info["ppid"] for p in ray.values()}
    return [*ray.values(), *(p for p in known if p.pid not in ray and _belongs(p, parents, ray))]


def _belongs(process: psutil.Process, parents: Container[int], ray: Container[int]) -> bool:
    if process.pid in parents:
        # `ray start --block`, `enginehouse serve`; not a service manager that adopted Ray, and much else.
        return bool({"ray", "enginehouse"} & {Path(argument).name for argument in process.info["cmdline"] or ()})
    if process.info["name"] != "haproxy":
        return False
    try:
        # It may have left its parent; what Ray gave that one to know its node by stays with it.
        return int(process.environ().get("RAY_RAYLET_PID", "0")) in ray
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _engines(app: AppConfig) -> Iterator[tuple[str, int | None, float, int]]:
    """Of the router and each pool: its name, threads, CPUs of a replica, and replicas that may share a node."""
    yield ROUTER, app.router.threads, 0, app.router.num_replicas
    for name, pool in app.pools.items():
        yield name, pool.threads, pool.num_cpus, pool.max_replicas
