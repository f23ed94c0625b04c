"""A branch on an extent: an exported model has but one, so that it is refused where the module takes the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from enginehouse.contract.errors import ExportFailed
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.reference.reference import make_reference

_FACTORY = """
import torch
from torch import nn
from torch.nn import functional as F
from enginehouse_build import ModelSource

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 4)
        self.rnn = nn.LSTM(3, 3, batch_first=True)

    def forward(self, x):
        # Of [rows, L, W, 3].
        {line}
        return self.linear(x.mean((1, 2)))

def make():
    return ModelSource(
        Net(), {{"x": torch.randn(2, 24, 16, 3)}},
        axes={{"x": {{1: "L", 2: "W"}}}}, ranges={{"L": (8, 24, 80), "W": (8, 16, 40)}},
    )

class Steps(Net):
    def forward(self, x):
        {line}
        return self.linear(x.mean(0, keepdim=True))

def steps():
    return ModelSource(Steps(), {{"x": torch.randn(24, 3)}}, axes={{"x": {{0: "L"}}}}, ranges={{"L": (8, 24, 80)}})
"""
#: A line of `forward`, where the exported model is wrong, and the condition that is named.
WRONG = {
    "pad if odd": ("if x.shape[1] % 2: x = torch.cat([x, x[:, -1:]], 1)", "at L = 9", "(L % 2) == 0"),
    "pad to tiles": (
        "rest = x.shape[2] % 8\n        if rest: x = F.pad(x, (0, 0, 0, 8 - rest))", "at W = 9", "(W % 8) == 0",
    ),
    "cut from a length on": ("if x.shape[1] > 40: x = x[:, :40]", "at L = 41", "L <= 40"),
    "one length only": ("if x.shape[1] == 37: x = x * 2", "at L = 37", "L != 37"),
    "one rest of many": ("if x.shape[1] % 29 == 20: x = x * 2", "at L = 20", "(L % 29) != 20"),
    "of two extents": ("if x.shape[1] > x.shape[2] + 20: x = x * 2", "at L = ", "L"),
    "of their product": ("if x.shape[1] * x.shape[2] % 13 == 7: x = x * 2", "at ", "% 13) == 7"),
    "of squares": ("if x.shape[1] == x.shape[2]: x = x * 2", "at L = 16", "L != W"),
    "of the batch": ("if x.shape[0] == 7: x = x * 2", "with 7 rows", "the rows of a batch != 7"),
    "of a large batch": ("if x.shape[0] > 12: x = x * 2", "with 13 rows", "the rows of a batch <= 12"),
}  # fmt: skip
#: Much like them, and right at all extents that the module itself takes.
RIGHT = {
    "padded without a branch": "x = F.pad(x, (0, 0, 0, -x.shape[2] % 8))",
    "no other answer": "x = x + 0 if x.shape[1] % 2 else x",
    "the module refuses others": "x = x.reshape(x.shape[0], x.shape[1] // 8, 8, x.shape[2], 3).mean(2)",
    "asserted": "assert x.shape[1] % 8 == 0",
    "a range that is no limit": "x = x * 2 if x.shape[1] > 4 else x",
    "a recurrence": "x = self.rnn(x[:, :, 0])[0][:, :, None]",
}


def export(folder: Path, line: str, factory: str = "make", **values: Any) -> None:
    source = folder / "net.py"
    source.write_text(_FACTORY.format(line=line), encoding="utf-8")
    recipe = Recipe.of(source=f"{source}:{factory}", name="m", store=str(folder), threads=1, **values)
    make_reference(folder, recipe)


@pytest.mark.parametrize("kind", WRONG)
def test_a_branch_that_was_not_exported_is_named_with_the_extent_and_the_way_out(tmp_path: Path, kind: str) -> None:
    line, where, condition = WRONG[kind]
    with pytest.raises(ExportFailed) as caught:
        export(tmp_path, line)
    said = str(caught.value)
    assert said.startswith(where), said
    assert "the exported model differs from torch: output 'output' differs by" in said
    assert "an exported model has but one: that where " in said
    assert condition in said.partition("that where ")[2]
    # The advice is about this branch and no other.
    advice = said.partition(". ")[2]
    step = re.search(r"% (\d+)\) == 0$", condition)
    assert ("F.pad by 0 pads nothing" in advice) == bool(step)
    assert set(re.findall(r"\d+", advice)) <= ({step.group(1), "0"} if step else set()), advice
    assert ("Compute each row alike" in advice) == ("rows" in where)
    assert "--max-batch ROWS" in said if "rows" in where else "=MIN:OPT:MAX" in said


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_right_at_all_extents_that_the_module_takes_is_exported(tmp_path: Path, kind: str) -> None:
    export(tmp_path, RIGHT[kind], **({"axes": {"L": "8:24:80"}} if "refuses" in kind or kind == "asserted" else {}))


def test_the_way_out_is_one(tmp_path: Path) -> None:
    line = WRONG["cut from a length on"][0]
    export(tmp_path, line, axes={"L": "8:24:40"})


@pytest.mark.parametrize(
    ("line", "is_right"), [("x = torch.tanh(x)", True), ("if x.shape[0] % 2: x = torch.cat([x, x[-1:] * 9])", False)]
)
def test_so_is_the_first_dimension_without_a_batch(tmp_path: Path, line: str, is_right: bool) -> None:
    if is_right:
        export(tmp_path, line, "steps", batched=False)
        return
    with pytest.raises(ExportFailed, match="at L = 9 the exported model differs from torch"):
        export(tmp_path, line, "steps", batched=False)
