"""Which version answers: a new one takes over when it is warm, and a bad one leaves the old one in place."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from tests.unit.catalogs import POOLS, Cluster, answers, catalog, entry, publish, serving, turns, until

from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.config import Catalog, ModelConfig
from enginehouse.contract.errors import ModelNotFound, NoBackend
from enginehouse.contract.manifest import Manifest
from enginehouse.contract.store import Store
from enginehouse.pools.report import ModelState
from enginehouse.routing import versions
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import View


async def test_a_model_answers_from_the_moment_it_is_warm(cluster: Cluster, store: Path) -> None:
    models = LiveVersions(View(POOLS, None, "here"))
    models.apply(catalog(store, "1"))
    await turns()
    with pytest.raises(NoBackend, match="'m@1' is not warm yet: ort: cold; vino: cold"):
        models.get("m")
    cluster.report("ort", {"m@1": "loading"})
    await turns()
    assert entry(models)["state"] == "loading"
    cluster.report("ort", {"m@1": "ready"})
    await until(lambda: answers(models) == "1")
    assert entry(models) | {"backends": []} == {
        "name": "m",
        "wanted": "1",
        "serving": "1",
        "ready": True,
        "state": "ready",
        "reason": "",
        "settings": {},
        "digest": "",
        "left_out": "",
        "backends": [],
    }


async def test_a_new_version_takes_over_only_when_it_is_warm(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    models.apply(catalog(store, "2"))
    cluster.report("ort", {"m@1": "ready", "m@2": "loading"})
    await turns()
    assert answers(models) == "1"
    status = entry(models)
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
    monkeypatch.setattr(versions, "PATIENCE_S", 0.0)
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
    status = entry(models)
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
    await until(lambda: entry(models)["state"] == "failed")
    status = entry(models)
    assert status["serving"] == "1"
    assert told in status["reason"]
    assert answers(models) == "1"


async def test_a_manifest_that_appears_later_is_found(
    cluster: Cluster, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "RETRY_AFTER_S", 0.01)
    models = await serving(cluster, store)
    models.apply(catalog(store, "3"))
    await until(lambda: entry(models)["state"] == "failed")
    cluster.report("ort", {"m@1": "ready", "m@3": "ready"})
    publish(store, "3")
    await until(lambda: answers(models) == "3")


async def test_one_unreadable_store_does_not_hold_up_other_models(cluster: Cluster, store: Path) -> None:
    models = LiveVersions(View(POOLS, None, "here"))
    cluster.report("ort", {"m@1": "ready"})
    gone = ModelConfig(name="gone", version="1")
    models.apply(Catalog(store=str(store), models=(gone, ModelConfig(name="m", version="1"))))
    await until(lambda: answers(models) == "1")
    await until(lambda: entry(models)["state"] == "failed")
    with pytest.raises(NoBackend, match="'gone@1' is not warm yet: ManifestInvalid"):
        models.get("gone")


async def test_a_removed_model_stops_answering_at_once(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    models.apply(Catalog(store=str(store)))
    with pytest.raises(ModelNotFound, match="served: none"):
        models.get("m")
    assert models.status(lambda _: True)["models"] == []


async def test_settings_that_change_nothing_loaded_change_without_a_gap(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    # Not even a replica is needed: nothing has to be loaded.
    cluster.report("ort")
    models.apply(catalog(store, "1", batch_wait_ms=5))
    assert answers(models) == "1"
    await until(lambda: models.get("m").config.batch_wait_ms == 5)


@pytest.mark.parametrize("settings", [{"numerics": "any"}, {"max_batch_size": 4}])
async def test_settings_that_something_else_is_loaded_for_take_over_when_that_is_warm(
    cluster: Cluster, store: Path, settings: dict[str, object]
) -> None:
    models = await serving(cluster, store)
    (wanted,) = catalog(store, "1", **settings).models
    assert wanted.key != "m@1"
    models.apply(catalog(store, "1", **settings))
    cluster.report("ort", {"m@1": "ready", wanted.key: "loading"})
    await turns()
    assert models.get("m").key == "m@1"
    assert entry(models)["state"] == "loading"
    cluster.report("ort", {"m@1": "ready", wanted.key: "ready"})
    await until(lambda: models.get("m").key == wanted.key)
    assert models.get("m", "1").config == wanted


async def test_a_bundle_that_was_rewritten_is_another_one(cluster: Cluster, store: Path) -> None:
    digest = Store(str(store)).digest("m", "1")
    models = await serving(cluster, store)
    publish(store, "1", numerics="full")
    # Whoever is told the content that was there does not take what is there now for it.
    models.apply(catalog(store, "1", digest=digest))
    await until(lambda: "was rewritten since m@1 was added; `enginehouse models add m@1`" in entry(models)["reason"])
    assert models.get("m").manifest.recipe == {"numerics": "any"}
    # Added again it is loaded beside the one before, and takes over when it is warm.
    (wanted,) = catalog(store, "1", digest=Store(str(store)).digest("m", "1")).models
    models.apply(Catalog(store=str(store), models=(wanted,)))
    cluster.report("ort", {"m@1": "ready", wanted.key: "loading"})
    await turns()
    assert (models.get("m").key, entry(models)["state"]) == ("m@1", "loading")
    cluster.report("ort", {"m@1": "ready", wanted.key: "ready"})
    await until(lambda: models.get("m").key == wanted.key)
    assert models.get("m").manifest.recipe == {"numerics": "full"}


async def test_going_back_while_the_new_version_loads_keeps_the_old_one(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    models.apply(catalog(store, "2"))
    await turns()
    models.apply(catalog(store, "1"))
    cluster.report("ort", {"m@1": "ready", "m@2": "ready"})
    await turns()
    assert answers(models) == "1"
    assert entry(models)["state"] == "ready"


async def test_losing_every_replica_is_told_as_failed_and_heals(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    cluster.report("ort")
    assert models._view.live(models.get("m")) == []
    assert entry(models)["state"] == "failed"
    cluster.report("ort", {"m@1": "ready"})
    assert entry(models)["state"] == "ready"


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


async def test_stores_are_read_side_by_side_and_one_that_hangs_is_reported_and_taken_when_it_answers(
    cluster: Cluster, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "READ_WITHIN_S", 1.5)
    go_on, read, begun = threading.Event(), Store.manifest, list[str]()

    def slowly(self: Store, model: str, version: str, digest: str) -> Manifest:
        begun.append(model)
        if model == "hangs":
            go_on.wait(10)
        return read(self, "m", version)

    monkeypatch.setattr(Store, "manifest", slowly)
    models = LiveVersions(View(POOLS, None, "here"))
    cluster.report("ort", {"m@1": "ready", "hangs@1": "ready"})
    names = [ModelConfig(name=name, version="1") for name in ("hangs", "m")]
    models.apply(Catalog(store=str(store), models=tuple(names)))
    await until(lambda: answers(models) == "1", 1.2)
    assert entry(models)["state"] == "loading"
    await until(lambda: entry(models)["state"] == "failed")
    assert "has not answered for 1.5 s" in entry(models)["reason"]
    # A new catalog meanwhile is followed at once, and no second thread hangs.
    models.apply(Catalog(store=str(store), models=(names[0],)))
    with pytest.raises(ModelNotFound):
        models.get("m")
    await turns()
    assert begun.count("hangs") == 1
    go_on.set()
    await until(lambda: entry(models)["state"] == "ready")
    assert begun.count("hangs") == 1


async def test_pools_that_have_something_to_load_and_no_replicas_are_started(cluster: Cluster, store: Path) -> None:
    woken: list[str] = []
    publish(store, "3", only="openvino-int8")
    models = LiveVersions(View(POOLS, None, "here"), woken.append)
    cluster.report("vino", {"m@3": "ready"})
    models.apply(catalog(store, "3"))
    await until(lambda: answers(models) == "3")
    assert woken == []
    models.apply(catalog(store, "1"))
    await until(lambda: bool(woken))
    assert set(woken) == {"ort"}
