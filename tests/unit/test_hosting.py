"""The models of a process: other settings of a version are another engine, loaded beside the one that answers."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.integration.bundles import publish
from tests.unit.catalogs import until

from enginehouse.contract.config import Catalog, ModelConfig
from enginehouse.contract.errors import DeadlineExceeded, EngineUnavailable, ModelNotFound
from enginehouse.contract.store import Store
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import Engine, load_engine
from enginehouse.pools import batching, hosting, loading
from enginehouse.pools.batching import LoadedModel
from enginehouse.pools.hosting import HostedModels
from enginehouse.pools.loading import LOADS_AT_ONCE, Loader

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


async def test_what_was_rewritten_is_not_loaded_in_the_place_of_what_was_meant(tmp_path: Path) -> None:
    publish(tmp_path, "m", "1", 3.0)
    meant = catalog(tmp_path, {"name": "m", "version": "1", "digest": Store(str(tmp_path)).digest("m", "1")})
    shutil.rmtree(tmp_path / "m" / "1")
    publish(tmp_path, "m", "1", 5.0)
    hosted = hosting_here(unload_after_s=60)
    hosted.follow(meant)
    (key,) = (model.key for model in meant.models)
    await until(lambda: hosted.reports.get(key, {}).get("state") == "failed")
    assert "was rewritten since m@1 was added" in hosted.reports[key]["reason"]
    now = catalog(tmp_path, {"name": "m", "version": "1", "digest": Store(str(tmp_path)).digest("m", "1")})
    hosted.follow(now)
    outputs, _ = await (await hosted.get(now.models[0].key)).infer(X, 1, 5.0)
    np.testing.assert_array_equal(outputs["y"], X[0]["x"] * 5)


async def test_settings_that_change_no_engine_change_the_loaded_one(tmp_path: Path) -> None:
    publish(tmp_path, "m", "1", 3.0)
    hosted = HostedModels("here", ["onnxruntime-cpu"], 1, lambda _: True, unload_after_s=0.2, router=True)
    hosted.follow(catalog(tmp_path, {"name": "m", "version": "1"}))
    await until(lambda: "m@1" in hosted.models)
    loaded = hosted.models["m@1"]
    hosted.follow(catalog(tmp_path, {"name": "m", "version": "1", "batch_wait_ms": 5}))
    assert hosted.models["m@1"] is loaded
    assert loaded._waits_for_batches


class Watched:
    """An engine that says when it computes and when it is closed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.signature, self.precision, self.inputs_only = engine.signature, engine.precision, engine.inputs_only
        self.seconds = 0.0
        self.ended: list[str] = []

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        time.sleep(self.seconds)
        answer = self._engine.infer(inputs)
        self.ended.append("infer")
        return answer

    def close(self) -> None:
        self._engine.close()
        self.ended.append("close")


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Every engine that is loaded, in the order in which they were."""
    loaded: list[Watched] = []

    def watch(*args: object, **options: object) -> Watched:
        loaded.append(Watched(load_engine(*args, **options)))  # type: ignore[arg-type]
        return loaded[-1]

    monkeypatch.setattr(loading, "load_engine", watch)
    return loaded


def hosting_here(**options: object) -> HostedModels:
    settings = {"unload_after_s": 0.0, "router": True} | options
    return HostedModels("here", ["onnxruntime-cpu"], 1, lambda _: True, **settings)  # type: ignore[arg-type]


async def test_an_unloaded_engine_is_closed_after_the_calls_in_flight(tmp_path: Path, engines: list[Watched]) -> None:
    publish(tmp_path, "m", "1", 3.0)
    hosted = hosting_here()
    hosted.follow(catalog(tmp_path, {"name": "m", "version": "1"}))
    await until(lambda: "m@1" in hosted.models)
    (engine,), loaded = engines, hosted.models["m@1"]
    engine.ended.clear()
    engine.seconds = 0.5
    call = asyncio.create_task(loaded.infer(X, 1, 10))
    await asyncio.sleep(0.05)
    hosted.follow(catalog(tmp_path))
    await until(lambda: "m@1" not in hosted.models)
    assert not call.done()
    with pytest.raises(EngineUnavailable, match="just been unloaded"):
        await until(lambda: loaded._closing)
        await loaded.infer(X, 1, 10)
    outputs, _ = await call
    np.testing.assert_array_equal(outputs["y"], X[0]["x"] * 3)
    await until(lambda: engine.ended == ["infer", "close"])
    await until(lambda: not hosted._closing)


async def test_a_stuck_engine_is_closed_when_its_call_ends_and_nobody_waits_for_it(
    tmp_path: Path, engines: list[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "CLOSE_S", 0.1)
    publish(tmp_path, "m", "1", 3.0)
    hosted = hosting_here()
    hosted.follow(catalog(tmp_path, {"name": "m", "version": "1"}))
    await until(lambda: "m@1" in hosted.models)
    (engine,), loaded = engines, hosted.models["m@1"]
    engine.ended.clear()
    engine.seconds = 1.0
    call = asyncio.create_task(loaded.infer(X, 1, 10))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await loaded.close()
    assert time.monotonic() - began < 0.6
    assert engine.ended == []
    await call
    await until(lambda: engine.ended == ["infer", "close"])


async def test_one_that_loads_slowly_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: list[Watched]
) -> None:
    for name in ("slow", "m", "n"):
        publish(tmp_path, name, "1", 3.0)
    go_on, load = threading.Event(), Loader.load_now

    def slowly(loader: Loader, url: str, config: ModelConfig, note: Callable[[str], None]) -> LoadedModel:
        if config.name == "slow":
            go_on.wait(10)
        return load(loader, url, config, note)

    monkeypatch.setattr(Loader, "load_now", slowly)
    hosted = hosting_here()
    slow, m, n = ({"name": name, "version": "1"} for name in ("slow", "m", "n"))
    hosted.follow(catalog(tmp_path, slow, m))
    await until(lambda: "m@1" in hosted.models)
    assert hosted.reports["slow@1"]["state"] == "loading"
    # Others come and go meanwhile, and a request does not wait for longer than it may.
    hosted.follow(catalog(tmp_path, slow, n))
    await until(lambda: hosted.models.keys() == {"n@1"})
    with pytest.raises(DeadlineExceeded, match="still loading slow@1"):
        await hosted.get("slow@1", 0.05)
    # Removed while it loads: it is let go of when it is there.
    hosted.follow(catalog(tmp_path, n))
    hosted.follow(catalog(tmp_path, n))
    go_on.set()
    await until(lambda: "slow@1" not in hosted.reports)
    await until(lambda: sorted("close" in engine.ended for engine in engines) == [False, True, True])
    hosted.check_health()


async def test_so_many_load_at_once_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"m{number}" for number in range(2 * LOADS_AT_ONCE)]
    for name in names:
        publish(tmp_path, name, "1", 3.0)
    load, at_once, most = Loader.load_now, [0], [0]
    lock = threading.Lock()

    def counted(loader: Loader, url: str, config: ModelConfig, note: Callable[[str], None]) -> LoadedModel:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.1)
        with lock:
            at_once[0] -= 1
        return load(loader, url, config, note)

    monkeypatch.setattr(Loader, "load_now", counted)
    hosted = hosting_here()
    hosted.follow(catalog(tmp_path, *({"name": name, "version": "1"} for name in names)))
    await until(lambda: len(hosted.models) == len(names))
    assert most == [LOADS_AT_ONCE]


async def test_a_load_that_does_not_end_is_given_up_and_closed_if_it_ends_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: list[Watched]
) -> None:
    monkeypatch.setattr(loading, "LOAD_WITHIN_S", 0.2)
    monkeypatch.setattr(hosting, "RETRY_AFTER_S", 0.05)
    publish(tmp_path, "m", "1", 3.0)
    go_on, load, begun = threading.Event(), Loader.load_now, list[str]()

    def slowly(loader: Loader, url: str, config: ModelConfig, note: Callable[[str], None]) -> LoadedModel:
        begun.append(config.name)
        go_on.wait(10)
        return load(loader, url, config, note)

    monkeypatch.setattr(Loader, "load_now", slowly)
    hosted = hosting_here()
    hosted.follow(catalog(tmp_path, {"name": "m", "version": "1"}))
    await until(lambda: "m@1" in hosted.reports and "not loaded within" in hosted.reports["m@1"]["reason"])
    # It is tried again, but never while the thread of the one before runs.
    await until(lambda: "has not ended yet" in hosted.reports["m@1"]["reason"])
    assert begun == ["m"]
    go_on.set()
    await until(lambda: "m@1" in hosted.models)
    assert begun == ["m", "m"]
    assert ["close" in engine.ended for engine in engines] == [True, False]
