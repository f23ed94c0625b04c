"""Whole numbers divided by -1: the least of them ends ONNX Runtime's process, unless the graph is written otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from enginehouse.contract.errors import ConversionFailed, InvalidInput
from enginehouse.contract.tensors import Tensors
from enginehouse_build.graph.division import PREFIX, guard_divisions
from enginehouse_build.graph.graph import graphs
from enginehouse_build.reference.adopt import adopt
from enginehouse_build.reference.onnx import plain_session

from .graphs import f32, i64, model, node, save, values
from .test_scales import engine_of

i32 = np.int32
#: In a process of its own: it would end this one.
_ASK = """
import sys, numpy as np
from enginehouse_build.reference.onnx import plain_session
got = plain_session(__import__("pathlib").Path(sys.argv[1]), 1)(dict(np.load(sys.argv[2])))
np.savez(sys.argv[3], **got)
"""


def pair(*nodes: onnx.NodeProto, dtype: Any = i64, **constants: np.ndarray) -> onnx.ModelProto:
    inputs = {name: (dtype, ["n", 3]) for name in "ab" if name not in constants}
    return model(list(nodes), inputs, {"y": (dtype, ["n", 3])}, constants)


def branches(dtype: Any) -> onnx.ModelProto:
    then, other = (
        helper.make_graph([node(op, ["a", "b"], [out])], out, [], values({out: (dtype, ["n", 3])}))
        for op, out in (("Div", "of_then"), ("Mod", "of_else"))
    )
    flag = node("Cast", ["count"], ["flag"], to=onnx.TensorProto.BOOL)
    count = node("Size", ["a"], ["count"])
    return pair(count, flag, node("If", ["flag"], ["y"], then_branch=then, else_branch=other), dtype=dtype)


def looped(dtype: Any) -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Div", ["carried", "b"], ["next"])],
        "body",
        values({"turn": (i64, []), "go": (np.bool_, []), "carried": (dtype, ["n", 3])}),
        values({"on": (np.bool_, []), "next": (dtype, ["n", 3])}),
    )
    constants = {"times": np.array(1), "start": np.array(True)}
    return pair(node("Loop", ["times", "start", "a"], ["y"], body=body), dtype=dtype, **constants)


def scanned(dtype: Any) -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Mod", ["one", "other"], ["each"])],
        "body",
        values({"one": (dtype, [3]), "other": (dtype, [3])}),
        values({"each": (dtype, [3])}),
    )
    return pair(node("Scan", ["a", "b"], ["y"], body=body, num_scan_inputs=2), dtype=dtype)


def called(dtype: Any) -> onnx.ModelProto:
    proto = pair(helper.make_node("Share", ["a", "b"], ["y"], domain="of.own"), dtype=dtype)
    body = [node("Div", ["one", "other"], ["shared"])]
    opsets = [helper.make_opsetid("", 20)]
    proto.functions.append(helper.make_function("of.own", "Share", ["one", "other"], ["shared"], body, opsets))
    proto.opset_import.append(helper.make_opsetid("of.own", 1))
    return proto


KINDS = {
    "div": lambda dtype: pair(node("Div", ["a", "b"], ["y"]), dtype=dtype),
    "mod": lambda dtype: pair(node("Mod", ["a", "b"], ["y"]), dtype=dtype),
    "fmod": lambda dtype: pair(node("Mod", ["a", "b"], ["y"], fmod=1), dtype=dtype),
    "by a constant": lambda dtype: pair(node("Div", ["a", "b"], ["y"]), dtype=dtype, b=np.array([-1, 2, -1], dtype)),
    "of a constant": lambda dtype: pair(
        node("Div", ["a", "b"], ["y"]), dtype=dtype, a=np.array([np.iinfo(dtype).min, 5, -7], dtype)
    ),
    "of what is computed": lambda dtype: pair(
        node("Sub", ["a", "b"], ["d"]), node("Add", ["d", "b"], ["e"]), node("Div", ["e", "b"], ["y"]), dtype=dtype
    ),
    "if": branches,
    "loop": looped,
    "scan": scanned,
    "function": called,
}


def requested(dtype: Any, names: list[str]) -> Tensors:
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    request = {
        "a": np.array([[least, least, 7], [least + 1, most, -7], [0, 9, -9]], dtype),
        "b": np.array([[-1, 2, -1], [-1, -1, 2], [-1, 4, -4]], dtype),
    }
    return {name: request[name] for name in names}


def wanted(kind: str, dtype: Any, proto: onnx.ModelProto) -> np.ndarray:
    request = requested(dtype, ["a", "b"])
    request |= {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer if each.name in "ab"}
    # Python's own numbers do not wrap.
    a, b = (np.broadcast_to(request[name], (3, 3)).ravel().tolist() for name in "ab")
    whole = [abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a, b, strict=True)]
    if kind in ("mod", "scan"):
        whole = [x % y for x, y in zip(a, b, strict=True)]
    elif kind == "fmod":
        whole = [x - y * q for x, y, q in zip(a, b, whole, strict=True)]
    span = 1 << np.iinfo(dtype).bits
    wrapped = [(each + span // 2) % span - span // 2 for each in whole]
    return np.array(wrapped).reshape(3, 3).astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [i32, i64])
def test_the_least_number_divided_by_minus_one_wraps_and_ends_no_process(tmp_path: Path, kind: str, dtype: Any) -> None:
    proto = KINDS[kind](dtype)
    adopt(save(tmp_path / "given.onnx", proto), tmp_path / "m.onnx", batched=False)
    names = [value.name for value in proto.graph.input]
    np.savez(tmp_path / "request.npz", **requested(dtype, names))
    files = [str(tmp_path / name) for name in ("m.onnx", "request.npz", "got.npz")]
    ended = subprocess.run([sys.executable, "-c", _ASK, *files], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended
    np.testing.assert_array_equal(np.load(tmp_path / "got.npz")["y"], wanted(kind, dtype, proto))


@pytest.mark.parametrize("kind", ["div", "mod", "fmod"])
def test_a_division_by_zero_is_refused_as_before(tmp_path: Path, kind: str) -> None:
    adopt(save(tmp_path / "given.onnx", KINDS[kind](i64)), tmp_path / "m.onnx", batched=False)
    with pytest.raises(Exception, match="by zero"):
        plain_session(tmp_path / "m.onnx", 1)({"a": np.ones((1, 3), i64), "b": np.array([[1, 0, -1]])})


@pytest.mark.parametrize("kind", ["div", "mod"])
def test_openvino_answers_the_same_and_still_refuses_zeros(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "given.onnx", KINDS[kind](i32))
    adopt(tmp_path / "given.onnx", tmp_path / "m.onnx", batched=True)
    proto = onnx.load(tmp_path / "m.onnx")
    with engine_of(tmp_path, proto) as infer:
        np.testing.assert_array_equal(infer(requested(i32, ["a", "b"]))["y"], wanted(kind, i32, proto))
        with pytest.raises(InvalidInput, match="by zero"):
            infer({"a": np.ones((1, 3), i32), "b": np.array([[1, 0, -1]], i32)})


LEFT = {
    "a harmless divisor": pair(node("Div", ["a", "b"], ["y"]), b=np.array([2, 3, -5])),
    "the same behind a cast": pair(
        node("Cast", ["c"], ["b"], to=onnx.TensorProto.INT64), node("Mod", ["a", "b"], ["y"]), c=np.array([2], i32)
    ),
    "unsigned": pair(node("Div", ["a", "b"], ["y"]), dtype=np.uint32),
    "floats": pair(node("Div", ["a", "b"], ["y"]), dtype=f32),
    "bytes": pair(node("Div", ["a", "b"], ["y"]), dtype=np.int8),
    "extents": model(
        [
            node("Shape", ["a"], ["s"]),
            node("Gather", ["s", "first"], ["n"], axis=0),
            node("Sub", ["n", "one"], ["d"]),
            node("Div", ["s", "d"], ["y"]),
        ],
        {"a": (f32, ["n", 3])},
        {"y": (i64, [2])},
        {"first": np.array(0), "one": np.array(1)},
    ),
}


@pytest.mark.parametrize("what", LEFT)
def test_a_division_that_cannot_trap_stays_as_it_is(what: str) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(LEFT[what])
    assert guard_divisions(proto) == 0
    assert proto == LEFT[what]


def test_what_is_rewritten_once_is_not_rewritten_again() -> None:
    proto = KINDS["if"](i64)
    assert guard_divisions(proto) == 2
    onnx.checker.check_model(proto, full_check=True)
    before = proto.SerializeToString()
    assert guard_divisions(proto) == 0
    assert proto.SerializeToString() == before
    assert any(each.name.startswith(PREFIX) for graph in graphs(proto) for each in graph.node)


def test_operators_that_onnx_does_not_know_hide_no_division() -> None:
    parts = [
        node("Cast", ["a"], ["f"], to=1),
        helper.make_node("Gelu", ["f"], ["g"], domain="com.microsoft"),
        helper.make_node("FastGelu", ["g"], ["u"], domain="com.microsoft"),
        node("Div", ["u", "g"], ["v"]),
        node("Cast", ["v"], ["y"], to=onnx.TensorProto.INT64),
    ]
    proto = pair(*parts)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert guard_divisions(proto) == 0, "floats"


def test_openvino_takes_no_number_of_turns_from_a_request(tmp_path: Path) -> None:
    # It takes -1 for as many as it likes.
    proto = looped(i64)
    del proto.graph.initializer[0]
    proto.graph.input.extend(values({"times": (i64, [])}))
    adopt(save(tmp_path / "given.onnx", proto), tmp_path / "m.onnx", batched=False)
    with pytest.raises(ConversionFailed, match="number of turns"), engine_of(tmp_path, onnx.load(tmp_path / "m.onnx")):
        pass
