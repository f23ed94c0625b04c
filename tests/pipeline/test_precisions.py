"""Each precision of a model answers like its fp32 form, and its file holds what the engine it is for needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from examples.digits import digits, held_out
from onnx import TensorProto, numpy_helper

from enginehouse.contract.manifest import Precision
from enginehouse.contract.parity import LIMITS
from enginehouse_build.convert import openvino as for_openvino
from enginehouse_build.convert.fp16 import to_fp16
from enginehouse_build.convert.int8_lint import check_for_tensorrt
from enginehouse_build.convert.quantize import quantize_for_onnxruntime, quantize_for_tensorrt
from enginehouse_build.inputs.source import TorchModel
from enginehouse_build.reference import export

from .composed import build_for_tensorrt
from .graphs import Inputs, model, node, save, weights
from .small_nets import Convert, ask, ask_openvino, distance, nodes_of, residual


def ranges(path: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Tensor, scales and zero points of every DequantizeLinear."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    return [
        (found.input[0], values[found.input[1]], values[found.input[2]]) for found in nodes_of(path, "DequantizeLinear")
    ]


@dataclass(frozen=True)
class Trained:
    """The digits CNN, the images it was trained on in requests of ten, and 360 images it never saw."""

    path: Path
    calibration: Sequence[Inputs]
    images: np.ndarray
    labels: np.ndarray

    @property
    def inputs(self) -> Inputs:
        return {"image": self.images}

    def check(self, logits: np.ndarray, precision: Precision) -> None:
        """Logits within the gate of the precision, and at most 0.5 points of accuracy lost."""
        want = ask(self.path, self.inputs)[0]
        assert 0 < distance(logits, want) <= LIMITS[precision].relative_l2
        right, wanted = (float((answer.argmax(1) == self.labels).mean()) for answer in (logits, want))
        assert wanted > 0.98
        assert right >= wanted - 0.005


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = tmp_path_factory.mktemp("trained") / "digits.onnx"
    source = digits()
    export.export(TorchModel(source), path, batched=True, max_batch=32, ranges={})
    assert source.calibration is not None
    seen = source.calibration["image"][:200]
    images, labels = held_out()
    return Trained(path, [{"image": seen[at : at + 10]} for at in range(0, len(seen), 10)], images, labels)


def test_fp16_keeps_the_accuracy_of_digits(trained: Trained, tmp_path: Path) -> None:
    assert to_fp16(trained.path, tmp_path / "half.onnx") == ""
    trained.check(ask(tmp_path / "half.onnx", trained.inputs)[0], "fp16")
    proto = onnx.load(tmp_path / "half.onnx")
    assert {tensor.data_type for tensor in proto.graph.initializer} <= {TensorProto.FLOAT16, TensorProto.INT64}
    assert proto.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert proto.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert (tmp_path / "half.onnx").stat().st_size < 0.6 * trained.path.stat().st_size


def test_int8_for_onnx_runtime_keeps_the_accuracy_of_digits(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "u8.onnx"
    assert quantize_for_onnxruntime(trained.path, path, trained.calibration) == ""
    trained.check(ask(path, trained.inputs)[0], "int8")
    assert {zero_points.dtype for _, _, zero_points in ranges(path)} == {
        np.dtype(t) for t in ("uint8", "int8", "int32")
    }
    # The zero points of the convolutions' answers do what their Relus did.
    assert [found.input[0] for found in nodes_of(path, "Relu")] == ["linear"]


def test_int8_for_tensorrt_keeps_the_accuracy_of_digits(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "s8.onnx"
    assert quantize_for_tensorrt(trained.path, path, trained.calibration) == ""
    trained.check(ask(path, trained.inputs)[0], "int8")
    assert {zero_points.dtype for _, _, zero_points in ranges(path)} == {np.dtype("int8")}
    assert not any(zero_points.any() for _, _, zero_points in ranges(path))
    check_for_tensorrt(path)


@pytest.mark.parametrize("quantize", [quantize_for_onnxruntime, quantize_for_tensorrt])
def test_int8_weights_have_a_scale_per_output_channel(trained: Trained, tmp_path: Path, quantize: Convert) -> None:
    quantize(trained.path, tmp_path / "int8.onnx", trained.calibration)
    scales = {
        name: scale.size for name, scale, zero_point in ranges(tmp_path / "int8.onnx") if zero_point.dtype == np.int8
    }
    assert sorted(size for size in scales.values() if size > 1) == [10, 16, 32, 64]


@pytest.mark.parametrize("quantize", [quantize_for_onnxruntime, quantize_for_tensorrt])
def test_int8_files_hold_standard_operators_only_and_no_notes(
    trained: Trained, tmp_path: Path, quantize: Convert
) -> None:
    quantize(trained.path, tmp_path / "int8.onnx", trained.calibration)
    proto = onnx.load(tmp_path / "int8.onnx")
    assert [opset.domain for opset in proto.opset_import] == [""]
    assert not proto.metadata_props
    used = {name for found in proto.graph.node for name in found.input}
    assert {tensor.name for tensor in proto.graph.initializer} <= used


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_openvino_keeps_the_accuracy_of_digits(trained: Trained, tmp_path: Path, precision: Precision) -> None:
    assert for_openvino.convert(trained.path, tmp_path, precision, trained.calibration) == ""
    logits = ask_openvino(tmp_path, precision, trained.inputs)
    trained.check(logits, precision)
    types = [found.get_type_name() for found in openvino.Core().read_model(tmp_path / "model.xml").get_ops()]
    assert ("FakeQuantize" in types) == (precision == "int8")


def test_openvino_halves_weights_for_fp16_only(trained: Trained, tmp_path: Path) -> None:
    sizes: dict[Precision, int] = {}
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    for precision in precisions:
        (tmp_path / precision).mkdir()
        for_openvino.convert(trained.path, tmp_path / precision, precision, ())
        sizes[precision] = (tmp_path / precision / "model.bin").stat().st_size
    assert sizes["bf16"] == sizes["fp32"]
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


@pytest.mark.parametrize("convert", [to_fp16, quantize_for_tensorrt])
def test_tensorrt_builds_what_is_made_for_it(trained: Trained, tmp_path: Path, convert: Convert) -> None:
    path, calibration = residual(tmp_path)
    for source, data in ((path, calibration), (trained.path, trained.calibration)):
        convert(source, tmp_path / "made.onnx", *(() if convert is to_fp16 else (data,)))
        build_for_tensorrt(onnx.load(tmp_path / "made.onnx"), 4)


def test_model_with_fp16_inputs_is_converted_and_quantized(tmp_path: Path) -> None:
    nodes = [
        node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        node("MatMul", ["f", "w"], ["h"]),
        node("Cast", ["h"], ["y"], to=TensorProto.FLOAT16),
    ]
    proto = model(nodes, {"x": (np.float16, ["n", 6])}, {"y": (np.float16, ["n", 3])}, {"w": weights(6, 3)})
    path = save(tmp_path / "inputs.onnx", proto)
    calibration = [{"x": weights(4, 6, dtype=np.float16, seed=seed)} for seed in range(4)]
    want = ask(path, calibration[0])[0]
    to_fp16(path, tmp_path / "half.onnx")
    quantize_for_onnxruntime(path, tmp_path / "u8.onnx", calibration)
    for name, limit in (("half", "fp16"), ("u8", "int8")):
        (got,) = ask(tmp_path / f"{name}.onnx", calibration[0])
        assert got.dtype == np.float16
        assert distance(got, want) < LIMITS[limit].relative_l2  # type: ignore[index]


def test_nodes_without_names_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, calibration = residual(tmp_path)
    proto = onnx.load(path)
    for found in proto.graph.node:
        found.name = ""
    onnx.save(proto, path)
    want = ask(path, calibration[0])[0]
    to_fp16(path, tmp_path / "half.onnx")
    assert distance(ask(tmp_path / "half.onnx", calibration[0])[0], want) < LIMITS["fp16"].relative_l2
    quantize_for_onnxruntime(path, tmp_path / "u8.onnx", calibration)
    assert len(nodes_of(tmp_path / "u8.onnx", "QuantizeLinear")) > 3
