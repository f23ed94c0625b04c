"""What was counted, for every face that is asked: the protocol's statistics, and the metrics of the application."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from enginehouse.contract.errors import ModelNotFound, NoBackend
from enginehouse.counts.rows import NOTHING, Key
from enginehouse.faces import exposition
from enginehouse.faces.oip.statistics import model_statistics
from enginehouse.routing.counting.gathering import Gathering
from enginehouse.routing.data_plane import DataPlane
from enginehouse.routing.versions import LiveVersions

#: The media type of `metrics`.
TEXT = exposition.TEXT


class Ingress(Protocol):
    """What is needed of the deployment that is asked."""

    plane: DataPlane
    versions: LiveVersions
    counts: Gathering


async def statistics(ingress: Ingress, model: str = "", version: str | None = None) -> dict[str, Any]:
    """The document of `GET /v2/models[/{model}[/versions/{version}]]/stats`. Raises ModelNotFound.

    Of a model in the catalog every version that has counted anything is in it, and the one that answers.
    """
    rows = await ingress.counts.all()
    served = {each.config.name: each.config.version for each in ingress.versions.answering}
    known = set(served.items()) | {(key[1], key[2]) for key in rows if key[0] in ("requests", "batches")}
    names = {model} if model else {*served, *ingress.versions.models()}
    wanted = {each for each in known if each[0] in names and version in (None, each[1])}
    if model and (not wanted or model not in {*served, *ingress.versions.models()}):
        try:
            ingress.versions.get(model, version)
        except NoBackend:
            # It is not warm yet, and has counted nothing.
            wanted = {(model, version or ingress.versions.wanted(model))}
        else:
            raise ModelNotFound(model, version, ingress.versions.answering.ids())
    return {"model_stats": [model_statistics(*each, rows) for each in sorted(wanted)]}


async def metrics(ingress: Ingress) -> bytes:
    """The text of `GET /metrics`: what all processes have counted, and what this router sees of backends."""
    # Zeros too: a rate needs the number before the first one.
    rows: dict[Key, Sequence[int]] = {
        ("requests", each.config.name, each.config.version): NOTHING for each in ingress.versions.answering
    }
    rows.update(await ingress.counts.all())
    status = ingress.versions.status(ingress.plane.answers)
    # In a thread: of many models it is long.
    return await asyncio.to_thread(exposition.text, rows, status)
