"""The choice follows the objective, keeps the bound, does not read chance as speed, and gives its reasons."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import (
    Artifact,
    Axis,
    Chosen,
    EngineKind,
    Manifest,
    Objective,
    Parity,
    SignatureRecord,
    Status,
)
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse_build.judge.choice import choose

SPEC = TensorSpec("x", np.dtype(np.float32), (None, 4))
KIND: Mapping[str, EngineKind] = {"onnx": "onnxruntime-cpu", "openvino": "openvino-cpu", "tensorrt": "tensorrt"}
#: Milliseconds by rows; in the order of latency and of throughput these differ.
ONNX = ("onnx-fp32", {1: 10.0, 2: 15.0, 4: 26.0})
QUICK = ("openvino-fp32", {1: 6.0, 2: 12.0, 4: 24.0})
WIDE = ("openvino-bf16", {1: 8.0, 2: 10.0, 4: 16.0})
INT8 = ("onnx-int8", {1: 3.0, 2: 4.0, 4: 6.0})


def artifact(name: str, distance: float = 1e-6, status: Status = "ready") -> Artifact:
    fmt, _, precision = name.partition("-")
    figures = {"worst_row": distance, "cosine": 1.0, "top1_agreement": 1.0, "limit": 1.0, "rows": (1,)}
    parity = Parity.model_validate({"engine": KIND[fmt], "relative_l2": distance, **figures})
    fields = {"name": name, "format": fmt, "precision": precision, "status": status, "parity": parity}
    return Artifact.model_validate(fields)


def table(
    name: str,
    times: Mapping[int, float],
    *,
    size: int | None = None,
    spread: float = 0.0,
    reason: str = "",
    kind: EngineKind | None = None,
) -> LatencyTable:
    return LatencyTable(
        engine=kind or KIND[name.partition("-")[0]],
        artifact=name,
        threads=1,
        host="here",
        points=tuple(
            LatencyPoint(rows=rows, size=size, median_ms=ms, p90_ms=ms, min_ms=ms, count=9, spread=spread)
            for rows, ms in times.items()
        ),
        verdict="INVALID" if reason else "VALID",
        reason=reason,
    )


def manifest(*tables: LatencyTable, artifacts: tuple[Artifact, ...] = (), axes: tuple[Axis, ...] = ()) -> Manifest:
    known = {given.name for given in artifacts}
    others = tuple(artifact(name) for name in dict.fromkeys(each.artifact for each in tables) if name not in known)
    return Manifest(
        name="m",
        version="1",
        created="2026-01-01T00:00:00Z",
        source="tests",
        signature=SignatureRecord.of(Signature((SPEC,), (SPEC,))),
        max_batch=4,
        axes=axes,
        artifacts=artifacts + others,
        latency=tables,
    )


def only(manifest: Manifest, objective: Objective = "latency", bound: float | None = None) -> Chosen:
    (chosen,) = choose(manifest, objective, bound)
    return chosen


def why(chosen: Chosen) -> str:
    return "\n".join(chosen.reasons)


FULL = manifest(table(*ONNX), table(*QUICK), table(*WIDE))


def test_for_latency_the_fastest_for_one_row_is_chosen() -> None:
    chosen = only(FULL)
    assert (chosen.artifact, chosen.engine, chosen.rows) == ("openvino-fp32", "openvino-cpu", 1)
    assert (chosen.numerics, chosen.objective) == ("full", "latency")
    assert chosen.reasons == (
        "6 ms for 1 row (median of 9 calls), the least of the 3 measured of class full.",
        "Next is openvino-bf16 on openvino-cpu: 8 ms, 1.33 times as long.",
        "1.67 times as fast as fp32 ONNX Runtime (onnx-fp32 on onnxruntime-cpu: 10 ms for 1 row).",
    )


def test_for_throughput_the_most_rows_per_second_are_chosen() -> None:
    chosen = only(FULL, "throughput")
    assert (chosen.artifact, chosen.rows) == ("openvino-bf16", 4)
    assert chosen.reasons == (
        "250 rows/s: 16 ms for 4 rows (median of 9 calls), the most of the 3 measured of class full.",
        "Next is openvino-fp32 on openvino-cpu: 167 rows/s at 1 row, where this one has 1.5 times as many.",
        "1.62 times as fast as fp32 ONNX Runtime (onnx-fp32 on onnxruntime-cpu: 26 ms for 4 rows).",
    )


@pytest.mark.parametrize(
    ("bound", "name", "rows"),
    [(20.0, "openvino-bf16", 4), (12.0, "openvino-bf16", 2), (7.0, "openvino-fp32", 1), (6.0, "openvino-fp32", 1)],
)
def test_throughput_counts_only_within_the_bound(bound: float, name: str, rows: int) -> None:
    chosen = only(FULL, "throughput", bound)
    assert (chosen.artifact, chosen.rows) == (name, rows)
    assert f"keeps the bound of {bound:g} ms" in why(chosen)


def test_what_the_bound_costs_is_told() -> None:
    reasons = why(only(FULL, "throughput", 12.0))
    assert "It keeps the bound of 12 ms, as 4 rows would not (16 ms)." in reasons
    assert "It keeps the bound of 20 ms." in why(only(FULL, "throughput", 20.0))


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_when_nothing_keeps_the_bound_the_closest_is_chosen_and_it_is_said(objective: Objective) -> None:
    chosen = only(FULL, objective, 5.0)
    assert (chosen.artifact, chosen.rows) == ("openvino-fp32", 1)
    assert "the closest to the bound of the 3 measured" in chosen.reasons[0]
    assert chosen.reasons[1] == "Nothing measured of class full keeps the bound of 5 ms."


def test_a_runner_up_beyond_the_bound_is_told_as_that() -> None:
    assert "openvino-bf16 on openvino-cpu: 8 ms for 1 row, beyond the bound." in why(only(FULL, "throughput", 6.0))


def test_every_numerics_class_has_its_own_choice() -> None:
    full, int8 = choose(manifest(table(*QUICK), table(*INT8), table(*ONNX)), "latency", None)
    assert (full.numerics, full.artifact) == ("full", "openvino-fp32")
    assert (int8.numerics, int8.artifact) == ("int8", "onnx-int8")
    assert int8.reasons == (
        "The only measured one of class int8: 3 ms for 1 row (median of 9 calls).",
        "3.33 times as fast as fp32 ONNX Runtime (onnx-fp32 on onnxruntime-cpu: 10 ms for 1 row).",
    )


@pytest.mark.parametrize("status", ["failed", "unavailable", "unverified"])
def test_what_is_not_ready_is_not_chosen(status: Status) -> None:
    bad = artifact("openvino-fp32", status=status)
    assert only(manifest(table(*QUICK), table(*ONNX), artifacts=(bad,))).artifact == "onnx-fp32"


def test_without_a_measurement_there_is_no_choice() -> None:
    assert choose(manifest(artifacts=(artifact("onnx-fp32"),)), "latency", None) == ()


def test_of_two_that_cannot_be_told_apart_the_one_closer_to_the_reference_is_chosen() -> None:
    near, far = artifact("onnx-fp32", 1e-7), artifact("openvino-bf16", 4e-3)
    tables = table("onnx-fp32", {1: 10.0}), table("openvino-bf16", {1: 9.4}, spread=0.07)
    chosen = only(manifest(*tables, artifacts=(near, far)))
    assert chosen.artifact == "onnx-fp32"
    assert "within chance of the least of the 2 measured" in chosen.reasons[0]
    assert chosen.reasons[1] == (
        "Not distinguishable from openvino-bf16 on openvino-cpu (9.4 ms; 7% may be chance): "
        "chosen because its answers are closer to the reference (relative L2 1.0e-07 against 4.0e-03)."
    )


@pytest.mark.parametrize(
    ("spread", "times", "name"),
    [(0.0, 1.02, "onnx-fp32"), (0.0, 1.05, "openvino-bf16"), (0.5, 1.09, "onnx-fp32"), (0.5, 1.2, "openvino-bf16")],
)
def test_chance_is_at_least_three_and_at_most_ten_percent(spread: float, times: float, name: str) -> None:
    near, far = artifact("onnx-fp32", 1e-7), artifact("openvino-bf16", 4e-3)
    tables = table("onnx-fp32", {1: 10.0 * times}), table("openvino-bf16", {1: 10.0}, spread=spread)
    assert only(manifest(*tables, artifacts=(near, far))).artifact == name


def test_of_two_alike_in_time_and_answers_the_faster_is_chosen() -> None:
    chosen = only(manifest(table("onnx-fp32", {1: 10.1}), table("openvino-fp32", {1: 10.0})))
    assert chosen.artifact == "openvino-fp32"
    assert "chosen because it was the faster one" in why(chosen)


def test_one_that_breaks_the_bound_is_never_as_good_as_one_that_keeps_it() -> None:
    near, far = artifact("onnx-fp32", 1e-7), artifact("openvino-bf16", 4e-3)
    tables = table("onnx-fp32", {1: 10.1}), table("openvino-bf16", {1: 10.0})
    chosen = only(manifest(*tables, artifacts=(near, far)), bound=10.05)
    assert chosen.artifact == "openvino-bf16"


def test_invalid_tables_are_named_where_they_matter() -> None:
    noisy = table("openvino-fp32", {1: 6.0}, reason="rows 1 did not settle")
    chosen = only(manifest(noisy, table(*ONNX)))
    assert chosen.reasons[-1] == (
        "The latency table of openvino-fp32 on openvino-cpu is INVALID: rows 1 did not settle."
    )


def test_models_with_a_cost_axis_are_compared_at_its_usual_size() -> None:
    words = Axis(name="words", min=8, opt=64, max=512, dims=(("x", 1),))
    at_512 = LatencyPoint(rows=1, size=512, median_ms=1.0, p90_ms=1.0, min_ms=1.0, count=9)
    usual = table("openvino-fp32", {1: 6.0}, size=64)
    misleading = table("onnx-fp32", {1: 7.0}, size=64)
    misleading = misleading.model_copy(update={"points": (*misleading.points, at_512)})
    chosen = only(manifest(usual, misleading, axes=(words,)))
    assert chosen.artifact == "openvino-fp32"
    assert chosen.reasons[0].startswith("6 ms for 1 row of size 64 ")


def test_the_yardstick_is_onnx_runtime_on_the_same_hardware() -> None:
    cuda = table("onnx-fp32", {1: 2.0}, kind="onnxruntime-cuda")
    chosen = only(manifest(table("tensorrt-fp16", {1: 1.0}), table("openvino-bf16", {1: 1.5}), table(*ONNX), cuda))
    assert chosen.artifact == "tensorrt-fp16"
    assert "2 times as fast as fp32 ONNX Runtime (onnx-fp32 on onnxruntime-cuda: 2 ms for 1 row)" in why(chosen)


def ran_in(given: Artifact, precision: str) -> Artifact:
    return given.model_copy(update={"effective_precision": precision})


@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize("spoilt", [("onnx-fp32",), ("openvino-bf16",), ("onnx-fp32", "openvino-bf16")])
def test_an_invalid_measurement_puts_nothing_before_a_more_exact_artifact(
    objective: Objective, spoilt: tuple[str, ...]
) -> None:
    near, far = artifact("onnx-fp32", 1e-7), artifact("openvino-bf16", 4e-3)
    noisy = {name: "the medians of 10 rounds lie 183% apart" for name in spoilt}
    tables = [
        table(name, {1: ms}, spread=1.83 if name in noisy else 0.0, reason=noisy.get(name, ""))
        for name, ms in (("onnx-fp32", 10.0), ("openvino-bf16", 4.0))
    ]
    chosen = only(manifest(*tables, artifacts=(near, far)), objective)
    assert chosen.artifact == "onnx-fp32"
    assert "which an INVALID measurement cannot tell from chance" in why(chosen)
    assert all(
        f"The latency table of {name} on {KIND[name.split('-')[0]]} is INVALID" in why(chosen) for name in spoilt
    )


@pytest.mark.parametrize(("name", "ran"), [("onnx-fp16", "fp32"), ("onnx-int8", "fp32"), ("openvino-bf16", "fp32")])
def test_what_runs_in_another_precision_is_no_candidate_beside_the_artifact_of_that_one(name: str, ran: str) -> None:
    exact = f"{name.split('-')[0]}-fp32"
    posing = ran_in(artifact(name, 3e-4), ran)
    described = manifest(table(name, {1: 1.0}), table(exact, {1: 10.0}), artifacts=(posing, artifact(exact, 1e-7)))
    chosen = choose(described, "latency", None)[0]
    assert chosen.artifact == exact
    if name != "onnx-int8":
        assert f"{name} on {KIND[name.split('-')[0]]} was not considered: it runs in fp32 there" in why(chosen)
        # Both were measured.
        assert chosen.reasons[0].startswith("The only considered one of class full: ")


def test_what_runs_in_another_precision_is_chosen_where_there_is_nothing_else() -> None:
    posing = ran_in(artifact("onnx-fp16", 3e-4), "fp32")
    assert only(manifest(table("onnx-fp16", {1: 1.0}), artifacts=(posing,))).artifact == "onnx-fp16"
