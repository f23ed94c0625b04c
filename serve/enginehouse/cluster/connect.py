"""Connects to a Ray cluster, or starts a local one, with the environment variables that serving needs.

Ray and Serve read theirs on import, so this module imports Ray only after setting them.
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

#: Less frequent background work in a local cluster: saves a quarter of its CPU time when idle (benchmarks/README.md,
#: "Standing still"). Variables that are already set are kept.
_AT_REST = {
    # Seconds between rounds of Serve's controller, by default 0.1. Dead replicas are found by a health check every 2 s.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",
    # Ray's own Prometheus endpoint and the figures of the dashboard, which does not run here.
    "RAY_enable_metrics_collection": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    # Ray scans for new log files every 0.1 s until there are more than the threshold, by default a thousand.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "5",
}
#: What a command does when it is ended must not start a cluster: a call of Ray would, once this one is shut down.
_NO_OTHER_RAY = {"RAY_ENABLE_AUTO_CONNECT": "0"}
#: Ray replaces 127.0.0.1 by the machine's address but keeps 127.0.0.2, which is as local; only Linux has that.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else None


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect this process to the running cluster at `address` (`auto`: the one on this machine) for the context.

    Raises ConfigError when there is none, or several for `auto`, and RuntimeError when Ray was imported already.
    """
    _check_ray_is_not_imported()
    wanted = SERVING_ENV | _NO_OTHER_RAY
    os.environ.update({name: value for name, value in wanted.items() if name not in os.environ})
    if address != "auto" and (Path.home() / ".ray" / "auth_token").is_file():
        # Ray uses the token by itself only with `auto`; a cluster without authentication ignores it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    _quiet()
    if address == "auto" and "RAY_ADDRESS" not in os.environ:
        _check_only_one()
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and not _answers(host, int(port)):
        # Ray itself takes more than a minute to fail.
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
    """Run a Ray cluster on this machine only, for the context; yields its address.

    It has the logical CPUs that all replicas of `app` and a scoring job take, even beyond the machine's cores: real CPU
    use is bounded by the threads of engines. Raises ConfigError when `host`:`port`, where Serve will listen, is taken,
    and RuntimeError when Ray was imported already.
    """
    _check_ray_is_not_imported()
    if reason := _listen_error(host, port):
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; choose others with --host and --port")
    temporary = _short_folder()
    # Before Ray starts, since its processes inherit them.
    wanted = _local_env(temporary) | _NO_OTHER_RAY
    os.environ.update({name: value for name, value in wanted.items() if name not in os.environ})
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
        yield str(context.address_info["gcs_address"])
    finally:
        # This ends all processes but HAProxy, whose manager is killed before it can do so.
        ray.shutdown()
        _end_haproxy(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def default_app(
    threads: int | None, min_replicas: int, max_replicas: int, max_json_bytes: int | None = None
) -> AppConfig:
    """The default configuration with these numbers for every pool; `threads` are per engine, also of a router's own."""
    changes = {"threads": threads, "min_replicas": min_replicas, "max_replicas": max_replicas}
    pools = {name: pool.model_copy(update=changes) for name, pool in AppConfig().pools.items()}
    limits = {} if max_json_bytes is None else {"max_json_bytes": max_json_bytes}
    return AppConfig(pools=pools, router=RouterConfig(threads=threads, **limits))


def _cpus_of(app: AppConfig) -> int:
    placed = [pool.max_replicas * pool.num_cpus for pool in app.pools.values() if ACCELERATOR_OF[pool.engine] == "cpu"]
    # 0.8 for a scoring job.
    return math.ceil(sum(placed) + app.router.num_replicas * app.router.num_cpus + 0.8)


def on_this_machine(app: AppConfig) -> AppConfig:
    """`app` changed for a cluster of this machine only: CPU pools run here even when the machine has a GPU."""
    (accelerator,) = hardware.node_labels().values()
    here = {"nodes": (accelerator,)}
    pools = {
        name: pool.model_copy(update=here) if ACCELERATOR_OF[pool.engine] == "cpu" else pool
        for name, pool in app.pools.items()
    }
    return AppConfig(pools=pools, router=app.router)


def _local_env(temporary: str) -> dict[str, str]:
    """Variables of a local cluster: serving flags, and files and ports of HAProxy that no other cluster here uses."""
    folder = Path(temporary)
    return {
        **SERVING_ENV,
        **_AT_REST,
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        # No load balancer has to notice: the default of 30 s would only delay Ctrl-C.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": temporary,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        # HAProxy logs to a port where nothing listens: a line for one request in a million.
        "RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:514 sample 1:1000000",
        # The default of 4 threads suits machines with cores to spare.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, (os.cpu_count() or 1) // 4)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(_free_port()),
    }


def _check_only_one() -> None:
    """Raise ConfigError when several clusters run here: Ray's `auto` would take the one that was started last."""
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
    """Drop log records of Serve and Ray Data below WARNING from this process's output."""
    # A filter, since Serve resets the level of its logger.
    for name in ("ray.serve", "ray.data"):
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.WARNING)


def _end_haproxy(folder: str) -> None:
    """Kill this cluster's HAProxy, recognised by `folder` in its arguments: it would keep the port."""
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
    """A new folder for HAProxy: its socket paths are 70 characters longer, and 97 is their limit."""
    parent = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="eh-", dir=parent if len(parent) <= 15 else "/tmp")


def _free_port() -> int:
    """A free port to use later, outside the ranges from which the system and Ray's workers pick theirs."""
    while True:
        port = random.randrange(20_000, 30_000)
        if _listen_error("127.0.0.1", port) is None:
            return port
