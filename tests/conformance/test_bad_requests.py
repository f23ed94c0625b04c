"""What an engine cannot compute because of what is in the request is refused as such, and spoils no later request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.conformance import bad_requests, bad_values
from tests.conformance.bad_requests import HUGE, Bad, node
from tests.conformance.conftest import Load
from tests.conformance.test_refusals import case, free, ones

from enginehouse import engines
from enginehouse.contract.errors import EngineUnavailable, InferenceFailed, InvalidInput
from enginehouse.contract.manifest import EngineKind
from enginehouse.engines import strict_shapes
from enginehouse.engines.strict_shapes import StrictShapes


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a warm-up, whose example has an extent of 1 for every free dimension: many of these graphs refuse it."""
    monkeypatch.setattr(engines, "warm_up", lambda *_: None)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("wrong", [*bad_requests.ALL, *bad_values.ALL], ids=lambda each: each.model.name)
def test_a_request_that_no_model_can_answer_is_the_requests_fault(
    kind: EngineKind, load: Load, wrong: Bad, threads: int
) -> None:
    if kind == "openvino-cpu" and wrong.unsafe:
        with pytest.raises(EngineUnavailable, match="values"):
            load(wrong.model, threads=threads)
        return
    try:
        engine = load(wrong.model, threads=threads)
    except EngineUnavailable as error:
        pytest.skip(str(error)[:200])
    expected = engine.infer(wrong.good)
    for _ in range(2):
        with pytest.raises(InvalidInput) as caught:
            engine.infer(wrong.bad)
        told = str(caught.value)
        assert told.startswith(f"{kind}: ")
        # Which node and why, or at least what it could not run with.
        assert all(f"{name!r} {list(array.shape)}" in told for name, array in wrong.bad.items()), told
        assert caught.value.fault.help == "nothing", "another engine would be asked"
        # The very shapes that it has answered before, and others.
        for name, array in engine.infer(wrong.good).items():
            np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("threads", [1, 2])
def test_too_little_memory_is_not_the_requests_fault(kind: EngineKind, load: Load, threads: int) -> None:
    if kind == "openvino-cpu" and threads == 1:
        pytest.skip("with one thread it does not say why it gave up")
    engine = load(HUGE.model, threads=threads)
    engine.infer(HUGE.good)
    with pytest.raises(InferenceFailed):
        engine.infer(HUGE.bad)
    engine.infer(HUGE.good)


def test_shapes_that_do_not_fit_a_branch_that_is_not_taken_are_answered(kind: EngineKind, load: Load) -> None:
    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["r"])])

    nodes = [
        node("Shape", "a", "shape"),
        node("Gather", "shape one", "columns"),
        node("Equal", "columns one", "is_one"),
        node(
            "If",
            "is_one",
            "c",
            then_branch=branch("one", node("Squeeze", "a axis", "b")),
            else_branch=branch("more", node("ReduceSum", "a axis", "b", keepdims=0)),
        ),
        node("Unsqueeze", "c axis"),
    ]
    constants = {"one": np.array(1), "axis": np.array([1])}
    model = case("branches", nodes, (free("a"),), {"a": ones(2, 3)}, constants)
    engine = load(model)
    for columns in (3, 1, 5):
        assert engine.infer({"a": ones(2, columns)})["y"].tolist() == [[columns], [columns]]


def test_the_shapes_that_are_remembered_are_bounded(
    load: Load, kind: EngineKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind != "openvino-cpu":
        pytest.skip("the others check shapes as they compute")
    monkeypatch.setattr(strict_shapes, "KNOWN", 3)
    engine = load(case("doubled", [node("Add", "a a")], (free("a"),), {"a": ones(2, 3)}, {}))
    for columns in [*range(1, 9), *range(1, 9)]:
        assert engine.infer({"a": ones(2, columns)})["y"].tolist() == [[2] * columns] * 2
    assert len(engine._shapes._known) == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_the_largest_of_nothing_is_refused_where_nothing_may_come(kind: EngineKind, tmp_path: Path, op: str) -> None:
    """A range with a minimum of 0 lets it through the door."""
    if kind != "openvino-cpu":
        pytest.skip("the others check shapes as they compute")
    import openvino

    model = case("extreme", [node(op, "a", "k", axis=1), node("Cast", "k", to=1)], (free("a"),), {"a": ones(2, 3)}, {})
    onnx.save(model.model(), tmp_path / "model.onnx")
    shapes = StrictShapes(openvino.Core().read_model(tmp_path / "model.onnx"), model.signature)
    assert shapes.refusal({"a": ones(2, 3)}) == ""
    assert "1 of 0 cannot be chosen" in shapes.refusal({"a": ones(2, 0)})
