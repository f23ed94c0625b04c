"""What one node has and exposes, as plain data: the doctor runs this on every node and judges it elsewhere.

No Ray is imported: the processes of Ray, Serve and HAProxy are recognised from outside, so this also works on a machine
whose cluster does not answer.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import PurePath
from typing import Any

import psutil

from enginehouse import hardware
from enginehouse.config import SERVING_ENV

#: Serve's HTTP port, and the two that HAProxy takes for its statistics and metrics (Ray Serve 2.60).
PORTS = (8000, 8404, 9101)

_DAEMONS = frozenset({"raylet", "gcs_server", "haproxy"})


def probe_node(ports: Sequence[int] = PORTS) -> dict[str, Any]:
    """Engine libraries, hardware, labels, serving flags, `ports` and listening addresses of this node.

    A listening address is `open` when other machines can reach it. `flags` has one entry per raylet: what it was
    started with is what its workers inherit. Only processes that this user may look into are seen.
    """
    versions = hardware.engine_versions()
    processes = list(_ray_processes())
    listening = [address for process in processes for address in _listening(process)]
    return {
        "host": socket.gethostname(),
        "engines": versions,
        "conflict": hardware.conflicting_wheels(versions),
        "cpu": asdict(hardware.probe_cpu()),
        "gpus": asdict(hardware.probe_gpus()),
        "labels": hardware.node_labels(),
        "flags": [_flags(process) for process in processes if _name(process) == "raylet"],
        "ports": [_port(port, listening) for port in ports],
        "listening": listening,
    }


def _ray_processes() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        if _name(process):
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
    missing = [f"{name}={value}" for name, value in SERVING_ENV.items() if environment.get(name) != value]
    return {"pid": raylet.pid, "unreadable": "", "missing": missing}


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
