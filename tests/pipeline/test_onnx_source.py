"""From ONNX files: what is accepted, what is refused, and artifacts that fail on their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import BuildError, ExportFailed
from enginehouse.contract.store import Store
from enginehouse.engines import load_engine

from .conftest import write_onnx


def test_file_with_a_free_batch_is_built(linear: Path, build_onnx: Callable[..., Bundle]) -> None:
    bundle = build_onnx(linear, formats=("onnx", "openvino"))
    manifest = bundle.manifest
    assert [artifact.status for artifact in manifest.artifacts] == ["ready", "ready"]
    assert "random samples (seed 0)" in manifest.source
    engine = load_engine("onnxruntime-cpu", bundle, manifest.artifact("onnx-fp32"), threads=1)
    assert engine.infer({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[0.0, 3.5]]
    engine.close()


def fixed(folder: Path) -> Path:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    return write_onnx(folder / "fixed.onnx", nodes, {"x": [2, 3]}, {"y": [2, 3]})


def test_fixed_batch_is_refused_naming_no_batch(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    with pytest.raises(ExportFailed, match=r"input 'x' has a fixed batch: dim 0 of \[2, 3\] is 2.*--no-batch"):
        build_onnx(fixed(tmp_path))
    assert Store(tmp_path / "store").models() == []


def test_no_batch_serves_one_whole_request(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    bundle = build_onnx(fixed(tmp_path), batched=False, formats=("onnx", "openvino"))
    manifest = bundle.manifest
    assert (manifest.max_batch, manifest.batch_buckets(), manifest.signature.batched) == (1, (1,), False)
    assert [artifact.status for artifact in manifest.artifacts] == ["ready", "ready"]
    assert [point.rows for table in manifest.latency for point in table.points] == [1, 1]


def test_batch_that_a_node_bakes_in_is_found_by_running_it(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    # Declared free on both sides, with a target shape that is only known once it runs.
    nodes = [helper.make_node("Add", ["a", "b"], ["shape"]), helper.make_node("Reshape", ["x", "shape"], ["y"])]
    parts = {"a": np.array([1, 3], dtype=np.int64), "b": np.array([1, 3], dtype=np.int64)}
    path = write_onnx(tmp_path / "liar.onnx", nodes, {"x": ["batch", 6]}, {"y": ["batch", 6]}, **parts)
    with pytest.raises(ExportFailed, match=r"does not run with 1 rows of the samples: .* or its batch is not dynamic"):
        build_onnx(path)


def test_format_that_cannot_be_converted_does_not_stop_the_others(
    tmp_path: Path, build_onnx: Callable[..., Bundle]
) -> None:
    # OpenVINO has no rule for Det; ONNX Runtime runs it.
    path = write_onnx(tmp_path / "det.onnx", [helper.make_node("Det", ["x"], ["y"])], {"x": ["b", 3, 3]}, {"y": ["b"]})
    manifest = build_onnx(path, formats=("openvino", "onnx")).manifest
    openvino, onnx = manifest.artifacts
    assert (openvino.status, openvino.files) == ("failed", ())
    assert "No conversion rule found for operations: Det" in (openvino.reason or "")
    assert onnx.status == "ready"
    assert [table.engine for table in manifest.latency] == ["onnxruntime-cpu"]


def resize(folder: Path) -> Path:
    scales = np.array([1, 1, 0.4375, 0.4375], dtype=np.float32)
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", antialias=1)]
    shapes = {"x": ["b", 1, 16, 16]}, {"y": ["b", 1, 7, 7]}
    return write_onnx(folder / "resize.onnx", nodes, *shapes, scales=scales)


def test_artifact_that_answers_wrongly_fails_with_figures(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    # OpenVINO converts antialias=1 and then ignores it.
    manifest = build_onnx(resize(tmp_path), formats=("onnx", "openvino")).manifest
    onnx, openvino = manifest.artifacts
    assert onnx.status == "ready"
    assert openvino.status == "failed"
    assert openvino.parity is not None
    assert openvino.parity.relative_l2 > 0.1
    assert f"relative L2 {openvino.parity.relative_l2:.2e} of output 'y', limit 1e-04" in (openvino.reason or "")
    assert [table.engine for table in manifest.latency] == ["onnxruntime-cpu"]


def test_nothing_is_published_when_no_artifact_is_ready(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    with pytest.raises(
        BuildError, match=r"no artifact of tiny can be served: openvino-fp32 is failed: .* too far from the fp32 ref"
    ):
        build_onnx(resize(tmp_path), formats=("openvino",))
    assert not (tmp_path / "store" / "tiny").exists()


def test_broken_file_is_refused(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x07not a model")
    with pytest.raises(ExportFailed, match=r"broken.onnx is not a valid ONNX model"):
        build_onnx(path)


def test_free_dimension_beside_the_batch_needs_samples(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = write_onnx(tmp_path / "free.onnx", nodes, {"x": ["b", "n"]}, {"y": ["b", "n"]})
    with pytest.raises(BuildError, match="input 'x' has a free dimension 1, which cannot be guessed.*--samples"):
        build_onnx(path)
    np.savez(tmp_path / "real.npz", x=np.linspace(-1, 1, 35, dtype=np.float32).reshape(5, 7))
    bundle = build_onnx(path, samples=tmp_path / "real.npz")
    assert bundle.manifest.artifact("onnx-fp32").status == "ready"
