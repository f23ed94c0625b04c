"""What several unit tests begin with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import settings
from tests.unit.catalogs import Cluster, publish
from tests.unit.connections import Run, bounded
from tests.unit.loaded_models import load as load

from enginehouse.pools import nodes
from enginehouse.routing import replicas, versions

# Tests run beside others: how long an example takes says nothing.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda work: runner.run(bounded(work))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(replicas, "of_pool", lambda app, pool: cluster.replicas.get(pool, []))
    monkeypatch.setattr(nodes, "count_with", lambda wanted: len(cluster.accelerators & set(wanted)))
    for period in ("PERIOD_S", "REST_S", "CONNECT_S"):
        monkeypatch.setattr(versions, period, 0.005)
    monkeypatch.setattr(versions, "COUNT_NODES_S", 0.0)
    return cluster


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for version in ("1", "2"):
        publish(tmp_path, version)
    return tmp_path
