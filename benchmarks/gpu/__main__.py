"""The command line of `scripts/gpu-check`."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu.lab import PARTS, Lab
from benchmarks.gpu.page import page
from benchmarks.gpu.runner import Outcome, run
from enginehouse.engines import hardware

HERE = Path(__file__).parent.parent


def main(
    part: Annotated[list[str] | None, typer.Option(help="Only this part; may be repeated. Default: all.")] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="What each part may take, in the place of its own.")] = (
        None
    ),
    name: Annotated[str, typer.Option(help="What the files are called: gpu-NAME.json. Default: the GPU's name.")] = "",
    store: Annotated[Path, typer.Option(help="Store with the models; those that it lacks are built there.")] = (
        HERE / ".gpu" / "store"
    ),
    output: Annotated[Path, typer.Option(help="Folder that gets gpu-NAME.json, .md and .log.")] = HERE / "results",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of an engine; 0: one for each physical core.")] = 0,
) -> None:
    """Measure the GPU of this machine; without one, run every part on the CPU in small sizes and say so."""
    known = {one.name: one for one in PARTS}
    if unknown := set(part or ()) - known.keys():
        raise typer.BadParameter(f"--part {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    gpus = hardware.probe_gpus()
    dry = "" if gpus.devices else gpus.reason
    called = _file_name(name or ("dry" if dry else gpus.devices[0].name))
    output.mkdir(parents=True, exist_ok=True)
    store.mkdir(parents=True, exist_ok=True)
    log = output / f"gpu-{called}.log"
    log.unlink(missing_ok=True)
    facts = {"name": called, "dry": dry, **_facts(gpus)}
    outcomes: list[Outcome] = []
    began = time.monotonic()
    for one in (known[name] for name in part or known):
        # A CPU with few cores needs longer than a GPU for what is small.
        lab = Lab(store, dry, seconds or one.seconds * (4 if dry else 1), threads or hardware.physical_cores())
        outcomes.append(run(one, lab, log))
        print(
            f"{one.name:<12} {outcomes[-1].seconds:6.1f} s  {outcomes[-1].outcome}  {outcomes[-1].reason}", flush=True
        )
        facts["seconds"] = round(time.monotonic() - began, 1)
        # Written after each part: what was found survives whatever ends this process.
        found = {**facts, "parts": [asdict(outcome) for outcome in outcomes]}
        (output / f"gpu-{called}.json").write_text(json.dumps(found, indent=1) + "\n")
        (output / f"gpu-{called}.md").write_text(page(facts, outcomes))
    print(f"{output / f'gpu-{called}.json'}, {output / f'gpu-{called}.md'}: {facts['seconds']} s")
    if any(outcome.outcome in ("failed", "stopped") for outcome in outcomes):
        raise typer.Exit(1)


def _facts(gpus: hardware.Gpus) -> dict[str, Any]:
    cpu = hardware.probe_cpu()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": ", ".join(
            f"{gpu.name} ({gpu.compute_capability}, {gpu.memory_bytes >> 20} MiB)" for gpu in gpus.devices
        ),
        "cpu": f"{cpu.model}, {cpu.cores} cores",
        "engines": ", ".join(f"{name} {version}" for name, version in hardware.engine_versions().items()),
    }


def _file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


if __name__ == "__main__":
    typer.run(main)
