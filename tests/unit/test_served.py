"""Which version answers: a new one takes over when it is warm, and a bad one leaves the old one in place.

What Ray broadcasts about replicas is plain data, so a table stands in for it here; everything else is real.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.unit.test_policy import TENSOR, artifact, table

from enginehouse import availability, served
from enginehouse.availability import ModelState, Replica
from enginehouse.bundle import MANIFEST
from enginehouse.channel import Channel
from enginehouse.config import Catalog, ModelConfig, PoolConfig
from enginehouse.errors import ModelNotFound, NoBackend
from enginehouse.latency import LatencyTable
from enginehouse.manifest import Manifest, SignatureRecord
from enginehouse.reports import BackendStatus, Reports
from enginehouse.served import ServedModels

POOLS = {"ort": PoolConfig(engine="onnxruntime-cpu"), "vino": PoolConfig(engine="openvino-cpu")}


@dataclass
class Cluster:
    """What the replicas of each pool report, and which accelerators there are."""

    replicas: dict[str, list[Replica]] = field(default_factory=dict)
    accelerators: set[str] = field(default_factory=lambda: {"cpu"})

    def report(self, pool: str, *replicas: dict[str, ModelState], measured: Sequence[tuple[int, float]] = ()) -> None:
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
                    }
                    for model, state in models.items()
                },
                address={"host": "", "port": 0, "key": ""},
                channel=Channel(pool),
            )
            for number, models in enumerate(replicas)
        ]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(availability, "replicas", lambda app, pool: cluster.replicas.get(pool, []))
    monkeypatch.setattr(availability, "nodes_with", lambda nodes: len(cluster.accelerators & set(nodes)))
    monkeypatch.setattr(served, "PERIOD_S", 0.005)
    monkeypatch.setattr(served, "COUNT_NODES_S", 0.0)
    return cluster


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for version in ("1", "2"):
        publish(tmp_path, version)
    return tmp_path


def publish(store: Path, version: str, latency: tuple[LatencyTable, ...] = ()) -> None:
    manifest = Manifest(
        name="m",
        version=version,
        created="2026-01-01T00:00:00Z",
        source="tests",
        signature=SignatureRecord(inputs=(TENSOR,), outputs=(TENSOR,)),
        max_batch=8,
        artifacts=(artifact("onnx-fp32", "onnx"), artifact("openvino-int8", "openvino", precision="int8")),
        latency=latency,
    )
    folder = store / "m" / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(manifest.model_dump_json())


def catalog(store: Path, version: str, **settings: object) -> Catalog:
    return Catalog.parse({"store": str(store), "models": [{"name": "m", "version": version, **settings}]})


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come true"
        await asyncio.sleep(0.002)


async def turns() -> None:
    """Long enough for the keeper to have looked several times."""
    await asyncio.sleep(0.05)


async def serving(cluster: Cluster, store: Path, version: str = "1") -> ServedModels:
    """Version 1 warm on one pool."""
    models = ServedModels(Reports(POOLS, None, "here"))
    cluster.report("ort", {"m@1": "ready"})
    models.apply(catalog(store, version))
    await until(lambda: answers(models) == version)
    return models


def vino(models: ServedModels) -> BackendStatus:
    return models._reports.backends(models.get("m"))[1]


def answers(models: ServedModels) -> str | None:
    try:
        return models.get("m").config.version
    except (NoBackend, ModelNotFound):
        return None


async def test_a_model_answers_from_the_moment_it_is_warm(cluster: Cluster, store: Path) -> None:
    models = ServedModels(Reports(POOLS, None, "here"))
    models.apply(catalog(store, "1"))
    await turns()
    with pytest.raises(NoBackend, match="'m@1' is not warm yet: ort: cold; vino: cold"):
        models.get("m")
    cluster.report("ort", {"m@1": "loading"})
    await turns()
    assert models.status()["models"][0]["state"] == "loading"
    cluster.report("ort", {"m@1": "ready"})
    await until(lambda: answers(models) == "1")
    assert models.status()["models"][0] | {"backends": []} == {
        "name": "m",
        "wanted": "1",
        "serving": "1",
        "state": "ready",
        "reason": "",
        "backends": [],
    }


async def test_a_new_version_takes_over_only_when_it_is_warm(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    models.apply(catalog(store, "2"))
    cluster.report("ort", {"m@1": "ready", "m@2": "loading"})
    await turns()
    assert answers(models) == "1"
    status = models.status()["models"][0]
    assert (status["serving"], status["wanted"], status["state"]) == ("1", "2", "loading")
    cluster.report("ort", {"m@1": "ready", "m@2": "ready"})
    await until(lambda: answers(models) == "2")
    with pytest.raises(ModelNotFound, match="version '1'"):
        models.get("m", "1")


async def test_the_old_version_can_be_asked_for_by_name_while_it_serves(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    models.apply(catalog(store, "2"))
    await turns()
    assert models.get("m", "1").config.version == "1"
    with pytest.raises(ModelNotFound, match="version '2'"):
        models.get("m", "2")


async def test_a_pool_that_is_still_loading_holds_the_new_version_back_but_not_for_ever(
    cluster: Cluster, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.report("vino", {"m@1": "ready"})
    models = await serving(cluster, store)
    models.apply(catalog(store, "2"))
    cluster.report("ort", {"m@1": "ready", "m@2": "ready"})
    cluster.report("vino", {"m@1": "ready", "m@2": "loading"})
    await turns()
    assert answers(models) == "1"
    monkeypatch.setattr(served, "PATIENCE_S", 0.0)
    await until(lambda: answers(models) == "2")


@pytest.mark.parametrize("state", ["failed", "unavailable"])
async def test_a_pool_that_cannot_load_the_new_version_does_not_hold_it_back(
    cluster: Cluster, store: Path, state: ModelState
) -> None:
    models = await serving(cluster, store)
    models.apply(catalog(store, "2"))
    cluster.report("vino", {"m@2": state})
    cluster.report("ort", {"m@1": "ready", "m@2": "ready"})
    await until(lambda: answers(models) == "2")


async def test_a_version_that_no_pool_can_load_leaves_the_old_one_and_says_why(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    models.apply(catalog(store, "2"))
    cluster.report("ort", {"m@1": "ready", "m@2": "failed"})
    cluster.report("vino", {"m@2": "unavailable"})
    await turns()
    assert answers(models) == "1"
    status = models.status()["models"][0]
    assert (status["serving"], status["state"]) == ("1", "failed")
    assert [backend["reason"] for backend in status["backends"]] == ["why failed", "why unavailable"]


@pytest.mark.parametrize(("content", "told"), [(None, "FileNotFoundError"), ("{", "not a usable manifest")])
async def test_a_bad_manifest_leaves_the_old_version_and_says_why(
    cluster: Cluster, store: Path, content: str | None, told: str
) -> None:
    models = await serving(cluster, store)
    (store / "m" / "3").mkdir()
    if content is not None:
        (store / "m" / "3" / MANIFEST).write_text(content)
    models.apply(catalog(store, "3"))
    await until(lambda: models.status()["models"][0]["state"] == "failed")
    status = models.status()["models"][0]
    assert status["serving"] == "1"
    assert told in status["reason"]
    assert answers(models) == "1"


async def test_a_manifest_that_appears_later_is_found(
    cluster: Cluster, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "RETRY_AFTER_S", 0.01)
    models = await serving(cluster, store)
    models.apply(catalog(store, "3"))
    await until(lambda: models.status()["models"][0]["state"] == "failed")
    cluster.report("ort", {"m@1": "ready", "m@3": "ready"})
    publish(store, "3")
    await until(lambda: answers(models) == "3")


async def test_one_unreadable_store_does_not_hold_up_other_models(cluster: Cluster, store: Path) -> None:
    models = ServedModels(Reports(POOLS, None, "here"))
    cluster.report("ort", {"m@1": "ready"})
    gone = ModelConfig(name="gone", version="1")
    models.apply(Catalog(store=str(store), models=(gone, ModelConfig(name="m", version="1"))))
    await until(lambda: answers(models) == "1")
    with pytest.raises(NoBackend, match="'gone@1' is not warm yet: ManifestInvalid"):
        models.get("gone")


async def test_a_removed_model_stops_answering_at_once(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    models.apply(Catalog(store=str(store)))
    with pytest.raises(ModelNotFound, match="served: none"):
        models.get("m")
    assert models.status()["models"] == []


async def test_settings_of_the_same_version_change_without_a_gap(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    # Not even a replica is needed: nothing has to be loaded.
    cluster.report("ort")
    models.apply(catalog(store, "1", numerics="any", batch_wait_ms=5))
    assert answers(models) == "1"
    await until(lambda: models.get("m").config.numerics == "any")


async def test_going_back_while_the_new_version_loads_keeps_the_old_one(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    models.apply(catalog(store, "2"))
    await turns()
    models.apply(catalog(store, "1"))
    cluster.report("ort", {"m@1": "ready", "m@2": "ready"})
    await turns()
    assert answers(models) == "1"
    assert models.status()["models"][0]["state"] == "ready"


async def test_live_backends_carry_what_the_policy_needs(cluster: Cluster, store: Path) -> None:
    measured = table((1, 2.0), artifact="onnx-fp32")
    publish(store, "1", latency=(measured,))
    cluster.report("vino", {"m@1": "ready"}, {"m@1": "loading"})
    models = await serving(cluster, store)
    ort, vino = models._reports.live(models.get("m"))
    assert (ort.pool, ort.numerics, ort.replicas, ort.table) == ("ort", "full", 1, measured)
    assert (vino.pool, vino.numerics, vino.replicas, vino.table) == ("vino", "int8", 1, None)


async def test_an_engine_that_the_build_did_not_measure_has_the_times_of_its_replica(
    cluster: Cluster, store: Path
) -> None:
    models = await serving(cluster, store)
    cluster.report("ort", {"m@1": "ready"}, measured=[(1, 2.0), (32, 8.0)])
    (backend,) = models._reports.live(models.get("m"))
    assert backend.table is not None
    assert [backend.table.predict_ms(rows) for rows in (1, 32, 64)] == [2.0, 8.0, 16.0]


async def test_why_a_backend_is_not_live_is_told(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    states = {}
    for replicas in ([{"m@1": "unavailable"}], [{"m@1": "failed"}], [{"m@1": "loading"}], [{}], []):
        cluster.report("vino", *replicas)  # type: ignore[arg-type]
        status = vino(models)
        states[status.state] = status.reason
    assert states == {"unavailable": "why unavailable", "failing": "why failed", "loading": "", "cold": ""}
    cluster.accelerators = set()
    await until(lambda: vino(models).state == "no-hardware")
    assert "no live node has the label enginehouse.io/accelerator=cpu" in vino(models).reason
    assert [pool["nodes"] for pool in models.status()["pools"]] == [0, 0]


async def test_a_replica_that_is_warm_outweighs_one_that_failed(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    cluster.report("ort", {"m@1": "failed"}, {"m@1": "ready"})
    assert [backend.replicas for backend in models._reports.live(models.get("m"))] == [1]


async def test_losing_every_replica_is_told_as_failed_and_heals(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    cluster.report("ort")
    assert models._reports.live(models.get("m")) == []
    assert models.status()["models"][0]["state"] == "failed"
    cluster.report("ort", {"m@1": "ready"})
    assert models.status()["models"][0]["state"] == "ready"


async def test_health_fails_when_the_catalog_is_no_longer_followed(
    cluster: Cluster, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = await serving(cluster, store)
    monkeypatch.setattr(models, "_switch_versions", lambda: 1 / 0)
    assert models._keeper is not None
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(models._keeper, 5)
    with pytest.raises(RuntimeError, match="no longer followed"):
        models.check_health()
