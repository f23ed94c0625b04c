"""Scoring by engines of its own on nodes of two kinds, beside an application that holds most of their CPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import dataset, parquet
from tests.integration import bundles
from tests.integration.conftest import APP, House
from tests.integration.paced import PacedOf, StuckOnceOf, broken

from enginehouse.cluster import node_facts
from enginehouse.contract.config import ACCELERATOR_LABEL
from enginehouse.contract.errors import EngineUnavailable
from enginehouse.faces.scoring import job
from enginehouse.faces.scoring.answering import Answering
from enginehouse.faces.scoring.job import Asked, Scored
from enginehouse.faces.scoring.readers import Limits
from enginehouse.faces.scoring.results.report import Report
from enginehouse.faces.scoring.ways import choice
from enginehouse.faces.scoring.ways.via_engines import OwnEngineOf, scorer_pools

#: The application holds the logical GPU, so engines beside it ask for none.
POOLS = APP.pools | {"gpu-pool": APP.pools["gpu-pool"].model_copy(update={"num_gpus": 0.0})}


@pytest.fixture(scope="module")
def own(house: House) -> str:
    """A model that is in the store, and not served: x 5."""
    house.publish("own", "1", 5.0)
    return "own"


Answers = Callable[[OwnEngineOf], Callable[[], Answering]]


def score(
    house: House, folder: Path, rows: int, *answers: Answers, most: int = 1, unit: int = 20
) -> tuple[Report, pa.Table]:
    """A job of engines on the node with the GPU label and on the other one; `answers` are what they are made by.

    One to `most` of each; units have `unit` rows.
    """
    x = np.arange(rows * bundles.WIDTH, dtype=np.float32).reshape(rows, bundles.WIDTH)
    parquet.write_table(pa.table({"id": range(rows), "x": x.tolist()}), folder / "in.parquet", row_group_size=unit)
    known = choice.known("own", str(house.store), "engines")
    nodes, left_out = node_facts.gather()
    assert len(left_out) == 1 and left_out[0].startswith(f"no label {ACCELERATOR_LABEL}")
    assert [node.serves for node in nodes] == [True, True]
    way = choice.choose_way("engines", known.config, known.manifest, nodes, POOLS)
    assert [pool.name for pool in way.plan.pools] == ["gpu-pool", "cpu-pool"]
    assert all(0 < pool.num_cpus <= 0.5 for pool in way.plan.pools)
    pools = [
        replace(pool, answering=of(OwnEngineOf(known.store, known.config, planned)), most=most)
        for planned, pool, of in zip(
            way.plan.pools, scorer_pools(known.store, known.config, way.plan), answers, strict=True
        )
    ]
    asked = Asked(str(folder / "in.parquet"), str(folder / "out"))
    model = Scored("own", "1", known.config.digest, known.manifest.request_signature())
    report = job.run(job.prepared(asked, model, Limits(rows=unit)), pools, here=False)
    found = dataset.dataset(folder / "out", format="parquet").to_table().sort_by("id")
    assert found.column("id").to_pylist() == list(range(rows))
    np.testing.assert_array_equal(np.array(found.column("output.y").to_pylist(), np.float32), x * 5)
    return report, found


def test_each_pool_is_on_its_nodes_and_every_row_is_answered_once(house: House, own: str, tmp_path: Path) -> None:
    fast, slow = (lambda of: PacedOf(of, 0.001)), (lambda of: PacedOf(of, 0.004))
    report, found = score(house, tmp_path, 400, fast, slow)
    assert (report.written, report.rejected) == (400, 0)
    assert set(found.column("backend").to_pylist()) <= {"gpu-pool on gpu", "cpu-pool on cpu"}


def test_an_engine_that_is_stuck_or_cannot_be_loaded_takes_only_its_scorer(
    house: House, own: str, tmp_path: Path
) -> None:
    stuck = lambda of: StuckOnceOf(of, 0.001, marker=tmp_path / "stuck")  # noqa: E731
    report, found = score(house, tmp_path, 200, stuck, lambda of: broken)
    assert set(found.column("backend").to_pylist()) == {"gpu-pool on gpu"}
    assert report.runs[-1].deaths == {"gpu-pool": 1}


def test_a_job_whose_engines_cannot_be_loaded_at_all_ends_with_the_reason(
    house: House, own: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineUnavailable, match="no driver"):
        score(house, tmp_path, 200, lambda of: broken, lambda of: broken)


@pytest.mark.slow
def test_faster_hardware_takes_more_of_the_one_stream(house: House, own: str, tmp_path: Path) -> None:
    fast, slow = (lambda of: PacedOf(of, 0.005)), (lambda of: PacedOf(of, 0.02))
    _, found = score(house, tmp_path, 4000, fast, slow)
    share = found.column("backend").to_pylist().count("gpu-pool on gpu") / 4000
    # Both are busy but for the start and the end: 4 of 5 rows.
    assert 0.72 < share < 0.88


@pytest.mark.slow
def test_neither_pool_waits_before_the_last_units_and_pools_grow_and_shrink(
    house: House, own: str, tmp_path: Path
) -> None:
    fast, slow = (lambda of: PacedOf(of, 0.005, tmp_path / "log")), (lambda of: PacedOf(of, 0.02, tmp_path / "log"))
    (tmp_path / "log").mkdir()
    report, _ = score(house, tmp_path, 8000, fast, slow, most=2, unit=50)
    calls = {path.name: np.loadtxt(path, ndmin=2) for path in (tmp_path / "log").iterdir()}
    # The stream was empty when the first scorer of all had nothing left.
    end = min(own[-1, 1] for own in calls.values())
    for name, own_calls in calls.items():
        began, busy = own_calls[0, 0], np.minimum(own_calls[:, 1], end) - np.minimum(own_calls[:, 0], end)
        idle = 1 - busy.sum() / (end - began)
        print(f"{name}: idle {100 * idle:.1f} % of {end - began:.1f} s")
        assert idle < 0.05
    assert report.runs[-1].scorers == {"gpu-pool": 2, "cpu-pool": 2}
    # Of each pool one at first, then two, and one at the end.
    for label in ("gpu", "cpu"):
        both = sorted([own for name, own in calls.items() if name.startswith(label)], key=lambda own: own[0, 0])
        assert len(both) == 2 and both[1][0, 0] - both[0][0, 0] > 1
