"""The cluster that is measured: what it serves on which engines, and which processes of this host belong to it.

The connection to it ends before anything is measured: a Ray driver has threads of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from enginehouse import cluster, hardware
from enginehouse.config import AppConfig, ModelConfig
from enginehouse.errors import ConfigError, NoBackend
from enginehouse.manifest import ACCELERATOR_OF, EngineKind


@dataclass(frozen=True, slots=True)
class Backend:
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
    backends: dict[str, Backend]
    processes: list[psutil.Process]


def look(address: str, model: str, version: str | None) -> Target:
    """Ask the cluster at `address` about `model`. Raises ConfigError, NoBackend."""
    with cluster.connected(address):
        import ray

        from enginehouse import deploy
        from enginehouse.client import Client

        status = Client().status()
        app = deploy.live_app()
        host, port = deploy.http_address()
        cpus = {node["NodeID"]: node["Resources"].get("CPU", 1.0) for node in ray.nodes()}
        session = Path(ray._private.worker.global_worker.node.get_session_dir_path()).name
    entry = next((entry for entry in status["models"] if entry["name"] == model), None)
    if entry is None or entry["serving"] is None or version not in (None, entry["serving"]):
        served = ", ".join(f"{entry['name']}@{entry['serving'] or '-'}" for entry in status["models"]) or "nothing"
        wanted = ModelConfig(name=model, version=version).id if version else model
        raise ConfigError(f"{wanted!r} is not served by this cluster, which serves {served}")
    backends = {
        backend["pool"]: Backend(
            name=backend["pool"],
            kind=backend["engine"],
            artifact=backend["artifact"],
            engines=backend["ready"],
            threads=_threads(app, backend, max(cpus.values(), default=1.0)),
        )
        for backend in entry["backends"]
        if backend["state"] == "live"
    }
    if not backends:
        raise NoBackend(f"{model!r} has no live backend; see `enginehouse status`")
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    return Target(url, model, entry["serving"], status["store"], backends, list(processes_of(session)))


def processes_of(session: str) -> Iterator[psutil.Process]:
    """Processes of this host that began or belong to a Ray session (`session_DATE_TIME_PID`), HAProxy's included."""
    raylets = set()
    rest = []
    starter = int(session.rpartition("_")[2])
    for process in psutil.process_iter(["cmdline", "name"]):
        command = process.info["cmdline"] or []
        if any(session in argument for argument in command):
            raylets.add(process.pid)
            yield process
        elif process.info["name"] == "haproxy" or process.pid == starter:
            rest.append(process)
    for process in rest:
        try:
            if process.pid == starter:
                belongs = process.pid != psutil.Process().pid and any(
                    below.pid in raylets for below in process.children()
                )
            else:
                # It may have left its parent; what Ray gave that one to tell its node stays with it.
                belongs = int(process.environ().get("RAY_RAYLET_PID", "0")) in raylets
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if belongs:
            yield process


def _threads(app: AppConfig, backend: dict[str, Any], cpus: float) -> int:
    """Threads of one engine of the pool: its own number, or cores over engines, as `pool` has it."""
    if told := backend.get("threads"):
        return int(told)
    pool = app.pools[backend["pool"]]
    if pool.threads:
        return pool.threads
    engines = sum(pool.max_replicas for pool in app.pools.values() if ACCELERATOR_OF[pool.engine] == "cpu")
    fits = int(cpus / pool.num_cpus) if pool.num_cpus else engines
    return max(1, hardware.physical_cores() // max(1, min(engines, fits)))
