"""What is asked at extents that no sample has, and how far a model is right: by made-up engines, then by real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import InferenceFailed, InvalidInput, ParityFailed, StepDied
from enginehouse.contract.manifest import Artifact, Axis, Manifest, Precision, SignatureRecord
from enginehouse.contract.parity import LIMITS
from enginehouse.contract.tensors import Tensors, TensorSpec
from enginehouse_build.inputs.extents import LONGEST, TIMES, between, enlarged, extents_at
from enginehouse_build.judge.beyond import Beyond
from enginehouse_build.judge.extents import Extents
from enginehouse_build.reference.conditioning import Rounding
from enginehouse_build.reference.onnx import plain_session, signature_of

from .graphs import f32, i64, model, node, save, weights

Declared = Mapping[str, tuple[int, int, int]]


def manifest_of(sizes: Mapping[str, int], declared: Declared, signature: SignatureRecord | None = None) -> Manifest:
    """Of a model with the input `x` that has the axes `sizes`, in order."""
    axes = []
    for dim, (name, size) in enumerate(sizes.items()):
        low, usual, high = declared.get(name, (size, size, size))
        axes.append(Axis(name=name, min=low, opt=usual, max=high, dims=(("x", signature_dim(signature, dim)),)))
    spec = TensorSpec("x", np.dtype(f32), (None, *(None for _ in sizes)))
    record = signature or SignatureRecord.model_validate(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1] * len(spec.shape)}], "outputs": []}
    )
    recipe = {"axes": {name: dict(zip(("min", "opt", "max"), each, strict=True)) for name, each in declared.items()}}
    return Manifest(
        name="m", version="1", created="", source="", signature=record, max_batch=8, axes=tuple(axes), artifacts=(),
        recipe=recipe,
    )  # fmt: skip


def signature_dim(signature: SignatureRecord | None, at: int) -> int:
    shape = signature.inputs[0].shape if signature else (-1,) * 9
    return [dim for dim, size in enumerate(shape) if dim and size == -1][at]


class Asked:
    """An artifact that `is_right` at some extents of `x`, beside a reference that `takes` some of them."""

    def __init__(self, takes: Callable[..., bool], is_right: Callable[..., bool]) -> None:
        self.takes, self.is_right = takes, is_right
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, what: str, request: Tensors, remedy: str) -> bool:
        extents = request["x"].shape[1:]
        self.seen.append(extents)
        if not self.takes(*extents):
            return False
        if not self.is_right(*extents):
            raise ParityFailed(f"{what}{remedy}")
        return True


def tried(asked: Asked, sizes: Mapping[str, int], declared: Declared | None = None) -> dict[str, int]:
    manifest = manifest_of(sizes, declared or {})
    samples = {"x": np.zeros((4, *sizes.values()), f32)}
    return Extents(manifest.request_signature(), manifest.axes, 8, samples, asked).check()


def anything(*_: int) -> bool:
    return True


@pytest.mark.parametrize("seed", range(12))
def test_requests_end_where_the_reference_does_or_nobody_has_looked(seed: int) -> None:
    generator = np.random.default_rng(seed)
    usual = int(generator.integers(1, 70))
    table = usual + int(generator.integers(0, 2000))
    farthest = max(LONGEST, TIMES * usual)
    assert tried(Asked(lambda t: t <= table, anything), {"t": usual}) == {"t": min(table, farthest)}
    wrong = int(generator.integers(2 * usual + 2, farthest))
    asked = Asked(anything, lambda t: t < wrong)
    with pytest.raises(ParityFailed, match=r"at t = \d+; --axis t=MIN:OPT:MAX limits requests to what is right"):
        tried(asked, {"t": usual})


@pytest.mark.parametrize(
    ("takes", "reached"),
    [
        (lambda h, w: h % 8 == w % 8 == 0, 1024),
        (lambda h, w: h == w, 1024),
        (lambda h, w: h * w <= 64 * 64, 64),
    ],
)
def test_two_dimensions_grow_together_as_far_as_the_model_takes_it(takes: Callable[..., bool], reached: int) -> None:
    found = tried(Asked(takes, anything), {"h": 16, "w": 16})
    assert min(found.values()) >= reached


def test_one_that_has_to_stay_as_it_is_does_not_hold_the_others() -> None:
    assert tried(Asked(lambda h, w: w == 5, anything), {"h": 16, "w": 5}) == {"h": 1024, "w": 5}


@pytest.mark.parametrize(
    "fault", [lambda h, w: max(h, w) < 150 or h == w, lambda h, w: h * w < 20_000, lambda h, w: h != 64 or w == 32]
)
def test_what_is_wrong_only_at_both_is_found(fault: Callable[..., bool]) -> None:
    with pytest.raises(ParityFailed, match="--axis h=MIN:OPT:MAX"):
        tried(Asked(anything, fault), {"h": 32, "w": 32})


@pytest.mark.parametrize("seed", range(30))
def test_a_short_range_is_asked_in_all_of_its_extents_and_a_long_one_in_all_residues(seed: int) -> None:
    generator = np.random.default_rng(seed)
    low = int(generator.integers(1, 200))
    width = int(generator.integers(0, 48)) if seed % 2 else int(generator.integers(48, 3000))
    usual = int(generator.integers(low, low + width + 1))
    found = {*between(low, low + width, usual), usual}
    inside = range(low, low + width + 1)
    assert found <= set(inside)
    if width < 48:
        assert found == set(inside)
        return
    assert {low, low + width} <= found
    assert len(found) < 60
    assert {size % 16 for size in found} == set(range(16))
    assert any(size % 32 == 0 for size in found) == any(size % 32 == 0 for size in inside)


@pytest.mark.parametrize("wrong", [24, 31, 32, 48, 57, 63])
@pytest.mark.parametrize("other", [40, None])
def test_one_wrong_extent_in_a_short_range_is_found(wrong: int, other: int | None) -> None:
    declared = {"h": (24, 40, 63)} | ({"w": (24, 40, 63)} if other else {})
    sizes = dict.fromkeys(declared, 40)
    asked = Asked(anything, lambda *extents: extents[-1] != wrong)
    with pytest.raises(ParityFailed, match=f"{list(sizes)[-1]} = {wrong}"):
        tried(asked, sizes, declared)
    assert all(24 <= extent <= 63 for extents in asked.seen for extent in extents)


def test_an_extent_of_0_is_asked_between_others_where_it_was_declared() -> None:
    asked = Asked(anything, lambda t: len(asked.seen) < 2 or t > 0 or asked.seen[-2] == (12,))
    with pytest.raises(ParityFailed, match="at t = 0; --axis t=1:OPT:MAX leaves that out"):
        tried(asked, {"t": 6}, {"t": (0, 6, 12)})
    for declared in ({}, {"t": (1, 6, 12)}):
        asked = Asked(anything, anything)
        tried(asked, {"t": 6}, declared)
        assert (0,) not in asked.seen


@pytest.mark.parametrize("seed", range(10))
def test_sums_stay_sums_and_every_row_goes_on_with_another(seed: int) -> None:
    generator = np.random.default_rng(seed)
    past, new, rows = (int(size) for size in generator.integers(1, 9, 3))
    names = {"past": past, "new": new, "past + new": past + new}
    axes = [Axis(name=name, min=1, opt=size, max=size, dims=((name, 1),)) for name, size in names.items()]
    samples = {name: generator.standard_normal((16, size, 2)) for name, size in names.items()}
    sizes = {"past": int(generator.integers(0, 40)), "new": int(generator.integers(1, 40))}
    extents = extents_at(samples, sizes, axes)
    assert extents["past + new"] == sizes["past"] + sizes["new"]
    result = enlarged(samples, sizes, axes, rows)
    for name, array in result.items():
        assert array.shape == (rows, extents[name], 2)
        kept = min(names[name], extents[name])
        np.testing.assert_array_equal(array[:, :kept], samples[name][np.arange(rows) % 16, :kept])
        if extents[name] >= 2 * names[name]:
            assert not np.array_equal(array[:, : names[name]], array[:, names[name] : 2 * names[name]])


def pooled(kind: str, kernel: int, stride: int, **attributes: int) -> onnx.ModelProto:
    pads = [1] * 4
    middle = node(kind, ["f"], ["p"], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads, **attributes)
    nodes = [node("Conv", ["x", "w"], ["f"], strides=[4, 4]), middle, node("Conv", ["p", "v"], ["y"])]
    parts = {"w": weights(4, 3, 4, 4) / 10, "v": weights(2, 4, 1, 1)}
    return model(nodes, {"x": (f32, ["n", 3, "h", "w"])}, {"y": (f32, ["n", 2, "a", "b"])}, parts)


def resized(size: int, **attributes: Any) -> onnx.ModelProto:
    nodes = [
        node("Resize", ["x", "", "", "size"], ["m"], axes=[2, 3], **attributes),
        node("Conv", ["m", "w"], ["y"], strides=[4, 4]),
    ]
    parts = {"size": np.array([size, size]), "w": weights(4, 3, 4, 4) / 5}
    return model(nodes, {"x": (f32, ["n", 3, "h", "w"])}, {"y": (f32, ["n", 4, size // 4, size // 4])}, parts)


def positions(rate: float) -> onnx.ModelProto:
    nodes = [
        node("Shape", ["x"], ["length"], start=1, end=2),
        node("Squeeze", ["length"], ["end"]),
        node("Range", ["zero", "end", "one"], ["at"]),
        node("Cast", ["at"], ["real"], to=onnx.TensorProto.FLOAT),
        node("Mul", ["real", "rate"], ["angle"]),
        node("Sin", ["angle"], ["sine"]),
        node("Unsqueeze", ["sine", "last"], ["bias"]),
        node("Mul", ["x", "bias"], ["scaled"]),
        node("MatMul", ["scaled", "w"], ["y"]),
    ]
    parts = {"zero": np.array(0), "one": np.array(1), "last": np.array([1]), "w": weights(8, 8)}
    parts["rate"] = np.array(rate, f32)
    return model(nodes, {"x": (f32, ["n", "t", 8])}, {"y": (f32, ["n", "t", 8])}, parts)


SQUARES: Declared = {"h": (24, 40, 63), "w": (24, 40, 63)}
CASES: dict[str, tuple[onnx.ModelProto, Sequence[int], Declared, Precision, bool]] = {
    **{
        f"{kind} {kernel}/{stride}": (pooled(kind, kernel, stride, ceil_mode=1, **more), (36, 36), SQUARES, "fp32", ok)
        for kind, kernel, stride, more, ok in (
            ("AveragePool", 3, 2, {"count_include_pad": 1}, False),
            ("AveragePool", 4, 3, {"count_include_pad": 1}, False),
            ("MaxPool", 3, 2, {}, True),
        )
    },
    "antialias": (resized(32, mode="linear", antialias=1), (14, 14), {}, "fp32", False),
    "antialias, declared": (resized(32, mode="cubic", antialias=1), (14, 14), {"h": (9, 14, 99)}, "fp32", False),
    "resize": (resized(32, mode="nearest"), (14, 14), {}, "fp32", True),
    "positions in bf16": (positions(1.0), (16,), {}, "bf16", False),
    "slow positions in bf16": (positions(0.3), (12,), {}, "bf16", False),
    "positions in fp32": (positions(1.0), (16,), {}, "fp32", True),
}


@pytest.mark.parametrize("case", CASES)
def test_a_real_engine_is_refused_where_it_is_wrong_and_known_to_be_right_elsewhere(tmp_path: Path, case: str) -> None:
    proto, sizes, declared, precision, is_right = CASES[case]
    path = save(tmp_path / "model.onnx", proto)
    names = ["h", "w"] if len(sizes) == 2 else ["t"]
    manifest = manifest_of(
        dict(zip(names, sizes, strict=True)), declared, SignatureRecord.of(signature_of(onnx.load(path), True))
    )
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", hint)

    def infer(inputs: Tensors) -> dict[str, np.ndarray]:
        try:
            return {"y": np.array(compiled(inputs)[0])}
        except RuntimeError as error:
            raise InferenceFailed("openvino-cpu", str(error)) from error

    samples = {"x": weights(8, *sizes, 8) if len(sizes) == 1 else weights(8, 3, *sizes)}
    artifact = Artifact(name="made", format="openvino", precision=precision, status="ready")
    right, rounding = plain_session(path, 1), Rounding(path, 1)
    beyond = Beyond(artifact, manifest, infer, right, path, samples, LIMITS[precision], rounding)
    if is_right:
        assert all(size >= 512 for size in beyond.check().extents.values())
        return
    with pytest.raises(ParityFailed, match="otherwise than the reference at "):
        beyond.check()


@pytest.mark.parametrize(("declared", "most"), [({}, LONGEST), ({"t": (1, 8, 64)}, 64)])
@pytest.mark.parametrize("rows", [7, 8])
def test_an_artifact_is_asked_for_full_batches_of_the_largest_extents(
    declared: Declared, most: int, rows: int, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    proto = model([node("Relu", ["x"], ["y"])], {"x": (f32, ["n", "t", 4])}, {"y": (f32, ["n", "t", 4])}, {})
    save(path, proto)
    manifest = manifest_of({"t": 8}, declared, SignatureRecord.of(signature_of(proto, True)))
    right = plain_session(path, 1)

    def with_a_buffer(request: Tensors) -> dict[str, np.ndarray]:
        tokens = np.array(right(request)["y"]).reshape(-1, 4)
        tokens[rows * most :] = 1
        return {"y": tokens.reshape(request["x"].shape)}

    artifact = Artifact(name="made", format="openvino", precision="fp32", status="ready")
    samples = {"x": weights(8, 8, 4)}
    beyond = Beyond(artifact, manifest, with_a_buffer, right, path, samples, LIMITS["fp32"], Rounding(path, 1))
    if rows == manifest.max_batch:
        beyond.check()
        return
    with pytest.raises(ParityFailed, match=rf"otherwise than alone: in a batch of 8 rows at t = {most}"):
        beyond.check()


def test_a_build_says_how_far_it_has_looked(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    nodes = [
        node("CumSum", ["mask", "last"], ["at"]),
        node("Gather", ["table", "at"], ["e"]),
        node("MatMul", ["e", "w"], ["y"]),
    ]
    parts = {"last": np.array(1), "table": weights(301, 4), "w": weights(4, 3)}
    proto = model(nodes, {"mask": (i64, ["n", "t"])}, {"y": (f32, ["n", "t", 3])}, parts)
    np.savez(tmp_path / "x.npz", mask=np.ones((6, 16), np.int64))
    bundle = build_onnx(save(tmp_path / "m.onnx", proto), samples=tmp_path / "x.npz")
    assert [axis.verified for axis in bundle.manifest.axes] == [300]
    door = bundle.manifest.request_signature()
    assert door.check({"mask": np.ones((2, 300), np.int64)}) == 2
    for size, told in ((301, "takes 1 to 300: larger .* not verified .*--axis t=MIN:OPT:MAX"), (0, "--axis t=0:OPT")):
        with pytest.raises(InvalidInput, match=rf"'t' is {size} \(dimension 1 of input 'mask'\); .*{told}"):
            door.check({"mask": np.ones((2, size), np.int64)})


@pytest.mark.parametrize("kind", ["GRU", "InstanceNormalization"])
def test_a_runtime_that_dies_of_nothing_is_told_with_the_way_out(
    kind: str, tmp_path: Path, build_onnx: Callable[..., Bundle]
) -> None:
    perm = [1, 0, 2] if kind == "GRU" else [0, 2, 1]
    nodes = [node("Transpose", ["x"], ["turned"], perm=perm)]
    if kind == "GRU":
        nodes += [node("GRU", ["turned", "w", "r"], ["", "h"], hidden_size=4), node("Squeeze", ["h", "first"], ["y"])]
        parts, shape = {"w": weights(1, 12, 8), "r": weights(1, 12, 4), "first": np.array([0])}, ["n", 4]
    else:
        nodes += [node(kind, ["turned", "scale", "bias"], ["y"])]
        parts, shape = {"scale": weights(8), "bias": weights(8)}, ["n", 8, "t"]
    proto = model(nodes, {"x": (f32, ["n", "t", 8])}, {"y": (f32, shape)}, parts)
    np.savez(tmp_path / "x.npz", x=weights(6, 6, 8))
    told = r"ended by SIG\w+ while the model was asked for x \[1, 0, 8\]; --axis t=1:OPT:MAX leaves out the extent of 0"
    with pytest.raises(StepDied, match=told):
        build_onnx(save(tmp_path / "m.onnx", proto), samples=tmp_path / "x.npz", axes={"t": "0:6:12"})
