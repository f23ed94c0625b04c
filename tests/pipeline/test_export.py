"""From torch: names, a batch that is proven dynamic, and refusals that say what to change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginehouse.errors import BuildError, ExportFailed
from enginehouse_build.recipe import Recipe
from enginehouse_build.reference import Reference, make_reference

MODULES = Path(__file__).with_name("modules.py")


def reference_of(folder: Path, factory: str, **values: Any) -> Reference:
    source = f"{MODULES}:{factory}"
    return make_reference(Recipe.of(source=source, name="m", store=str(folder), threads=1, **values), folder)


def test_example_of_one_row_still_gives_a_free_batch(tmp_path: Path) -> None:
    reference = reference_of(tmp_path, "plain")
    assert [str(spec) for spec in reference.signature.inputs] == ["x: FP32[*,2,3]"]
    assert [str(spec) for spec in reference.signature.outputs] == ["output: FP32[*,4]"]
    assert "random samples (seed 0)" in reference.origin


def test_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    reference = reference_of(tmp_path, "two_faced")
    assert [spec.name for spec in reference.signature.inputs] == ["left", "right"]
    assert [spec.name for spec in reference.signature.outputs] == ["total", "product"]
    answer = reference.run({"left": np.full((1, 3), 2, np.float32), "right": np.full((1, 3), 5, np.float32)})
    assert answer["total"].tolist() == [[7, 7, 7]]
    assert answer["product"].tolist() == [[10, 10, 10]]


def test_baked_batch_is_refused_naming_the_tensor_and_the_cause(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match=re.escape("input 'x' has a fixed batch: dim 0 of [2, 2, 3] is 2")) as caught:
        reference_of(tmp_path, "baked")
    assert "int(x.shape[0])" in str(caught.value)
    assert "--no-batch" in str(caught.value)


def test_baked_batch_is_fine_without_a_batch(tmp_path: Path) -> None:
    reference = reference_of(tmp_path, "baked", batched=False)
    assert not reference.signature.batched
    assert [str(spec) for spec in reference.signature.inputs] == ["x: FP32[1,2,3]"]


def test_control_flow_on_data_is_refused_with_the_exporters_reason(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match="data-dependent") as caught:
        reference_of(tmp_path, "data_dependent")
    assert "x.sum() > 0" in str(caught.value)
    assert len(str(caught.value)) < 800


def test_model_that_mixes_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match="a row that shares its batch"):
        reference_of(tmp_path, "mixes_rows")


def test_samples_must_fit_the_signature(tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", x=np.zeros((4, 2, 5), np.float32))
    with pytest.raises(BuildError, match=r"wrong.npz: input 'x' has shape \[4, 2, 5\]; the model wants \[\*, 2, 3\]"):
        reference_of(tmp_path, "plain", samples=tmp_path / "wrong.npz")


def test_given_samples_are_used_and_recorded(tmp_path: Path) -> None:
    rows = np.arange(18, dtype=np.float32).reshape(3, 2, 3)
    np.savez(tmp_path / "mine.npz", x=rows)
    reference = reference_of(tmp_path, "plain", samples=tmp_path / "mine.npz")
    np.testing.assert_array_equal(reference.samples["x"], rows)
    assert reference.origin == "compared with torch on samples of mine.npz"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.onnx", "no such file"),
        ("nothing.py:factory", "no such file"),
        ("no_such_package.models:factory", "cannot import 'no_such_package.models'"),
        ("weights.pt", "give package.module:factory"),
        (f"{MODULES}:missing", "has no function 'missing'; it has baked, data_dependent"),
        (f"{MODULES}:not_a_model", "the factory returned str"),
        (f"{MODULES}:raises", "the factory raised FileNotFoundError: weights.pt"),
        (f"{MODULES}:wrong_example", "the module fails on its example inputs (x)"),
    ],
)
def test_unusable_source_is_named_with_the_way_out(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(BuildError, match=re.escape(message)):
        make_reference(Recipe.of(source=source, name="m", store=str(tmp_path)), tmp_path)
