"""Rows that are padded have to be answered as they are: what the build finds to pad, and what it does not let pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginehouse.contract.bounds import Region
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import BuildError, ConfigError
from enginehouse.contract.manifest import Axis, Manifest
from enginehouse.contract.parity import LIMITS
from enginehouse.contract.signature_record import Padding
from enginehouse.contract.tensors import Domain, FreeDim, Signature, Tensors, TensorSpec
from enginehouse.engines import load_engine
from enginehouse.engines.recheck import pads_here
from enginehouse_build.inputs.padding import edges, paddings
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.judge.padding import Proof
from enginehouse_build.reference.conditioning import Rounding

from . import sequences
from .graphs import Inputs, f32, i64, model, node, save, weights

PLACES = (("input_ids", 1), ("attention_mask", 1))
AXIS = Axis(name="s", min=1, opt=16, max=64, dims=PLACES)
INT64 = np.dtype(np.int64)
SIGNATURE = Signature(
    (
        TensorSpec("input_ids", INT64, (None, None), Domain(0, sequences.WORDS)),
        TensorSpec("attention_mask", INT64, (None, None)),
    ),
    (TensorSpec("y", np.dtype(np.float32), (None, None)),),
    free=(FreeDim("s", PLACES, (1, 64)),),
)


def rows(count: int = 12, length: int = 16) -> Inputs:
    generator = np.random.default_rng(3)
    mask = (np.arange(length) < generator.integers(1, length + 1, (count, 1))).astype(np.int64)
    return {"input_ids": generator.integers(1, sequences.WORDS, (count, length)) * mask, "attention_mask": mask}


def proven(
    run: sequences.Model, infer: sequences.Model | None = None, samples: Inputs | None = None, **changes: Any
) -> tuple[Padding | None, str]:
    given = samples or rows()
    found = paddings(SIGNATURE, (AXIS,), given, changes.pop("asked", None))
    proof = Proof(SIGNATURE, (AXIS,), given, run, Rounding(Path("none"), 1), 8, {})
    bounds = changes.pop("bounds", {})
    return proof.of(found, infer or run, LIMITS[changes.pop("precision", "fp32")], bounds)


@pytest.mark.parametrize("name", sequences.HARMLESS)
def test_what_padding_changes_nothing_of_may_be_padded(name: str) -> None:
    calls = 0

    def counted(inputs: Inputs) -> Inputs:
        nonlocal calls
        calls += 1
        return sequences.HARMLESS[name](inputs)

    found, why = proven(sequences.HARMLESS[name], counted)
    assert found is not None, why
    assert found.edges == edges(1, 64)
    assert [(each.name, each.value, each.mark) for each in found.inputs] == [
        ("input_ids", 0, None),
        ("attention_mask", 0, 1),
    ]
    ndim = sequences.HARMLESS[name](rows())["y"].shape
    assert len(found.outputs) == sum(extent == 16 for extent in ndim[1:])
    assert found.within == {"input_ids": (0, sequences.WORDS - 1)}
    assert found.masks == ("start", "end", "holes")
    assert calls < 110


@pytest.mark.parametrize("name", sequences.HARMFUL)
def test_what_it_changes_is_found(name: str) -> None:
    found, why = proven(sequences.HARMFUL[name])
    assert found is None
    assert "otherwise than alone" in why or "not as long as the row" in why or "dimensions" in why, why


@pytest.mark.parametrize("name", ["the mask is ignored", "the mean of all", "places from the end"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_an_artifact_that_it_changes_is_found_beside_a_reference_that_it_does_not(name: str, precision: str) -> None:
    right = sequences.HARMLESS["masked attention, mean of what counts"]
    found, why = proven(right, sequences.HARMFUL[name], precision=precision)
    assert found is None
    assert "output 'y' differs" in why, why


def test_a_reference_that_it_changes_little_is_found_whatever_the_precision_lets_pass() -> None:
    def leaks(x: np.ndarray, mask: np.ndarray, _: int) -> np.ndarray:
        return sequences.attention(x, mask, -9.0)

    assert proven(sequences.pooled(leaks), precision="int8")[0] is None


def test_a_mask_may_have_its_ones_where_nothing_counts() -> None:
    right = sequences.HARMLESS["masked attention, all states"]

    def inverted(inputs: Inputs) -> Inputs:
        return right({**inputs, "attention_mask": 1 - inputs["attention_mask"]})

    found, why = proven(inverted)
    assert found is not None, why
    assert (found.inputs[1].value, found.inputs[1].mark) == (1, 0)


def test_what_a_mask_holds_beside_two_values_is_not_padded() -> None:
    samples = rows()
    samples["attention_mask"][0, 0] = 2
    assert paddings(SIGNATURE, (AXIS,), samples, None) == ()
    assert paddings(SIGNATURE, (AXIS,), samples, {}) == ()
    with pytest.raises(BuildError, match="nothing can be padded there"):
        paddings(SIGNATURE, (AXIS,), samples, {"attention_mask": 0})
    samples = rows()
    samples["attention_mask"] = np.where(samples["attention_mask"] > 0, 0, -10000)
    first, second = paddings(SIGNATURE, (AXIS,), samples, None)
    assert [(way.inputs[1].value, way.inputs[1].mark) for way in (first, second)] == [(-10000, 0), (0, -10000)]


def test_a_model_without_a_mask_is_padded_if_it_is_asked_for() -> None:
    def own_mask(inputs: Inputs) -> Inputs:
        ids = inputs["input_ids"]
        return sequences.HARMLESS["masked attention, all states"]({**inputs, "attention_mask": (ids != 0)})

    free = (FreeDim("s", PLACES[:1], (1, 64)),)
    signature = Signature(SIGNATURE.inputs[:1], SIGNATURE.outputs, free=free)
    axis, samples = AXIS.model_copy(update={"dims": PLACES[:1]}), {"input_ids": rows()["input_ids"]}
    assert paddings(signature, (axis,), samples, None) == ()
    for value, is_right in ((0, True), (3, False)):
        asked = paddings(signature, (axis,), samples, {"input_ids": value})
        proof = Proof(signature, (axis,), samples, own_mask, Rounding(Path("none"), 1), 8, {})
        found, _ = proof.of(asked, own_mask, LIMITS["fp32"], {})
        assert (found is not None) == is_right


@pytest.mark.parametrize("hides", [1e9, 10.0])
def test_a_mask_that_hides_only_what_is_as_small_as_in_the_samples_is_found(hides: float) -> None:
    """Features in the place of words: nobody says how large they are."""

    def run(inputs: Inputs) -> Inputs:
        return {"y": (inputs["x"] + (inputs["attention_mask"][..., None] - 1) * hides).max(1).astype(np.float32)}

    places = (("x", 1), ("attention_mask", 1))
    inputs = (TensorSpec("x", np.dtype(np.float32), (None, None, sequences.WIDTH)), SIGNATURE.inputs[1])
    signature = Signature(inputs, SIGNATURE.outputs, free=(FreeDim("s", places, (1, 64)),))
    x = np.random.default_rng(1).standard_normal((12, 16, sequences.WIDTH), np.float32)
    samples = {"x": x, "attention_mask": rows()["attention_mask"]}
    axis = AXIS.model_copy(update={"dims": places})
    asked = paddings(signature, (axis,), samples, None)
    proof = Proof(signature, (axis,), samples, run, Rounding(Path("none"), 1), 8, {})
    found, why = proof.of(asked, run, LIMITS["fp32"], {})
    assert found is not None, why
    assert found.within is not None
    low, high = found.within["x"]
    assert low <= 0 <= high
    # As large as what hides it at most.
    assert -low <= hides
    assert -low > 1e5 or hides == 10


def test_what_is_asked_for_has_to_be_there() -> None:
    assert Recipe.of(source="m.onnx", name="m", store="s", pad="input_ids=0, attention_mask=-1e4").pad == {
        "input_ids": 0,
        "attention_mask": -10000,
    }
    assert Recipe.of(source="m.onnx", name="m", store="s", pad="none").pad == {}
    with pytest.raises(ConfigError, match=r"--pad: 'ids' is no padding; write NAME=VALUE"):
        Recipe.of(source="m.onnx", name="m", store="s", pad="ids")
    for asked, said in (
        ({"x": 0}, "no such input"),
        ({"input_ids": 99}, "takes 0 to 39"),
        ({"input_ids": 0.5}, "whole"),
    ):
        with pytest.raises(BuildError, match=said):
            paddings(SIGNATURE, (AXIS,), rows(), asked)


def test_an_engine_that_is_not_right_for_padded_values_is_not_padded() -> None:
    right = sequences.HARMLESS["masked attention, all states"]
    found, why = proven(right, bounds={"attention_mask": Region(at_least=1)})
    assert found is None
    assert "only one length is answered" in why or "when it is padded" in why, why
    # Somewhere in each row it is not 0.
    assert proven(right, bounds={"attention_mask": Region(not_zero=((1,),))})[0] is not None


def test_edges_are_close_where_lengths_are_short() -> None:
    assert edges(1, 14) == (4, 8, 12, 14)
    found = edges(8, 512)
    assert found[:3] == (12, 16, 20)
    assert found[-2:] == (496, 512)
    assert len(found) < 65


def network(kind: str) -> onnx.ModelProto:
    """Words, attention that sees what the mask marks if `kind` is masked, and their states and mean."""
    nodes = [
        node("Gather", ["table", "input_ids"], ["e"]),
        node("Cast", ["attention_mask"], ["m"], to=onnx.TensorProto.FLOAT),
        node("Unsqueeze", ["m", "two"], ["column"]),
        node("MatMul", ["e", "wq"], ["q"]),
        node("Transpose", ["e"], ["k"], perm=[0, 2, 1]),
        node("MatMul", ["q", "k"], ["s"]),
        node("Sub", ["m", "one"], ["out"]),
        node("Mul", ["out", "much"], ["far"]),
        node("Unsqueeze", ["far", "middle"], ["bias"]),
        node("Add", ["s", "bias"], ["biased"]),
        node("Softmax", ["biased" if kind == "masked" else "s"], ["p"]),
        node("MatMul", ["p", "e"], ["states"]),
        node("Mul", ["states", "column"], ["counted"]),
        node("ReduceSum", ["counted", "middle"], ["sum"], keepdims=0),
        node("ReduceSum", ["m", "middle"], ["count"], keepdims=1),
        node("Max", ["count", "one"], ["some"]),
        node("Div", ["sum", "some"], ["mean"]),
    ]
    parts = {"table": weights(sequences.WORDS, 8), "wq": weights(8, 8) / 3, "much": np.array(1e4, f32)}
    parts |= {"one": np.array(1, f32), "middle": np.array([1], i64), "two": np.array([2], i64)}
    inputs = {"input_ids": (i64, ["n", "s"]), "attention_mask": (i64, ["n", "s"])}
    return model(nodes, inputs, {"mean": (f32, ["n", 8]), "states": (f32, ["n", "s", 8])}, parts)


@pytest.mark.parametrize("kind", ["masked", "ignored"])
def test_a_build_records_how_each_artifact_is_padded_or_says_why_it_is_not(
    tmp_path: Path, build_onnx: Callable[..., Bundle], kind: str
) -> None:
    np.savez(tmp_path / "rows.npz", **rows())
    path = save(tmp_path / "m.onnx", network(kind))
    options: dict[str, Any] = {"samples": tmp_path / "rows.npz", "max_batch": 8}
    formats = ("onnx", "openvino") if kind == "masked" else ("onnx",)
    bundle = build_onnx(path, **options, formats=formats, axes={"s": "1:16:64"})
    manifest = bundle.manifest
    assert [artifact.status for artifact in manifest.artifacts] == ["ready"] * len(formats)
    for artifact in manifest.artifacts:
        if kind == "ignored":
            assert artifact.padding == {}
            assert any("equal lengths together only" in remark for remark in artifact.remarks)
            continue
        (padding,) = artifact.padding.values()
        assert padding.outputs == (("states", 1),)
        assert padding.edges[-1] == 64
        assert not any("equal lengths" in remark for remark in artifact.remarks)
    text = manifest.model_dump_json()
    assert Manifest.parse(text, "again") == manifest
    # The release before refuses what it does not know.
    assert ('"padding"' in text) == (kind == "masked")
    if kind == "masked":
        check_elsewhere(bundle)
        # Nobody has declared how long rows may be: as far as the build has looked.
        manifest = build_onnx(path, **options).manifest
        (padding,) = manifest.artifacts[0].padding.values()
        assert padding.edges[0] == 4
        assert 32 <= padding.edges[-1] <= (manifest.axes[0].verified or 0)
        # One length only: there is nothing to pad, and nothing to say.
        (artifact,) = build_onnx(path, **options, axes={"s": "16:16:16"}).manifest.artifacts
        assert (artifact.padding, artifact.remarks) == ({}, ())


def check_elsewhere(bundle: Bundle) -> None:
    """On another kind of CPU a few rows are compared again."""
    artifact = bundle.manifest.artifacts[0]
    engine = load_engine("onnxruntime-cpu", bundle, artifact, threads=1)

    def otherwise(inputs: Tensors) -> dict[str, np.ndarray]:
        return {name: array * inputs["input_ids"].shape[1] for name, array in engine.infer(inputs).items()}

    assert pads_here("onnxruntime-cpu", engine.infer, bundle, artifact)
    assert not pads_here("onnxruntime-cpu", otherwise, bundle, artifact)
    assert not pads_here("onnxruntime-cuda", engine.infer, bundle, artifact)
    engine.close()
