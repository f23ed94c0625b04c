"""Recipes are refused before anything starts, naming the value and what would do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from enginehouse.errors import ConfigError
from enginehouse_build.recipe import Recipe

GOOD = {"source": "model.onnx", "name": "m", "store": "store"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precisions": ("fp16",)}, "--precisions: precision 'fp16' is not supported; supported: fp32"),
        ({"formats": ("onnx", "tflite")}, "--formats: format 'tflite' is not supported; supported: onnx, openvino"),
        ({"formats": ()}, "--formats: no format is asked for"),
        ({"name": "../m"}, "--name: model '../m' is not usable"),
        ({"version": "1/2"}, "--version: version '1/2' is not usable"),
        ({"max_batch": 0}, "--max-batch: Input should be greater than or equal to 1 (got 0)"),
        ({"threads": 0}, "--threads: Input should be greater than or equal to 1 (got 0)"),
        ({"batched": False, "max_batch": 8}, "max_batch 8 needs a batch dimension; drop it or drop --no-batch"),
        ({"samples": "none.npz"}, "--samples: none.npz is no file"),
        ({"precison": "fp32"}, "--precison: Extra inputs are not permitted"),
    ],
)
def test_bad_value_is_named_with_the_way_out(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Recipe.of(**(GOOD | values))


def test_defaults_are_those_of_the_command_line() -> None:
    recipe = Recipe.of(**GOOD)
    assert recipe.formats == ("onnx", "openvino", "tensorrt")
    assert (recipe.precisions, recipe.max_batch, recipe.batched, recipe.version) == (("fp32",), 32, True, None)
    assert recipe.threads >= 1


def test_repeated_formats_are_built_once() -> None:
    assert Recipe.of(**GOOD, formats=("onnx", "onnx")).formats == ("onnx",)
