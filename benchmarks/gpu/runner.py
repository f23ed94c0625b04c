"""Runs a part in a process of its own, for a bounded time: its crash or hang costs no other part."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.gpu.lab import Lab, Part, Row
from enginehouse.engines.worker_process import WorkerDied, WorkerProcess

#: Seconds that a part has to end by itself once it was told to.
GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a part: `done`, `not run`, `stopped` at its bound or `failed`, with the reason, and its rows."""

    part: str
    title: str
    outcome: str
    reason: str
    seconds: float
    rows: list[Row] = field(default_factory=list)


def run(part: Part, lab: Lab, log: Path) -> Outcome:
    """Run `part` for at most `lab.seconds`; what it and its children print is added to `log`."""
    began = time.monotonic()
    with log.open("a") as output:
        output.write(f"== {part.name}\n")
    rows: list[Row] = []
    outcome, reason = "stopped", f"it took more than {lab.seconds:g} s"
    with WorkerProcess("benchmarks.gpu.work", log=log) as worker:
        try:
            worker.send((f"{part.package}.{part.name}", lab))
            while worker.poll(lab.seconds - (time.monotonic() - began)):
                line = json.loads(worker.receive())
                if "row" in line:
                    rows.append(line["row"])
                else:
                    outcome, reason = line["outcome"], line["reason"]
        except WorkerDied as died:
            # Every part ends like that; one that said how it went has failed no more.
            if outcome == "stopped":
                outcome, reason = "failed", f"its process {died}; see {log.name}"
        finally:
            _end(worker.process)
    return Outcome(part.name, part.title, outcome, reason, round(time.monotonic() - began, 1), rows)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and what it started, all of it: a server that stays would use the GPU of the next part."""
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        if process.poll() is None:
            # It unwinds, so that it ends its servers as they want to be ended.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        if process.poll() is None:
            process.kill()
            process.wait()
        for one in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
