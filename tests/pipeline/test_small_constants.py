"""A constant that is almost 0 or almost 1 is in the exported graph, and does there what it does in the module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from enginehouse_build.inputs.source import ModelSource, TorchModel
from enginehouse_build.reference.export import export
from enginehouse_build.reference.onnx import plain_session

Formula = Callable[[torch.Tensor], torch.Tensor]

EPSILONS = (1e-6, 1e-8, 1e-9, 1e-12)
#: float32 knows nothing nearer to 1 than 6e-8.
NEAR_ONE = [1 + side * apart for apart in (1e-6, 1e-7) for side in (1, -1)]
ROWS = np.random.default_rng(0).uniform(0.1, 1, (4, 8))


def formulas() -> dict[str, tuple[Formula, float]]:
    """What is computed, and of which scale the input is that shows whether it is."""
    found: dict[str, tuple[Formula, float]] = {}
    for eps in EPSILONS:
        found |= {
            f"x + {eps}": (lambda x, e=eps: x + e, eps),
            f"{eps} + x": (lambda x, e=eps: e + x, eps),
            f"x - {eps}": (lambda x, e=eps: x - e, eps),
            f"{eps} - x": (lambda x, e=eps: e - x, eps),
            f"x + tensor {eps}": (lambda x, e=eps: x + torch.tensor([e], dtype=x.dtype), eps),
            f"log(x + {eps})": (lambda x, e=eps: torch.log(x + e), eps),
            f"x / (norm + {eps})": (lambda x, e=eps: x / (x.norm(dim=-1, keepdim=True) + e), eps),
            f"x * rsqrt(mean + {eps})": (lambda x, e=eps: x * torch.rsqrt(x.square().mean(-1, True) + e), eps**0.5),
            f"clamp {eps}": (lambda x, e=eps: 1 / x.clamp(min=e), eps),
        }
    for factor in NEAR_ONE:
        found |= {
            f"1 - 1 * {factor}": (lambda x, f=factor: 1 - (x - x + 1) * f, 1.0),
            f"1 - 1 / {factor}": (lambda x, f=factor: 1 - (x - x + 1) / f, 1.0),
            f"x ** {factor}": (lambda x, f=factor: x**f, 1e30),
        }
    # Ranges of two clips that do not overlap.
    found["clamp, clamp"] = (lambda x: x.clamp(0, 1).clamp(2, 3), 1.0)
    found["relu of clamp"] = (lambda x: torch.relu(x.clamp(-2, -1)), 1.0)
    return found


class Each(torch.nn.Module):
    """Every formula of an input of its own scale."""

    def __init__(self, made: dict[str, tuple[Formula, float]]) -> None:
        super().__init__()
        self.made = list(made.values())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(formula(x[:, at]) for at, (formula, _) in enumerate(self.made))


def test_constants_near_0_and_1_are_what_they_are_in_torch(tmp_path: Path) -> None:
    made = formulas()
    x = np.stack([(ROWS * scale).astype(np.float32) for _, scale in made.values()], axis=1)
    names = [f"y{at}" for at in range(len(made))]
    model = TorchModel(ModelSource(Each(made), {"x": torch.from_numpy(x[:2])}, names))
    path = tmp_path / "model.onnx"
    export(model, path, batched=True, max_batch=8, ranges={})
    got, want = plain_session(path, 1)({"x": x}), model({"x": x})
    dropped = {}
    for name, what in zip(names, made, strict=True):
        # The exponent itself is rounded, and of what is left of 1 nothing.
        rounding = 0 if "1 -" in what else 5e-6 if "**" in what else 1e-6
        if not np.allclose(got[name], want[name], rtol=rounding, atol=0):
            dropped[what] = got[name].ravel()[0], want[name].ravel()[0]
    assert not dropped
