"""From torch: names, a batch that is proven dynamic, and refusals that say what to change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginehouse.contract import tensor_file
from enginehouse.contract.errors import BuildError, ExportFailed
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.reference.onnx import plain_session
from enginehouse_build.reference.reference import ANSWERS, MODEL, REQUESTS, SAMPLES, Reference, make_reference
from enginehouse_build.steps.provenance import is_current

MODULES = Path(__file__).with_name("modules.py")


def reference_of(folder: Path, factory: str, **values: Any) -> Reference:
    source = f"{MODULES}:{factory}"
    return make_reference(folder, Recipe.of(source=source, name="m", store=str(folder), threads=1, **values))


def test_example_of_one_row_still_gives_a_free_batch(tmp_path: Path) -> None:
    reference = reference_of(tmp_path, "plain")
    assert [str(spec) for spec in reference.signature.inputs] == ["x: FP32[*,2,3]"]
    assert [str(spec) for spec in reference.signature.outputs] == ["output: FP32[*,4]"]
    assert "random samples (seed 0)" in reference.origin


def test_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    reference = reference_of(tmp_path, "two_faced")
    assert [spec.name for spec in reference.signature.inputs] == ["left", "right"]
    assert [spec.name for spec in reference.signature.outputs] == ["total", "product"]
    run = plain_session(tmp_path / MODEL, 1)
    answer = run({"left": np.full((1, 3), 2, np.float32), "right": np.full((1, 3), 5, np.float32)})
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


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("drops", r"drops values at random \(native_dropout, .*modules.py line \d+ in forward\).*self.training"),
        ("noisy", r"draws random numbers \(randn_like, .*modules.py line \d+ in forward\)"),
        ("counts", r"changes its buffer 'calls' in forward, .*modules.py line \d+ in forward: .*keeps no state"),
        ("batch_statistics", r"the statistics of the batch \(.*modules.py line \d+ in forward\).*--no-batch"),
    ],
)
def test_what_keeps_a_module_from_answering_alike_is_named_by_line(tmp_path: Path, factory: str, message: str) -> None:
    with pytest.raises(ExportFailed, match=message):
        reference_of(tmp_path, factory)


def test_what_rests_in_eval_mode_is_no_fault(tmp_path: Path) -> None:
    assert reference_of(tmp_path, "at_rest").signature.batched


def test_samples_must_fit_the_signature(tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", x=np.zeros((4, 2, 5), np.float32))
    with pytest.raises(BuildError, match=r"wrong.npz: input 'x' has shape \[4, 2, 5\]; the model wants \[\*, 2, 3\]"):
        reference_of(tmp_path, "plain", samples=tmp_path / "wrong.npz")


def test_given_samples_are_used_and_recorded(tmp_path: Path) -> None:
    rows = np.arange(18, dtype=np.float32).reshape(3, 2, 3)
    np.savez(tmp_path / "mine.npz", x=rows)
    reference = reference_of(tmp_path, "plain", samples=tmp_path / "mine.npz")
    np.testing.assert_array_equal(tensor_file.read(tmp_path / SAMPLES)[0]["x"], rows)
    assert reference.origin == "compared with torch on samples of mine.npz"


def test_a_name_that_the_exporter_uses_inside_is_kept_for_the_output(tmp_path: Path) -> None:
    reference = reference_of(tmp_path, "embedding")
    assert [str(spec) for spec in reference.signature.outputs] == ["embedding: FP32[*,*,4]"]


def test_named_axes_are_free_in_their_range_and_asked_at_several_sizes(tmp_path: Path) -> None:
    reference = reference_of(tmp_path, "embedding", max_batch=4)
    (axis,) = reference.axes
    assert (axis.name, axis.min, axis.opt, axis.max, axis.dims) == ("words", 2, 6, 20, (("words", 1),))
    requests, answers = tensor_file.read(tmp_path / REQUESTS), tensor_file.read(tmp_path / ANSWERS)
    shapes = {request["words"].shape for request in requests}
    assert {(1, 6), (2, 6), (4, 6), (2, 2), (2, 20)} <= shapes
    assert all(
        answer["embedding"].shape == (*request["words"].shape, 4)
        for request, answer in zip(requests, answers, strict=True)
    )


def test_a_range_may_be_narrowed_and_must_name_a_free_dimension(tmp_path: Path) -> None:
    (axis,) = reference_of(tmp_path, "embedding", axes={"words": "3:5:8"}).axes
    assert (axis.min, axis.opt, axis.max) == (3, 5, 8)
    with pytest.raises(BuildError, match="--axis length: the model has no free dimension of that name; it has words"):
        reference_of(tmp_path, "embedding", axes={"length": "3:5:8"})


def test_pixels_go_in_where_a_preprocessing_is_declared(tmp_path: Path) -> None:
    reference = reference_of(tmp_path, "pictures")
    assert [str(spec) for spec in reference.signature.inputs] == ["image: UINT8[*,8,8,3]"]
    assert [str(spec) for spec in reference.signature.outputs] == [
        "output_scores: FP32[*,2]",
        "output_indices: INT64[*,2]",
    ]
    assert "0.485" in reference.preprocess
    assert "2 best" in reference.postprocess


def test_files_that_the_factory_reads_are_known(tmp_path: Path) -> None:
    (tmp_path / "factory.py").write_text(
        "import pathlib, torch\n"
        "here = pathlib.Path(__file__).parent\n"
        "from beside import scale\n"
        "def make():\n"
        "    weights = float((here / 'weights.txt').read_text())\n"
        "    return torch.nn.Threshold(weights, scale), torch.ones(2, 3)\n"
    )
    (tmp_path / "beside.py").write_text("scale = 2.0\n")
    (tmp_path / "weights.txt").write_text("0.5")
    (tmp_path / "made").mkdir()
    recipe = Recipe.of(source=f"{tmp_path}/factory.py:make", name="m", store=str(tmp_path), threads=1)
    reference = make_reference(tmp_path / "made", recipe)
    assert {"factory.py", "beside.py", "weights.txt"} <= {Path(path).name for path in reference.depends}
    assert is_current(reference, recipe)
    (tmp_path / "weights.txt").write_text("0.25")
    assert not is_current(reference, recipe)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.onnx", "no such file"),
        ("nothing.py:factory", "no such file"),
        ("no_such_package.models:factory", "cannot import 'no_such_package.models'"),
        ("weights.pt", "give package.module:function, path/to/file.py:function, FILE.onnx or a recipe.toml"),
        (f"{MODULES}:missing", "has no function 'missing'; it has at_rest, baked, batch_statistics, by_keyword, "),
        (f"{MODULES}:not_a_model", "the factory returned str"),
        (f"{MODULES}:raises", "the factory raised FileNotFoundError: weights.pt"),
        (f"{MODULES}:by_keyword", "forward takes x by keyword only; wrap the module"),
        (f"{MODULES}:data_class", "the module returns 'Parts'; return a tensor, a tuple or a mapping of tensors (wrap"),
        (f"{MODULES}:nested", "output 'parts' is a dict; every output must be a tensor (wrap the module"),
        (f"{MODULES}:wrong_example", "the module fails on its example inputs (x)"),
    ],
)
def test_unusable_source_is_named_with_the_way_out(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(BuildError, match=re.escape(message)):
        make_reference(tmp_path, Recipe.of(source=source, name="m", store=str(tmp_path)))
