"""More requests that no model can answer: their values decide places, counts and axes, and are beyond what there is."""

from __future__ import annotations

import numpy as np
from onnx import helper
from tests.conformance.bad_requests import A, B, Bad, bad, ids, line, node, number, rows
from tests.conformance.test_refusals import F32, I64, free, ones

from enginehouse.contract.tensors import TensorSpec

BOOL = np.dtype(bool)
#: Places in one axis.
PLACES = TensorSpec("i", I64, (None, 1))
STRETCH = [node("Unsqueeze", "a last", "b"), node("Squeeze", "c last")]


def whole(name: str) -> TensorSpec:
    return TensorSpec(name, I64, ())


def scattered(name: str, wrong: int, **attributes: object) -> Bad:
    nodes = [node("ScatterElements", "a i b", axis=1, **attributes)]
    good = {"a": ones(1, 3), "i": rows(2), "b": ones(1, 1)}
    return bad(name, nodes, [A, free("i", I64), B], good, {"i": rows(wrong)}, unsafe=True)


def scattered_nd(name: str, wrong: int) -> Bad:
    good = {"a": ones(4, 3), "i": ids(0, 1).reshape(2, 1), "b": ones(2, 3)}
    return bad(name, [node("ScatterND", "a i b")], [A, PLACES, B], good, {"i": ids(0, wrong).reshape(2, 1)})


def sliced(name: str, wrong: np.ndarray, good: np.ndarray) -> Bad:
    constants = {"s": ids(*[0] * len(good)), "e": ids(*[1] * len(good))}
    nodes, inputs = [node("Slice", "a s e x")], [A, line("x", len(good))]
    return bad(name, nodes, inputs, {"a": ones(2, 6), "x": good}, {"x": wrong}, unsafe=True, **constants)


def split(name: str, *wrong: int) -> Bad:
    good = {"a": ones(2, 6), "s": ids(2, 4)}
    return bad(name, [node("Split", "a s", "y z", axis=1)], [A, line("s", 2)], good, {"s": ids(*wrong)})


def reversed_(name: str, wrong: int) -> Bad:
    op = helper.make_node("ReverseSequence", ["b", "l"], ["c"], batch_axis=0, time_axis=1)
    good = {"a": ones(2, 6), "l": ids(3, 4)}
    return bad(name, [STRETCH[0], op, STRETCH[1]], [A, line("l")], good, {"l": ids(3, wrong)}, last=ids(2))


def resized(name: str, wrong: float) -> Bad:
    op = helper.make_node("Resize", ["b", "", "s"], ["c"], mode="linear")
    good = {"a": ones(3, 8), "s": np.array([1, 1, 0.5], np.float32)}
    bad_scale = {"s": np.array([1, 1, wrong], np.float32)}
    return bad(name, [STRETCH[0], op, STRETCH[1]], [A, TensorSpec("s", F32, (3,))], good, bad_scale, last=ids(0))


def shaped(op: str, wrong: np.ndarray) -> Bad:
    return bad(
        f"{op.lower()}_negative",
        [node(op, "a s")],
        [A, line("s", 2)],
        {"a": ones(1, 6), "s": ids(2, 3) if op == "Reshape" else ids(2, 6)},
        {"s": wrong},
    )


ALL = [
    bad(
        "gather_columns", [node("Gather", "a i", axis=1)], [A, line("i")], {"a": ones(4, 3), "i": ids(2)}, {"i": ids(3)}
    ),
    bad(
        "gather_computed",
        [node("Cast", "a", "i", to=7), node("CumSum", "i one", "n"), node("Gather", "table n")],
        [A],
        {"a": ones(1, 3)},
        {"a": ones(1, 3) * np.float32(5)},
        one=np.array(1),
        table=ones(10),
    ),
    bad(
        "gather_found",
        [node("NonZero", "m", "f"), node("Squeeze", "f first", "i"), node("Gather", "a i")],
        [A, TensorSpec("m", BOOL, (None,))],
        {"a": ones(2, 3), "m": np.array([True, False])},
        {"m": np.array([True, False, True, True])},
        first=ids(0),
    ),
    bad(
        "gathernd_far",
        [node("GatherND", "a i")],
        [A, PLACES],
        {"a": ones(4, 3), "i": ids(3).reshape(1, 1)},
        {"i": ids(90_000_000).reshape(1, 1)},
        unsafe=True,
    ),
    bad(
        "gathernd_found",
        [
            node("NonZero", "m", "f"),
            node("Transpose", "f", "i"),
            node("GatherND", "a i", "b"),
            node("Unsqueeze", "b zero"),
        ],
        [A, free("m", BOOL)],
        {"a": ones(2, 3), "m": ones(2, 3) > 0},
        {"m": ones(2, 4) > 0},
        zero=ids(0),
    ),
    bad(
        "gatherelements_below",
        [node("GatherElements", "a i", axis=1)],
        [A, free("i", I64)],
        {"a": ones(1, 3), "i": rows(0, 2)},
        {"i": rows(0, -4)},
    ),
    scattered("scatterelements_below", -4),
    scattered("scatterelements_add", 90_000, reduction="add"),
    scattered_nd("scatternd_beyond", 90_000),
    scattered_nd("scatternd_below", -90_000),
    sliced("slice_axis", ids(7), ids(1)),
    sliced("slice_axis_below", ids(-7), ids(1)),
    sliced("slice_axes_twice", ids(1, 1), ids(0, 1)),
    split("split_negative", -2, 8),
    split("split_beyond", 400, 400),
    reversed_("reverse_beyond", 9_000),
    reversed_("reverse_below", -9_000),
    resized("resize_below", -3),
    resized("resize_nan", np.nan),
    shaped("Expand", ids(-2, 6)),
    shaped("Reshape", ids(-3, -4)),
    bad("filled_twice", [node("ConstantOfShape", "s")], [line("s", 2)], {"s": ids(2, 3)}, {"s": ids(-2, -3)}),
    bad(
        "roialign",
        [
            node("Unsqueeze", "a first", "b"),
            helper.make_node("RoiAlign", ["b", "r", "l"], ["c"], output_height=1, output_width=1),
            node("Squeeze", "c last"),
        ],
        [A, TensorSpec("r", F32, (None, 4)), line("l")],
        {"a": ones(2, 6), "r": ones(1, 4), "l": ids(0)},
        {"l": ids(9)},
        first=ids(0, 1),
        last=ids(2, 3),
    ),
    bad(
        "onehot_of_none",
        [node("OneHot", "i d v")],
        [line("i"), line("d", 1)],
        {"i": ids(1, 2), "d": ids(4)},
        {"d": ids(0)},
        unsafe=True,
        v=np.array([0, 1], np.float32),
    ),
    bad(
        "squeeze_axis",
        [node("Unsqueeze", "a one", "b"), node("Squeeze", "b x")],
        [A, line("x", 1)],
        {"a": ones(2, 6), "x": ids(1)},
        {"x": ids(7)},
        unsafe=True,
        one=ids(1),
    ),
    bad("reduce_axis", [node("ReduceSum", "a x")], [A, line("x", 1)], {"a": ones(2, 6), "x": ids(1)}, {"x": ids(7)}),
    bad(
        "pad_below",
        [node("Pad", "a p")],
        [A, line("p", 4)],
        {"a": ones(4, 4), "p": ids(0, 0, 0, 1)},
        {"p": ids(-9, 0, 0, 0)},
        unsafe=True,
    ),
    bad(
        "pad_reflect",
        [node("Pad", "a p", mode="reflect")],
        [A, line("p", 4)],
        {"a": ones(4, 4), "p": ids(0, 0, 0, 1)},
        {"p": ids(0, 40, 0, 0)},
        unsafe=True,
    ),
    bad(
        "topk_of_more",
        [node("TopK", "a k", "y z", axis=1)],
        [A, line("k", 1)],
        {"a": ones(2, 6), "k": ids(2)},
        {"k": ids(200_000)},
        unsafe=True,
    ),
    bad(
        "topk_of_found",
        [
            node("NonZero", "m", "f"),
            node("Cast", "f", "g", to=1),
            node("TopK", "g k", "y z", axis=1),
        ],
        [TensorSpec("m", BOOL, (None,))],
        {"m": np.array([True, True, True])},
        {"m": np.array([True, False, False])},
        unsafe=True,
        k=ids(2),
    ),
    bad(
        "range_of_whole",
        [node("Range", "a b c", "r"), node("Cast", "r", "f", to=1), node("Unsqueeze", "f zero")],
        [whole("a"), whole("b"), whole("c")],
        {"a": np.array(0), "b": np.array(4), "c": np.array(1)},
        {"c": np.array(0)},
        unsafe=True,
        zero=ids(0),
    ),
    bad(
        "range_to_nan",
        [node("Range", "zero b one", "r"), node("Unsqueeze", "r first")],
        [number("b")],
        {"b": np.array(4, np.float32)},
        {"b": np.array(np.nan, np.float32)},
        zero=np.array(0, np.float32),
        one=np.array(1, np.float32),
        first=ids(0),
    ),
    bad(
        "divide_by_difference",
        [node("Sub", "a b", "c"), node("Div", "a c", "d"), node("Cast", "d", to=1)],
        [free("a", I64), free("b", I64)],
        {"a": rows(4, 4), "b": rows(2, 2)},
        {"b": rows(2, 4)},
    ),
    bad(
        "squeeze_columns",
        [node("Squeeze", "a one", "b"), node("Unsqueeze", "b zero")],
        [A],
        {"a": ones(3, 1)},
        {"a": ones(3, 2)},
        zero=ids(0),
        one=ids(-1),
    ),
]
