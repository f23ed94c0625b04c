"""Recipes are refused before anything starts, naming the value and what would do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginehouse.contract.errors import ConfigError
from enginehouse.contract.parity import LIMITS
from enginehouse_build.inputs.recipe import Recipe

GOOD = {"source": "model.onnx", "name": "m", "store": "store"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precisions": ("fp8",)}, "--precisions: precision 'fp8' is not supported; supported: fp32, fp16, bf16, int8"),
        ({"formats": ("onnx",), "precisions": ("bf16",)}, "none of the formats onnx has the precision bf16; onnx has"),
        ({"axes": {"sequence": "1:2"}}, "--axis sequence: '1:2' is no range; write MIN:OPT:MAX"),
        ({"axes": {"sequence": "8:4:16"}}, "--axis sequence: 8:4:16 is not ascending"),
        ({"metric": "f1"}, "metric 'f1' is not known; give accuracy or module:function"),
        ({"preprocess": "imagenette"}, "--preprocess"),
        ({"postprocess": "softmin"}, "'softmin' is not known; give softmax, topk:5"),
        ({"objective": "speed"}, "--objective: Input should be 'latency' or 'throughput' (got 'speed')"),
        ({"limits": {"int4": 0.1}}, "--limit int4"),
        ({"limits": {"fp16": float("nan")}}, "--limit fp16: Input should be"),
        ({"limits": {"fp16": -1}}, "--limit fp16: Input should be greater than 0 (got -1)"),
        ({"name": None}, "--name"),
        ({"formats": ("onnx", "tflite")}, "--formats: format 'tflite' is not supported; supported: onnx, openvino"),
        ({"formats": ()}, "--formats: no format is asked for"),
        ({"name": "../m"}, "--name: model '../m' is not usable"),
        ({"version": "1/2"}, "--version: version '1/2' is not usable"),
        ({"max_batch": 0}, "--max-batch: Input should be greater than or equal to 1 (got 0)"),
        ({"threads": 0}, "--threads: Input should be greater than or equal to 1 (got 0)"),
        ({"batched": False, "max_batch": 8}, "max_batch 8 needs a batch dimension; drop it or drop --no-batch"),
        ({"samples": "none.npz"}, "--samples: none.npz is no file"),
        ({"numerics": "fp16"}, "--numerics: Input should be 'full', 'int8' or 'any' (got 'fp16')"),
        (
            {"numerics": "int8"},
            "numerics 'int8' needs an artifact of that class; the precisions fp32, fp16, bf16 make only full",
        ),
        (
            {"numerics": "full", "precisions": ("int8",), "source": "module:factory"},
            "numerics 'full' needs an artifact of that class",
        ),
        ({"precison": "fp32"}, "precison is not known; did you mean precisions?"),
    ],
)
def test_bad_value_is_named_with_the_way_out(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Recipe.of(**(GOOD | values))


def test_defaults_are_those_of_the_command_line() -> None:
    recipe = Recipe.of(**GOOD)
    assert recipe.formats == ("onnx", "openvino", "tensorrt")
    assert (recipe.max_batch, recipe.batched, recipe.version, recipe.objective) == (32, True, None, "throughput")
    assert recipe.threads >= 1
    assert [f"{format}-{precision}" for format, precision in recipe.matrix] == [
        *("onnx-fp32", "onnx-fp16"),
        *("openvino-fp32", "openvino-fp16", "openvino-bf16"),
        *("tensorrt-fp32", "tensorrt-fp16"),
    ]


def test_a_limit_of_ones_own_widens_the_figures_that_go_with_it() -> None:
    recipe = Recipe.of(**GOOD, limits={"int8": 0.1})
    limits = recipe.limits_of("int8")
    assert limits.relative_l2 == 0.1
    assert limits.worst_row == pytest.approx(0.6)
    assert limits.cosine < LIMITS["int8"].cosine
    assert recipe.limits_of("fp16") == LIMITS["fp16"]


def test_a_recipe_file_says_the_same_with_paths_from_its_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", x=np.zeros((2, 3), np.float32))
    np.save(tmp_path / "labels.npy", np.zeros(2, np.int64))
    (tmp_path / "recipe.toml").write_text(
        """
        source = "model.onnx"
        name = "m"
        store = "store"
        precisions = ["fp32", "int8"]
        labels = "labels.npy"
        metric = "metrics.py:f1"
        numerics = "int8"
        samples = "real.npz"
        preprocess = "imagenet"
        [axes]
        sequence = "1:64:256"
        [limits]
        int8 = 0.1
        fp32 = 0.01
        """
    )
    others = {"limits": {"int8": "0.2"}, "axes": {"width": "1:2:3"}}
    recipe = Recipe.from_file(tmp_path / "recipe.toml", name="other", **others)
    assert recipe.limits == {"int8": 0.2, "fp32": 0.01}
    assert list(recipe.axes) == ["sequence", "width"]
    assert recipe.metric == f"{tmp_path}/metrics.py:f1"
    assert (recipe.source, recipe.store) == (str(tmp_path / "model.onnx"), str(tmp_path / "store"))
    assert (recipe.name, recipe.precisions, recipe.samples) == ("other", ("fp32", "int8"), tmp_path / "real.npz")
    assert recipe.axes["sequence"].opt == 64
    assert recipe.preprocess is not None
    assert recipe.numerics == "int8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source = ", "recipe.toml: not a readable recipe"),
        (
            'source = "m.onnx"\nname = "m"\nstore = "s"\nprecison = 1',
            "recipe.toml: precison is not known; did you mean precisions?",
        ),
        ('name = "m"\nstore = "s"', "recipe.toml: --source: Field required"),
    ],
)
def test_a_recipe_file_that_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Recipe.from_file(tmp_path / "recipe.toml")


def test_asked_for_precisions_that_a_format_does_not_have_are_told() -> None:
    asked = Recipe.of(**GOOD, precisions="fp32,bf16")
    assert asked.not_made == (
        "onnx-bf16 is not made: ONNX Runtime has no bf16 kernels for CPUs, and on GPUs fp16 takes its place",
        "tensorrt-bf16 is not made: on GPUs fp16 takes its place",
    )
    assert Recipe.of(**GOOD).not_made == ()
    assert Recipe.of(**GOOD, formats="openvino", precisions="fp32,bf16").not_made == ()


def test_what_is_wrong_in_no_field_alone_is_no_fault_of_a_recipe() -> None:
    with pytest.raises(ConfigError, match="^metric 'f1' is not known"):
        Recipe.of(**GOOD, metric="f1")


def test_one_text_lists_as_on_the_command_line() -> None:
    assert Recipe.of(**GOOD, formats="onnx, openvino").formats == ("onnx", "openvino")


def test_repeated_formats_are_built_once() -> None:
    assert Recipe.of(**GOOD, formats=("onnx", "onnx")).formats == ("onnx",)
