"""fp16 is judged by what a device that computes in it would answer, and what it gets wrong stays in fp32."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.parity import LIMITS, compare
from enginehouse_build.convert.agreement import Agreement
from enginehouse_build.convert.fallback import NothingHelps
from enginehouse_build.convert.fp16 import to_fp16
from enginehouse_build.convert.half_arithmetic import simulated
from enginehouse_build.reference.onnx import plain_session

from .graphs import Inputs, f32, i64, model, node, save, weights
from .small_nets import ask, ask_exactly, attention, distance, pixels, residual
from .test_ranges import feed_forward

LIMIT = LIMITS["fp16"]
Asked = Callable[[int], Inputs]
Case = tuple[onnx.ModelProto, Asked]
#: A layer behind what is tried, so that there is always something for fp16.
LAST = node("MatMul", ["t", "last"], ["y"], name="last")


def case(nodes: list[onnx.NodeProto], parts: dict[str, np.ndarray], shape: list[Any], asked: Asked) -> Case:
    """A model of `nodes` that make "t" [n, 6] of "x", and a layer behind them."""
    dtype = asked(0)["x"].dtype
    parts = parts | {"last": weights(6, 4)}
    return model([*nodes, LAST], {"x": (dtype, ["n", *shape])}, {"y": (f32, ["n", 4])}, parts), asked


def floats(width: int, scale: float, shift: float = 0.0) -> Asked:
    return lambda seed: {"x": weights(8, width, seed=seed) * f32(scale) + f32(shift)}


def positions_as_angles() -> Case:
    """Positions cast to floats, as rotary embeddings take them."""
    nodes = [
        node("Cast", ["x"], ["p"], to=1),
        node("Mul", ["p", "pace"], ["angle"]),
        node("Sin", ["angle"], ["t"]),
    ]
    pace = np.array([1, 0.5, 0.3, 0.1, 0.03, 0.01], f32)
    return case(nodes, {"pace": pace}, [1], lambda s: {"x": np.random.default_rng(s).integers(0, 5000, (8, 1))})


def running_count() -> Case:
    """Positions counted by a running sum over a mask."""
    nodes = [
        node("Cast", ["x"], ["m"], to=1),
        node("CumSum", ["m", "one"], ["count"]),
        node("Gather", ["count", "end"], ["p"], axis=1),
        node("Mul", ["p", "pace"], ["angle"]),
        node("Cos", ["angle"], ["t"]),
    ]
    parts = {
        "one": np.array(1, i64),
        "end": np.array([2999], i64),
        "pace": np.array([1, 0.5, 0.3, 0.1, 0.03, 0.01], f32),
    }
    return case(nodes, parts, [3000], lambda s: {"x": (np.random.default_rng(s).random((8, 3000)) < 0.9).astype(i64)})


def place_of_largest() -> Case:
    """The place of the largest of many numbers, as a number."""
    nodes = [
        node("ArgMax", ["x"], ["i"], axis=1),
        node("Cast", ["i"], ["p"], to=1),
        node("Mul", ["p", "pace"], ["angle"]),
        node("Sin", ["angle"], ["t"]),
    ]
    return case(nodes, {"pace": np.array([1, 0.5, 0.3, 0.1, 0.03, 0.01], f32)}, [4000], floats(4000, 1))


def time_since() -> Case:
    """A difference of times that are close to each other and far from zero, which no range tells."""
    nodes = [node("Sub", ["x", "then"], ["d"]), node("Tanh", ["d"], ["t"])]
    return case(nodes, {"then": np.full(6, 20000.25, f32)}, [6], floats(6, 1, 20000))


def small_lengths() -> Case:
    """Rows near zero that are divided by their length, with an epsilon that fp16 does not have."""
    nodes = [
        node("Mul", ["x", "x"], ["s"]),
        node("ReduceSum", ["s", "axis"], ["sum"]),
        node("Add", ["sum", "epsilon"], ["safe"]),
        node("Sqrt", ["safe"], ["length"]),
        node("Div", ["x", "length"], ["t"]),
    ]
    parts = {"axis": np.array([1], i64), "epsilon": np.array(1e-12, f32)}
    return case(nodes, parts, [6], floats(6, 1e-4))


def variance_by_difference() -> Case:
    """A variance as the mean of squares less the square of the mean."""
    nodes = [
        node("Mul", ["x", "x"], ["s"]),
        node("ReduceMean", ["s", "axis"], ["ms"]),
        node("ReduceMean", ["x", "axis"], ["m"]),
        node("Mul", ["m", "m"], ["sm"]),
        node("Sub", ["ms", "sm"], ["v"]),
        node("Sqrt", ["v"], ["deviation"]),
        node("Sub", ["x", "m"], ["c"]),
        node("Div", ["c", "deviation"], ["t"]),
    ]
    return case(nodes, {"axis": np.array([1], i64)}, [6], floats(6, 0.5, 60))


def weights_near_nothing() -> Case:
    """Weights smaller than the smallest number of fp16, scaled up again behind them."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="tiny"),
        node("Mul", ["h", "up"], ["u"]),
        node("Tanh", ["u"], ["t"]),
    ]
    return case(nodes, {"w": weights(6, 6) * f32(1e-9), "up": np.array(1e9, f32)}, [6], floats(6, 1))


def softmax_without_maximum() -> Case:
    """A softmax written out, without taking the maximum off first."""
    nodes = [
        node("Exp", ["x"], ["e"]),
        node("ReduceSum", ["e", "axis"], ["sum"]),
        node("Div", ["e", "sum"], ["t"]),
    ]
    return case(nodes, {"axis": np.array([1], i64)}, [6], floats(6, 6))


def long_sum() -> Case:
    """A sum over a long axis, as a product with ones, and its mean."""
    nodes = [
        node("MatMul", ["x", "ones"], ["sum"], name="sum"),
        node("Mul", ["sum", "share"], ["t"]),
    ]
    parts = {"ones": np.ones((5000, 6), f32), "share": np.array(1 / 5000, f32)}
    return case(nodes, parts, [5000], floats(5000, 3, 20))


def large_and_back() -> Case:
    """A hidden layer beyond fp16 that is scaled back."""
    proto, requests = feed_forward(1e5)
    return proto, lambda seed: requests[0] if not seed else {"x": weights(4, 6, seed=seed + 10)}


CASES = [
    positions_as_angles,
    running_count,
    place_of_largest,
    time_since,
    small_lengths,
    variance_by_difference,
    weights_near_nothing,
    softmax_without_maximum,
    long_sum,
    large_and_back,
]


def agreement(path: Path, asked: Asked) -> Agreement:
    return Agreement.of("onnx-fp16", [asked(seed) for seed in range(4)], plain_session(path), LIMIT)


def off(got: np.ndarray, want: np.ndarray) -> float:
    """The worst row; infinite if something is not a number."""
    return compare({"y": got}, {"y": want}).worst_row if np.isfinite(got).all() else np.inf


@pytest.mark.parametrize("make", CASES)
def test_what_fp16_gets_wrong_stays_in_fp32(tmp_path: Path, make: Callable[[], Case]) -> None:
    proto, asked = make()
    path = save(tmp_path / "full.onnx", proto)
    fresh = [asked(seed) for seed in range(20, 24)]
    wanted = [ask(path, request)[0] for request in fresh]
    with np.errstate(all="ignore"):
        to_fp16(path, tmp_path / "blind.onnx")
        blind = [
            off(ask_exactly(tmp_path / "blind.onnx", request)[0], want)
            for request, want in zip(fresh, wanted, strict=True)
        ]
        told = to_fp16(path, tmp_path / "half.onnx", [asked(seed) for seed in range(4)], agreement(path, asked))
        found = [ask_exactly(tmp_path / "half.onnx", request)[0] for request in fresh]
    assert max(blind) > LIMIT.worst_row, "fp16 has nothing to get wrong here"
    for got, want in zip(found, wanted, strict=True):
        assert 0 < distance(got, want) < LIMIT.relative_l2
        assert off(got, want) < LIMIT.worst_row
    assert "simulated" in told


def test_a_build_keeps_in_fp32_what_its_cpu_would_not_show(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    proto, asked = time_since()
    np.savez(tmp_path / "x.npz", x=asked(0)["x"])
    bundle = build_onnx(save(tmp_path / "full.onnx", proto), precisions=("fp32", "fp16"), samples=tmp_path / "x.npz")
    artifact = bundle.manifest.artifact("onnx-fp16")
    assert artifact.status == "ready"
    assert any("1 node, 'Sub_d'; its arithmetic in fp16, simulated because" in said for said in artifact.remarks)
    (half,) = bundle.verified_files(artifact)
    assert off(ask_exactly(half, asked(9))[0], ask(tmp_path / "full.onnx", asked(9))[0]) < LIMIT.worst_row


@pytest.mark.parametrize("make", [attention, residual, pixels])
def test_what_is_simulated_is_what_fp16_gives(
    tmp_path: Path, make: Callable[[Path], tuple[Path, list[Inputs]]]
) -> None:
    path, asked = make(tmp_path)
    to_fp16(path, tmp_path / "half.onnx", asked)
    run = simulated(tmp_path / "half.onnx", "/fp16", tmp_path / "wide.onnx")
    (got,) = run(asked[0]).values()
    want, half = ask(path, asked[0])[0], ask_exactly(tmp_path / "half.onnx", asked[0])[0]
    assert 0.5 < distance(got, want) / distance(half, want) < 2
    # The file as it is would be computed in fp32.
    assert distance(got, half) < distance(got, want)


@pytest.mark.parametrize("make", [attention, residual, pixels])
def test_what_fp16_gets_right_is_converted_as_ever(
    tmp_path: Path, make: Callable[[Path], tuple[Path, list[Inputs]]]
) -> None:
    path, asked = make(tmp_path)
    to_fp16(path, tmp_path / "before.onnx", asked)
    judge = Agreement.of("onnx-fp16", asked, plain_session(path), LIMIT)
    told = to_fp16(path, tmp_path / "half.onnx", asked, judge)
    assert (tmp_path / "half.onnx").read_bytes() == (tmp_path / "before.onnx").read_bytes()
    assert re.search(r"arithmetic in fp16, simulated because CPUs compute it in fp32, is \d\.\de-0[34] from", told)
    assert "kept in fp32" not in told


def test_where_all_of_it_is_wrong_in_fp16_there_is_none(tmp_path: Path) -> None:
    parts = {"then": np.full(6, 20000.25, f32)}
    proto = model([node("Sub", ["x", "then"], ["y"])], {"x": (f32, ["n", 6])}, {"y": (f32, ["n", 6])}, parts)
    path = save(tmp_path / "times.onnx", proto)
    asked = floats(6, 1, 20000)
    with pytest.raises(NothingHelps, match=r"^the answers are too far off, .* is too far from the fp32 reference"):
        to_fp16(path, tmp_path / "half.onnx", [asked(0)], agreement(path, asked))


def test_model_that_was_converted_before_keeps_its_own_names(tmp_path: Path) -> None:
    """The file of an fp16 artifact, part of which stayed in fp32, as a source."""
    proto, asked = time_since()
    path = save(tmp_path / "full.onnx", proto)
    to_fp16(path, tmp_path / "half.onnx", [asked(0)], agreement(path, asked))
    again = tmp_path / "again.onnx"
    proto = onnx.load(tmp_path / "half.onnx")
    proto.graph.node.append(node("Tanh", ["d"], ["z"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n", 6]))
    save(again, proto)
    to_fp16(again, tmp_path / "twice.onnx", [asked(0)], agreement(again, asked))
    for got, want in zip(ask_exactly(tmp_path / "twice.onnx", asked(9)), ask(again, asked(9)), strict=True):
        assert distance(got, want) < LIMIT.relative_l2
