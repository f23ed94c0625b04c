"""Adopting ONNX files: what comes out answers as the file did, or the file is refused with the node and the reason."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.parity import compare
from enginehouse.contract.tensors import TensorSpec
from enginehouse_build.reference.adopt import Adopted, adopt
from enginehouse_build.reference.proof import prove_dynamic

from .awkward import SERVED
from .graphs import Awkward, Inputs, f32, floats, model, node, save, weights
from .refused import REFUSED, points

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
ROWS = (1, 3, 8)


class Runtime:
    """A file in ONNX Runtime, as it is."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.session.run(self.names, dict(inputs)), strict=True))

    def row_by_row(self, inputs: Inputs) -> dict[str, np.ndarray]:
        rows = len(next(iter(inputs.values())))
        answers = [self({name: array[at : at + 1] for name, array in inputs.items()}) for at in range(rows)]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in self.names}


def adopted_from(case: Awkward, folder: Path) -> Adopted:
    return adopt(case.path, folder / "adopted.onnx", batched=case.recipe.get("batched", True))


def fits(array: np.ndarray, spec: TensorSpec) -> bool:
    shape = zip(array.shape, spec.shape, strict=True)
    return array.dtype == spec.dtype and all(want in (None, have) for have, want in shape)


def assert_same(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        if array.dtype.kind in "iu":
            np.testing.assert_array_equal(got[name], array)
        elif array.size:
            assert compare({name: got[name]}, {name: array}).relative_l2 < 1e-5


@pytest.mark.parametrize("kind", SERVED)
def test_adopted_file_answers_as_the_original_does(kind: str, tmp_path: Path) -> None:
    case = SERVED[kind](tmp_path)
    adopted = adopted_from(case, tmp_path)
    assert adopted.signature.batched == case.batched
    original, taken = Runtime(case.path), Runtime(tmp_path / "adopted.onnx")
    for seed, rows in enumerate(ROWS if case.batched else (1,)):
        inputs = case.fresh(rows, seed)
        assert adopted.signature.check(inputs) == rows
        got = taken(inputs)
        assert_same(got, original.row_by_row(inputs) if case.batched else original(inputs))
        assert all(fits(got[spec.name], spec) for spec in adopted.signature.outputs)


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind != "points"])
def test_file_that_cannot_be_served_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    case = REFUSED[kind](tmp_path)
    with pytest.raises(ExportFailed, match=case.refusal):
        adopted_from(case, tmp_path)


def test_rows_that_depend_on_each_other_fail_the_proof(tmp_path: Path) -> None:
    case = points(tmp_path)
    adopted_from(case, tmp_path)
    run = Runtime(tmp_path / "adopted.onnx")
    with pytest.raises(ExportFailed, match=case.refusal or ""):
        prove_dynamic(run, run, case.fresh(16, 0))


# The other six take 25 seconds together.
@pytest.mark.parametrize("name", ["inception_v1", "shufflenet", "squeezenet"])
def test_model_of_the_onnx_package_takes_a_batch(name: str, tmp_path: Path) -> None:
    source = LIGHT / f"light_{name}.onnx"
    adopted = adopt(source, tmp_path / "adopted.onnx", batched=True)
    assert adopted.signature.batched
    (spec,) = adopted.signature.inputs
    assert spec.shape == (None, 3, 224, 224)
    inputs = floats(**{spec.name: [-1, 3, 224, 224]})(3, 5)
    assert_same(Runtime(tmp_path / "adopted.onnx")(inputs), Runtime(source).row_by_row(inputs))


def test_what_was_changed_is_remarked(tmp_path: Path) -> None:
    def remarks(kind: str) -> str:
        return "; ".join(adopted_from(SERVED[kind](tmp_path), tmp_path).remarks)

    assert remarks("several") == ""
    assert remarks("external") == "1 external weights taken into the file"
    assert "3 weights listed as inputs made constants; opset 11 converted to 17" in remarks("old")
    assert "1 functions written out" in remarks("function")
    assert "batch of 1 made dynamic: agrees with the original row by row on 1, 2, 5 rows" in remarks("one_image")
    assert "cannot be made dynamic: with 2 rows: output 'y' has shape [1, 2]" in remarks("one_scene")


def test_free_dimensions_keep_their_names(tmp_path: Path) -> None:
    assert adopted_from(SERVED["tokens"](tmp_path), tmp_path).dim_names["ids"] == ("batch", "sequence")
    assert adopted_from(SERVED["any_image"](tmp_path), tmp_path).dim_names["image"] == (
        "batch",
        None,
        "height",
        "width",
    )
    assert adopted_from(SERVED["one_text"](tmp_path), tmp_path).dim_names["mask"] == ("batch", "sequence")


def test_known_output_sizes_stay_known_when_the_batch_is_freed(tmp_path: Path) -> None:
    adopted = adopted_from(SERVED["one_text"](tmp_path), tmp_path)
    assert [spec.shape for spec in adopted.signature.outputs] == [(None, 4), (None, None, 6)]


def test_nothing_is_rewritten_when_the_user_says_there_is_no_batch(tmp_path: Path) -> None:
    case = SERVED["one_image"](tmp_path)
    adopted = adopt(case.path, tmp_path / "adopted.onnx", batched=False)
    assert (adopted.signature.batched, adopted.remarks) == (False, ())
    assert [str(spec) for spec in adopted.signature.inputs] == ["x: FP32[1,3,8,8]"]
    wiring, original = (
        [(node.op_type, list(node.input), list(node.output)) for node in onnx.load(path).graph.node]
        for path in (tmp_path / "adopted.onnx", case.path)
    )
    assert wiring == original


def test_mixture_of_rows_that_the_outputs_hide_is_found_inside(tmp_path: Path) -> None:
    # Whatever the made-up inputs are, the answer is 1; with inputs near -50 it would depend on the neighbours.
    nodes = [
        node("ReduceMean", ["x"], ["mean"], keepdims=1),
        node("Add", ["x", "mean"], ["mixed"]),
        node("Add", ["mixed", "offset"], ["high"]),
        node("Sigmoid", ["high"], ["y"]),
    ]
    proto = model(nodes, {"x": (f32, [1, 4])}, {"y": (f32, [1, 4])}, {"offset": np.array(100, f32)})
    adopted = adopt(save(tmp_path / "hiding.onnx", proto), tmp_path / "adopted.onnx", batched=True)
    assert not adopted.signature.batched
    assert "inside, with 2 rows: output 'mixed' differs" in adopted.remarks[0]


def test_fixed_batch_beside_a_scalar_is_served_one_request_at_a_time(tmp_path: Path) -> None:
    inputs = {"x": (f32, [1, 4]), "scale": (f32, [])}
    proto = model([node("Mul", ["x", "scale"], ["y"])], inputs, {"y": (f32, [1, 4])})
    adopted = adopt(save(tmp_path / "scaled.onnx", proto), tmp_path / "adopted.onnx", batched=True)
    assert not adopted.signature.batched
    assert "input 'scale' has the shape []: its dim 0 is no batch of 1" in adopted.remarks[0]


def test_old_file_is_kept_as_it_is_when_its_conversion_answers_differently(tmp_path: Path) -> None:
    # Resize samples other points from opset 11 on, and ONNX's converter does not say so in the node.
    nodes = [node("Resize", ["x", "scales"], ["y"], mode="linear")]
    shapes = {"x": (f32, ["n", 1, 4, 4])}, {"y": (f32, ["n", 1, 8, 8])}
    proto = model(nodes, *shapes, {"scales": np.array([1, 1, 2, 2], f32)}, opset=10, ir_version=5)
    path = save(tmp_path / "resize.onnx", proto)
    adopted = adopt(path, tmp_path / "adopted.onnx", batched=True)
    assert "not opset 10 converted to 17, because that failed: made-up inputs: output 'y' diff" in adopted.remarks[0]
    inputs = floats(x=[-1, 1, 4, 4])(3, 0)
    assert_same(Runtime(tmp_path / "adopted.onnx")(inputs), Runtime(path)(inputs))


def test_rank_that_inference_cannot_tell_is_read_off_an_answer(tmp_path: Path) -> None:
    shapes = {"x": (f32, ["n", "one", 4])}, {"y": (f32, None)}
    path = save(tmp_path / "squeeze.onnx", model([node("Squeeze", ["x"], ["y"])], *shapes))
    adopted = adopt(path, tmp_path / "adopted.onnx", batched=False)
    assert [str(spec) for spec in adopted.signature.outputs] == ["y: FP32[*,*,*]"]
    inputs = {"x": (f32, ["n", 4]), "shape": (np.int64, ["k"])}
    proto = model([node("Reshape", ["x", "shape"], ["y"])], inputs, {"y": (f32, None)})
    with pytest.raises(ExportFailed, match="does not run on made-up inputs"):
        adopt(save(tmp_path / "never.onnx", proto), tmp_path / "adopted.onnx", batched=False)


def test_weights_past_two_gibibytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": (f32, ["n", 4])}, {"y": (f32, ["n", 2**28])})
    data = [onnx.StringStringEntryProto(key="location", value="huge.bin")]
    huge = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 2**28], external_data=data)
    huge.data_location = TensorProto.EXTERNAL
    proto.graph.initializer.append(huge)
    with (tmp_path / "huge.bin").open("wb") as file:
        file.truncate(2**32)
    started = time.monotonic()
    with pytest.raises(ExportFailed, match=r"has 4.0 GiB of weights; one ONNX file holds 2 GiB at most"):
        adopt(save(tmp_path / "huge.onnx", proto), tmp_path / "adopted.onnx", batched=True)
    assert time.monotonic() - started < 5


def test_fault_inside_a_branch_is_named(tmp_path: Path) -> None:
    output = [helper.make_tensor_value_info("noise", TensorProto.FLOAT, [1])]
    noisy = helper.make_graph([node("RandomUniform", [], ["noise"], "dice", shape=[1])], "noisy", [], output)
    calm = helper.make_graph([node("Identity", ["zero"], ["noise"])], "calm", [], output)
    nodes = [
        node("If", ["on"], ["offset"], then_branch=noisy, else_branch=calm),
        node("Add", ["x", "offset"], ["y"]),
    ]
    constants = {"on": np.array(True), "zero": np.zeros(1, f32)}
    proto = model(nodes, {"x": (f32, ["n", 4])}, {"y": (f32, ["n", 4])}, constants)
    with pytest.raises(ExportFailed, match=r"node 'dice' \(RandomUniform\) draws random numbers"):
        adopt(save(tmp_path / "noisy.onnx", proto), tmp_path / "adopted.onnx", batched=True)


def test_dropout_for_inference_is_fine(tmp_path: Path) -> None:
    nodes = [node("Dropout", ["x", "", "training"], ["same"]), node("MatMul", ["same", "w"], ["y"])]
    constants = {"training": np.array(False), "w": weights(4, 2)}
    proto = model(nodes, {"x": (f32, ["n", 4])}, {"y": (f32, ["n", 2])}, constants)
    assert adopt(save(tmp_path / "d.onnx", proto), tmp_path / "adopted.onnx", batched=True).remarks == ()


def weights_in_a_branch(folder: Path) -> Path:
    """An If between two products, whose weights are in a file beside the model, as is the value of a Constant."""
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])]
    branches = []
    for at in (0, 1):
        branch = helper.make_graph([node("MatMul", ["h", f"w{at}"], ["y"])], f"b{at}", [], result)
        branch.initializer.append(onnx.numpy_helper.from_array(weights(4, 2, seed=at), f"w{at}"))
        branches.append(branch)
    nodes = [
        node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(weights(4), "c_value")),
        node("Add", ["x", "c"], ["h"]),
        node("If", ["on"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    proto = model(nodes, {"x": (f32, ["n", 4])}, {"y": (f32, ["n", 2])}, {"on": np.array(True)})
    data = b""
    inside = [attribute.g.initializer[0] for attribute in proto.graph.node[2].attribute]
    for tensor in [*inside, proto.graph.node[0].attribute[0].t]:
        onnx.external_data_helper.set_external_data(tensor, "w.bin", offset=len(data), length=len(tensor.raw_data))
        data += tensor.raw_data
        tensor.ClearField("raw_data")
    (folder / "w.bin").write_bytes(data)
    return save(folder / "branch.onnx", proto)


def test_weights_beside_the_file_are_found_in_branches_and_constants(tmp_path: Path) -> None:
    path = weights_in_a_branch(tmp_path)
    assert adopt(path, tmp_path / "adopted.onnx", batched=True).remarks == ("3 external weights taken into the file",)
    inputs = floats(x=[-1, 4])(3, 1)
    want = Runtime(path)(inputs)
    (tmp_path / "w.bin").unlink()
    assert_same(Runtime(tmp_path / "adopted.onnx")(inputs), want)


@pytest.mark.parametrize("kind", ["SimplifiedLayerNormalization", "GroupNormalization"])
def test_operator_that_only_the_runtime_knows_is_served(kind: str, tmp_path: Path) -> None:
    # The one is ONNX Runtime's own in ONNX's domain, the other is deprecated in the opset that brought it.
    groups = {"num_groups": 2} if kind == "GroupNormalization" else {}
    inputs = ["x", "s", "b"] if groups else ["x", "s"]
    constants = {"s": np.ones(2 if groups else 4, f32), "b": np.zeros(2, f32)}
    shapes = {"x": (f32, ["n", 4])}, {"y": (f32, ["n", 4])}
    if groups:
        shapes = {"x": (f32, ["n", 4, 3])}, {"y": (f32, ["n", 4, 3])}
    proto = model([node(kind, inputs, ["y"], **groups)], *shapes, constants, opset=18)
    path = save(tmp_path / "own.onnx", proto)
    adopted = adopt(path, tmp_path / "adopted.onnx", batched=True)
    assert adopted.signature.batched
    assert "the checker of ONNX objects to the file" in adopted.remarks[-1]
    fresh = floats(x=[-1, 4, 3] if groups else [-1, 4])(3, 1)
    assert_same(Runtime(tmp_path / "adopted.onnx")(fresh), Runtime(path).row_by_row(fresh))


@pytest.mark.parametrize(
    ("numbers", "way_out"),
    [
        (
            {"opset": 99},
            "written in ONNX opset 99, and this ONNX Runtime reads up to opset 2[0-9]: export the model with opset 20",
        ),
        ({"ir_version": 99}, "Unsupported model IR version: 99.* version 99: save it with ir_version 10"),
    ],
)
def test_file_newer_than_the_runtime_is_refused_with_the_way_out(
    numbers: dict[str, int], way_out: str, tmp_path: Path
) -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": (f32, ["n", 4])}, {"y": (f32, ["n", 4])}, **numbers)
    with pytest.raises(ExportFailed, match=way_out) as caught:
        adopt(save(tmp_path / "new.onnx", proto), tmp_path / "adopted.onnx", batched=True)
    assert "onnxruntime_src" not in str(caught.value)
