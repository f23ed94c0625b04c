"""Numbers that a torch module refuses are refused at the door, whatever its graph would make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.manifest import Axis
from enginehouse.contract.tensors import Domain, Signature, TensorSpec
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.inputs.source import ModelSource, TorchModel
from enginehouse_build.reference.domains import with_refusals
from enginehouse_build.reference.reference import make_reference

TABLE = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
OFFSETS = torch.tensor([0, 10, 0, 10, 0, 10])

#: What is made of `ids` and `x`, and the domain of the ids; None where every number has an answer, or none always has.
MADE: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], Domain | None]] = {
    "one_hot": (lambda ids, x: F.one_hot(ids, 7), Domain(0, 7)),
    "one_hot of numbers from 1 on": (lambda ids, x: F.one_hot(ids - 1, 7), Domain(1, 8)),
    "gather": (lambda ids, x: x.gather(1, ids), Domain(0, 6)),
    "index_select": (lambda ids, x: TABLE.index_select(0, ids.flatten()).reshape(*ids.shape, 3), Domain(0, 20)),
    "scatter_add": (lambda ids, x: torch.zeros(len(x), 300).scatter_add(1, ids, x), Domain(0, 300)),
    "an index counts from the end": (lambda ids, x: x[torch.arange(len(x))[:, None], ids], Domain(-6, 6)),
    "an embedding with a norm": (lambda ids, x: F.embedding(ids, TABLE.clone(), max_norm=1.0), Domain(0, 20)),
    "an embedding bag": (lambda ids, x: F.embedding_bag(ids, TABLE), Domain(0, 20)),
    # Places look into parts of one table.
    "a table for each place": (lambda ids, x: TABLE[ids + OFFSETS], None),
    "an index that is taken modulo the length": (lambda ids, x: torch.take_along_dim(x, ids, 1), None),
    "numbers": (lambda ids, x: x * ids, None),
    "compared": (lambda ids, x: torch.where(ids > 3, x, 0.0), None),
    "clamped": (lambda ids, x: x.gather(1, ids.clamp(0, 5)), None),
    "a remainder": (lambda ids, x: TABLE[ids % 20], None),
    # One side alone is no range.
    "clamped on one side": (lambda ids, x: x.gather(1, ids.clamp(max=5)), None),
}


class Of(torch.nn.Module):
    def __init__(self, made: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.made = made

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.made(ids, x)


@pytest.mark.parametrize("most", [1024, 2**63])
@pytest.mark.parametrize("name", MADE)
def test_a_module_is_asked_for_the_numbers_that_it_takes(name: str, most: int) -> None:
    made, domain = MADE[name]
    samples = {"ids": np.arange(1, 7).reshape(1, 6) % 6 + np.zeros((3, 1), np.int64), "x": np.ones((3, 6), np.float32)}
    if name == "one_hot of numbers from 1 on":
        samples["ids"] += 1
    model = TorchModel(ModelSource(Of(made), {key: torch.from_numpy(array) for key, array in samples.items()}))
    signature = Signature(tuple(TensorSpec(key, array.dtype, (None, 6)) for key, array in samples.items()), ())
    found = with_refusals(signature, model, samples, (), most)
    assert [spec.domain for spec in found.inputs] == [domain, None]


def test_a_range_that_follows_from_a_free_extent_is_none() -> None:
    samples = {"ids": np.zeros((3, 6), np.int64), "x": np.ones((3, 6), np.float32)}
    model = TorchModel(
        ModelSource(Of(lambda ids, x: x.gather(1, ids)), {key: torch.from_numpy(each) for key, each in samples.items()})
    )
    signature = Signature(tuple(TensorSpec(key, array.dtype, (None, None)) for key, array in samples.items()), ())
    axes = (Axis(name="length", dims=(("ids", 1), ("x", 1)), min=2, opt=6, max=12),)
    found = with_refusals(signature, model, samples, axes, 2**63)
    assert [spec.domain for spec in found.inputs] == [None, None]


def test_a_range_that_follows_from_another_input_is_none() -> None:
    samples = {"ids": np.zeros((3, 6), np.int64), "x": np.ones((3, 1), np.int64)}
    inputs = {key: torch.from_numpy(each) for key, each in samples.items()}
    model = TorchModel(ModelSource(Of(lambda ids, x: F.embedding(ids + 10 * x, TABLE)), inputs))
    signature = Signature(
        tuple(TensorSpec(key, each.dtype, (None, each.shape[1])) for key, each in samples.items()), ()
    )
    found = with_refusals(signature, model, samples, (), 2**63)
    assert found.inputs[0].domain is None


_FACTORY = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def forward(self, ids):
        return F.one_hot(ids, 7).float().cumsum(1)

def make():
    return Net(), torch.randint(0, 7, (4, 6))
"""


def test_the_door_of_a_built_module_refuses_what_the_module_refuses(tmp_path: Path) -> None:
    source = tmp_path / "factory.py"
    source.write_text(_FACTORY)
    made = make_reference(tmp_path, Recipe.of(source=f"{source}:make", name="m", store=str(tmp_path), threads=1))
    for number in (-1, 7):
        with pytest.raises(InvalidInput, match=f"'ids' has the value {number} at .* takes 0 to 6"):
            made.signature.check({"ids": np.full((1, 6), number)})
