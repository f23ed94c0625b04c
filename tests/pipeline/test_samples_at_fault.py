"""A sample that a model refuses, or that is no number, is named: its input, its number, its values and the range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from enginehouse.contract.errors import BuildError, ExportFailed
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse_build.inputs.doubts import doubts
from enginehouse_build.inputs.held import not_finite, refused
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.reference.reference import Reference, make_reference

_FACTORY = """
import torch
from torch import nn
from torch.nn import functional as F
from enginehouse_build import ModelSource

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 3)
        self.places = nn.Embedding(50, 3, max_norm=1.0)

    def forward(self, ids, x):
        return {formula}

def make():
    return ModelSource(Net().eval(), {{"ids": torch.zeros(2, 4, dtype=torch.int64), "x": torch.zeros(2, 4, 3)}})
"""
#: What is made of the ids, and the smallest and the largest that torch takes.
RANGES = {
    "embedding": ("self.table(ids) + x", 0, 49),
    "embedding in the end": ("self.table(ids.flatten()).reshape(-1, 4, 3) + x", 0, 49),
    "index_select": ("self.table.weight.index_select(0, ids.flatten()).reshape(-1, 4, 3) + x", 0, 49),
    "indexing counts from the end": ("self.table.weight[ids] + x", -50, 49),
    # No graph shows these.
    "one_hot": ("F.one_hot(ids, 30).float() @ self.table.weight[:30] + x", 0, 29),
    "embedding with a norm": ("self.places(ids) + x", 0, 49),
    "gather": ("(x[:, 0, :1] + self.table.weight[:20, 0]).gather(1, ids)[:, :, None] + x", 0, 19),
}
#: What refuses some ids without a range that holds in each place.
REFUSED = {
    "a table for each place": "self.table(ids + torch.tensor([0, 10, 0, 10])) + x",
    "a sum": "self.table(ids.sum(1, keepdim=True)) + x",
}


def made(folder: Path, formula: str, samples: dict[str, np.ndarray] | None = None) -> Reference:
    source = folder / "net.py"
    source.write_text(_FACTORY.format(formula=formula))
    given = {}
    if samples is not None:
        np.savez(folder / "rows.npz", **samples)
        given["samples"] = folder / "rows.npz"
    return make_reference(
        folder, Recipe.of(source=f"{source}:make", name="m", store=str(folder), threads=1, max_batch=4, **given)
    )


def rows(count: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids, x = rng.integers(0, 8, (count, 4)), rng.standard_normal((count, 4, 3), dtype=np.float32)
    return {"ids": ids, "x": x}


@pytest.mark.parametrize("row", [0, 7])
@pytest.mark.parametrize("is_high", [False, True])
@pytest.mark.parametrize("kind", RANGES)
def test_an_id_out_of_range_is_named_with_the_range_that_torch_takes(
    kind: str, is_high: bool, row: int, tmp_path: Path
) -> None:
    formula, low, high = RANGES[kind]
    samples = rows()
    value = high + 1 if is_high else low - 3
    samples["ids"][row, 2] = value
    with pytest.raises(BuildError) as caught:
        made(tmp_path, formula, samples)
    said = f"in sample {row} input 'ids' has the value {value} at [2]; the model takes {low} to {high}"
    assert str(caught.value) == f"samples of rows.npz: {said}"


def test_how_many_more_samples_are_out_of_range_is_said(tmp_path: Path) -> None:
    samples = rows()
    samples["ids"][[3, 5, 9]] = 600
    with pytest.raises(BuildError, match=r"in sample 3 input 'ids' has the value 600 at \[0\]; .*, 2 other samples "):
        made(tmp_path, RANGES["embedding"][0], samples)


@pytest.mark.parametrize("kind", RANGES)
def test_ids_at_the_ends_are_taken(kind: str, tmp_path: Path) -> None:
    formula, low, high = RANGES[kind]
    samples = rows()
    samples["ids"][2] = [low, high, low, high]
    spec = made(tmp_path, formula, samples).signature.inputs[0]
    assert spec.domain is not None
    assert (spec.domain.low, spec.domain.high) == (low, high + 1)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("row", [0, 5])
def test_a_sample_that_torch_refuses_is_named_with_its_values_and_those_of_the_others(
    kind: str, row: int, tmp_path: Path
) -> None:
    samples = rows()
    samples["ids"][row] = 48
    with pytest.raises(BuildError) as caught:
        made(tmp_path, REFUSED[kind], samples)
    said = str(caught.value)
    assert said.startswith(f"samples of rows.npz: the model refuses sample {row}: IndexError: index out of range"), said
    assert f"in sample {row} input 'ids' has 48 to 48, in those that it takes input 'ids' has 0 to 7" in said
    assert "input 'x'" not in said


def test_made_up_inputs_that_torch_refuses_are_said_to_be_that(tmp_path: Path) -> None:
    with pytest.raises(
        BuildError, match=r"made-up inputs \(give real ones with --samples FILE.npz\): the model refuses"
    ):
        made(tmp_path, "self.table(ids + 49) + x")


def test_the_example_of_a_factory_is_refused_with_its_values(tmp_path: Path) -> None:
    with pytest.raises(
        ExportFailed, match=r"fails on its example inputs \(ids, x\): IndexError: .*; input 'ids' has 0 to 0"
    ):
        made(tmp_path, "self.table(ids - 1) + x", rows())


def test_whatever_a_model_refuses_it_for_a_sample_is_found() -> None:
    """Among any number of rows, wherever they are; what takes all, or none, is told apart."""
    rng = np.random.default_rng(1)
    for count in (1, 2, 31, 32, 33, 100):
        samples = {"x": rng.standard_normal((count, 2), dtype=np.float32), "text": np.array([b"a"] * count, object)}
        bad = set(rng.choice(count, int(rng.integers(0, min(count, 4))), replace=False).tolist())
        samples["x"][list(bad)] = 99

        def model(request: dict[str, np.ndarray]) -> None:
            if (request["x"] > 9).any():
                raise ValueError("too large")

        said = refused(model, samples, True, str)
        assert bool(said) == bool(bad)
        if bad and len(bad) < count:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            assert f"the model refuses sample {min(bad)}{more}: ValueError: too large; in sample {min(bad)}" in said
            assert "input 'x' has 99 to 99, in those that it takes" in said


def test_a_sample_that_is_nan_is_named_where_nothing_can_be_compared(tmp_path: Path) -> None:
    samples = rows()
    samples["x"][:] = np.nan
    with pytest.raises(
        ExportFailed, match=r"no finite value to compare .* sample 0 of input 'x' is NaN \(and 11 more\)$"
    ):
        made(tmp_path, RANGES["embedding"][0], samples)


def test_a_sample_with_nan_is_named_where_some_answers_are_not_finite(tmp_path: Path) -> None:
    samples = rows()
    samples["x"][4, 1] = np.nan
    remarks = made(tmp_path, RANGES["embedding"][0], samples).remarks
    assert any(each.endswith("are not finite numbers: sample 4 of input 'x' has NaN") for each in remarks), remarks


@pytest.mark.parametrize(
    ("value", "part", "said"),
    [
        (np.nan, (slice(None),), "sample 2 of input 'x' is NaN"),
        (np.nan, (1,), "sample 2 of input 'x' has NaN"),
        (np.inf, (slice(None),), "sample 2 of input 'x' is infinity"),
        (-np.inf, (0, 1), "sample 2 of input 'x' has infinity"),
        (1.0, (0,), ""),
    ],
)
def test_which_sample_is_no_number(value: float, part: tuple[int | slice, ...], said: str) -> None:
    x = np.zeros((4, 3, 2), np.float32)
    x[2, *part] = value
    samples = {"ids": np.zeros((4, 1), np.int64), "x": x}
    assert not_finite(samples) == said
    # Without a batch all of them are one request.
    whole = said.replace("sample 2 of input 'x'", "input 'x' of the samples").replace(" is ", " has ")
    assert not_finite(samples, batched=False) == whole
    spec = TensorSpec("y", np.dtype(np.float32), (None, 3, 2))
    (remark,) = doubts(True, None, [{"y": x + np.float32(np.nan)}], samples, Signature((spec,), (spec,)))
    assert remark.endswith(f"not finite numbers{': ' if said else ''}{said}")
