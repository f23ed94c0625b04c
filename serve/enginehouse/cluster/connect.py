"""Connecting to a Ray cluster, or starting a local one, with the environment that serving needs.

Ray and Serve read their environment when they are imported, so this module imports them only once that is set.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from enginehouse.contract.config import SERVING_ENV, AppConfig, RouterConfig
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.manifest import ACCELERATOR_OF
from enginehouse.engines import hardware

#: A synchronous driver has no event loop for Serve's handles, whatever the throughput flags say to replicas.
_DRIVER_ENV = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}
#: What a local cluster does for nobody many times a minute, done less often: saves a quarter of its CPU time at rest
#: (benchmarks/README.md, "Standing still"). What the environment already says goes before.
_AT_REST = {
    # Rounds of Serve's controller, by default 0.1 s apart. A dead replica is found by its health check, every 2 s.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",
    # Ray's own Prometheus endpoint and the dashboard's figures, where no dashboard runs.
    "RAY_enable_metrics_collection": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    # How often Ray looks for new log files: by default every 0.1 s, until there are more than a thousand.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "5",
}
#: Ray replaces 127.0.0.1 by the machine's address; the next one is as local and stays. Other systems have only one.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else None


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a driver of the running cluster at `address` (`auto`: the one of this machine). Raises ConfigError."""
    _check_ray_is_not_imported()
    os.environ.update({name: value for name, value in SERVING_ENV.items() if name not in os.environ})
    os.environ.update(_DRIVER_ENV)
    if address != "auto" and (Path.home() / ".ray" / "auth_token").is_file():
        # Ray itself takes the token up only for `auto`; a cluster without authentication ignores it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    _quiet()
    if address == "auto" and "RAY_ADDRESS" not in os.environ:
        _check_only_one()
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and not _answers(host, int(port)):
        # Ray itself takes more than a minute to find out.
        raise ConfigError(f"nothing listens at {address!r}; start a cluster with `enginehouse serve`")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"no Ray cluster at {address!r}: {reason}; start one with `enginehouse serve`") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def local(host: str, port: int, app: AppConfig) -> Iterator[str]:
    """A Ray cluster of this machine alone, for as long as the context lasts; its address is yielded.

    It has as many logical CPUs as `app` and a scoring job may take, whatever the machine has: engines have threads.
    Raises ConfigError when `host` and `port` cannot be listened on.
    """
    _check_ray_is_not_imported()
    if reason := _listen_error(host, port):
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; choose others with --host and --port")
    temporary = _short_folder()
    # Set before Ray starts, because its processes inherit it.
    os.environ.update({name: value for name, value in _local_env(temporary).items() if name not in os.environ})
    import ray

    try:
        context = ray.init(
            address="local",
            num_cpus=max(_cpus_of(app), os.cpu_count() or 1),
            labels=hardware.node_labels(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address=_LOOPBACK,
        )
        _quiet()
        # Only for this process: replicas run their handles in the loop that they have.
        os.environ.update(_DRIVER_ENV)
        yield str(context.address_info["gcs_address"])
    finally:
        # All of it goes with Ray, but for HAProxy, whose manager dies without a chance to end it.
        ray.shutdown()
        _end_haproxy(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def default_app(threads: int | None, min_replicas: int, max_replicas: int) -> AppConfig:
    """A pool of each engine kind with so many replicas; `threads` for each engine, a router's own included."""
    changes = {"threads": threads, "min_replicas": min_replicas, "max_replicas": max_replicas}
    pools = {name: pool.model_copy(update=changes) for name, pool in AppConfig().pools.items()}
    return AppConfig(pools=pools, router=RouterConfig(threads=threads))


def _cpus_of(app: AppConfig) -> int:
    placed = [pool.max_replicas * pool.num_cpus for pool in app.pools.values() if ACCELERATOR_OF[pool.engine] == "cpu"]
    # 0.8 for a scoring job.
    return math.ceil(sum(placed) + app.router.num_replicas * app.router.num_cpus + 0.8)


def on_this_machine(app: AppConfig) -> AppConfig:
    """`app` for one machine alone: its CPU engines accept it even when it has a GPU."""
    (accelerator,) = hardware.node_labels().values()
    here = {"nodes": (accelerator,)}
    pools = {
        name: pool.model_copy(update=here) if ACCELERATOR_OF[pool.engine] == "cpu" else pool
        for name, pool in app.pools.items()
    }
    return AppConfig(pools=pools, router=app.router)


def _local_env(temporary: str) -> dict[str, str]:
    """Serving flags, and HAProxy's files and side ports kept apart from any other cluster of this machine."""
    folder = Path(temporary)
    return {
        **SERVING_ENV,
        **_AT_REST,
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Nobody drains a laptop: the 30 s default only delays Ctrl-C.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": temporary,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        # A line for every request, to a port where nobody listens: one in a million is enough.
        "RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:514 sample 1:1000000",
        # Its default of 4 threads is for machines with cores to spare.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, (os.cpu_count() or 1) // 4)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(_free_port()),
    }


def _check_only_one() -> None:
    """Ray's own `auto` takes the cluster that was started last, and a change would go to somebody else's."""
    from enginehouse.cluster.ray_private import clusters_of_this_machine

    addresses = clusters_of_this_machine()
    if len(addresses) > 1:
        raise ConfigError(
            f"{len(addresses)} Ray clusters run on this machine: {', '.join(addresses)}; name one with --address"
        )


def _check_ray_is_not_imported() -> None:
    if "ray" in sys.modules:
        raise RuntimeError("Ray was imported before the environment that it reads on import was set")


def _quiet() -> None:
    """Keep Serve's and Ray Data's chatter out of a command's output; warnings stay. Serve resets its logger's level."""
    for name in ("ray.serve", "ray.data"):
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.WARNING)


def _end_haproxy(folder: str) -> None:
    """End the HAProxy of this cluster, known by its files: it would keep the port."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command and Path(command[0]).name == "haproxy" and any(folder in argument for argument in command):
            process.kill()


def _listen_error(host: str, port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
        return None


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def _short_folder() -> str:
    """A new folder for HAProxy, whose sockets lie 70 characters below it and may have 97."""
    parent = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="eh-", dir=parent if len(parent) <= 15 else "/tmp")


def _free_port() -> int:
    """A port for later, below those that the system and above those that Ray's workers take by chance."""
    while True:
        port = random.randrange(20_000, 30_000)
        if _listen_error("127.0.0.1", port) is None:
            return port
