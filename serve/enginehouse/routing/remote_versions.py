"""Mirror: what the deployed routers serve, known in another process, whose router decides by the same facts.

A process of another job may not reach the store, and must not switch to a version before the routers do: it asks one of
them, which answers when something changed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import orjson

from enginehouse.contract.config import AppConfig, ModelConfig
from enginehouse.contract.errors import ModelNotFound
from enginehouse.contract.manifest import Manifest
from enginehouse.routing.view import Served

#: Seconds after which a router answers although nothing changed, and how often it looks.
HOLD_S, LOOK_S = 10.0, 0.25


class Models(Protocol):
    """Which version answers for a model."""

    def get(self, model: str, version: str | None = None) -> Served:
        """Raises ModelNotFound or NoBackend."""
        ...


class Mirror:
    """What routers serve, as far as it is known here; see `tell`."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}
        #: Stands for what is known.
        self.tag = ""

    def get(self, model: str, version: str | None = None) -> Served:
        """The version that answers for `model`. Raises ModelNotFound."""
        served = self._served.get(model)
        if served is None or version not in (None, served.config.version):
            raise ModelNotFound(model, version, tuple(sorted(served.config.id for served in self._served.values())))
        return served

    def take(self, told: Mapping[str, Any]) -> None:
        """What a router told: its tag and, when that is another one than before, the models."""
        if told["tag"] == self.tag:
            return
        known = {served.config.id: served for served in self._served.values()}
        served = {}
        for entry in told["models"]:
            config = ModelConfig.model_validate(entry["config"])
            before = known.get(config.id)
            manifest = before.manifest if before else Manifest.model_validate_json(entry["manifest"])
            same = before is not None and before.config == config
            served[config.name] = (
                before if before and same else Served(config, manifest, manifest.signature.signature())
            )
        self._served = served
        self.tag = told["tag"]


async def tell(config: AppConfig, serving: Callable[[], Mapping[str, Served]], tag: str) -> dict[str, Any]:
    """What a router serves, as soon as that is not what `tag` stands for, or after `HOLD_S`."""
    for _ in range(round(HOLD_S / LOOK_S)):
        if _tag(serving()) != tag:
            break
        await asyncio.sleep(LOOK_S)
    served = serving()
    entries = [
        {"config": one.config.model_dump(mode="json"), "manifest": one.manifest.model_dump_json()}
        for one in served.values()
    ]
    return {"tag": _tag(served), "args": config.model_dump(mode="json"), "models": entries}


def _tag(served: Mapping[str, Served]) -> str:
    """The same in all routers that serve the same; a version never changes."""
    configs = sorted((one.config.model_dump(mode="json") for one in served.values()), key=lambda one: str(one["name"]))
    return hashlib.sha256(orjson.dumps(configs)).hexdigest()
