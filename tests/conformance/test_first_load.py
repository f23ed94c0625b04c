"""An engine that nobody has verified yet proves itself on the bundle's own requests when it is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginehouse.contract import tensor_file
from enginehouse.contract.bundle import MANIFEST, Bundle, sha256_of
from enginehouse.contract.errors import DigestMismatch, EngineUnavailable
from enginehouse.contract.manifest import Artifact, File, Int8Products, Manifest, SignatureRecord, Status
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse.engines import load_engine, time_calls
from enginehouse.engines.hardware import int8_products, probe_cpu
from enginehouse.engines.recheck import CHECK_ANSWERS, CHECK_REQUESTS, recheck

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
    tensor_file.write(folder / CHECK_REQUESTS, REQUESTS)
    tensor_file.write(folder / CHECK_ANSWERS, ANSWERS)
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


def test_the_limit_that_the_user_set_goes_along(tmp_path: Path) -> None:
    bundle = unverified(tmp_path, WEIGHT * 1.01, limit=0.02)
    load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1).close()


def test_an_engine_without_a_table_is_timed_where_it_runs(tmp_path: Path) -> None:
    bundle = unverified(tmp_path)
    engine = load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    measured = time_calls(engine, bundle.manifest)
    engine.close()
    assert [rows for rows, _ in measured] == [1, 8]
    assert all(0 < milliseconds < 1000 for _, milliseconds in measured)
