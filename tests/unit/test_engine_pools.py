"""The engines of a scoring job: which one on which nodes, how many, of how many threads, and where they are placed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_policy import TENSOR, artifact

from enginehouse.cluster.node_facts import NodeFacts, OwnFacts, placeable
from enginehouse.contract.choice import choose_artifact
from enginehouse.contract.config import ACCELERATOR_LABEL, ModelConfig, PoolConfig
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import (
    ENGINE_KINDS,
    Accelerator,
    Artifact,
    EngineKind,
    File,
    Manifest,
    SignatureRecord,
)
from enginehouse.faces.scoring.ways.choice import choose_way
from enginehouse.faces.scoring.ways.engine_pools import EnginePool, Plan, free_cores, plan
from enginehouse.faces.scoring.ways.via_engines import scorer_pools

MODEL = ModelConfig(name="m", version="1")
ONNX, VINO = artifact("onnx-fp32", "onnx"), artifact("openvino-fp32", "openvino")
RT = artifact("tensorrt-fp16", "tensorrt", precision="fp16")
ON_CPU: frozenset[EngineKind] = frozenset({"onnxruntime-cpu", "openvino-cpu"})
EVERYTHING = frozenset(ENGINE_KINDS)


def node(
    name: str,
    cores: int = 2,
    label: Accelerator | None = "cpu",
    engines: frozenset[EngineKind] = ON_CPU,
    memory: int = 1 << 40,
    **known: Any,
) -> NodeFacts:
    facts = {
        "cpus": float(cores),
        "free_cpus": float(cores),
        "gpus": 1.0 if label == "gpu" else 0.0,
        "free_gpus": 1.0 if label == "gpu" else 0.0,
        "serves": False,
    } | known
    own = OwnFacts(cores, engines, "exact", memory)
    return NodeFacts(id=name, address=f"10.0.0.{name}", accelerator=label, own=own, **facts)  # type: ignore[arg-type]


def table(engine: EngineKind, made: Artifact, row_ms: float, threads: int = 2, best: int = 16) -> LatencyTable:
    """A call costs as much as four rows; from `best` rows on, larger batches gain nothing."""
    points = [(rows, row_ms * (rows + 4) if rows < best else row_ms * rows * (best + 4) / best) for rows in (1, 16, 32)]
    measured = tuple(LatencyPoint(rows=rows, median_ms=ms, p90_ms=ms, min_ms=ms, count=9) for rows, ms in points)
    return LatencyTable(engine=engine, artifact=made.name, threads=threads, host="built", points=measured)


def bundle(*artifacts: Artifact, times: tuple[LatencyTable, ...] = (), numerics: str = "full") -> Manifest:
    return Manifest(
        name="m",
        version="1",
        created="2026-01-01T00:00:00Z",
        source="tests",
        signature=SignatureRecord(inputs=(TENSOR,), outputs=(TENSOR,)),
        max_batch=32,
        artifacts=artifacts or (ONNX, VINO, RT),
        latency=times,
        recipe={"numerics": numerics},
    )


MEASURED = bundle(times=(table("onnxruntime-cpu", ONNX, 1.0), table("openvino-cpu", VINO, 0.5)))


def the_pool(
    *nodes: NodeFacts, manifest: Manifest = MEASURED, pools: Mapping[str, PoolConfig] | None = None
) -> EnginePool:
    made = plan(MODEL, manifest, nodes, pools)
    assert len(made.pools) == 1, made
    return made.pools[0]


def test_a_node_of_two_cores_has_one_scorer_with_both_and_the_batch_of_the_table() -> None:
    pool = the_pool(node("1"))
    assert (pool.name, pool.kinds, pool.artifact) == ("openvino-cpu", ("openvino-cpu", "onnxruntime-cpu"), VINO.name)
    assert (pool.per_node, pool.threads, pool.most, pool.batch_rows) == (1, 2, 1, 16)
    assert pool.actor_options() == {"num_cpus": 2.0, "label_selector": {ACCELERATOR_LABEL: "cpu"}}
    # 0.5 ms a row, and a call costs as much as four.
    assert pool.rows_per_s == pytest.approx(1600)


def test_beside_the_application_a_scorer_fits_in_what_its_replicas_leave_and_holds_no_more_than_one() -> None:
    # As in a cluster that `enginehouse serve` starts: more logical CPUs than cores, and most of them are held.
    held = node("1", cpus=3.0, free_cpus=0.8, serves=True)
    pool = the_pool(held)
    assert (pool.threads, pool.num_cpus) == (2, 0.4)
    assert pool.selector == {"ray.io/node-id": "1"}
    assert the_pool(node("1", cores=64, free_cpus=63.0, serves=True)).num_cpus == 0.5
    assert the_pool(node("1", free_cpus=0.0)).num_cpus == 0.0


def test_cores_that_other_jobs_hold_are_not_counted() -> None:
    assert free_cores(node("1", cores=32, cpus=64.0, free_cpus=16.0)) == 8
    assert free_cores(node("1", cores=32, cpus=64.0, free_cpus=0.0)) == 1
    assert the_pool(node("1", cores=32, cpus=64.0, free_cpus=16.0)).most == 2


@pytest.mark.parametrize(
    ("cores", "measured_with", "scorers", "threads"),
    [
        (16, 2, 4, 4),
        (16, 4, 4, 4),
        (16, 8, 2, 8),
        (16, 64, 2, 8),
        (64, 2, 16, 4),
        (64, 8, 8, 8),
        (64, 64, 8, 8),
        (12, 8, 1, 12),
        (20, 8, 2, 10),
        (3, 8, 1, 3),
    ],
)
def test_cores_are_divided_by_the_threads_of_the_table(
    cores: int, measured_with: int, scorers: int, threads: int
) -> None:
    times = table("openvino-cpu", VINO, 0.5, measured_with)
    pool = the_pool(node("1", cores), manifest=bundle(times=(times,)))
    assert (pool.per_node, pool.threads) == (scorers, threads)
    assert pool.rows_per_s == pytest.approx(1600 * threads / measured_with)


def test_what_the_configuration_says_of_threads_holds() -> None:
    pool = the_pool(node("1", 16), pools={"own": PoolConfig(engine="onnxruntime-cpu", threads=2)})
    assert (pool.name, pool.kinds[0], pool.per_node, pool.threads) == ("own", "onnxruntime-cpu", 8, 2)
    assert plan(MODEL, MEASURED, [node("1")], {"own": PoolConfig(engine="openvino-cpu", models=("other",))}).pools == ()


def test_a_model_that_takes_most_of_the_memory_is_loaded_once() -> None:
    large = VINO.model_copy(update={"files": (File(path="w", sha256="0" * 64, bytes=10 << 30),)})
    assert the_pool(node("1", 64, memory=64 << 30), manifest=bundle(large)).per_node == 2


def test_gpus_and_cpus_have_a_pool_each_and_nodes_of_two_sizes_too() -> None:
    nodes = [
        node("1", 2),
        node("2", 16),
        node("3", 16),
        node("4", 8, "gpu", EVERYTHING, gpus=4.0, free_gpus=4.0),
    ]
    times = (*MEASURED.latency, table("tensorrt", RT, 0.01, 1))
    made = plan(MODEL, bundle(times=times), nodes)
    assert [(pool.name, pool.kinds[0], pool.most, pool.threads) for pool in made.pools] == [
        ("tensorrt", "tensorrt", 4, 2),
        ("openvino-cpu-1", "openvino-cpu", 8, 4),
        ("openvino-cpu-2", "openvino-cpu", 1, 2),
    ]
    gpu, large, small = made.pools
    assert gpu.actor_options() == {"num_cpus": 2.0, "num_gpus": 1.0, "label_selector": {ACCELERATOR_LABEL: "gpu"}}
    # The label alone does not tell these apart.
    assert large.actor_options()["label_selector"] == {"ray.io/node-id": "in(2,3)"}
    assert large.actor_options()["scheduling_strategy"] == "SPREAD"
    assert small.selector == {"ray.io/node-id": "1"}
    rates = [80_000 * 4, 1600 * 2 * 8, 1600]
    assert made.rows_per_s == pytest.approx(sum(rates))
    assert plan(MODEL, bundle(), nodes).rows_per_s is None


def test_the_choice_is_that_of_serving() -> None:
    int8 = artifact("openvino-int8", "openvino", precision="int8")
    times = (*MEASURED.latency, table("openvino-cpu", int8, 0.1))
    for numerics in ("full", "int8", "any"):
        manifest = bundle(ONNX, VINO, int8, times=times, numerics=numerics)
        expected = choose_artifact(manifest, ("onnxruntime-cpu", "openvino-cpu"), numerics)  # type: ignore[arg-type]
        pool = the_pool(node("1"), manifest=manifest)
        assert expected is not None
        assert (pool.kinds[0], pool.artifact) == (expected[0], expected[1].name)


def test_a_gpu_node_without_anything_for_its_gpu_computes_on_its_cpu() -> None:
    pool = the_pool(node("1", 8, "gpu", EVERYTHING), manifest=bundle(VINO))
    assert (pool.kinds, pool.accelerator, pool.num_gpus) == (("openvino-cpu",), "gpu", 0.0)
    # So it does where the library is missing that the artifact is for.
    assert the_pool(node("1", 8, "gpu", ON_CPU)).kinds[0] == "openvino-cpu"


def test_a_gpu_that_others_hold_is_not_taken_and_a_part_of_one_is() -> None:
    made = plan(MODEL, bundle(), [node("1", 8, "gpu", EVERYTHING, free_gpus=0.0)])
    assert made == Plan(
        (), ("gpu node 10.0.0.1: others hold its GPUs; pools that serve hold theirs until they are stopped",)
    )
    assert the_pool(node("1", 8, "gpu", EVERYTHING, free_gpus=0.5), manifest=bundle()).num_gpus == 0.5


def test_hardware_that_the_bundle_has_nothing_for_is_left_out_by_name() -> None:
    made = plan(MODEL, bundle(VINO), [node("1", engines=frozenset({"onnxruntime-cpu"})), node("2")])
    assert [pool.nodes for pool in made.pools] == [("2",)]
    (note,) = made.notes
    assert note.startswith("cpu node 10.0.0.1: nothing of m@1 for it")
    assert "openvino-cpu: its library is not installed" in note


def test_nodes_without_a_label_count_only_where_none_has_one() -> None:
    labelled, bare = node("1"), node("2", label=None)
    assert placeable([labelled, bare]) == ([labelled], [f"no label {ACCELERATOR_LABEL}, left out: 10.0.0.2"])
    assert placeable([bare]) == ([bare], [])
    assert the_pool(bare).selector == {"ray.io/node-id": "2"}
    assert the_pool(node("3", 8, None, EVERYTHING, gpus=1.0, free_gpus=1.0), manifest=bundle()).num_gpus == 1.0


@given(st.integers(1, 128), st.floats(0.5, 256), st.floats(0, 1), st.booleans(), st.integers(1, 64), st.integers(1, 4))
def test_all_scorers_have_room(cores: int, cpus: float, free: float, serves: bool, threads: int, count: int) -> None:
    nodes = [node(str(n), cores, cpus=cpus, free_cpus=cpus * free, serves=serves) for n in range(count)]
    pool = the_pool(*nodes, manifest=bundle(times=(table("openvino-cpu", VINO, 0.5, threads),)))
    assert 0 <= pool.num_cpus * pool.per_node <= cpus * free + 1e-9
    assert 1 <= pool.threads * pool.per_node <= cores
    assert pool.most == count * pool.per_node


def test_a_job_may_have_fewer_scorers_than_there_is_room_for() -> None:
    made = plan(MODEL, MEASURED, [node("1", 16), node("2", 16), node("3", 2)])
    pools = scorer_pools("store", MODEL, made, 2, 3)
    assert [(pool.name, pool.least, pool.most) for pool in pools] == [
        ("openvino-cpu-1", 2, 3),
        ("openvino-cpu-2", 1, 1),
    ]
    assert [pool.most for pool in scorer_pools("store", MODEL, made)] == [8, 1]


def test_engines_are_the_way_where_nodes_are_free_and_the_sentence_says_which() -> None:
    serving, free = node("1", serves=True), node("2", 16)
    way = choose_way(None, MODEL, MEASURED, [serving, free], is_served=True)
    assert way.via == "engines"
    assert way.sentence == (
        "via engines, on nodes that serve nothing: openvino-cpu with openvino-fp32 (4 scorers of 4 threads on "
        "1 cpu node, 16 rows a call), about 12,800 rows/s by the latency tables"
    )
    assert [pool.nodes for pool in way.plan.pools] == [("2",)]


def test_the_application_is_the_way_where_it_has_all_nodes_or_the_faster_ones() -> None:
    way = choose_way(None, MODEL, MEASURED, [node("1", serves=True)], is_served=True)
    assert (way.via, way.plan.rows_per_s) == ("serve", pytest.approx(1600))
    assert "every node that has hardware for it holds replicas of the application" in way.sentence
    way = choose_way(None, MODEL, MEASURED, [node("1", 16, serves=True), node("2")], is_served=True)
    assert way.via == "serve"
    assert "which is faster" in way.sentence
    gpu = node("1", 8, "gpu", EVERYTHING, serves=True)
    assert choose_way(None, MODEL, bundle(), [gpu, node("2")], is_served=True).via == "serve"


def test_what_is_asked_for_is_done_or_refused_by_name() -> None:
    nodes = [node("1", serves=True)]
    assert choose_way("engines", MODEL, MEASURED, nodes, is_served=True).via == "engines"
    assert choose_way("serve", MODEL, MEASURED, nodes, is_served=True).via == "serve"
    assert "no application serves m@1" in choose_way(None, MODEL, MEASURED, nodes).sentence
    with pytest.raises(ConfigError, match="m@1 is not served here"):
        choose_way("serve", MODEL, MEASURED, nodes)
    with pytest.raises(ConfigError, match="no engine for m@1 on this cluster: no live node has logical CPUs"):
        choose_way("engines", MODEL, MEASURED, [])
