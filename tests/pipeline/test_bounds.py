"""A bundle says for which values each artifact is right, why, and has an engine of another machine find out itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from enginehouse.contract.bundle import MANIFEST, Bundle
from enginehouse.contract.errors import ManifestInvalid
from enginehouse.contract.manifest import Artifact, Manifest
from enginehouse.engines import load_engine
from enginehouse.engines.recheck import CHECK_PROBES, needs_recheck
from enginehouse_build import report

from .graphs import f32, i64, model, node, save, weights
from .test_probes import ids, plain

Build = Callable[..., Bundle]


def samples(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "samples.npz", **arrays)  # type: ignore[arg-type] # numpy types its only option, too
    return folder / "samples.npz"


def convolutional() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "k1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "k2"], ["c2"], pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["p"]),
        node("Flatten", ["p"], ["y"]),
    ]
    parts = {"k1": weights(8, 3, 3, 3), "k2": weights(5, 8, 3, 3)}
    return model(nodes, {"x": (f32, ["n", 3, 12, 12])}, {"y": (f32, ["n", 5])}, parts)


def test_a_network_keeps_openvino_for_finite_inputs_and_says_so_with_the_cause(
    tmp_path: Path, build_onnx: Build
) -> None:
    bundle = build_onnx(save(tmp_path / "m.onnx", convolutional()), formats=("onnx", "openvino"))
    onnx_fp32, openvino_fp32 = bundle.manifest.artifacts
    assert (onnx_fp32.status, onnx_fp32.inputs_only) == ("ready", {})
    assert (openvino_fp32.status, openvino_fp32.inputs_only) == ("ready", {"openvino-cpu": {"x": "finite"}})
    (remark,) = openvino_fp32.remarks
    assert remark.startswith("openvino-cpu answers finite 'x' only: with NaN in 'x' its output 'y' differs in ")
    assert "instead of nan" in remark
    assert "answers finite &#39;x&#39; only" in report.render(bundle.manifest)
    # The release before refuses fields that it does not know.
    written = json.loads((bundle.path / MANIFEST).read_text())["artifacts"]
    assert ["inputs_only" in artifact for artifact in written] == [False, True]


def test_ids_that_openvino_takes_for_one_another_are_left_to_onnx_runtime(tmp_path: Path, build_onnx: Build) -> None:
    generator = np.random.default_rng(0)
    real = {name: generator.integers(3 * 10**7, 2 * 10**9, (64, width)) for name, width in (("a", 1), ("b", 5))}
    real["b"][:, 2] = real["a"][:, 0]
    bundle = build_onnx(
        save(tmp_path / "m.onnx", ids("Equal", i64)), formats=("onnx", "openvino"), samples=samples(tmp_path, **real)
    )
    assert [artifact.inputs_only for artifact in bundle.manifest.artifacts] == [
        {},
        {"openvino-cpu": {"a": 2**24, "b": 2**24}},
    ]


def test_int8_is_right_for_finite_inputs_only(tmp_path: Path, build_onnx: Build) -> None:
    real = samples(tmp_path, x=weights(64, 6))
    bundle = build_onnx(save(tmp_path / "m.onnx", plain("Tanh")), precisions=("fp32", "int8"), samples=real)
    assert [artifact.inputs_only for artifact in bundle.manifest.artifacts] == [
        {},
        {"onnxruntime-cpu": {"x": "finite"}},
    ]


@pytest.mark.parametrize("is_carried", [True, False])
def test_an_engine_of_another_machine_finds_its_own_bounds(tmp_path: Path, build_onnx: Build, is_carried: bool) -> None:
    built = build_onnx(save(tmp_path / "m.onnx", plain("Relu")), formats=("openvino",)).manifest
    # As if it had been built where the engine was right, on a CPU with other flags.
    artifact = built.artifacts[0].model_copy(update={"inputs_only": {}})
    files = tuple(file for file in built.files if is_carried or file.path != CHECK_PROBES)
    elsewhere = built.model_copy(
        update={"artifacts": (artifact,), "files": files, "hardware": {"cpu_flags": "made up"}}
    )
    bundle = Bundle(tmp_path / "store" / "tiny" / "1", elsewhere)
    engine = load_engine("openvino-cpu", bundle, artifact, threads=1)
    # A bundle of the release before has nothing to find out with.
    assert engine.inputs_only == ({"x": "finite"} if is_carried else {})
    engine.close()


def test_an_engine_of_the_same_machine_takes_the_bounds_of_the_build(tmp_path: Path, build_onnx: Build) -> None:
    bundle = build_onnx(save(tmp_path / "m.onnx", plain("Relu")), formats=("openvino",))
    engine = load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    assert engine.inputs_only == {"x": "finite"}
    engine.close()


def test_bounds_are_read_as_they_were_written(tmp_path: Path) -> None:
    artifact = Artifact(
        name="a",
        format="onnx",
        precision="fp32",
        status="ready",
        inputs_only={"onnxruntime-cuda": {"x": "finite", "z": 2**100, "n": 90}},
    )
    assert artifact.bounds_on("onnxruntime-cpu") == {}
    assert Artifact.model_validate_json(artifact.model_dump_json()) == artifact


def test_a_bound_that_is_none_is_refused() -> None:
    text = '{"name": "m", "version": "1", "created": "", "source": "", "max_batch": 1, "signature": '
    text += '{"inputs": [], "outputs": []}, "artifacts": [{"name": "a", "format": "onnx", "precision": "fp32", '
    text += '"status": "ready", "inputs_only": {"tensorrt": {"x": "nearly"}}}]}'
    with pytest.raises(ManifestInvalid, match="artifacts.0.inputs_only.tensorrt.x"):
        Manifest.parse(text, "manifest.json")


def test_fp16_that_was_only_computed_in_fp32_is_probed_for_what_fp16_cannot_hold(
    tmp_path: Path, build_onnx: Build
) -> None:
    """The CPU computes the file in fp32, and the manifest says so: another device verifies and probes it again."""
    bundle = build_onnx(save(tmp_path / "m.onnx", plain("Tanh")), precisions=("fp32", "fp16"))
    half = bundle.manifest.artifact("onnx-fp16")
    stored = {
        numpy_helper.to_array(tensor).dtype
        for tensor in onnx.load(bundle.path / half.files[0].path).graph.initializer
        if tensor.data_type != TensorProto.INT64
    }
    assert (half.precision, half.effective_precision, stored) == ("fp16", "fp32", {np.dtype(np.float16)})
    assert any("computed in fp32 here, so fp16 itself is not verified yet" in remark for remark in half.remarks)
    assert needs_recheck("onnxruntime-cuda", bundle.manifest, half)
    assert not needs_recheck("onnxruntime-cpu", bundle.manifest, half)
    assert CHECK_PROBES in {file.path for file in bundle.manifest.files}
