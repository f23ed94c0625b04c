"""What keeps a torch module from answering each row always alike is named by line, in whatever way it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.contract.errors import ExportFailed
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.reference.reference import make_reference

_FACTORY = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)
        self.layer, self.group = nn.LayerNorm(6), nn.GroupNorm(2, 6)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x):
        {line}
        return self.linear(x)

def make():
    torch.manual_seed(0)
    return Net(), torch.randn(4, 6)
"""
RANDOM = "draws random numbers|drops values at random"
#: The line of `forward`, and what is said of it.
FAULTS = {
    "rand_like": ("x = x + torch.rand_like(x)", RANDOM),
    "randn": ("x = x + torch.randn(6)", RANDOM),
    "randint_like": ("x = x + torch.randint_like(x, 2)", RANDOM),
    "normal": ("x = torch.normal(x, torch.ones_like(x))", RANDOM),
    "bernoulli": ("x = x * torch.bernoulli(torch.full_like(x, 0.5))", RANDOM),
    "dropout": ("x = F.dropout(x, 0.3, training=True)", RANDOM),
    "rrelu": ("x = F.rrelu(x, training=True)", RANDOM),
    "batch norm": ("x = F.batch_norm(x, None, None, training=True)", "the statistics of the batch"),
    "batch norm without running statistics": ("x = self.norm(x)", "the statistics of the batch"),
    "added to": ("self.seen += x.mean(0)", "changes its buffer 'seen'"),
    "written into": ("self.seen[0] = x.mean()", "changes its buffer 'seen'"),
    "copied over": ("self.seen.copy_(x.mean(0))", "changes its buffer 'seen'"),
}
#: Much like them, and harmless.
HARMLESS = {
    "layer norm": "x = self.layer(x)",
    "group norm": "x = self.group(x)",
    "dropout at rest": "x = F.dropout(x, 0.3, training=self.training)",
    "dropout of nothing": "x = F.dropout(x, 0.0, training=True)",
    "batch norm with given statistics": "x = F.batch_norm(x, torch.zeros(6), torch.ones(6))",
    "a buffer that is read": "x = x + self.seen",
}


def made(line: str, folder: Path) -> None:
    (folder / "factory.py").write_text(_FACTORY.format(line=line))
    (folder / "made").mkdir()
    make_reference(
        folder / "made",
        Recipe.of(source=f"{folder}/factory.py:make", name="m", store=str(folder), threads=1, max_batch=4),
    )


@pytest.mark.parametrize("kind", FAULTS)
def test_the_line_at_fault_is_named_with_cause_and_way_out(kind: str, tmp_path: Path) -> None:
    line, cause = FAULTS[kind]
    with pytest.raises(
        ExportFailed, match=rf"the module .*({cause}).*factory.py line 15 in forward.*(use|leave|give) "
    ):
        made(line, tmp_path)


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_only_looks_like_it_is_exported(kind: str, tmp_path: Path) -> None:
    made(HARMLESS[kind], tmp_path)
    assert (tmp_path / "made" / "model.onnx").exists()
