"""Answers are finished in the graph: what numpy makes of the model's outputs, on every engine."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pydantic import TypeAdapter

from enginehouse.contract.errors import ConfigError
from enginehouse_build.inputs import postprocess
from enginehouse_build.inputs.postprocess import Postprocess

from .composed import ENGINES, build_for_tensorrt, dims, load, make, tensor

ROWS = (1, 2, 5)
CLASSES = 11


def classifier(dtype: int = TensorProto.FLOAT, classes: int = CLASSES) -> onnx.ModelProto:
    """logits = x @ w, and its hidden features as a second output after them."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    w = np.random.default_rng(0).normal(scale=3, size=(6, classes)).astype(kind)
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["logits"])]
    outputs = [tensor("logits", "batch", classes, dtype=dtype), tensor("h", "batch", 6, dtype=dtype)]
    return make(nodes, [tensor("x", "batch", 6, dtype=dtype)], outputs, w=w)


def features(rows: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, 6)).astype(dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text", ["softmax:output=logits", "topk:5,output=logits", "topk:k=1,output=logits"])
def test_graph_agrees_with_numpy_behind_the_model(engine: str, text: str, tmp_path: Path) -> None:
    model, step = classifier(), postprocess.of(text)
    original, composed = load("onnxruntime", model, tmp_path), load(engine, step.attach(model), tmp_path)
    for rows in ROWS:
        x = features(rows)
        want, got = step.reference(original(x=x)), composed(x=x)
        assert got.keys() == want.keys()
        for name, array in want.items():
            assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
            assert np.allclose(got[name], array, rtol=1e-5, atol=1e-6)


def test_softmax_gives_probabilities_under_the_same_name(tmp_path: Path) -> None:
    composed = postprocess.of("softmax:output=logits").attach(classifier())
    assert [output.name for output in composed.graph.output] == ["logits", "h"]
    x = features(5) * 1000
    probabilities = load("onnxruntime", composed, tmp_path)(x=x)["logits"]
    assert np.allclose(probabilities.sum(axis=-1), 1)
    logits = np.maximum(x, 0) @ np.random.default_rng(0).normal(scale=3, size=(6, CLASSES))
    assert np.array_equal(probabilities.argmax(axis=-1), logits.argmax(axis=-1))


def test_topk_gives_scores_and_indices_in_the_place_of_the_output() -> None:
    model = classifier()
    before = model.SerializeToString()
    scores, indices, hidden = postprocess.of("topk:5,output=logits").attach(model).graph.output
    assert (scores.name, dims(scores)) == ("logits_scores", ["batch", 5])
    assert (indices.name, dims(indices)) == ("logits_indices", ["batch", 5])
    assert (hidden.name, dims(hidden)) == ("h", ["batch", 6])
    assert scores.type.tensor_type.elem_type == TensorProto.FLOAT
    assert indices.type.tensor_type.elem_type == TensorProto.INT64
    assert model.SerializeToString() == before


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_follow_each_other(engine: str, tmp_path: Path) -> None:
    model = classifier()
    softmax, topk = postprocess.of("softmax:output=logits"), postprocess.of("topk:3,output=logits")
    x = features(2)
    want = topk.reference(softmax.reference(load("onnxruntime", model, tmp_path)(x=x)))
    got = load(engine, topk.attach(softmax.attach(model)), tmp_path)(x=x)
    assert np.array_equal(got["logits_indices"], want["logits_indices"])
    assert np.allclose(got["logits_scores"], want["logits_scores"], atol=1e-6)
    assert np.all(got["logits_scores"] < 1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text", ["softmax:output=logits", "topk:5,output=logits"])
def test_fp16_outputs_become_fp32(engine: str, text: str, tmp_path: Path) -> None:
    model, step = classifier(TensorProto.FLOAT16), postprocess.of(text)
    x = features(2, np.float16)
    want = step.reference(load("onnxruntime", model, tmp_path)(x=x))
    got = load(engine, step.attach(model), tmp_path)(x=x)
    changed = [name for name in want if name.startswith("logits")]
    for name in changed:
        assert got[name].dtype == want[name].dtype != np.float16
        assert np.allclose(got[name], want[name], rtol=2e-3, atol=2e-3)


def detector(number: int, classes: int) -> onnx.ModelProto:
    """Cuts [batch, number, 4 + classes] into boxes and scores, as detectors do at their end."""
    nodes = [
        helper.make_node("Slice", ["heads", "zero", "four", "axis"], ["boxes"]),
        helper.make_node("Slice", ["heads", "four", "all", "axis"], ["last"]),
        helper.make_node("Transpose", ["last"], ["scores"], perm=[0, 2, 1]),
    ]
    ends = {"zero": 0, "four": 4, "all": 4 + classes, "axis": 2}
    return make(
        nodes,
        [tensor("heads", "batch", number, 4 + classes)],
        [tensor("boxes", "batch", number, 4), tensor("scores", "batch", classes, number)],
        **{name: np.array([value]) for name, value in ends.items()},
    )


def crowd(rows: int, number: int, classes: int, centre: bool) -> np.ndarray:
    """Boxes that overlap a lot, and one image in two with no score above 0.2; a row depends on its number only."""
    heads = []
    for row in range(rows):
        generator = np.random.default_rng(row)
        places, sides = generator.uniform(0, 1, (number, 2)), generator.uniform(0.1, 0.5, (number, 2))
        scores = generator.uniform(0, 0.2 if row % 2 else 1, (number, classes))
        heads.append(np.concatenate([places, sides if centre else places + sides, scores], axis=1))
    return np.stack(heads).astype(np.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "text", ["nms:iou=0.3,score=0.3,max=20", "nms:iou=0.6,score=0.1,max=300,format=centre", "nms:score=0.9999"]
)
def test_detections_agree_with_numpy_behind_the_model(engine: str, text: str, tmp_path: Path) -> None:
    number, classes = 50, 3
    model, step = detector(number, classes), postprocess.of(text)
    original, composed = load("onnxruntime", model, tmp_path), load(engine, step.attach(model), tmp_path)
    for rows in ROWS:
        heads = crowd(rows, number, classes, centre="centre" in text)
        want, got = step.reference(original(heads=heads)), composed(heads=heads)
        assert got.keys() == want.keys()
        for name, array in want.items():
            assert got[name].dtype == array.dtype
            assert np.array_equal(got[name], array)
        alone = composed(heads=heads[-1:])
        assert all(np.array_equal(array[-1:], alone[name]) for name, array in got.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_overlapping_boxes_of_one_class_become_the_best_of_them(engine: str, tmp_path: Path) -> None:
    heads = np.zeros((2, 5, 6), np.float32)
    heads[0, :4, :4] = [[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 0, 10, 10]]
    heads[0, :4, 4:] = [[0.9, 0], [0.8, 0], [0.7, 0.04], [0, 0.6]]
    found = load(engine, postprocess.of("nms:max=5").attach(detector(5, 2)), tmp_path)(heads=heads)
    assert found["num_detections"].tolist() == [[3], [0]]
    assert found["detection_scores"].tolist() == [pytest.approx([0.9, 0.7, 0.6, 0, 0]), [0] * 5]
    assert found["detection_classes"].tolist() == [[0, 0, 1, -1, -1], [-1] * 5]
    assert found["detection_boxes"][0].tolist() == [[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 10], [0] * 4, [0] * 4]
    assert not found["detection_boxes"][1].any()


def test_detections_have_fixed_shapes() -> None:
    outputs = postprocess.of("nms:max=7").attach(detector(50, 3)).graph.output
    assert {output.name: dims(output) for output in outputs} == {
        "num_detections": ["batch", 1],
        "detection_boxes": ["batch", 7, 4],
        "detection_scores": ["batch", 7],
        "detection_classes": ["batch", 7],
    }


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("text", ["softmax:output=logits", "topk:5,output=logits"])
def test_tensorrt_builds_it(text: str, dtype: int) -> None:
    build_for_tensorrt(postprocess.of(text).attach(classifier(dtype)), rows=4)


@pytest.mark.parametrize("text", ["softmax", "topk:5,output=logits", "nms:iou=0.4,score=0.2,max=50,format=centre"])
def test_declaration_survives_a_file(text: str) -> None:
    adapter: TypeAdapter[Postprocess] = TypeAdapter(Postprocess)
    step = postprocess.of(text)
    assert adapter.validate_json(adapter.dump_json(step)) == step


def test_steps_are_told_in_words() -> None:
    texts = [postprocess.of(text).describe() for text in ("softmax", "topk:5,output=logits", "nms:iou=0.4")]
    assert texts == [
        "softmax of the output",
        "the 5 best of logits",
        "non-maximum suppression (IoU > 0.4, score > 0.05, the 100 best per image)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sigmoid", "'sigmoid' is not known; give softmax, topk:5 or nms:iou=0.5,score=0.05,max=100"),
        ("topk", "topk, k: Field required"),
        ("topk:0", "topk, k: Input should be greater than or equal to 1 (got '0')"),
        ("topk:many", "topk, k: Input should be a valid integer"),
        ("softmax:3", "'3' is not known to softmax; give key=value pairs with output"),
        ("nms:overlap=0.5", "'overlap=0.5' is not known to nms; give key=value pairs with iou, score, max"),
        ("nms:iou=1.5", "nms, iou: Input should be less than or equal to 1 (got '1.5')"),
    ],
)
def test_bad_declaration_is_named_with_the_way_out(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--postprocess: {message}")):
        postprocess.of(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("softmax", "the model has more than one output; give output=NAME, one of logits, h"),
        ("softmax:output=y", "the model has no output 'y'; give output=NAME, one of logits, h"),
        ("topk:12,output=logits", "topk:12 is more than there is in logits: FLOAT[*,11]; give less"),
        ("nms", "nms needs one output [batch, N, 4] of boxes"),
    ],
)
def test_declaration_that_does_not_fit_the_model_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        postprocess.of(text).attach(classifier())


def test_detector_with_a_free_number_of_boxes_is_refused() -> None:
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("b", "s")]
    inputs = [tensor("b", "batch", "n", 4), tensor("s", "batch", 3, "n")]
    model = make(nodes, inputs, [tensor("b_out", "batch", "n", 4), tensor("s_out", "batch", 3, "n")])
    with pytest.raises(ConfigError, match=r"s_out: FLOAT\[\*,3,\*\] has free dimensions: fix the size of the images"):
        postprocess.of("nms").attach(model)


def test_integer_output_has_no_probabilities() -> None:
    labels = tensor("labels", "batch", 3, dtype=TensorProto.INT64)
    model = make([helper.make_node("ArgMax", ["x"], ["labels"])], [tensor("x", 4, "batch", 3)], [labels])
    with pytest.raises(ConfigError, match=r"output labels: INT64\[\*,3\] must be float"):
        postprocess.of("softmax").attach(model)
