"""Free dimensions: those that are a sum of others follow them, and what may be empty is built and checked so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginehouse.contract import tensor_file
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import BuildError, ExportFailed, InvalidInput
from enginehouse.contract.manifest import Axis
from enginehouse.contract.signature_record import parts_of
from enginehouse.engines import load_engine
from enginehouse_build.inputs.extents import independent, resized
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.reference.reference import MODEL, REQUESTS, Reference, make_reference

from .graphs import f32, model, node, save
from .test_adopt import Runtime
from .test_awkward import kind_of

ROWS = 6


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("past + new", ("past", "new")),
        ("past+new", ("past", "new")),
        ("past + 1", ("past", "1")),
        ("past + new + 2", ("past", "new", "2")),
        ("past", ()),
        ("past + other", ()),
        ("c++", ()),
        ("past + -1", ()),
    ],
)
def test_a_sum_is_read_off_its_name(name: str, parts: tuple[str, ...]) -> None:
    assert parts_of(name, {"past", "new", name}) == parts


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_resized_its_sums_stay_sums(seed: int) -> None:
    generator = np.random.default_rng(seed)
    extents = {name: int(generator.integers(1, 9)) for name in "abc"}
    chosen = list(generator.choice(list("abc"), generator.integers(1, 4), replace=False))
    more = int(generator.integers(0, 3))
    total = " + ".join([*chosen, *([str(more)] if more else [])])
    if len(chosen) + bool(more) < 2:
        total = "unrelated"
    sizes = {**extents, total: sum(extents[name] for name in chosen) + more}
    axes = [Axis(name=name, min=0, opt=size, max=99, dims=((f"of {name}", 1),)) for name, size in sizes.items()]
    request = {f"of {name}": generator.standard_normal((2, size)) for name, size in sizes.items()}
    changed = independent(axes)[int(generator.integers(0, 3))]
    for size in (0, 1, 7, 20):
        result = resized(request, changed, size, axes)
        found = {name: result[f"of {name}"].shape[1] for name in sizes}
        assert found[changed.name] == size
        if total != "unrelated":
            assert found[total] == sum(found[name] for name in chosen) + more
        assert {name for name in "abc" if found[name] != sizes[name]} <= {changed.name}


def decoder(mask: str, more: int) -> onnx.ModelProto:
    """A step of a decoder: its past and its new tokens, a mask as long as both and `more` together, which is `mask`."""
    new = ["past", "new", *(["start"] if more else [])]
    nodes = [
        node("Concat", new, ["all"], axis=1),
        node("Add", ["all", "mask"], ["scores"]),
        node("Softmax", ["scores"], ["p"], axis=1),
        node("ReduceMax", ["p", "time"], ["y"], keepdims=1),
    ]
    constants = {"time": np.array([1])}
    if more:
        nodes[:0] = [
            node("Shape", ["new"], ["rows"], start=0, end=1),
            node("Concat", ["rows", "more"], ["size"], axis=0),
            node("Expand", ["one", "size"], ["start"]),
        ]
        constants |= {"more": np.array([more]), "one": np.ones((1, 1), f32)}
    sizes = {"past": (f32, ["n", "past"]), "new": (f32, ["n", "new"]), "mask": (f32, ["n", mask])}
    outputs = {"y": (f32, ["n", 1]), "all": (f32, ["n", None])}
    return model(nodes, sizes, outputs, constants)


def step(past: int, new: int, more: int, rows: int = ROWS, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng((seed, past, new))
    sizes = {"past": past, "new": new, "mask": past + new + more}
    return {name: generator.standard_normal((rows, size)).astype(f32) for name, size in sizes.items()}


def reference_of(path: Path, folder: Path, **values: Any) -> Reference:
    folder.mkdir()
    return make_reference(folder, Recipe.of(source=str(path), name="m", store=str(folder), threads=1, **values))


@pytest.mark.parametrize(("mask", "more"), [("past + new", 0), ("past + new + 1", 1), ("new + past + 3", 3)])
def test_a_past_that_may_be_empty_is_checked_and_answered_so(
    mask: str, more: int, tmp_path: Path, build_onnx: Callable[..., Bundle]
) -> None:
    path = save(tmp_path / "decoder.onnx", decoder(mask, more))
    np.savez(tmp_path / "past.npz", **step(3, 2, more))
    axes = {"past": "0:4:9", "new": "1:2:5"}
    bundle = build_onnx(path, formats=("onnx", "openvino"), samples=tmp_path / "past.npz", axes=axes)
    ranges = {axis.name: (axis.min, axis.opt, axis.max) for axis in bundle.manifest.axes}
    assert ranges == {"past": (0, 4, 9), "new": (1, 2, 5), mask: (1 + more, 6 + more, 14 + more)}
    original = Runtime(path)
    for artifact in bundle.manifest.artifacts:
        assert artifact.status == "ready", artifact.reason
        engine = load_engine(kind_of(artifact.format), bundle, artifact, threads=1)
        for past, new in ((0, 1), (0, 5), (9, 5), (3, 2)):
            request = step(past, new, more, 2, seed=9)
            answer = engine.infer(request)
            for name, want in original(request).items():
                np.testing.assert_allclose(answer[name], want, rtol=1e-4, atol=1e-5)
        engine.close()
    door = bundle.manifest.request_signature()
    assert door.check(step(0, 1, more)) == ROWS
    with pytest.raises(InvalidInput, match=r"dimension 'past' is 10 .*; the model takes 0 to 9"):
        door.check(step(10, 1, more))


def test_the_reference_is_asked_at_both_ends_of_a_range_that_others_follow(tmp_path: Path) -> None:
    path = save(tmp_path / "decoder.onnx", decoder("past + new", 0))
    np.savez(tmp_path / "past.npz", **step(3, 2, 0))
    reference_of(path, tmp_path / "made", samples=tmp_path / "past.npz", axes={"past": "0:4:9"})
    requests = tensor_file.read(tmp_path / "made" / REQUESTS)
    asked = [[request[name].shape[1] for name in ("past", "new", "mask")] for request in requests]
    assert [0, 2, 2] in asked
    assert [9, 2, 11] in asked
    assert all(past + new == mask for past, new, mask in asked)


def test_samples_without_any_past_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = save(tmp_path / "decoder.onnx", decoder("past + new", 0))
    np.savez(tmp_path / "none.npz", **step(0, 2, 0))
    for at, axes in enumerate(({}, {"past": "0:4:9"})):
        message = "no values along 'past' .dimension 1 of input 'past'.*samples of a later call.*--axis past=0:OPT:MAX"
        with pytest.raises(BuildError, match=message):
            reference_of(path, tmp_path / str(at), samples=tmp_path / "none.npz", axes=axes)


def test_a_decoder_of_torch_follows_too_and_may_be_empty(tmp_path: Path) -> None:
    source = f"{Path(__file__).parent}/modules.py:decoder"
    (tmp_path / "made").mkdir()
    reference = make_reference(
        tmp_path / "made", Recipe.of(source=source, name="m", store=str(tmp_path), threads=1, max_batch=4)
    )
    ranges = {axis.name: (axis.min, axis.opt, axis.max) for axis in reference.axes}
    assert ranges == {"past": (0, 4, 9), "new": (1, 2, 5), "past + new": (1, 6, 14)}
    exported = Runtime(tmp_path / "made" / MODEL)
    for past, new in ((0, 1), (0, 5), (9, 5), (3, 2)):
        request = step(past, new, 0, 2)
        want = {name: request[name] for name in ("past", "new")}
        both = np.concatenate(list(want.values()), axis=1) + request["mask"]
        np.testing.assert_allclose(exported(request)["output"], both * 2, rtol=1e-6)


def test_a_range_that_contradicts_the_sum_is_refused_naming_the_sum(tmp_path: Path) -> None:
    path = save(tmp_path / "decoder.onnx", decoder("past + new", 0))
    np.savez(tmp_path / "past.npz", **step(3, 2, 0))
    right = {"past": "1:4:9", "past + new": "3:6:11"}
    reference_of(path, tmp_path / "right", samples=tmp_path / "past.npz", axes=right)
    message = r"--axis past \+ new: its extent follows from past, new, so that it is 3:6:11; leave it out"
    with pytest.raises(BuildError, match=message):
        reference_of(path, tmp_path / "wrong", samples=tmp_path / "past.npz", axes=right | {"past + new": "1:6:11"})


def test_a_sum_that_its_name_does_not_tell_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = save(tmp_path / "decoder.onnx", decoder("total", 0))
    np.savez(tmp_path / "past.npz", **step(3, 2, 0))
    reference_of(path, tmp_path / "fits", samples=tmp_path / "past.npz")
    with pytest.raises(ExportFailed, match="does not run at past = 1, which its range allows: .* give neither a range"):
        reference_of(path, tmp_path / "ranged", samples=tmp_path / "past.npz", axes={"past": "1:3:8"})
