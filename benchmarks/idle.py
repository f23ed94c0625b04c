"""What `enginehouse serve` costs to start and while nobody asks it anything, process by process.

    python -m benchmarks.idle STORE
    python -m benchmarks.idle STORE --with RAY_SERVE_CONTROL_LOOP_INTERVAL_S=0.5 --with "A=1 B=2"

Each `--with` is one more cluster, under another environment. CPU time is read from the processes themselves, so other
load on the machine hardly shows in it; the seconds until the first answer suffer from such load in full.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.served import served

#: What Ray's own processes have in their command line, and what to call them.
_SERVICES = {
    "gcs_server": "GCS",
    "raylet/raylet": "raylet",
    "log_monitor.py": "log monitor",
    "autoscaler/_private/monitor.py": "autoscaler monitor",
    "dashboard/dashboard.py": "dashboard",
    "haproxy": "HAProxy",
    "enginehouse serve": "enginehouse serve",
}
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


@dataclass
class Idle:
    """One cluster at rest, per kind of process: their number, CPU time in % of one core, PSS in MiB.

    `start_cpu_s` is the CPU time that each kind took until the first answer.
    """

    environment: str
    first_answer_s: float
    start_cpu_s: dict[str, float]
    processes: dict[str, int] = field(default_factory=dict)
    cpu_percent: dict[str, float] = field(default_factory=dict)
    pss_mib: dict[str, float] = field(default_factory=dict)


def measure(store: Path, port: int, environment: str, settle_s: float, seconds: float) -> Idle:
    """Start a cluster under `environment` ("A=1 B=2"), let it settle, and watch it for `seconds`."""
    with served(store, port, dict(pair.split("=", 1) for pair in environment.split())) as (process, first_answer_s):
        idle = Idle(environment, first_answer_s, _start_cpu_s(process))
        time.sleep(settle_s)
        everyone = {member: _cpu_s(member) for member in [process, *process.children(recursive=True)]}
        began = time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - began
        for member, before in everyone.items():
            # One that ended meanwhile (an idle worker of Ray) is no part of standing still.
            with contextlib.suppress(psutil.NoSuchProcess):
                kind, percent = _kind(member), (_cpu_s(member) - before) / elapsed * 100
                pss = member.memory_full_info().pss / 2**20
                idle.processes[kind] = idle.processes.get(kind, 0) + 1
                idle.cpu_percent[kind] = idle.cpu_percent.get(kind, 0.0) + percent
                idle.pss_mib[kind] = idle.pss_mib.get(kind, 0.0) + pss
        return idle


def _start_cpu_s(process: psutil.Process) -> dict[str, float]:
    spent: dict[str, float] = {}
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times, kind = member.cpu_times(), _kind(member)
            spent[kind] = spent.get(kind, 0.0) + times.user + times.system
            ended = times.children_user + times.children_system
            spent["(ended)"] = spent.get("(ended)", 0.0) + ended
    return spent


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _kind(process: psutil.Process) -> str:
    # Ray names its workers `ray::Class:...`; the rest are told by their programs.
    command = " ".join(process.cmdline())
    if command.startswith("ray::"):
        return command.split("::", 1)[1].split(".")[0].split()[0].replace("ServeReplica:enginehouse:", "replica ")
    return next((name for part, name in _SERVICES.items() if part in command), command[:40])


def show(title: str, found: list[tuple[str, dict[str, float]]], digits: int) -> None:
    """Print one table: a row for every kind of process, largest first, and a column for every environment."""
    table = Table(title=title, title_justify="left")
    table.add_column("process")
    for environment, _ in found:
        table.add_column(environment or "as it is", justify="right", overflow="fold")
    kinds = {kind: value for _, values in reversed(found) for kind, value in values.items()}
    for kind in sorted(kinds, key=kinds.__getitem__, reverse=True):
        table.add_row(kind, *(f"{values.get(kind, 0):.{digits}f}" for _, values in found))
    table.add_row("all", *(f"{sum(values.values()):.{digits}f}" for _, values in found), style="bold")
    console.print(table)


def main(
    store: Annotated[Path, typer.Argument(help="Folder of bundles to serve.", exists=True, file_okay=False)],
    changes: Annotated[
        list[str] | None, typer.Option("--with", help='Environment to try beside the one as it is: "A=1 B=2".')
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long each cluster is watched.")] = 60,
    settle: Annotated[float, typer.Option(help="How long each is left alone before that.")] = 20,
    port: Annotated[int, typer.Option(help="HTTP port.")] = 8090,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Measure a local cluster at rest, one environment after the other."""
    found = []
    for environment in ["", *(changes or [])]:
        found.append(measure(store, port, environment, settle, seconds))
        console.print(f"{environment or 'as it is'}: first answer after {found[-1].first_answer_s:.1f} s")
        if json_file is not None:
            json_file.write_text(json.dumps([asdict(idle) for idle in found], indent=2) + "\n")
    show("CPU time until the first answer, s", [(idle.environment, idle.start_cpu_s) for idle in found], 2)
    show("CPU time at rest, % of one core", [(idle.environment, idle.cpu_percent) for idle in found], 2)
    show("PSS, MiB", [(idle.environment, idle.pss_mib) for idle in found], 0)


if __name__ == "__main__":
    typer.run(main)
