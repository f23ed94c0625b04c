"""An engine that nobody has verified yet proves itself on the bundle's own requests when it is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginehouse.contract import tensor_file
from enginehouse.contract.bundle import MANIFEST, Bundle, sha256_of
from enginehouse.contract.errors import DigestMismatch, EngineUnavailable, InvalidInput
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import (
    Artifact,
    Axis,
    EngineKind,
    File,
    Int8Products,
    Manifest,
    SignatureRecord,
    Status,
)
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse.engines import best_batch, load_engine, time_calls
from enginehouse.engines.hardware import int8_products, probe_cpu
from enginehouse.engines.recheck import CHECK_ANSWERS, needs_recheck, recheck
from enginehouse.engines.usual import CHECK_REQUESTS, UsualRequests

pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(3)
WEIGHT = RNG.standard_normal((6, 4), dtype=np.float32)
REQUESTS = [{"x": RNG.standard_normal((rows, 6), dtype=np.float32)} for rows in (1, 2, 8)]
ANSWERS = [{"y": request["x"] @ WEIGHT} for request in REQUESTS]


def unverified(
    folder: Path,
    weight: np.ndarray = WEIGHT,
    check: tuple[str, ...] = (CHECK_REQUESTS, CHECK_ANSWERS),
    status: Status = "unverified",
    hardware: dict[str, str] | None = None,
    limit: float | None = None,
    int8_products: Int8Products | None = None,
    answers: tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]] = (REQUESTS, ANSWERS),
) -> Bundle:
    """A bundle of y = x @ weight whose check requests were answered with WEIGHT."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "m.onnx")
    (folder / "check").mkdir()
    for path, tensors in zip((CHECK_REQUESTS, CHECK_ANSWERS), answers, strict=True):
        tensor_file.write(folder / path, tensors)
    signature = Signature(
        (TensorSpec("x", np.dtype(np.float32), (None, 6)),), (TensorSpec("y", np.dtype(np.float32), (None, 4)),)
    )
    artifact = Artifact(
        name="onnx-fp32",
        format="onnx",
        precision="fp32",
        status=status,
        files=(record(folder, "m.onnx"),),
        limit=limit,
        int8_products=int8_products,
    )
    manifest = Manifest(
        name="linear",
        version="1",
        created="2026-01-01T00:00:00Z",
        source="here",
        signature=SignatureRecord.of(signature),
        max_batch=8,
        artifacts=(artifact,),
        files=tuple(record(folder, path) for path in check),
        hardware=hardware or {},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return Bundle.open(folder)


def many(weight: np.ndarray) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Requests of many rows, and the answers of `weight` to them."""
    asked = [{"x": RNG.standard_normal((8, 6), dtype=np.float32)} for _ in range(4)]
    return asked, [{"y": request["x"] @ weight} for request in asked]


def record(folder: Path, path: str) -> File:
    return File(path=path, sha256=sha256_of(folder / path), bytes=(folder / path).stat().st_size)


def test_an_engine_that_agrees_with_the_reference_answers(tmp_path: Path) -> None:
    bundle = unverified(tmp_path)
    engine = load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    np.testing.assert_allclose(engine.infer(REQUESTS[1])["y"], ANSWERS[1]["y"], rtol=1e-5)
    figures = recheck("onnxruntime-cpu", engine.infer, bundle, bundle.manifest.artifacts[0])
    assert (figures.rows, figures.engine) == ((1, 2, 8), "onnxruntime-cpu")
    assert figures.relative_l2 < 1e-5


def test_an_engine_that_does_not_agree_is_refused_with_the_figures(tmp_path: Path) -> None:
    bundle = unverified(tmp_path, WEIGHT * 1.01)
    with pytest.raises(EngineUnavailable, match=r"verified on loading: onnx-fp32 .* relative L2 1\.00e-02"):
        load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)


@pytest.mark.parametrize("check", [(), (CHECK_REQUESTS,)])
def test_without_requests_and_answers_nothing_unverified_is_loaded(tmp_path: Path, check: tuple[str, ...]) -> None:
    bundle = unverified(tmp_path, check=check)
    with pytest.raises(EngineUnavailable, match="was not verified for this machine.*build it again"):
        load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)


def test_answers_that_changed_on_disk_verify_nothing(tmp_path: Path) -> None:
    bundle = unverified(tmp_path)
    tensor_file.write(tmp_path / CHECK_ANSWERS, [{"y": answer["y"] * 2} for answer in ANSWERS])
    with pytest.raises(DigestMismatch, match="answers.npz"):
        load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)


def test_what_another_cpu_verified_is_verified_again(tmp_path: Path) -> None:
    here = " ".join(probe_cpu().flags)
    for folder, flags in (("here", here), ("elsewhere", "avx2 made_up")):
        (tmp_path / folder).mkdir()
        bundle = unverified(tmp_path / folder, WEIGHT * 1.01, status="ready", hardware={"cpu_flags": flags})
        if flags == here:
            load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1).close()
        else:
            with pytest.raises(EngineUnavailable, match=r"verified on loading: onnx-fp32 .* relative L2 1\.00e-02"):
                load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)


def test_what_was_made_for_cpus_that_multiply_int8_otherwise_is_verified_again(tmp_path: Path) -> None:
    kinds: tuple[Int8Products, ...] = ("exact", "saturating")
    for kind in kinds:
        (tmp_path / kind).mkdir()
        bundle = unverified(tmp_path / kind, WEIGHT * 1.01, status="ready", int8_products=kind)
        if kind == int8_products():
            load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1).close()
        else:
            with pytest.raises(EngineUnavailable, match=r"verified on loading: onnx-fp32 .* relative L2 1\.00e-02"):
                load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)


@pytest.mark.parametrize("ran", ["fp32", "fp16", "int8"])
def test_what_only_a_cpu_has_verified_is_verified_again_on_a_gpu(tmp_path: Path, ran: str) -> None:
    manifest = unverified(tmp_path, status="ready").manifest
    judged = manifest.artifacts[0].model_copy(update={"effective_precision": ran})

    def timed_on(*kinds: EngineKind) -> Manifest:
        point = LatencyPoint(rows=1, median_ms=1.0, p90_ms=1.0, min_ms=1.0, count=9)
        tables = [
            LatencyTable(engine=kind, artifact=judged.name, threads=1, host="here", points=(point,)) for kind in kinds
        ]
        return manifest.model_copy(update={"latency": tuple(tables)})

    assert needs_recheck("onnxruntime-cuda", timed_on("onnxruntime-cpu"), judged)
    assert not needs_recheck("onnxruntime-cuda", timed_on("onnxruntime-cpu", "onnxruntime-cuda"), judged)
    assert not needs_recheck("onnxruntime-cpu", timed_on("onnxruntime-cpu"), judged)


def test_a_part_that_is_lost_beside_a_larger_one_is_refused_on_loading_too(tmp_path: Path) -> None:
    scales = np.array([300, 300, 300, 0.2], np.float32)
    for folder, lost in (("whole", 1.0), ("lost", 0.0)):
        (tmp_path / folder).mkdir()
        weight = WEIGHT * scales * np.array([1, 1, 1, lost], np.float32)
        bundle = unverified(tmp_path / folder, weight, limit=0.02, answers=many(WEIGHT * scales))
        if lost:
            load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1).close()
        else:
            with pytest.raises(EngineUnavailable, match=r"verified on loading: .* loses parts .* index 3 of axis 1"):
                load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)


def test_the_limit_that_the_user_set_goes_along(tmp_path: Path) -> None:
    bundle = unverified(tmp_path, WEIGHT * 1.01, limit=0.02)
    load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1).close()


def test_an_engine_without_a_table_is_timed_where_it_runs(tmp_path: Path) -> None:
    bundle = unverified(tmp_path)
    engine = load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    measured = time_calls(engine, bundle)
    engine.close()
    assert [rows for rows, _ in measured] == [1, 8]
    assert all(0 < milliseconds < 1000 for _, milliseconds in measured)


def dividing(folder: Path, *, carries: bool) -> Bundle:
    """A bundle of y = a // b, whose check requests have no zeros."""
    whole = np.dtype(np.int64)
    tensors = [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "t"]) for name in ("a", "b", "y")]
    graph = helper.make_graph([helper.make_node("Div", ["a", "b"], ["y"])], "division", tensors[:2], tensors[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "m.onnx")
    (folder / "check").mkdir()
    requests = [{name: RNG.integers(1, 9, (rows, 3)) for name in "ab"} for rows in (1, 2)]
    longer = {name: RNG.integers(1, 9, (2, 60)) for name in "ab"}
    tensor_file.write(folder / CHECK_REQUESTS, [*requests, longer])
    specs = [TensorSpec(name, whole, (None, None)) for name in "aby"]
    manifest = Manifest(
        name="division",
        version="1",
        created="2026-01-01T00:00:00Z",
        source="here",
        signature=SignatureRecord.of(Signature(tuple(specs[:2]), tuple(specs[2:]))),
        max_batch=8,
        axes=(Axis(name="t", min=1, opt=4, max=9, dims=(("a", 1), ("b", 1))),),
        artifacts=(
            Artifact(
                name="onnx-fp32", format="onnx", precision="fp32", status="ready", files=(record(folder, "m.onnx"),)
            ),
        ),
        files=(record(folder, CHECK_REQUESTS),) if carries else (),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return Bundle.open(folder)


def test_a_model_is_warmed_up_and_timed_with_what_it_is_known_to_take(tmp_path: Path) -> None:
    bundle = dividing(tmp_path, carries=True)
    usual = UsualRequests(bundle)
    known = tensor_file.read(tmp_path / CHECK_REQUESTS)[1]

    for rows in (1, 2, 8):
        request = usual.of(rows)
        bundle.manifest.request_signature().check(request)
        assert {array.shape for array in request.values()} == {(rows, 4)}
        np.testing.assert_array_equal(request["a"], known["a"][np.arange(rows) % 2][:, [0, 1, 2, 0]])

    engine = load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    assert [rows for rows, _ in time_calls(engine, bundle)] == [1, 8]
    assert best_batch(engine, bundle, 4) in (1, 2, 4)


def test_a_request_that_is_refused_is_no_fault_of_the_engine(tmp_path: Path) -> None:
    bundle = dividing(tmp_path, carries=False)
    assert not UsualRequests(bundle).of(1)["b"].any()

    engine = load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)

    with pytest.raises(InvalidInput, match="division by zero"):
        engine.infer(UsualRequests(bundle).of(1))
