"""A catalog and what replicas report of its models.

What Ray broadcasts about replicas is plain data, so a table stands in for it here; everything else is real.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.unit.test_policy import TENSOR, artifact

from enginehouse.contract.bounds import InputBound
from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.config import Catalog, PoolConfig
from enginehouse.contract.errors import ModelNotFound, NoBackend
from enginehouse.contract.latency import LatencyTable
from enginehouse.contract.manifest import Manifest, SignatureRecord
from enginehouse.pools.report import ModelState
from enginehouse.routing.replicas import Replica
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import BackendStatus, View
from enginehouse.transport.router_end import Channel

POOLS = {"ort": PoolConfig(engine="onnxruntime-cpu"), "vino": PoolConfig(engine="openvino-cpu")}


@dataclass
class Cluster:
    """What the replicas of each pool report, and which accelerators there are."""

    replicas: dict[str, list[Replica]] = field(default_factory=dict)
    accelerators: set[str] = field(default_factory=lambda: {"cpu"})

    def report(
        self,
        pool: str,
        *replicas: dict[str, ModelState],
        measured: Sequence[tuple[int, float]] = (),
        bounds: Sequence[dict[str, InputBound]] = (),
    ) -> None:
        """`bounds` are those of each replica; without them, it is of the release before, which publishes none."""
        self.replicas[pool] = [
            Replica(
                id=f"{pool}-{number}",
                reports={
                    model: {
                        "state": state,
                        "reason": "" if state in ("ready", "loading") else f"why {state}",
                        "engine": POOLS[pool].engine if state == "ready" else "",
                        "artifact": {"ort": "onnx-fp32", "vino": "openvino-int8"}[pool] if state == "ready" else "",
                        "precision": "fp32" if state == "ready" else "",
                        "measured": list(measured),
                        **({"inputs_only": bounds[number]} if bounds else {}),
                    }
                    for model, state in models.items()
                },
                address={"host": "", "port": 0, "key": ""},
                channel=Channel(pool),
            )
            for number, models in enumerate(replicas)
        ]


def publish(
    store: Path,
    version: str,
    latency: tuple[LatencyTable, ...] = (),
    bounds: Mapping[str, dict[str, InputBound]] | None = None,
    numerics: str = "any",
    only: str = "",
) -> None:
    """`bounds` are the values, by artifact, for which it is right; `only` that artifact is in the bundle."""
    both = artifact("onnx-fp32", "onnx"), artifact("openvino-int8", "openvino", precision="int8")
    manifest = Manifest(
        name="m",
        version=version,
        created="2026-01-01T00:00:00Z",
        source="tests",
        signature=SignatureRecord(inputs=(TENSOR,), outputs=(TENSOR,)),
        max_batch=8,
        artifacts=tuple(
            known.model_copy(update={"inputs_only": {kind: bounds[known.name]}})
            if bounds and known.name in bounds
            else known
            for known, kind in zip(both, ("onnxruntime-cpu", "openvino-cpu"), strict=True)
            if only in ("", known.name)
        ),
        latency=latency,
        recipe={"numerics": numerics},
    )
    folder = store / "m" / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(manifest.model_dump_json())


def catalog(store: Path, version: str, **settings: object) -> Catalog:
    return Catalog.parse({"store": str(store), "models": [{"name": "m", "version": version, **settings}]})


def entry(models: LiveVersions) -> dict[str, Any]:
    """Status of the first model, with the view asked in the place of a router."""
    view = models._view
    (entry, *_) = models.status(lambda version: bool(view.live(version, fresh=True) or view.idle(version)))["models"]
    known: dict[str, Any] = entry
    return known


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come true"
        await asyncio.sleep(0.002)


async def turns() -> None:
    """Long enough for the keeper to have looked several times."""
    await asyncio.sleep(0.05)


async def serving(cluster: Cluster, store: Path, version: str = "1") -> LiveVersions:
    """Version 1 warm on one pool."""
    models = LiveVersions(View(POOLS, None, "here"))
    cluster.report("ort", {"m@1": "ready"})
    models.apply(catalog(store, version))
    await until(lambda: answers(models) == version)
    return models


def vino(models: LiveVersions) -> BackendStatus:
    return models._view.backends(models.get("m"))[1]


def answers(models: LiveVersions) -> str | None:
    try:
        return models.get("m").config.version
    except (NoBackend, ModelNotFound):
        return None
