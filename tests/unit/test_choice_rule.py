"""What an engine loads: the most exact artifact, unless valid measurements say that another is faster."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.contract.choice import Contender, chance, choose_artifact, eligible, preferred
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import Artifact, EngineKind, Manifest, Parity, SignatureRecord, TensorRecord

ONE = TensorRecord(name="x", datatype="FP32", shape=(-1, 4))


def artifact(name: str, distance: float | None = None, ran: str | None = None) -> Artifact:
    fmt, precision = name.split("-")[:2]
    parity = None
    if distance is not None:
        figures = {"worst_row": distance, "cosine": 1.0, "top1_agreement": None, "limit": 1.0, "rows": (1,)}
        parity = Parity.model_validate({"engine": "e", "relative_l2": distance, **figures})
    return Artifact.model_validate(
        {"name": name, "format": fmt, "precision": precision, "status": "ready", "parity": parity}
        | {"effective_precision": ran}
    )


def table(name: str, ms: float, engine: str, *, valid: bool = True, spread: float = 0.0) -> LatencyTable:
    point = LatencyPoint(rows=8, median_ms=ms, p90_ms=ms, min_ms=ms, count=9, spread=spread)
    verdict = {"verdict": "VALID" if valid else "INVALID"}
    fields = {"engine": engine, "artifact": name, "threads": 1, "host": "h", "points": (point,), **verdict}
    return LatencyTable.model_validate(fields)


def manifest(artifacts: list[Artifact], *tables: LatencyTable) -> Manifest:
    return Manifest(
        name="m",
        version="1",
        created="2026-01-01T00:00:00Z",
        source="tests",
        signature=SignatureRecord(inputs=(ONE,), outputs=(ONE,)),
        max_batch=8,
        artifacts=tuple(artifacts),
        latency=tables,
    )


def loaded(described: Manifest, engine: EngineKind) -> str | None:
    choice = choose_artifact(described, (engine,), "any")
    return choice[1].name if choice else None


PRECISIONS = st.sampled_from(["fp32", "fp16", "bf16", "int8"])
DISTANCES = st.none() | st.sampled_from([0.0, 1e-7, 1e-4, 1e-2])


@st.composite
def contenders(draw: st.DrawFn) -> list[Contender]:
    return [
        Contender(
            "onnxruntime-cpu",
            artifact(f"onnx-{draw(PRECISIONS)}-{at}", draw(DISTANCES)),
            cost=draw(st.floats(1.0, 20.0)),
            spread=draw(st.floats(0.0, 2.0)),
            valid=draw(st.booleans()),
        )
        for at in range(draw(st.integers(1, 5)))
    ]


@given(contenders())
def test_nothing_goes_before_a_more_exact_one_but_by_more_than_chance_of_valid_measurements(
    field: list[Contender],
) -> None:
    best = preferred(field)
    exact = min(field, key=lambda contender: contender.exactness)
    if best.exactness > exact.exactness:
        rivals = [other for other in field if other.exactness == exact.exactness]
        assert best.valid
        for rival in rivals:
            assert not rival.valid or rival.cost / best.cost - 1 > 0
        assert any(other.valid and other.cost / best.cost - 1 > 0.03 for other in rivals)


@given(contenders())
def test_nothing_clearly_faster_is_passed_over_where_all_measurements_are_valid(field: list[Contender]) -> None:
    valid = [contender for contender in field if contender.valid]
    if valid:
        best = preferred(valid)
        fastest = min(valid, key=lambda contender: contender.cost)
        assert best.cost <= fastest.cost * (1 + chance(best, fastest))


@pytest.mark.parametrize("noisy", [("onnx-fp32",), ("onnx-fp16",), ("onnx-fp32", "onnx-fp16")])
def test_invalid_tables_do_not_have_a_less_exact_artifact_loaded(noisy: tuple[str, ...]) -> None:
    built = [artifact("onnx-fp32", 1e-7), artifact("onnx-fp16", 3e-4)]
    tables = [
        table(name, ms, "onnxruntime-cpu", valid=name not in noisy)
        for name, ms in (("onnx-fp32", 9.0), ("onnx-fp16", 2.0))
    ]
    assert loaded(manifest(built, *tables), "onnxruntime-cpu") == "onnx-fp32"


@pytest.mark.parametrize(("ms", "name"), [(9.0, "onnx-fp32"), (9.8, "onnx-fp32"), (12.0, "onnx-fp16")])
def test_rounds_that_overlap_do_not_have_a_less_exact_artifact_loaded(ms: float, name: str) -> None:
    built = [artifact("onnx-fp32", 1e-7), artifact("onnx-fp16", 3e-4)]
    tables = table("onnx-fp32", ms, "onnxruntime-cpu"), table("onnx-fp16", 9.0, "onnxruntime-cpu", spread=0.1)
    assert loaded(manifest(built, *tables), "onnxruntime-cpu") == name


@pytest.mark.parametrize("half", ["onnx-fp16", "onnx-int8", "onnx-bf16"])
def test_a_file_that_a_cpu_computes_in_fp32_is_not_loaded_there_before_the_fp32_one(half: str) -> None:
    built = [artifact("onnx-fp32", 1e-7), artifact(half, 3e-4, ran="fp32")]
    tables = table("onnx-fp32", 9.0, "onnxruntime-cpu"), table(half, 2.0, "onnxruntime-cpu")
    assert loaded(manifest(built, *tables), "onnxruntime-cpu") == "onnx-fp32"
    # What a CPU does with it says nothing about a GPU, and alone it is better than nothing.
    on_gpu = table("onnx-fp32", 9.0, "onnxruntime-cuda"), table(half, 2.0, "onnxruntime-cuda")
    assert loaded(manifest(built, *on_gpu), "onnxruntime-cuda") == half
    assert loaded(manifest(built[1:], *tables[1:]), "onnxruntime-cpu") == half


@given(contenders())
def test_something_is_always_eligible(field: list[Contender]) -> None:
    assert eligible(field)
