"""A module that comes in training mode is built in eval mode, and that is said where it makes a difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.inputs.source import ModelSource, TorchModel
from enginehouse_build.reference.reference import make_reference


class Reads(nn.Module):
    """Looks at its mode itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, training=self.training)


class Frozen(nn.Module):
    """Its normalisation was put to rest before, the rest of it was not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(6).eval(), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(x))


class Recurrent(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 6, num_layers=2, dropout=dropout, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.rnn(x[:, None])[0]
        return answer


class Attends(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(6, 2, dropout, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.mha(x[:, None], x[:, None], x[:, None])[0]
        return answer


#: Modules as they are made, and what of them is named.
MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1), nn.Dropout(0.2)), "Dropout (2)"),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.1)), "BatchNorm1d, Dropout"),
    "rrelu": (lambda: nn.Sequential(nn.RReLU()), "RReLU"),
    "of its own": (Reads, "Reads"),
    "some of it": (Frozen, "Dropout"),
    "an LSTM": (lambda: Recurrent(0.1), "LSTM"),
    "attention": (lambda: Attends(0.1), "MultiheadAttention"),
    "an encoder": (lambda: nn.TransformerEncoderLayer(6, 2, 8, 0.1), "Dropout (3), MultiheadAttention"),
    "of many kinds": (
        lambda: nn.Sequential(Reads(), nn.BatchNorm1d(6), nn.RReLU(), nn.Dropout(0.1), nn.Dropout(0.2)),
        "Dropout (2), Reads, BatchNorm1d and others",
    ),
    # No difference.
    "linear": (lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.LayerNorm(6)), ""),
    "dropout of nothing": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.0)), ""),
    "an LSTM without dropout": (lambda: Recurrent(0.0), ""),
    "attention without dropout": (lambda: Attends(0.0), ""),
    "an encoder without dropout": (lambda: nn.TransformerEncoderLayer(6, 2, 8, 0.0), ""),
    "instance norm": (lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2)), ""),
}


@pytest.mark.parametrize("is_parallel", [False, True])
@pytest.mark.parametrize("kind", MODULES)
def test_what_would_answer_otherwise_is_named_once(kind: str, is_parallel: bool) -> None:
    make, named = MODULES[kind]
    module = make()
    told = (
        f"the factory's module is in training mode, in which {named} may answer otherwise: it is built in eval mode, "
        "as module.eval() makes it"
    )
    source = ModelSource(nn.DataParallel(module) if is_parallel else module, torch.randn(4, 6))
    assert TorchModel(source).remarks == ((told,) if named else ())
    assert not any(part.training for part in module.modules())
    assert TorchModel(ModelSource(make().eval(), torch.randn(4, 6))).remarks == ()


def test_it_is_a_remark_of_the_build(tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text(
        "import torch\nfrom torch import nn\n\n"
        "def make():\n    return nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.1)), torch.randn(4, 6)\n"
    )
    made = make_reference(tmp_path, Recipe.of(source=f"{source}:make", name="m", store=str(tmp_path), threads=1))
    assert "in which BatchNorm1d, Dropout may answer otherwise: it is built in eval mode" in made.remarks[0]
