"""What replicas publish of a model that they have loaded, as a backend of the policy."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import cast

from enginehouse.contract.bounds import InputBounds, described, narrower
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import EngineKind, Manifest
from enginehouse.pools.report import ModelReport
from enginehouse.routing.policy import BackendState


def state(
    pool: str, manifest: Manifest, warm: Sequence[ModelReport], nodes: Iterable[str], wait_ms: float
) -> BackendState:
    """A backend whose replicas have the model `warm`, on `nodes`.

    The first of them speaks for all, but each may be the one that is asked: the bounds are those that keep every one's.
    """
    ready = warm[0]
    artifact = manifest.artifact(ready["artifact"])
    engine = cast(EngineKind, ready["engine"])
    return BackendState(
        pool=pool,
        engine=engine,
        artifact=artifact.name,
        precision=ready["precision"] or artifact.precision,
        numerics=artifact.numerics_class,
        replicas=len(warm),
        # A replica measures its engine only where no table of the manifest holds for its node.
        table=_measured(ready) or manifest.latency_of(engine, artifact.name),
        nodes=frozenset(nodes),
        wait_ms=wait_ms,
        inputs_only=functools.reduce(narrower, [_bounds(manifest, report) for report in warm]),
    )


def described_bounds(manifest: Manifest, report: ModelReport | None) -> str:
    """For which values of inputs it answers, for people; "" where nothing is loaded, and for all."""
    return described(_bounds(manifest, report)) if report and report["artifact"] else ""


def _bounds(manifest: Manifest, report: ModelReport) -> InputBounds:
    """Those of the loaded engine, which replicas of the release before do not publish; else of the artifact."""
    known = report.get("inputs_only")
    if known is not None:
        return known
    return manifest.artifact(report["artifact"]).bounds_on(cast(EngineKind, report["engine"]))


def _measured(report: ModelReport) -> LatencyTable | None:
    return _table(report["artifact"], tuple((rows, time_ms) for rows, time_ms in report["measured"]))


@functools.lru_cache(maxsize=256)
def _table(artifact: str, measured: tuple[tuple[int, float], ...]) -> LatencyTable | None:
    """A replica's own measurements as a latency table; kept, because every request needs it."""
    if not measured:
        return None
    points = [LatencyPoint(rows=rows, median_ms=ms, p90_ms=ms, min_ms=ms, count=3) for rows, ms in measured]
    return LatencyTable(engine="", artifact=artifact, threads=0, host="", points=tuple(points))
