"""Starts a Ray cluster on this machine only, for one `enginehouse serve`, and leaves nothing of it behind.

Ray and Serve read their environment on import, so this module imports Ray only after setting it.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from enginehouse.cluster import haproxy, home, light, proxies
from enginehouse.cluster.connect import NO_OTHER_RAY, check_ray_is_not_imported, quiet
from enginehouse.cluster.haproxy.certificates import Certificates
from enginehouse.cluster.keeper import MARK, Keeper
from enginehouse.cluster.own_folder import own_folder
from enginehouse.cluster.ports import listen_error
from enginehouse.contract.config import ROUNDS_AT_REST, SERVING_ENV, AppConfig, RouterConfig
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.manifest import ACCELERATOR_OF
from enginehouse.engines import hardware

#: Less frequent background work in a local cluster: saves a quarter of its CPU time when idle (benchmarks/README.md,
#: "Standing still"). Variables that are already set are kept.
_AT_REST = {
    # Seconds between rounds of Serve's controller, by default 0.1. Dead replicas are found by a health check every 2 s.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",
    ROUNDS_AT_REST: "1",
    # Ray's own Prometheus endpoint and the figures of the dashboard, which does not run here.
    "RAY_enable_metrics_collection": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    # What became of each task, for `ray list tasks`: every process sends it once a second, even when nothing did.
    "RAY_task_events_report_interval_ms": "0",
    # Milliseconds between two looks at the machine's memory, by default 250.
    "RAY_memory_monitor_refresh_ms": "1000",
    # Ray scans for new log files every 0.1 s until there are more than the threshold, by default a thousand.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "5",
}
#: Asked for a token by whoever connects, and heard of by nobody.
_ALONE = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # No load balancer has to notice: the default of 30 s would only delay Ctrl-C.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
#: Ray replaces 127.0.0.1 by the machine's address but keeps 127.0.0.2, which is as local; only Linux has that.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else None


class LocalCluster(NamedTuple):
    """A cluster of this machine only: its address, the folder of its HAProxy, and the variable that lets Ray jobs in.

    That is empty where they find the token in the user's home. Commands find it by themselves.
    """

    address: str
    folder: Path
    variable: str


@contextlib.contextmanager
def local(
    host: str, port: int, app: AppConfig, grpc_port: int = 0, tls: Certificates | None = None
) -> Iterator[LocalCluster]:
    """Run a Ray cluster on this machine only, for the context.

    It has the logical CPUs that all replicas of `app` and a scoring job take, even beyond the machine's cores: real CPU
    use is bounded by the threads of engines. Nothing of it outlives this process, however that ends. Raises ConfigError
    when `host` and one of the ports, where Serve will listen, is taken, and RuntimeError when Ray was imported already.
    """
    check_ray_is_not_imported()
    if reason := listen_error(host, port):
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; choose others with --host and --port")
    if grpc_port and (reason := listen_error(host, grpc_port)):
        raise ConfigError(
            f"cannot listen on {host}:{grpc_port} for gRPC: {reason}; choose another with --grpc-port, or 0 for none"
        )
    home.private_token()
    with own_folder() as folder:
        # Before Ray starts, since its processes inherit them.
        wanted = (
            SERVING_ENV
            | _AT_REST
            | light.HOOK
            | _ALONE
            | NO_OTHER_RAY
            | haproxy.environment(folder)
            | home.without_home(folder)
        )
        os.environ.update({name: value for name, value in wanted.items() if name not in os.environ})
        os.environ.update(
            haproxy.wrapped(host, tls.put(folder) if tls else "")
            | proxies.exceptions(proxies.THIS_MACHINE)
            | {MARK: str(folder)}
        )
        keeper = Keeper(folder)
        light.without_pandas()
        import ray

        from enginehouse.cluster.ray_private import Job, end_monitor, without_dashboard

        try:
            try:
                with without_dashboard():
                    context = ray.init(
                        address="local",
                        num_cpus=max(_cpus_of(app), os.cpu_count() or 1),
                        labels=hardware.node_labels(),
                        include_dashboard=False,
                        job_config=Job(),
                        log_to_driver=False,
                        logging_level="ERROR",
                        _node_ip_address=_LOOPBACK,
                        _temp_dir=str(home.ray_folder(folder)),
                    )
            except Exception as error:
                raise ConfigError(f"a local Ray does not start: {_first_line(error)}") from error
            quiet()
            end_monitor()
            keeper.remember(child.pid for child in psutil.Process().children(recursive=True))
            yield LocalCluster(str(context.address_info["gcs_address"]), folder, _variable(folder))
        finally:
            try:
                # This ends all processes but HAProxy, whose manager is killed before it can do so.
                ray.shutdown()
                keeper.dismiss()
            finally:
                haproxy.kill(folder)


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


def _variable(folder: Path) -> str:
    token = os.environ.get(home.TOKEN_FILE, "")
    return f"{home.TOKEN_FILE}={token}" if Path(token).parent == folder else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
