"""A version that fails to load where the one before it is live does not take over, unless it is forced to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.integration.bundles import flip
from tests.integration.bundles import publish as publish_real
from tests.unit.catalogs import POOLS, Cluster, answers, catalog, entry, publish, serving, turns, until

from enginehouse.contract.config import Catalog, ModelConfig
from enginehouse.pools.hosting import HostedModels
from enginehouse.pools.report import ModelState
from enginehouse.routing import versions
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import View
from enginehouse.tools.cli.models import _not_changed
from enginehouse.tools.cli.status import say_what_failed

OTHER = {"ort": "vino", "vino": "ort"}


async def serving_on_both(cluster: Cluster, store: Path) -> LiveVersions:
    cluster.report("vino", {"m@1": "ready"})
    return await serving(cluster, store)


def half(cluster: Cluster, bad: str, state: ModelState, key: str = "m@2") -> None:
    """What is to come is in this state on one pool, and ready on the other."""
    cluster.report(bad, {"m@1": "ready", key: state})
    cluster.report(OTHER[bad], {"m@1": "ready", key: "ready"})


@pytest.mark.parametrize("bad", ["ort", "vino"])
async def test_a_pool_that_would_be_lost_holds_the_version_back_however_long_it_is_tried_again(
    cluster: Cluster, store: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setattr(versions, "PATIENCE_S", 0.0)
    models = await serving_on_both(cluster, store)
    models.apply(catalog(store, "2"))
    for state in ("failed", "loading", "failed", "loading"):
        half(cluster, bad, state)  # type: ignore[arg-type]
        await until(lambda: entry(models)["state"] == "failed")
        await turns()
        assert answers(models) == "1"
        status = entry(models)
        assert (status["state"], status["serving"], status["ready"]) == ("failed", "1", True)
        assert status["reason"] == f"m@1 goes on, since it is live where m@2 fails: {bad}"
    half(cluster, bad, "ready")
    await until(lambda: answers(models) == "2")


@pytest.mark.parametrize("bad", ["ort", "vino"])
async def test_settings_that_a_pool_cannot_load_are_held_back_alike(cluster: Cluster, store: Path, bad: str) -> None:
    models = await serving_on_both(cluster, store)
    (wanted,) = catalog(store, "1", max_batch_size=4).models
    models.apply(catalog(store, "1", max_batch_size=4))
    half(cluster, bad, "failed", wanted.key)
    await until(lambda: entry(models)["state"] == "failed")
    await turns()
    assert models.get("m").key == "m@1"


@pytest.mark.parametrize("bad", ["ort", "vino"])
async def test_what_is_not_there_for_a_pool_is_no_failure(cluster: Cluster, store: Path, bad: str) -> None:
    models = await serving_on_both(cluster, store)
    models.apply(catalog(store, "2"))
    half(cluster, bad, "unavailable")
    await until(lambda: answers(models) == "2")


@pytest.mark.parametrize("bad", ["ort", "vino"])
async def test_a_forced_one_takes_over_with_what_lives(cluster: Cluster, store: Path, bad: str) -> None:
    models = await serving_on_both(cluster, store)
    forced = catalog(store, "2", forced=True)
    assert (forced.models[0].key, forced.models[0].settings()) == ("m@2", {})
    models.apply(forced)
    half(cluster, bad, "failed")
    await until(lambda: answers(models) == "2")
    assert (entry(models)["state"], entry(models)["reason"]) == ("ready", "")
    # How it came is no part of what it is: adding it again loads nothing.
    models.apply(catalog(store, "2"))
    await until(lambda: not models.get("m").config.forced)


@pytest.mark.parametrize("bad", ["ort", "vino"])
async def test_with_nothing_before_it_a_version_is_served_by_what_lives(
    cluster: Cluster, store: Path, bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    models = LiveVersions(View(POOLS, None, "here"))
    half(cluster, bad, "failed")
    models.apply(catalog(store, "2"))
    await until(lambda: answers(models) == "2")
    say_what_failed(entry(models))
    assert capsys.readouterr().err == f"m@2 is served without {bad}, which failed to load it\n"


async def test_a_pool_that_loses_the_version_before_holds_nothing_back(cluster: Cluster, store: Path) -> None:
    models = await serving_on_both(cluster, store)
    models.apply(catalog(store, "2"))
    half(cluster, "vino", "failed")
    await until(lambda: entry(models)["state"] == "failed")
    assert answers(models) == "1"
    cluster.report("vino", {"m@2": "failed"})
    await until(lambda: answers(models) == "2")


@pytest.fixture
def residents() -> Iterator[Any]:
    reports = {"m@1": _report("ready"), "m@2": _report("failed")}
    yield SimpleNamespace(reports=reports, models={}, backlog_ms=lambda key: 0.0)


def _report(state: ModelState) -> dict[str, Any]:
    engine = "onnxruntime-cpu" if state == "ready" else ""
    return {
        "state": state,
        "reason": "",
        "engine": engine,
        "artifact": "onnx-fp32",
        "precision": "fp32",
        "measured": [],
        "inputs_only": {},
    }


async def test_so_does_an_engine_of_the_routers(cluster: Cluster, store: Path, residents: Any) -> None:
    models = LiveVersions(View(POOLS, residents, "here"))
    cluster.report("ort", {"m@1": "ready"})
    models.apply(catalog(store, "1", resident=True))
    await until(lambda: answers(models) == "1")
    models.apply(catalog(store, "2", resident=True))
    cluster.report("ort", {"m@1": "ready", "m@2": "ready"})
    await until(lambda: entry(models)["state"] == "failed")
    assert answers(models) == "1"
    assert entry(models)["reason"].endswith("where m@2 fails: routers")
    # Left to the pools it is lost nowhere.
    models.apply(catalog(store, "2"))
    await until(lambda: answers(models) == "2")


def backends(**states: str) -> list[dict[str, Any]]:
    return [{"pool": pool, "state": state, "reason": f"why {state}"} for pool, state in states.items()]


@pytest.mark.parametrize(
    ("old", "states", "told"),
    [
        (
            "2",
            {"ort": "failing", "vino": "live", "gpu": "unavailable"},
            "m@2 goes on serving, m@5 cannot: ort: why failing; the other backends could go on with it: --force "
            "changes to it all the same",
        ),
        ("2", {"ort": "failing", "gpu": "unavailable"}, "cannot: it is so; ort: why failing; gpu: why unavailable"),
        ("5", {"ort": "failing", "vino": "idle"}, "m@5 goes on with the settings it had; with the new ones it cannot"),
        (None, {"ort": "failing"}, "m@5 was not added: it is so; ort: why failing"),
        (None, {"gpu": "unavailable"}, "m@5 was not added: it is so; gpu: why unavailable"),
    ],
)
def test_what_was_not_changed_is_told_with_pool_reason_and_way_out(
    old: str | None, states: dict[str, str], told: str
) -> None:
    before = ModelConfig(name="m", version=old) if old else None
    model = ModelConfig(name="m", version="5")
    assert told in _not_changed(model, before, {"reason": "it is so", "backends": backends(**states)})


async def test_a_file_that_is_gone_is_a_failure_and_an_artifact_that_never_was_is_none(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = publish_real(tmp_path, "gone", "1", 3.0) / "onnx-fp32" / "model.onnx"
    file.unlink()
    flip(publish_real(tmp_path, "damaged", "1", 3.0) / "onnx-fp32" / "model.onnx")
    publish(tmp_path, "1", only="openvino-int8")
    hosted = HostedModels("here", ["onnxruntime-cpu"], 1, lambda _: True, unload_after_s=60, router=True)
    models = [{"name": name, "version": "1"} for name in ("gone", "damaged", "m")]
    hosted.follow(Catalog.parse({"store": str(tmp_path), "models": models}))
    await until(
        lambda: all(report["state"] != "loading" for report in hosted.reports.values()) and len(hosted.reports) == 3
    )
    states = {key: report["state"] for key, report in hosted.reports.items()}
    assert states == {"gone@1": "failed", "damaged@1": "failed", "m@1": "unavailable"}
    assert f"BundleError: {file}: No such file" in hosted.reports["gone@1"]["reason"]
