"""CPU time: of the serving processes, of the benchmark and its load generators, and of everybody else on this host.

What a process used is not lost when it ends: whoever waited for it carries it on (`times(2)`: cutime, cstime), so the
sum over a tree of processes, with what they carry, only grows. What an orphan used that init waited for is lost.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds (user and system) within `seconds` seconds of wall time on a host with `cores` logical CPUs.

    `serving_s`: the processes given and all below them. `own_s`: this process and all others below it, so the load
    generators. `foreign_s`: every other process, and what the hypervisor gave to other machines (steal).
    """

    seconds: float
    serving_s: float
    own_s: float
    foreign_s: float
    cores: int

    @property
    def foreign_share(self) -> float:
        """Share of the whole machine that others used."""
        return self.foreign_s / (self.seconds * self.cores)


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at one moment; the difference of two is a Usage."""

    at: float
    serving_s: float
    own_s: float
    busy_s: float

    def until(self, later: Reading) -> Usage:
        """What was used from this reading to the `later` one."""
        serving = max(0.0, later.serving_s - self.serving_s)
        own = max(0.0, later.own_s - self.own_s)
        return Usage(
            seconds=later.at - self.at,
            serving_s=serving,
            own_s=own,
            foreign_s=max(0.0, later.busy_s - self.busy_s - serving - own),
            cores=psutil.cpu_count() or 1,
        )


def read(serving: Iterable[psutil.Process]) -> Reading:
    """The counters now. Processes of `serving` that have ended count as far as a living parent carries them."""
    below = _children()
    served = _tree(serving, below)
    own = {pid: process for pid, process in _tree([psutil.Process()], below).items() if pid not in served}
    times = psutil.cpu_times()
    # Interrupts are left out: those of the loopback device are our own traffic, and no process is charged for them.
    busy = times.user + times.nice + times.system + getattr(times, "steal", 0.0) - getattr(times, "guest", 0.0)
    return Reading(time.monotonic(), _used_s(served.values()), _used_s(own.values()), busy)


def _tree(roots: Iterable[psutil.Process], below: dict[int, list[psutil.Process]]) -> dict[int, psutil.Process]:
    found: dict[int, psutil.Process] = {}
    waiting = list(roots)
    while waiting:
        process = waiting.pop()
        if process.pid not in found:
            found[process.pid] = process
            waiting += below[process.pid]
    return found


def _children() -> dict[int, list[psutil.Process]]:
    below: dict[int, list[psutil.Process]] = defaultdict(list)
    for process in psutil.process_iter():
        try:
            below[process.ppid()].append(process)
        except psutil.NoSuchProcess:
            continue
    return below


def _used_s(processes: Iterable[psutil.Process]) -> float:
    used = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        used += times.user + times.system + times.children_user + times.children_system
    return used
