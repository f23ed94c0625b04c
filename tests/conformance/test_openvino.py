"""What is OpenVINO's own: it chooses precisions by itself, so what it says is held against the numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.random import Generator
from onnx import TensorProto, helper, numpy_helper
from tests.conformance.conftest import Publish, why_not_here
from tests.conformance.models import BIAS, BY_NAME, WEIGHT, Case

from enginehouse.contract.errors import EngineUnavailable, InferenceFailed
from enginehouse.contract.manifest import Precision
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse.engines import EngineOptions, load_engine

pytestmark = pytest.mark.skipif(bool(why_not_here("openvino-cpu")), reason=str(why_not_here("openvino-cpu")))
AFFINE = BY_NAME["affine"]

#: Largest and smallest relative L2 error that goes with a precision on `affine`.
ERRORS = {"fp32": (0, 1e-6), "fp16": (1e-5, 2e-3), "bf16": (3e-4, 2e-2), "int8": (1e-3, 5e-2)}


@pytest.mark.parametrize("asked", ["fp32", "fp16", "bf16"])
def test_the_reported_precision_is_the_one_in_the_numbers(publish: Publish, asked: Precision, rng: Generator) -> None:
    bundle = publish(AFFINE, "openvino", asked)
    engine = load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    inputs = AFFINE.sample(rng, 8)
    exact = inputs["x"].astype(np.float64) @ WEIGHT + BIAS
    low, high = ERRORS[engine.precision]
    assert low <= np.linalg.norm(engine.infer(inputs)["y"] - exact) / np.linalg.norm(exact) < high
    # Never fewer bits than were asked for: bf16 in the place of fp16 would be.
    assert engine.precision in {"fp32": ("fp32",), "fp16": ("fp16", "fp32"), "bf16": ("bf16", "fp32")}[asked]


@pytest.mark.parametrize(("quantized", "reported"), [(True, "int8"), (False, "fp32")])
def test_int8_is_reported_only_where_int8_operators_run(publish: Publish, quantized: bool, reported: str) -> None:
    case = _quantized_affine() if quantized else AFFINE
    bundle = publish(case, "openvino", "int8")
    assert load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1).precision == reported


def _quantized_affine() -> Case:
    """`affine` without its bias, with int8 weights and uint8 activations around it."""
    scale = np.float32(np.abs(WEIGHT).max() / 127)
    constants = {
        "w": np.round(WEIGHT / scale).astype(np.int8),
        "w_scale": scale,
        "w_zero": np.int8(0),
        "x_scale": np.float32(0.03),
        "x_zero": np.uint8(128),
    }
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "x_scale", "x_zero"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["dw"]),
            helper.make_node("MatMul", ["d", "dw"], ["y"]),
        ],
        "quantized_affine",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return Case("quantized_affine", AFFINE.signature, graph, AFFINE.sample, lambda inputs: {"y": inputs["x"] @ WEIGHT})


def test_integers_that_openvino_would_cut_to_32_bits_are_not_answered(publish: Publish) -> None:
    bundle = publish(BY_NAME["whole_numbers"], "openvino")
    engine = load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    for wide in (2**31, -(2**31) - 1):
        with pytest.raises(InferenceFailed, match="'x' has values beyond 32 bits"):
            engine.infer({"x": np.array([[1, 2, 3, wide]])})


def test_string_tensors_are_refused(publish: Publish) -> None:
    bundle = publish(AFFINE, "openvino")
    files = bundle.verified_files(bundle.manifest.artifacts[0])
    from enginehouse.engines.openvino import OpenVinoCpu

    with pytest.raises(EngineUnavailable, match="onnxruntime-cpu for BYTES"):
        OpenVinoCpu(EngineOptions(files, bundle.manifest.artifacts[0], BY_NAME["text"].signature, 8, 1))


@pytest.mark.parametrize(("value", "rows"), [(0.0, 3), (1.0, 911), (0xA5, 3), (0xA5, 912), (0x5A, 1)])
def test_an_answer_that_looks_as_if_it_had_not_been_computed_is_an_answer(
    publish: Publish, value: float, rows: int
) -> None:
    """OpenVINO leaves outputs as they were when it gives up, so they are marked before, by shape or by their bytes."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"]),
        helper.make_node("Transpose", ["found"], ["places"]),
        helper.make_node("Reshape", ["x", "all"], ["flat"]),
        helper.make_node("NonZero", ["flat"], ["ones"]),
        helper.make_node("Reshape", ["ones", "all"], ["spots"]),
        helper.make_node("Cast", ["flat"], ["whole"], to=TensorProto.UINT8),
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["light"], to=TensorProto.UINT8),
    ]
    x = np.full((rows, 1), value, np.float32)
    expected = {
        "places": np.argwhere(x),
        "spots": np.flatnonzero(x),
        "whole": x.reshape(-1).astype(np.uint8),
        "light": x.max(initial=0).astype(np.uint8),
    }
    shapes: dict[str, tuple[int | None, ...]] = {"places": (None, 2), "spots": (None,), "whole": (None,), "light": ()}
    outputs = tuple(TensorSpec(name, expected[name].dtype, shape) for name, shape in shapes.items())
    graph = helper.make_graph(
        nodes,
        "marks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [
            helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(spec.dtype), spec.shape)
            for spec in outputs
        ],
        [numpy_helper.from_array(np.array([-1]), "all")],
    )
    signature = Signature((TensorSpec("x", np.dtype(np.float32), (None, 1)),), outputs, batched=False)
    case = Case(
        f"marks_{value}_{rows}", signature, graph, lambda _, rows: {"x": np.zeros((rows, 1), np.float32)}, lambda _: {}
    )
    bundle = publish(case, "openvino", "fp32")
    engine = load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    answer = engine.infer({"x": x})
    for name, array in expected.items():
        np.testing.assert_array_equal(answer[name], array)


@pytest.mark.parametrize("is_computed", [False, True])
def test_a_loop_may_look_up_by_its_turn(publish: Publish, is_computed: bool) -> None:
    places = [helper.make_node("Cast", ["sum"], ["place"], to=TensorProto.INT64)]
    turns = [helper.make_node("Identity", ["turn"], ["place"])]
    body = helper.make_graph(
        [
            *(places if is_computed else turns),
            helper.make_node("Gather", ["x", "place"], ["row"]),
            helper.make_node("Add", ["sum", "row"], ["more"]),
            helper.make_node("Identity", ["going"], ["go"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, []),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Size", ["x"], ["size"]),
            helper.make_node("Loop", ["size", "true", "zero"], ["y"], body=body),
        ],
        "loop",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.array(True), "true"), numpy_helper.from_array(np.float32(0), "zero")],
    )
    f32 = np.dtype(np.float32)
    signature = Signature((TensorSpec("x", f32, (None,)),), (TensorSpec("y", f32, ()),), batched=False)
    case = Case(
        f"loop_{is_computed}", signature, graph, lambda _, rows: {"x": np.zeros(rows, np.float32)}, lambda _: {}
    )
    bundle = publish(case, "openvino", "fp32")
    if is_computed:
        with pytest.raises(EngineUnavailable, match="Loop 'y' looks up computed places"):
            load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
        return
    engine = load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    assert engine.infer({"x": np.array([1, 2, 4], np.float32)})["y"] == 7


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("k", [1, 7, 300])
def test_the_first_of_equal_values_comes_first(publish: Publish, rng: Generator, k: int, largest: int) -> None:
    f32, i64 = np.dtype(np.float32), np.dtype(np.int64)
    graph = helper.make_graph(
        [helper.make_node("TopK", ["x", "k"], ["values", "places"], axis=1, largest=largest)],
        "ties",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 300])],
        [
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["n", k]),
            helper.make_tensor_value_info("places", TensorProto.INT64, ["n", k]),
        ],
        [numpy_helper.from_array(np.array([k]), "k")],
    )
    outputs = (TensorSpec("values", f32, (None, k)), TensorSpec("places", i64, (None, k)))
    signature = Signature((TensorSpec("x", f32, (None, 300)),), outputs)
    case = Case(
        f"ties_{k}_{largest}", signature, graph, lambda _, rows: {"x": np.zeros((rows, 300), f32)}, lambda _: {}
    )
    bundle = publish(case, "openvino", "fp32")
    engine = load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    x = rng.integers(0, 5, (4, 300)).astype(np.float32)
    order = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(engine.infer({"x": x})["places"], order)


@pytest.mark.parametrize(
    ("first", "is_safe"),
    [
        (helper.make_node("Cast", ["x"], ["z"], to=TensorProto.FLOAT16), True),
        (helper.make_node("Cast", ["x"], ["z"], to=TensorProto.INT64), False),
        (helper.make_node("Neg", ["x"], ["z"]), False),
    ],
)
def test_fp64_is_not_computed_in_fp32(publish: Publish, first: onnx.NodeProto, is_safe: bool) -> None:
    nodes = [first, helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT)]
    graph = helper.make_graph(
        nodes,
        "double",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    f32, f64 = np.dtype(np.float32), np.dtype(np.float64)
    signature = Signature((TensorSpec("x", f64, (None, 2)),), (TensorSpec("y", f32, (None, 2)),))
    case = Case(
        f"double_{first.op_type}_{is_safe}",
        signature,
        graph,
        lambda _, rows: {"x": np.zeros((rows, 2), f64)},
        lambda _: {},
    )
    bundle = publish(case, "openvino", "fp32")
    if is_safe:
        engine = load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
        assert engine.infer({"x": np.array([[1.5, 2.5]])})["y"].tolist() == [[1.5, 2.5]]
        return
    with pytest.raises(EngineUnavailable, match="takes FP64 values of a request"):
        load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
