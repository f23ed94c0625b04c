"""What routers serve, known in another process: published when it changes, and the same objects while it does not."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.unit.test_policy import artifact, manifest, table

from enginehouse.contract.config import AppConfig, ModelConfig
from enginehouse.contract.errors import ModelNotFound
from enginehouse.routing import remote_versions
from enginehouse.routing.remote_versions import RemoteVersions, publish
from enginehouse.routing.view import ModelVersion

CONFIG = AppConfig()


def served(version: str = "1", **settings: object) -> ModelVersion:
    described = manifest([artifact("a", "onnx")], table((1, 2.0))).model_copy(update={"version": version})
    config = ModelConfig.model_validate({"name": "m", "version": version} | settings)
    return ModelVersion(config, described, described.signature.signature())


async def test_what_a_router_serves_is_known_elsewhere() -> None:
    here = RemoteVersions()
    with pytest.raises(ModelNotFound, match="served: none"):
        here.get("m")
    published = await publish(CONFIG, lambda: [served()], here.tag)
    assert AppConfig.parse(published["args"]) == CONFIG
    here.receive(published)
    assert here.get("m") == served()
    with pytest.raises(ModelNotFound, match="version '2'"):
        here.get("m", "2")
    # Another router that serves the same says the same.
    before = here.get("m")
    here.receive(await publish(CONFIG, lambda: [served()], ""))
    assert here.get("m") is before


async def test_a_change_is_published_at_once_and_otherwise_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_versions, "LOOK_S", 0.01)
    monkeypatch.setattr(remote_versions, "HOLD_S", 0.2)
    serving = {"m": served(), "other": served(name="other")}
    here = RemoteVersions()
    here.receive(await publish(CONFIG, serving.values, here.tag))
    other = here.get("other")
    began = time.monotonic()
    here.receive(await publish(CONFIG, serving.values, here.tag))
    assert time.monotonic() - began > 0.15
    asked = asyncio.create_task(publish(CONFIG, serving.values, here.tag))
    await asyncio.sleep(0.03)
    serving["m"] = served("2")
    here.receive(await asyncio.wait_for(asked, 0.1))
    assert here.get("m").manifest.version == "2"
    assert here.get("other") is other
    serving["m"] = served("2", max_batch_size=4)
    here.receive(await publish(CONFIG, serving.values, here.tag))
    assert here.get("m").config.max_batch_size == 4
    del serving["m"]
    here.receive(await publish(CONFIG, serving.values, here.tag))
    with pytest.raises(ModelNotFound, match="served: other@1"):
        here.get("m")
