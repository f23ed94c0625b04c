"""int8: which layers are quantized, for which engine, and what is left alone."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from enginehouse.contract.errors import ConversionFailed
from enginehouse.contract.manifest import Artifact
from enginehouse.contract.parity import LIMITS
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse.engines import EngineOptions
from enginehouse.engines import onnxruntime as for_onnxruntime
from enginehouse_build.convert import fallback, quantizer
from enginehouse_build.convert import openvino as for_openvino
from enginehouse_build.convert.agreement import Agreement
from enginehouse_build.convert.best_of import Calibration, best_of
from enginehouse_build.convert.fp16 import to_fp16
from enginehouse_build.convert.quantize import quantize_for_onnxruntime, quantize_for_tensorrt
from enginehouse_build.inputs.preprocess import Preprocess

from .graphs import Inputs, f32, model, node, save, weights
from .small_nets import (
    Convert,
    ask,
    ask_openvino,
    attention,
    distance,
    is_processing,
    nodes_of,
    pixels,
    recurrent,
    requests,
    residual,
)


def test_residual_connection_stays_in_int8_for_onnx_runtime(tmp_path: Path) -> None:
    path, calibration = residual(tmp_path)
    quantize_for_onnxruntime(path, tmp_path / "u8.onnx", calibration)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(tmp_path / "u8.onnx", options, providers=["CPUExecutionProvider"])
    ran = [found.op_type for found in onnx.load(tmp_path / "run.onnx").graph.node]
    assert ran.count("QLinearConv") == 2
    assert "QLinearAdd" in ran
    assert "QLinearGlobalAveragePool" in ran
    assert not {"Conv", "Relu", "Add"} & set(ran)


def test_residual_connection_leaves_tensorrt_a_convolution_to_fuse_with(tmp_path: Path) -> None:
    path, calibration = residual(tmp_path)
    quantize_for_tensorrt(path, tmp_path / "s8.onnx", calibration)
    made_by = {name: found.op_type for found in onnx.load(tmp_path / "s8.onnx").graph.node for name in found.output}
    (add,) = nodes_of(tmp_path / "s8.onnx", "Add")
    assert sorted(made_by[name] for name in add.input) == ["Conv", "DequantizeLinear"]
    want, got = ask(path, calibration[0])[0], ask(tmp_path / "s8.onnx", calibration[0])[0]
    assert distance(got, want) < 0.05


@pytest.mark.parametrize("quantize", [quantize_for_onnxruntime, quantize_for_tensorrt])
def test_pixels_are_prepared_and_answers_ranked_in_full_precision(tmp_path: Path, quantize: Convert) -> None:
    path, calibration = pixels(tmp_path)
    assert quantize(path, tmp_path / "int8.onnx", calibration) == ""
    graph = onnx.load(tmp_path / "int8.onnx").graph
    made_by = {name: found for found in graph.node for name in found.output}
    prepared = [found for found in graph.node if is_processing(found.name)]
    assert {"MatMul", "Conv", "Softmax"} <= {found.op_type for found in prepared}
    rounded = {found.output[0] for found in graph.node if found.op_type == "DequantizeLinear"}
    assert not rounded & {name for found in prepared if found.op_type != "Softmax" for name in found.input}
    (convolution,) = (found for found in graph.node if found.name == "conv")
    assert rounded.issuperset(convolution.input[:2])
    quantizer = made_by[made_by[convolution.input[0]].input[0]]
    assert is_processing(made_by[quantizer.input[0]].name)


def test_constants_per_channel_are_rows_where_onnx_runtime_is_slow_at_less(tmp_path: Path) -> None:
    nodes = [node("Conv", ["image", "w"], ["y"])]
    proto = model(nodes, {"image": (f32, ["n", 3, 8, 10])}, {"y": (f32, ["n", 6, 6, 8])}, {"w": weights(6, 3, 3, 3)})
    proto = Preprocess.of("imagenet").fit(proto).attach(proto)
    path = save(tmp_path / "pixels.onnx", proto)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 10, 3), np.uint8)
    quantize_for_onnxruntime(path, tmp_path / "u8.onnx", [{"image": images}])
    constants = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(tmp_path / "u8.onnx").graph.initializer}
    normalising = nodes_of(tmp_path / "u8.onnx", "Mul", "Add")
    assert [constants[found.input[1]] for found in normalising] == [(1, 3, 1, 10)] * 2
    assert distance(ask(tmp_path / "u8.onnx", {"image": images})[0], ask(path, {"image": images})[0]) < 0.02


def test_openvino_prepares_pixels_in_full_precision_too(tmp_path: Path) -> None:
    path, calibration = pixels(tmp_path)
    for_openvino.convert(path, tmp_path, "int8", calibration)
    graph = openvino.Core().read_model(tmp_path / "model.xml")
    quantizers = [found for found in graph.get_ops() if found.get_type_name() == "FakeQuantize"]
    fed = {user.get_node().get_friendly_name() for found in quantizers for user in found.output(0).get_target_inputs()}
    assert "conv/WithoutBiases" in fed or "conv" in fed
    assert not any(is_processing(name) for name in fed)


@pytest.mark.parametrize("quantize", [quantize_for_onnxruntime, quantize_for_tensorrt])
def test_attention_and_the_residual_stream_stay_in_fp32(tmp_path: Path, quantize: Convert) -> None:
    path, calibration = attention(tmp_path)
    assert quantize(path, tmp_path / "int8.onnx", calibration) == "2 of 6 layers stay in fp32: MatMul 2"
    made_by = {name: found.op_type for found in onnx.load(tmp_path / "int8.onnx").graph.node for name in found.output}
    kept = [
        found for found in nodes_of(tmp_path / "int8.onnx", "MatMul", "Add") if found.name in ("scores", "residual")
    ]
    assert len(kept) == 2
    assert "DequantizeLinear" not in {made_by[name] for found in kept for name in found.input}
    assert distance(ask(tmp_path / "int8.onnx", calibration[0])[0], ask(path, calibration[0])[0]) < 0.05


def test_openvino_quantizes_attention_within_its_gate(tmp_path: Path) -> None:
    path, calibration = attention(tmp_path)
    for_openvino.convert(path, tmp_path, "int8", calibration)
    assert 0 < distance(ask_openvino(tmp_path, "int8", calibration[0]), ask(path, calibration[0])[0]) < 0.05


def test_recurrent_layers_stay_in_fp32(tmp_path: Path) -> None:
    path, calibration = recurrent(tmp_path)
    want = ask(path, calibration[0])[0]
    remark = quantize_for_onnxruntime(path, tmp_path / "u8.onnx", calibration)
    assert remark == "1 of 4 layers stay in fp32: LSTM 1"
    assert distance(ask(tmp_path / "u8.onnx", calibration[0])[0], want) < 0.02
    for_openvino.convert(path, tmp_path, "int8", calibration)
    assert distance(ask_openvino(tmp_path, "int8", calibration[0]), want) < 0.02
    ops = openvino.Core().read_model(tmp_path / "model.xml").get_ops()
    (layer,) = (found for found in ops if found.get_type_name() == "LSTMSequence")
    assert all(value.get_node().get_type_name() == "Constant" for value in layer.input_values()[4:])


def test_openvino_has_biases_as_plain_numbers_that_can_be_corrected(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w", "b"], ["c"], name="conv"), node("Relu", ["c"], ["y"])]
    shapes: dict[str, Any] = {"x": (f32, ["n", 3, 8, 8])}
    proto = model(nodes, shapes, {"y": (f32, ["n", 4, 6, 6])}, {"w": weights(4, 3, 3, 3), "b": weights(4)})
    for_openvino.convert(save(tmp_path / "biased.onnx", proto), tmp_path, "int8", requests(x=(3, 8, 8)))
    ops = openvino.Core().read_model(tmp_path / "model.xml").get_ops()
    (bias,) = (found for found in ops if found.get_type_name() == "Add")
    assert "Constant" in {value.get_node().get_type_name() for value in bias.input_values()}


def nothing(folder: Path) -> Path:
    nodes = [node("Relu", ["x"], ["r"]), node("MatMul", ["r", "x"], ["y"])]
    return save(folder / "nothing.onnx", model(nodes, {"x": (f32, ["n", "n"])}, {"y": (f32, ["n", "n"])}))


@pytest.mark.parametrize("quantize", [quantize_for_onnxruntime, quantize_for_tensorrt])
def test_model_without_learned_layers_has_nothing_to_quantize(tmp_path: Path, quantize: Convert) -> None:
    data = [{"x": weights(3, 3)}]
    with pytest.raises(ConversionFailed, match=r"nothing to quantize: .* Conv, Gemm or MatMul .* MatMul 1, Relu 1"):
        quantize(nothing(tmp_path), tmp_path / "int8.onnx", data)
    with pytest.raises(ConversionFailed, match=r"nothing to quantize: .*only MatMul, Parameter, Relu, Result"):
        for_openvino.convert(nothing(tmp_path), tmp_path, "int8", data)


@pytest.mark.parametrize(
    "convert",
    [
        lambda path, data: to_fp16(path, path.parent / "made.onnx", data, Agreement("a", data, [{}], LIMITS["fp16"])),
        lambda path, data: quantize_for_onnxruntime(path, path.parent / "made.onnx", data),
        lambda path, data: quantize_for_tensorrt(path, path.parent / "made.onnx", data),
        lambda path, data: for_openvino.convert(path, path.parent, "int8", data),
    ],
)
def test_that_nothing_helps_is_told_apart_from_a_converter_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convert: Callable[[Path, Calibration], str]
) -> None:
    """The model itself is asked for the reason then."""

    def nothing_helps(*_: object) -> tuple[str, ...]:
        raise fallback.NothingHelps("the answers are too far off")

    path, data = residual(tmp_path)
    monkeypatch.setattr(fallback, "fewest_left", nothing_helps)
    with pytest.raises(fallback.NothingHelps, match="^the answers are too far off$"):
        convert(path, data)


def test_data_that_does_not_fit_is_told_in_the_words_of_the_runtime(tmp_path: Path) -> None:
    path, _ = residual(tmp_path)
    with pytest.raises(ConversionFailed, match=r"ONNX Runtime cannot quantize the model: .*[Ii]nvalid"):
        quantize_for_onnxruntime(path, tmp_path / "int8.onnx", [{"x": weights(4, 2, 12, 12)}])


def test_setting_is_chosen_by_requests_that_it_has_not_seen() -> None:
    calibration = [{"x": np.full(3, value, f32)} for value in range(1, 6)]

    def quantized(setting: str, seen: Calibration, unseen: Calibration) -> list[list[np.ndarray]]:
        known = [float(request["x"][0]) for request in seen]
        learned = {"nearest": lambda x: min(known, key=lambda k: abs(k - x)), "off": lambda x: 1.1 * x}[setting]
        return [[np.array([learned(value) for value in request["x"]], f32)] for request in unseen]

    def broken(setting: str, seen: Calibration, unseen: Calibration) -> list[list[np.ndarray]]:
        return quantized("off", seen, unseen) if setting == "off" else [[np.full(3, np.nan)] for _ in unseen]

    def exact(requests: Calibration) -> list[list[np.ndarray]]:
        return [[request["x"]] for request in requests]

    # "nearest" answers all that it has seen without an error.
    assert best_of(("nearest", "off"), calibration, quantized, exact) == "off"
    assert best_of(("nearest", "off"), calibration, broken, exact) == "off"
    assert best_of(("nearest", "off"), calibration[:1], quantized, exact) == "nearest"


def shared(folder: Path) -> tuple[Path, list[Inputs]]:
    """Two layers with the same weights."""
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["r"]), node("MatMul", ["r", "w"], ["y"])]
    proto = model(nodes, {"x": (f32, ["n", 8])}, {"y": (f32, ["n", 8])}, {"w": weights(8, 8)})
    return save(folder / "shared.onnx", proto), requests(x=(8,))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="products of int8 saturate on x86-64 only")
@pytest.mark.parametrize("made_for", ["exact", "saturating"])
def test_layers_that_share_weights_load_where_products_would_saturate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_for: str
) -> None:
    path, calibration = shared(tmp_path)
    monkeypatch.setattr(quantizer, "int8_products", lambda: made_for)
    quantize_for_onnxruntime(path, tmp_path / "u8.onnx", calibration)
    types = [tensor.data_type for tensor in onnx.load(tmp_path / "u8.onnx").graph.initializer if len(tensor.dims) == 2]
    assert types == [onnx.TensorProto.INT8] * (2 if made_for == "saturating" else 1)
    specs = [TensorSpec(name, np.dtype(f32), (None, 8)) for name in "xy"]
    options = EngineOptions(
        files=[tmp_path / "u8.onnx"],
        artifact=Artifact(name="onnx-int8", format="onnx", precision="int8", status="ready"),
        signature=Signature(tuple(specs[:1]), tuple(specs[1:])),
        max_rows=4,
        threads=1,
    )
    monkeypatch.setattr(for_onnxruntime, "int8_products", lambda: "saturating")
    engine = for_onnxruntime.OnnxRuntimeCpu(options)
    # Precisely in either case; what was made for a CPU with VNNI may be slow.
    assert engine.precision == ("int8" if made_for == "saturating" else "fp32")
    assert 0 < distance(engine.infer(calibration[0])["y"], ask(path, calibration[0])[0]) < 0.05
