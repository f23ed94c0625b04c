"""Runs a part in a process of its own, for a bounded time: its crash or hang costs no other part."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from benchmarks.gpu.lab import Lab, Part, Row
from enginehouse.engines import worker_process

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
    with tempfile.TemporaryDirectory() as folder, log.open("ab") as output:
        output.write(f"== {part.name}\n".encode())
        output.flush()
        found = Path(folder) / "rows.jsonl"
        order = json.dumps(
            {"module": f"{part.package}.{part.name}", "found": str(found), **asdict(lab), "store": str(lab.store)}
        )
        process = subprocess.Popen(
            worker_process.command("benchmarks.gpu.work", order),
            env=worker_process.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code: int | None = process.wait(lab.seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        lines = [json.loads(line) for line in found.read_text().splitlines()] if found.exists() else []
    seconds = time.monotonic() - began
    rows = [line["row"] for line in lines if "row" in line]
    ends = [(line["outcome"], line["reason"]) for line in lines if "outcome" in line]
    if ends:
        outcome, reason = ends[-1]
    elif code is None:
        outcome, reason = "stopped", f"it took more than {lab.seconds:g} s"
    else:
        ended = signal.Signals(-code).name if code < 0 else f"status {code}"
        outcome, reason = "failed", f"its process ended with {ended}; see {log.name}"
    return Outcome(part.name, part.title, outcome, reason, round(seconds, 1), rows)


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
