"""The backends of a model, by what is reported of it: live ones for the policy, and why the others are not."""

from __future__ import annotations

from pathlib import Path

from tests.unit.catalogs import POOLS, Cluster, answers, catalog, entry, publish, serving, turns, until, vino
from tests.unit.test_policy import table

from enginehouse.routing.policy import Demand
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import View


async def test_live_backends_carry_what_the_policy_needs(cluster: Cluster, store: Path) -> None:
    measured = table((1, 2.0), artifact="onnx-fp32")
    publish(store, "1", latency=(measured,))
    cluster.report("vino", {"m@1": "ready"}, {"m@1": "loading"})
    models = await serving(cluster, store)
    ort, vino = models._view.live(models.get("m"))
    assert (ort.pool, ort.numerics, ort.replicas, ort.table) == ("ort", "full", 1, measured)
    assert (vino.pool, vino.numerics, vino.replicas, vino.table) == ("vino", "int8", 1, None)


async def test_an_engine_that_the_build_did_not_measure_has_the_times_of_its_replica(
    cluster: Cluster, store: Path
) -> None:
    models = await serving(cluster, store)
    cluster.report("ort", {"m@1": "ready"}, measured=[(1, 2.0), (32, 8.0)])
    (backend,) = models._view.live(models.get("m"))
    assert backend.table is not None
    assert [backend.table.predict_ms(rows) for rows in (1, 32, 64)] == [2.0, 8.0, 16.0]


async def test_why_a_backend_is_not_live_is_told(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    states = {}
    for replicas in ([{"m@1": "unavailable"}], [{"m@1": "failed"}], [{"m@1": "loading"}], [{}], []):
        cluster.report("vino", *replicas)  # type: ignore[arg-type]
        status = vino(models)
        states[status.state] = status.reason
    assert states == {"unavailable": "why unavailable", "failing": "why failed", "loading": "", "cold": ""}
    cluster.accelerators = set()
    await until(lambda: vino(models).state == "no-hardware")
    assert "no live node has the label enginehouse.io/accelerator=cpu" in vino(models).reason
    # Pools are counted one after the other.
    await until(lambda: [pool["nodes"] for pool in models.status(lambda _: True)["pools"]] == [0, 0])


async def test_a_pool_whose_nodes_were_not_counted_yet_may_be_woken(cluster: Cluster, store: Path) -> None:
    may_rest = {name: pool.model_copy(update={"min_replicas": 0}) for name, pool in POOLS.items()}
    publish(store, "1")
    reports = View(may_rest, None, "here")
    models = LiveVersions(reports)
    models.apply(catalog(store, "1"))
    await until(lambda: answers(models) == "1")
    reports._nodes.clear()
    served = models.get("m")
    assert {status.state for status in reports.backends(served)} == {"idle"}
    assert reports.idle(served)
    reports._nodes.update(dict.fromkeys(POOLS, 0))
    assert {status.state for status in reports.backends(served)} == {"no-hardware"}
    assert not reports.idle(served)


async def test_a_replica_that_is_warm_outweighs_one_that_failed(cluster: Cluster, store: Path) -> None:
    models = await serving(cluster, store)
    cluster.report("ort", {"m@1": "failed"}, {"m@1": "ready"})
    assert [backend.replicas for backend in models._view.live(models.get("m"))] == [1]


async def test_what_rests_is_what_could_be_woken(cluster: Cluster, store: Path) -> None:
    may_rest = {name: pool.model_copy(update={"min_replicas": 0}) for name, pool in POOLS.items()}
    publish(store, "1", numerics="full")
    reports = View(may_rest, None, "here")
    models = LiveVersions(reports)
    models.apply(catalog(store, "1"))
    # With nothing to load it on, the version serves: the first request has it loaded.
    await until(lambda: answers(models) == "1")
    served = models.get("m")
    assert [status.state for status in reports.backends(served)] == ["idle", "unavailable"]
    assert [state.pool for state in reports.idle(served)] == ["ort"]
    assert reports.is_coming(served, Demand(1))
    assert entry(models)["state"] == "ready"
    cluster.report("ort", {"m@1": "loading"})
    assert (reports.idle(served), reports.is_coming(served, Demand(1))) == ([], True)
    cluster.report("ort", {"m@1": "ready"}, measured=[(1, 3.0)])
    assert (len(reports.live(served, fresh=True)), reports.is_coming(served, Demand(1))) == (1, False)
    # What it timed itself is known when it rests again.
    cluster.report("ort")
    (state,) = reports.idle(served)
    assert state.compute_ms(1, None) == 3.0
    cluster.accelerators = set()
    await until(lambda: not reports.idle(served))


async def test_a_version_that_failed_where_it_should_run_does_not_take_over_because_another_pool_rests(
    cluster: Cluster, store: Path
) -> None:
    pools = POOLS | {"rests": POOLS["ort"].model_copy(update={"min_replicas": 0})}
    models = LiveVersions(View(pools, None, "here"))
    cluster.report("ort", {"m@1": "ready"})
    models.apply(catalog(store, "1"))
    await until(lambda: answers(models) == "1")
    models.apply(catalog(store, "2"))
    for state in ("loading", "failed"):
        cluster.report("ort", {"m@1": "ready", "m@2": state})  # type: ignore[dict-item]
        await turns()
        assert answers(models) == "1"


async def test_a_running_pool_that_is_reserved_for_other_models_holds_no_version_back(
    cluster: Cluster, store: Path
) -> None:
    pools = POOLS | {"vino": POOLS["vino"].model_copy(update={"models": ("other",)})}
    models = LiveVersions(View(pools, None, "here"))
    cluster.report("ort", {"m@1": "ready"})
    cluster.report("vino", {"other@1": "ready"})
    models.apply(catalog(store, "1"))
    await until(lambda: answers(models) == "1")
    assert vino(models).state == "unavailable"
    models.apply(catalog(store, "2"))
    cluster.report("ort", {"m@1": "ready", "m@2": "ready"})
    await until(lambda: answers(models) == "2", 2)
