"""Backends with latencies, and how the policy ranks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import EngineKind, NumericsClass
from enginehouse.routing.policy import BackendState, Choice, Demand, FastestInTime


def table(*points: tuple[int, float], engine: str = "onnxruntime-cpu", artifact: str = "a") -> LatencyTable:
    measured = tuple(LatencyPoint(rows=rows, median_ms=ms, p90_ms=ms, min_ms=ms, count=1) for rows, ms in points)
    return LatencyTable(engine=engine, artifact=artifact, threads=1, host="here", points=measured)


def backend(
    pool: str,
    *points: tuple[int, float],
    replicas: int = 1,
    numerics: NumericsClass = "full",
    engine: EngineKind = "onnxruntime-cpu",
    **known: Any,
) -> BackendState:
    precision = "int8" if numerics == "int8" else "fp32"
    state = BackendState(pool, engine, "a", precision, numerics, replicas, table(*points) if points else None)
    return state._replace(**known)


def ranked(*backends: BackendState, rows: int = 1, **hints: object) -> list[str]:
    return [choice.backend.pool for choice in choices(*backends, rows=rows, **hints) if not choice.reason]


def choices(*backends: BackendState, rows: int = 1, **hints: object) -> Sequence[Choice]:
    return FastestInTime().rank(backends, Demand(rows, **hints))  # type: ignore[arg-type]


def reasons(*backends: BackendState, **hints: object) -> dict[str, str]:
    return {choice.backend.pool: choice.reason for choice in choices(*backends, **hints)}
