"""What several unit tests begin with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from tests.unit.catalogs import Cluster, publish
from tests.unit.connections import Run, bounded

from enginehouse import availability, served


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda work: runner.run(bounded(work))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(availability, "replicas", lambda app, pool: cluster.replicas.get(pool, []))
    monkeypatch.setattr(availability, "nodes_with", lambda nodes: len(cluster.accelerators & set(nodes)))
    monkeypatch.setattr(served, "PERIOD_S", 0.005)
    monkeypatch.setattr(served, "COUNT_NODES_S", 0.0)
    return cluster


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for version in ("1", "2"):
        publish(tmp_path, version)
    return tmp_path
