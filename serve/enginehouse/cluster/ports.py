"""Ports of this machine: whether one can be listened on, who else does, and free ones for later."""

from __future__ import annotations

import itertools
import random
import socket

import psutil

#: Outside the ranges from which the system and Ray's workers pick theirs: single ones, and starts of clusters' ranges.
_SINGLE = range(20_000, 25_000)
_RANGES = range(25_000, 30_000, 200)


def listen_error(host: str, port: int) -> str | None:
    """Why nobody can listen on `host`:`port` now, naming the process that does; None when one can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        holder = _listener(port)
        return f"{error.strerror or error}{f' by {holder}' if holder else ''}"
    return None


def answers(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """So many free ports to use later, on any address."""
    ports = random.sample(_SINGLE, len(_SINGLE))
    return list(itertools.islice((port for port in ports if listen_error("0.0.0.0", port) is None), count))


def free_range() -> tuple[int, int]:
    """First and last port of a range of which none is taken now; any range where there is no such one."""
    taken = {port for port, _ in _listening()}
    free = [first for first in _RANGES if taken.isdisjoint(range(first, first + _RANGES.step))]
    first = random.choice(free or _RANGES)
    return first, first + _RANGES.step - 1


def _listening() -> list[tuple[int, int | None]]:
    """Ports that processes of this machine listen on, and the processes; None for one of another user."""
    try:
        return [
            (c.laddr.port, c.pid) for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr
        ]
    except psutil.Error:
        return []


def _listener(port: int) -> str:
    """The process that listens on `port`, for people; empty where nobody does."""
    held = [pid for taken, pid in _listening() if taken == port]
    pid = next(filter(None, held), None)
    if pid is None:
        return "a process of another user" if held else ""
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        command = ""
    return f"process {pid}{f' ({_shortened(command)})' if command else ''}"


def _shortened(text: str, most: int = 120) -> str:
    # One line of what can be printed: anybody may name a process as he likes.
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
