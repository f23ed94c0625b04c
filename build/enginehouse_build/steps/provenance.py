"""What a bundle was made from and where: the facts for its manifest, and the parts of its key."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from enginehouse.contract.bundle import sha256_of
from enginehouse.engines.hardware import probe_cpu, probe_gpus
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.reference.reference import Reference
from enginehouse_build.steps import kept_steps

#: Fields of a recipe that do not change its reference.
_LATER = {
    "name", "store", "version", "formats", "precisions", "max_drop", "limits", "objective", "max_latency_ms", "quick",
    "threads", "step_timeout_s", "memory_mib",
}  # fmt: skip


def of_reference(recipe: Recipe) -> Any:
    """Everything in the recipe that its reference is made from; files by their content."""
    files = {
        name: sha256_of(path)
        for name, path in (("samples", recipe.samples), ("calibration", recipe.calibration), ("labels", recipe.labels))
        if path is not None
    }
    return [recipe.model_dump(mode="json", exclude=_LATER), files, str(Path.cwd())]


def is_current(reference: Reference, recipe: Recipe) -> bool:
    """Whether all files that the reference was made from are still the same, and it has the rows that int8 needs."""
    if "int8" in recipe.precisions and not reference.calibrated:
        return False
    return all(Path(path).is_file() and sha256_of(Path(path)) == digest for path, digest in reference.depends.items())


def of_files(folder: Path) -> Any:
    """The content of a step's folder."""
    return [(file.name, sha256_of(file)) for file in sorted(folder.iterdir())]


def of_metric(reference: Reference) -> Any:
    """The task metric: its name and value, and for one of the user's own every file that it may be made of."""
    if reference.metric is None:
        return None
    own = reference.depends if ":" in reference.metric.name else {}
    return [reference.metric.name, reference.metric.value, reference.metric.rows, dict(own)]


@cache
def of_machine() -> Any:
    """What of this machine decides how an artifact is made, answers and performs."""
    return {name: value for name, value in hardware().items() if name not in ("host", "os")}


def now() -> str:
    """This second in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Python and the libraries, for the manifest."""
    return {"python": platform.python_version(), **kept_steps.versions()}


@cache
def hardware() -> Mapping[str, str]:
    """This machine, for the manifest."""
    cpu, gpus = probe_cpu(), probe_gpus()
    devices = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in gpus.devices)
    return {
        "cpu": cpu.model,
        "cpu_cores": str(cpu.cores),
        "cpu_threads": str(cpu.threads),
        "cpu_flags": " ".join(cpu.flags),
        "gpu": devices or f"none: {gpus.reason}",
        "host": platform.node(),
        "os": f"{platform.system()} {os.uname().release} {platform.machine()}",
    }
