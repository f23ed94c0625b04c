"""What the deployed routers answer for, known in another process, whose router then decides by the same facts.

A process of another job may lack the store, and must not switch to a version before the routers do: it asks one of
them, which answers when something changed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from enginehouse.contract.config import AppConfig, ModelConfig
from enginehouse.contract.errors import ModelNotFound
from enginehouse.contract.manifest import Manifest
from enginehouse.routing.versions import Answering
from enginehouse.routing.view import ModelVersion

#: Seconds after which a router answers although nothing changed, and between its checks for a change.
HOLD_S, LOOK_S = 10.0, 0.25


class RemoteVersions:
    """The versions that answer, as a router published them last; see `publish`."""

    def __init__(self) -> None:
        self.answering = Answering()
        #: Digest of what was received; a router publishes when it has another.
        self.tag = ""

    def get(self, model: str, version: str | None = None) -> ModelVersion:
        """The version that answers for `model`. Raises ModelNotFound."""
        found = self.answering.get(model, version)
        if found is None:
            raise ModelNotFound(model, version, self.answering.ids())
        return found

    def wanted(self, model: str) -> str:
        """See `versions.Versions`."""
        found = self.answering.get(model)
        return found.config.version if found else ""

    def receive(self, published: Mapping[str, Any]) -> None:
        """Take what a router published: its tag and, if that has changed, the models."""
        if published["tag"] == self.tag:
            return
        # Manifests never change: those of versions that are known already are not parsed again.
        known = {version.config.id: version for version in self.answering}
        versions = []
        for entry in published["models"]:
            config = ModelConfig.model_validate(entry["config"])
            before = known.get(config.id)
            if before is None:
                manifest = Manifest.model_validate_json(entry["manifest"])
                versions.append(ModelVersion(config, manifest, manifest.request_signature()))
            elif before.config == config:
                versions.append(before)
            else:
                versions.append(ModelVersion(config, before.manifest, before.signature))
        self.answering = Answering(versions)
        self.tag = published["tag"]


async def publish(config: AppConfig, answering: Callable[[], Iterable[ModelVersion]], tag: str) -> dict[str, Any]:
    """What a router answers for, as soon as that is not what `tag` stands for, or after `HOLD_S`."""
    for _ in range(round(HOLD_S / LOOK_S)):
        if _tag(answering()) != tag:
            break
        await asyncio.sleep(LOOK_S)
    versions = list(answering())
    entries = [
        # Without defaults: a client of the release before refuses what it does not know. How it came does not matter.
        {
            "config": one.config.model_dump(mode="json", exclude_defaults=True, exclude={"forced"}),
            "manifest": one.manifest.model_dump_json(),
        }
        for one in versions
    ]
    return {"tag": _tag(versions), "args": config.model_dump(mode="json"), "models": entries}


def _tag(versions: Iterable[ModelVersion]) -> str:
    """Digest of the configs; equal configs, equal tag."""
    configs = sorted((one.config.model_dump(mode="json") for one in versions), key=lambda one: str(one["name"]))
    return hashlib.sha256(orjson.dumps(configs)).hexdigest()
