"""The models of a process: other settings of a version are another engine, loaded beside the one that answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.integration.bundles import publish
from tests.unit.catalogs import until

from enginehouse.contract.config import Catalog
from enginehouse.contract.errors import ModelNotFound
from enginehouse.pools.hosting import HostedModels

pytest.importorskip("onnxruntime")

X = [{"x": np.ones((1, 4), np.float32)}]


def catalog(store: Path, *models: dict[str, object]) -> Catalog:
    return Catalog.parse({"store": str(store), "models": models})


async def test_other_settings_of_a_version_are_loaded_beside_it_until_it_is_idle(tmp_path: Path) -> None:
    publish(tmp_path, "m", "1", 3.0)
    hosted = HostedModels("here", ["onnxruntime-cpu"], 1, lambda _: True, unload_after_s=0.2, router=True)
    hosted.follow(catalog(tmp_path, {"name": "m", "version": "1"}))
    await until(lambda: "m@1" in hosted.models)
    other = catalog(tmp_path, {"name": "m", "version": "1", "max_batch_size": 2})
    (wanted,) = other.models
    hosted.follow(other)
    await until(lambda: wanted.key in hosted.models)
    # Routers that have not received the new catalog yet still get their answer from what they asked for.
    outputs, _ = await (await hosted.get("m@1")).infer(X, 1, 5.0)
    np.testing.assert_array_equal(outputs["y"], X[0]["x"] * 3)
    assert hosted.models["m@1"].max_rows != hosted.models[wanted.key].max_rows == 2
    await until(lambda: "m@1" not in hosted.reports)
    assert hosted.models.keys() == hosted.reports.keys() == {wanted.key}
    # It is loaded again for a router that still has the catalog before, and no longer once the model is removed.
    assert (await hosted.get("m@1")).max_rows == 8
    hosted.follow(catalog(tmp_path))
    await until(lambda: not hosted.models)
    with pytest.raises(ModelNotFound):
        await hosted.get("m@1")


async def test_settings_that_change_no_engine_change_the_loaded_one(tmp_path: Path) -> None:
    publish(tmp_path, "m", "1", 3.0)
    hosted = HostedModels("here", ["onnxruntime-cpu"], 1, lambda _: True, unload_after_s=0.2, router=True)
    hosted.follow(catalog(tmp_path, {"name": "m", "version": "1"}))
    await until(lambda: "m@1" in hosted.models)
    loaded = hosted.models["m@1"]
    hosted.follow(catalog(tmp_path, {"name": "m", "version": "1", "batch_wait_ms": 5}))
    assert hosted.models["m@1"] is loaded
    assert loaded._waits_for_batches
