"""int8 keeps the small numbers beside the large ones: what loses them stays in fp32, as little as that takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import ConversionFailed
from enginehouse.contract.parity import LIMITS
from enginehouse.engines import load_engine
from enginehouse_build.convert import fallback
from enginehouse_build.convert import openvino as for_openvino
from enginehouse_build.convert.agreement import Agreement
from enginehouse_build.convert.fallback import NothingHelps, fewest_left
from enginehouse_build.convert.macs import macs
from enginehouse_build.convert.quantize import quantize_for_onnxruntime, quantize_for_tensorrt

from .graphs import Inputs, f32, i64, model, node, save, weights
from .mixed_scales import MIXED, Mixed, one_head_for_both, rare_channel
from .small_nets import Convert, ask, ask_openvino, attention, recurrent, residual

LIMIT = LIMITS["int8"]
#: Each way to lose small numbers beside large ones; a few of them where minutes count.
WAYS = [*MIXED[:3], *(pytest.param(make, marks=pytest.mark.slow) for make in MIXED[3:])]
#: Detections kept of those of the reference; the ones lost lie at the threshold.
KEPT = 0.96


def check(mixed: Mixed, run: Callable[[Inputs], np.ndarray]) -> None:
    def reference(request: Inputs) -> np.ndarray:
        return ask(mixed.path, request)[0]

    kept, of = mixed.kept(run, reference)
    assert of > 100
    assert kept >= KEPT * of
    judge = Agreement.of("onnx-int8", mixed.fresh, lambda request: {"y": reference(request)}, LIMIT)
    assert judge.found(lambda request: {"y": run(request)}).fault == ""


@pytest.mark.parametrize("make", WAYS)
@pytest.mark.parametrize("quantize", [quantize_for_onnxruntime, quantize_for_tensorrt])
def test_onnx_in_int8_detects_what_fp32_detects(
    tmp_path: Path, quantize: Convert, make: Callable[[Path], Mixed]
) -> None:
    mixed = make(tmp_path)
    quantize(mixed.path, tmp_path / "int8.onnx", mixed.calibration)
    check(mixed, lambda request: ask(tmp_path / "int8.onnx", request)[0])


@pytest.mark.parametrize("make", WAYS)
def test_openvino_in_int8_detects_what_fp32_detects(tmp_path: Path, make: Callable[[Path], Mixed]) -> None:
    mixed = make(tmp_path)
    for_openvino.convert(mixed.path, tmp_path, "int8", mixed.calibration)
    check(mixed, lambda request: ask_openvino(tmp_path, "int8", request))


@pytest.mark.parametrize("scale", [1, 10, 30, 100])
def test_scores_beside_boxes_of_any_size_are_kept_though_the_gate_would_let_them_go(
    tmp_path: Path, scale: float
) -> None:
    mixed = one_head_for_both(tmp_path, scale)
    told = quantize_for_onnxruntime(mixed.path, tmp_path / "int8.onnx", mixed.calibration)
    check(mixed, lambda request: ask(tmp_path / "int8.onnx", request)[0])
    assert ("'head'" in told) == (scale > 1)


def test_what_stays_in_fp32_is_the_head_and_is_named(tmp_path: Path) -> None:
    mixed = one_head_for_both(tmp_path)
    told = quantize_for_onnxruntime(mixed.path, tmp_path / "int8.onnx", mixed.calibration)
    assert told == "kept in fp32, because int8 loses too much there: 1 node, 'head'"
    graph = onnx.load(tmp_path / "int8.onnx").graph
    rounded = {found.output[0] for found in graph.node if found.op_type == "DequantizeLinear"}
    is_rounded = {found.name: rounded.issuperset(found.input[:2]) for found in graph.node if found.op_type == "Conv"}
    assert is_rounded == {"stem": True, "body": True, "head": False}
    mixed = rare_channel(tmp_path)
    told = for_openvino.convert(mixed.path, tmp_path, "int8", mixed.calibration)
    assert told == "kept in fp32, because int8 loses too much there: 1 node, 'head'"
    ops = openvino.Core().read_model(tmp_path / "model.xml").get_ops()
    made_by = {
        op.get_friendly_name(): op.input_value(0).get_node() for op in ops if op.get_type_name() == "Convolution"
    }
    assert made_by["head/WithoutBiases"].get_type_name() == "Relu"
    assert all(made_by[name].get_type_name() == "FakeQuantize" for name in ("stem", "body", "middle"))


def test_a_build_keeps_what_int8_would_lose_and_says_so(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    mixed = rare_channel(tmp_path)
    np.savez(tmp_path / "x.npz", x=np.concatenate([request["x"] for request in mixed.calibration]))
    options = {"precisions": ("fp32", "int8"), "samples": tmp_path / "x.npz"}
    bundle = build_onnx(mixed.path, formats=("onnx", "openvino"), **options)
    for name, kind in (("onnx-int8", "onnxruntime-cpu"), ("openvino-int8", "openvino-cpu")):
        artifact = bundle.manifest.artifact(name)
        assert (artifact.status, artifact.reason) == ("ready", None)
        assert any("kept in fp32, because int8 loses too much there" in said for said in artifact.remarks)
        assert "kept in fp32, because int8 loses too much there" in (bundle.path / "report.html").read_text()
        engine = load_engine(kind, bundle, artifact, threads=1)  # type: ignore[arg-type]
        check(mixed, lambda request, engine=engine: engine.infer(request)["y"])  # type: ignore[misc]
        engine.close()


@pytest.mark.parametrize("make", [residual, attention])
@pytest.mark.parametrize("quantize", [quantize_for_onnxruntime, quantize_for_tensorrt])
def test_what_passes_is_quantized_as_ever(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quantize: Convert,
    make: Callable[[Path], tuple[Path, list[Inputs]]],
) -> None:
    path, calibration = make(tmp_path)
    quantize(path, tmp_path / "int8.onnx", calibration)
    monkeypatch.setattr(fallback, "fewest_left", lambda attempt, *_: (attempt(()) and ()) or ())
    quantize(path, tmp_path / "before.onnx", calibration)
    assert (tmp_path / "int8.onnx").read_bytes() == (tmp_path / "before.onnx").read_bytes()


@pytest.mark.parametrize("quantize", [quantize_for_onnxruntime, quantize_for_tensorrt])
def test_mostly_recurrent_model_is_not_called_int8(tmp_path: Path, quantize: Convert) -> None:
    path, calibration = recurrent(tmp_path, width=16)
    fault = (
        r"not worth it: \d+\.\d% of its multiplications would be in int8, and with less than 50% it is not called so"
    )
    with pytest.raises(ConversionFailed, match=fault):
        quantize(path, tmp_path / "int8.onnx", calibration)
    with pytest.raises(ConversionFailed, match=fault):
        for_openvino.convert(path, tmp_path, "int8", calibration)


def partly_double() -> onnx.ModelProto:
    """Most of it in fp64, which quantizers leave alone, and a small layer in fp32."""
    nodes = [
        node("Cast", ["x"], ["d"], to=onnx.TensorProto.DOUBLE),
        node("MatMul", ["d", "w1"], ["h"]),
        node("Relu", ["h"], ["a"]),
        node("Cast", ["a"], ["f"], to=onnx.TensorProto.FLOAT),
        node("MatMul", ["f", "w2"], ["y"]),
    ]
    parts = {"w1": weights(16, 64, dtype=np.float64), "w2": weights(64, 4)}
    return model(nodes, {"x": (f32, ["n", 16])}, {"y": (f32, ["n", 4])}, parts)


def attention_without_weights() -> onnx.ModelProto:
    """Products of what comes in, and one small layer."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["x", "t"], ["s"]),
        node("Softmax", ["s"], ["p"]),
        node("MatMul", ["p", "x"], ["a"]),
        node("MatMul", ["a", "w"], ["y"]),
    ]
    return model(nodes, {"x": (f32, ["n", 40, 16])}, {"y": (f32, ["n", 40, 2])}, {"w": weights(16, 2)})


def only_recurrent() -> onnx.ModelProto:
    """An LSTM and nothing else that multiplies."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("LSTM", ["t", "w", "r"], ["all", "last"], hidden_size=6),
        node("Squeeze", ["last", "axes"], ["y"]),
    ]
    parts = {"w": weights(1, 24, 16), "r": weights(1, 24, 6), "axes": np.array([0], i64)}
    return model(nodes, {"x": (f32, ["n", 9, 16])}, {"y": (f32, ["n", 6])}, parts)


def only_elementwise() -> onnx.ModelProto:
    nodes = [node("Mul", ["x", "w"], ["m"]), node("Sigmoid", ["m"], ["y"])]
    return model(nodes, {"x": (f32, ["n", 16])}, {"y": (f32, ["n", 16])}, {"w": weights(16)})


def products_of_what_comes_in() -> onnx.ModelProto:
    nodes = [
        node("Softplus", ["x"], ["s"]),
        node("MatMul", ["s", "x"], ["y"]),
    ]
    return model(nodes, {"x": (f32, ["n", 16, 16])}, {"y": (f32, ["n", 16, 16])})


@pytest.mark.parametrize("make", [only_recurrent, only_elementwise, products_of_what_comes_in])
@pytest.mark.parametrize("kind", ["onnxruntime", "tensorrt", "openvino"])
def test_model_without_layers_to_quantize_is_not_called_int8(
    tmp_path: Path, kind: str, make: Callable[[], onnx.ModelProto]
) -> None:
    path, data = sampled(tmp_path, make())
    with pytest.raises(ConversionFailed, match="nothing to quantize"):
        converted(kind, path, tmp_path, data)


def sampled(folder: Path, proto: onnx.ModelProto) -> tuple[Path, list[Inputs]]:
    shape = [4, *(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:])]
    return save(folder / "little.onnx", proto), [{"x": weights(*shape, seed=seed)} for seed in range(4)]


def converted(kind: str, path: Path, folder: Path, data: list[Inputs]) -> None:
    if kind == "openvino":
        for_openvino.convert(path, folder, "int8", data)
    else:
        quantize = quantize_for_onnxruntime if kind == "onnxruntime" else quantize_for_tensorrt
        quantize(path, folder / "int8.onnx", data)


# OpenVINO quantizes products of what comes in as well.
@pytest.mark.parametrize("make", [partly_double, attention_without_weights])
@pytest.mark.parametrize("kind", ["onnxruntime", "tensorrt"])
def test_model_with_little_to_quantize_is_not_called_int8(
    tmp_path: Path, kind: str, make: Callable[[], onnx.ModelProto]
) -> None:
    path, data = sampled(tmp_path, make())
    with pytest.raises(ConversionFailed, match=r"not worth it: .* less than 50% it is not called so"):
        converted(kind, path, tmp_path, data)


def test_conversions_are_tried_on_some_rows_of_each_size() -> None:
    requests = [{"x": weights(rows, 3, seed=rows)} for rows in (1, 2, 40, 40, 40, 2)]
    judge = Agreement.of("onnx-int8", requests, lambda request: {"y": request["x"] * 2}, LIMIT).cut(64)
    assert [len(request["x"]) for request in judge.requests] == [1, 2, 40, 24, 2]
    assert [len(answer["y"]) for answer in judge.answers] == [1, 2, 40, 24, 2]
    assert judge.found(lambda request: {"y": request["x"] * 2}).loss == 0
    assert judge.found(lambda request: {"y": request["x"]}).fault
    whole = Agreement("onnx-int8", requests[2:3], [{}], LIMIT, batched=False)
    assert whole.cut(64).requests == requests[2:3]


def test_multiplications_are_those_of_the_shapes(tmp_path: Path) -> None:
    path, asked = recurrent(tmp_path)
    layer = 4 * 9 * 5 * 64
    assert macs(path, asked[0]) == {"first": layer, "second": layer, "lstm": 4 * 2376, "third": 4 * 18}
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="conv", group=2, strides=[2, 2]),
        node("ConvTranspose", ["c", "v"], ["d"], name="back", strides=[2, 2]),
        node("Flatten", ["d"], ["f"]),
        node("Gemm", ["f", "u"], ["y"], name="gemm", transB=1),
    ]
    parts = {"w": weights(6, 2, 2, 2), "v": weights(6, 3, 2, 2), "u": weights(5, 192)}
    proto = model(nodes, {"x": (f32, ["n", 4, 8, 8])}, {"y": (f32, ["n", 5])}, parts)
    counted = macs(save(tmp_path / "conv.onnx", proto), {"x": weights(1, 4, 8, 8)})
    assert counted == {"conv": 6 * 16 * 2 * 4, "back": 6 * 16 * 3 * 4, "gemm": 192 * 5}


@pytest.mark.parametrize("bad", [{"a"}, {"d", "b"}, {"a", "b", "c"}, {"e"}, set()])
def test_as_few_nodes_as_it_takes_stay(bad: set[str]) -> None:
    names, attempts = list("abcdefgh"), []

    def attempt(left: object) -> str:
        attempts.append(set(left))  # type: ignore[call-overload]
        return f"loses {min(bad - attempts[-1])}" if bad - attempts[-1] else ""

    left = fewest_left(attempt, lambda: names, lambda alone: float(bool(bad.intersection(alone))))
    assert set(left) == attempts[-1] == bad


def test_what_loses_by_itself_and_does_not_matter_is_converted() -> None:
    losses = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}
    left = fewest_left(
        lambda left: "" if "c" in left else "loses c", lambda: list(losses), lambda alone: losses[alone[0]]
    )
    assert left == ("c",)


def test_no_more_stays_than_the_budget_allows() -> None:
    cost = {"a": 6, "b": 1, "c": 3}
    with pytest.raises(
        NothingHelps, match=r"^the answers are too far off, also with 1 node left in fp32, as many as may be: loses a"
    ):
        fewest_left(lambda left: "" if "a" in left else "loses a", lambda: list("abc"), lambda _: 1.0, cost, lambda: 2)
    assert fewest_left(
        lambda left: "" if "c" in left else "loses c", lambda: list("abc"), lambda _: 1.0, cost, lambda: 4
    )


def test_nodes_that_are_too_many_are_tried_with_their_neighbours() -> None:
    names = [str(number) for number in range(1000)]
    tried: list[object] = []

    def loss(alone: object) -> float:
        tried.append(alone)
        return float("700" in alone)  # type: ignore[operator]

    left = fewest_left(lambda left: "" if "700" in left else "loses", lambda: names, loss)
    assert "700" in left
    assert len(left) <= 16
    assert len(tried) <= 64
