"""The ranking: only live backends, never another numerics class, measured before unmeasured, fastest first."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ranking import backend, choices, ranked, reasons, table

from enginehouse.contract.choice import choose_artifact
from enginehouse.contract.latency import LatencyTable
from enginehouse.contract.manifest import (
    Artifact,
    EngineKind,
    Format,
    Manifest,
    SignatureRecord,
    Status,
    TensorRecord,
)
from enginehouse.routing.policy import HOP_MS, MARGIN, BackendState, Demand, FastestInTime, told_ms

TENSOR = TensorRecord(name="x", datatype="FP32", shape=(-1, 4))


def test_the_fastest_for_this_many_rows_comes_first() -> None:
    # A GPU has a price for each call, a CPU for each row: which is faster depends on the rows.
    gpu, cpu = backend("gpu", (1, 2.0), (64, 4.0)), backend("cpu", (1, 0.5), (64, 30.0))
    assert ranked(gpu, cpu, rows=1) == ["cpu", "gpu"]
    assert ranked(gpu, cpu, rows=64) == ["gpu", "cpu"]


def test_a_backend_without_a_warm_replica_is_never_chosen() -> None:
    assert ranked(backend("gone", (1, 0.1), replicas=0), backend("slow", (1, 9.0))) == ["slow"]
    assert ranked(backend("gone", (1, 0.1), replicas=0)) == []
    assert ranked() == []


def test_numerics_classes_are_never_mixed_unless_the_deployment_says_any() -> None:
    backends = backend("int8", (1, 1.0), numerics="int8"), backend("full", (1, 2.0))
    assert ranked(*backends) == ["full"]
    assert ranked(*backends, numerics="int8") == ["int8"]
    assert ranked(*backends, numerics="any") == ["int8", "full"]


def test_a_pinned_backend_is_the_only_one_tried() -> None:
    backends = backend("fast", (1, 1.0)), backend("slow", (1, 2.0))
    assert ranked(*backends, pool="slow") == ["slow"]
    assert ranked(backends[0], pool="slow") == []
    assert ranked(backend("slow", (1, 2.0), numerics="int8"), pool="slow") == []


def test_an_unmeasured_backend_comes_last_and_says_so() -> None:
    backends = backend("unknown"), backend("slow", (1, 1e6))
    assert ranked(*backends) == ["slow", "unknown"]
    assert choices(*backends)[-1].predicted_ms == math.inf


def test_what_waits_for_a_backend_is_part_of_its_time() -> None:
    gpu, cpu = backend("gpu", (1, 2.0), wait_ms=20.0), backend("cpu", (1, 9.0))
    assert ranked(gpu, cpu) == ["cpu", "gpu"]
    # Ten rows wait in this router, four a call of 8 ms, two replicas: 10 ms until their turn, then a call with others.
    queued = backend("q", (1, 2.0), (4, 8.0), replicas=2, queued_rows=10, batch_rows=4)
    (choice,) = choices(queued)
    assert (choice.wait_ms, choice.compute_ms) == (10.0, 8.0)
    assert choice.predicted_ms == 18.0 + HOP_MS
    # Other routers send as well, so that it is slower than that.
    (choice,) = choices(queued._replace(drain_ms=3.0))
    assert choice.wait_ms == 30.0


def test_a_backend_is_as_slow_as_it_has_been_lately() -> None:
    slowed = backend("slowed", (1, 2.0), (8, 4.0), pace={0: 3.0, 4: 5.0})
    assert [choice.compute_ms for choice in choices(slowed)] == [6.0]
    assert [choice.compute_ms for choice in choices(slowed, rows=8)] == [20.0]
    assert ranked(slowed, backend("steady", (1, 5.0))) == ["steady", "slowed"]


def test_engines_of_the_same_nodes_compete_by_speed_and_not_by_their_queues() -> None:
    here = frozenset({"n1"})
    fast = backend("fast", (1, 2.0), nodes=here, wait_ms=50.0)
    slow = backend("slow", (1, 4.0), nodes=here)
    assert ranked(slow, fast) == ["fast", "slow"]
    assert [choice.behind for choice in choices(slow, fast)] == ["", "fast"]
    # On another node nobody is in its way.
    assert ranked(slow._replace(nodes=frozenset({"n1", "n2"})), fast) == ["slow", "fast"]
    # One that fails is no reason to wait, and an accelerator has its own time.
    assert ranked(slow, fast._replace(fails="3 calls in a row failed")) == ["slow", "fast"]
    assert ranked(slow._replace(engine="onnxruntime-cuda"), fast) == ["slow", "fast"]
    # Behind the fastest one, its queue is no way to make a deadline either.
    assert reasons(slow, fast, budget_ms=30.0, stated=True)["slow"] == "computes on the cores that fast is busy on"
    assert ranked(slow, fast, budget_ms=100.0, stated=True) == ["fast", "slow"]


@pytest.mark.parametrize("seen", [0.95, 0.99, 1.05, 1.09])
def test_requests_do_not_go_to_and_fro_between_engines_of_a_node_that_are_about_as_fast(seen: float) -> None:
    busy = backend("busy", (1, 10.0 * seen), nodes=frozenset("n"), wait_ms=50.0)
    idle = backend("idle", (1, 10.0), nodes=frozenset("n"), engine="openvino-cpu")
    assert ranked(busy, idle) == ["busy", "idle"] == ranked(idle, busy)
    # Where none is busy or both are, the faster one is first; so is one that is clearly faster.
    assert ranked(busy._replace(wait_ms=0.0), idle)[0] == ("busy" if seen < 1.0 else "idle")
    assert ranked(busy, idle._replace(wait_ms=1.0))[0] == ("busy" if seen < 1.0 else "idle")
    assert ranked(backend("busy", (1, 13.0), nodes=frozenset("n"), wait_ms=1.0), idle)[0] == "idle"


def test_a_pool_is_behind_a_resident_engine_that_is_the_same_however_slow_that_seems() -> None:
    here = frozenset({"n1"})
    resident = backend("resident", (1, 2.0), resident=True, nodes=here, pace={0: 1.5}, queued_rows=30, batch_rows=8)
    pool = backend("pool", (1, 2.0), nodes=here)
    assert ranked(pool, resident) == ["resident", "pool"]
    # On more nodes it has more engines, and another artifact is another engine.
    assert ranked(pool._replace(nodes=here | {"n2"}), resident) == ["pool", "resident"]
    assert ranked(pool._replace(artifact="b"), resident) == ["pool", "resident"]


def test_what_cannot_be_in_time_is_not_tried() -> None:
    quick, slow = backend("quick", (1, 2.0)), backend("slow", (1, 9.0))
    assert ranked(quick, slow, budget_ms=5.0, stated=True) == ["quick"]
    assert ranked(quick, slow, budget_ms=1.0, stated=True) == []
    assert reasons(quick, slow, budget_ms=1.0, stated=True) == {"quick": "takes 2.4 ms", "slow": "takes 9.4 ms"}
    busy = quick._replace(wait_ms=10.0)
    # What waits is taken for a quarter longer than predicted.
    assert ranked(busy, budget_ms=10 * MARGIN + 2 + HOP_MS + 0.01, stated=True) == ["quick"]
    assert reasons(busy, budget_ms=12.0, stated=True) == {"quick": "takes 2.4 ms after a wait of 10 ms"}
    assert ranked(backend("unknown"), budget_ms=1.0, stated=True) == ["unknown"]


def test_a_long_time_is_told_in_seconds() -> None:
    assert [told_ms(ms) for ms in (1.2345, 999, 9999, 7.05e4)] == ["1.23 ms", "999 ms", "10 s", "70.5 s"]


def test_the_default_deadline_bounds_the_queue_and_not_the_engine() -> None:
    slow = backend("slow", (1, 100.0))
    assert ranked(slow, budget_ms=50.0) == ["slow"]
    assert ranked(slow._replace(wait_ms=39.0), budget_ms=50.0) == ["slow"]
    assert ranked(slow._replace(wait_ms=41.0), budget_ms=50.0) == []


def test_with_a_stated_deadline_the_cheapest_that_makes_it_answers() -> None:
    gpu = backend("gpu", (1, 2.0), engine="onnxruntime-cuda", price=10.0)
    cpu = backend("cpu", (1, 9.0), price=1.0)
    assert ranked(gpu, cpu, budget_ms=50.0) == ["gpu", "cpu"]
    assert ranked(gpu, cpu, budget_ms=50.0, stated=True) == ["cpu", "gpu"]
    assert ranked(gpu, cpu, budget_ms=5.0, stated=True) == ["gpu"]
    # A queue that takes much of the time makes a backend dearer, or the patient would fill it up for the others.
    busy = cpu._replace(wait_ms=24.0)
    assert ranked(gpu, busy, budget_ms=50.0, stated=True) == ["cpu", "gpu"]
    assert ranked(gpu, busy._replace(wait_ms=25.0), budget_ms=50.0, stated=True) == ["gpu", "cpu"]


def test_a_request_may_refuse_what_is_less_exact() -> None:
    half = backend("half", (1, 1.0))._replace(precision="fp16")
    both = half, backend("whole", (1, 2.0))
    assert ranked(*both) == ["half", "whole"]
    assert ranked(*both, min_precision="fp32") == ["whole"]
    assert reasons(*both, min_precision="fp32")["half"] == "fp16 is less exact than fp32"
    assert ranked(*both, min_precision="bf16") == ["half", "whole"]


def test_what_fails_is_left_to_the_last() -> None:
    assert ranked(backend("fails", (1, 1.0), fails="why"), backend("slow", (1, 9.0))) == ["slow", "fails"]
    assert ranked(backend("fails", (1, 1.0), fails="why")) == ["fails"]


def test_among_equals_the_order_of_the_pools_decides() -> None:
    assert ranked(backend("a"), backend("b"), backend("c")) == ["a", "b", "c"]
    assert ranked(backend("b", (1, 1.0)), backend("a", (1, 1.0))) == ["b", "a"]


@given(
    st.lists(
        st.builds(
            lambda ms, replicas, numerics: backend(
                "p", *([(1, ms)] if ms else []), replicas=replicas, numerics=numerics
            ),
            st.one_of(st.none(), st.floats(0.01, 1e4)),
            st.integers(0, 2),
            st.sampled_from(["full", "int8"]),
        )
    ),
    st.sampled_from(["full", "int8", "any"]),
    st.integers(1, 300),
)
def test_a_ranking_is_every_backend_that_may_answer_in_order(
    backends: list[BackendState], numerics: Literal["full", "int8", "any"], rows: int
) -> None:
    choices = FastestInTime().rank(backends, Demand(rows, numerics))
    assert sorted(map(id, backends)) == sorted(id(choice.backend) for choice in choices)
    usable = [choice for choice in choices if not choice.reason]
    assert usable == list(choices[: len(usable)])
    allowed = [b for b in backends if b.replicas and numerics in ("any", b.numerics)]
    assert sorted(map(id, allowed)) == sorted(id(choice.backend) for choice in usable)
    predicted = [choice.predicted_ms for choice in usable]
    assert predicted == sorted(predicted)


def test_between_measured_rows_the_time_is_interpolated_and_beyond_them_proportional() -> None:
    measured = table((1, 2.0), (4, 5.0), (8, 13.0))
    assert [measured.predict_ms(rows) for rows in (1, 2, 4, 6, 8, 16)] == [2.0, 3.0, 5.0, 9.0, 13.0, 26.0]


@given(
    st.dictionaries(st.integers(1, 256), st.floats(0.01, 1e3), min_size=1, max_size=8),
    st.integers(1, 2048),
)
def test_a_prediction_stays_within_what_was_measured(times: dict[int, float], rows: int) -> None:
    measured = table(*sorted(times.items()))
    predicted = measured.predict_ms(rows)
    if rows <= max(times):
        assert min(times.values()) <= predicted * (1 + 1e-9)
        assert predicted <= max(times.values()) * (1 + 1e-9)
    else:
        np.testing.assert_allclose(predicted, times[max(times)] * rows / max(times))


def artifact(name: str, fmt: Format, *, precision: str = "fp32", status: Status = "ready") -> Artifact:
    return Artifact.model_validate({"name": name, "format": fmt, "precision": precision, "status": status})


def manifest(artifacts: list[Artifact], *tables: LatencyTable, max_batch: int = 32) -> Manifest:
    return Manifest(
        name="m",
        version="1",
        created="2026-01-01T00:00:00Z",
        source="tests",
        signature=SignatureRecord(inputs=(TENSOR,), outputs=(TENSOR,)),
        max_batch=max_batch,
        artifacts=tuple(artifacts),
        latency=tables,
    )


def chosen(described: Manifest, engine: EngineKind, numerics: Literal["full", "int8", "any"] = "full") -> str | None:
    found = choose_artifact(described, (engine,), numerics)
    return found[1].name if found else None


def test_an_engine_gets_an_artifact_of_its_format() -> None:
    both = manifest([artifact("o", "onnx"), artifact("v", "openvino")])
    assert chosen(both, "openvino-cpu") == "v"
    assert chosen(both, "onnxruntime-cuda") == "o"
    assert chosen(both, "tensorrt") is None


@pytest.mark.parametrize("status", ["failed", "unavailable"])
def test_only_ready_artifacts_are_loaded(status: Status) -> None:
    assert (
        chosen(manifest([artifact("bad", "onnx", status=status), artifact("good", "onnx")]), "onnxruntime-cpu")
        == "good"
    )


def test_the_artifact_that_is_fastest_at_full_batch_is_loaded() -> None:
    described = manifest(
        [artifact("a", "onnx"), artifact("b", "onnx", precision="fp16"), artifact("unmeasured", "onnx")],
        table((1, 1.0), (32, 20.0), artifact="a"),
        table((1, 2.0), (32, 10.0), artifact="b"),
        # Another engine's figures for the same artifact say nothing about this one.
        table((1, 0.1), (32, 0.1), artifact="unmeasured", engine="onnxruntime-cuda"),
    )
    assert chosen(described, "onnxruntime-cpu") == "b"
    assert chosen(described, "onnxruntime-cuda") == "unmeasured"


def test_int8_is_loaded_only_where_the_deployment_says_so() -> None:
    described = manifest(
        [artifact("full", "onnx"), artifact("small", "onnx", precision="int8")],
        table((32, 20.0), artifact="full"),
        table((32, 5.0), artifact="small"),
    )
    assert chosen(described, "onnxruntime-cpu") == "full"
    assert chosen(described, "onnxruntime-cpu", "int8") == "small"
    assert chosen(described, "onnxruntime-cpu", "any") == "small"


def test_what_int8_took_on_the_other_kind_of_cpu_is_no_claim_here() -> None:
    small = artifact("small", "onnx", precision="int8").model_copy(update={"int8_products": "exact"})
    described = manifest(
        [artifact("full", "onnx"), small],
        table((32, 20.0), artifact="full"),
        table((32, 5.0), artifact="small"),
        table((32, 2.0), artifact="small", engine="onnxruntime-cuda"),
    )
    assert described.timed_for("exact") is described
    there = described.timed_for("saturating")
    assert chosen(there, "onnxruntime-cpu", "any") == "full"
    assert chosen(there, "onnxruntime-cpu", "int8") == "small"
    assert there.latency_of("onnxruntime-cpu", "small") is None
    # On a GPU it is as fast as ever.
    assert chosen(there, "onnxruntime-cuda", "any") == "small"


def test_on_gpus_fp16_comes_first_as_long_as_nothing_was_measured() -> None:
    built = [artifact(f"t-{precision}", "tensorrt", precision=precision) for precision in ("fp32", "fp16")]
    assert chosen(manifest(built), "tensorrt") == "t-fp16"
    faster = table((1, 1.0), engine="tensorrt", artifact="t-fp32")
    assert chosen(manifest(built, faster), "tensorrt") == "t-fp32"
    cpu = [artifact(f"o-{precision}", "onnx", precision=precision) for precision in ("fp32", "fp16")]
    assert chosen(manifest(cpu), "onnxruntime-cpu") == "o-fp32"


def test_what_still_has_to_be_verified_may_be_loaded_and_what_failed_may_not() -> None:
    waiting = artifact("t-fp16", "tensorrt", precision="fp16", status="unverified")
    failed = artifact("t-fp32", "tensorrt", status="failed")
    assert chosen(manifest([failed, waiting]), "tensorrt") == "t-fp16"
    assert chosen(manifest([failed]), "tensorrt") is None
