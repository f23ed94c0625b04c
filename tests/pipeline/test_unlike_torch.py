"""What the exporter writes otherwise than torch computes it is written anew, bound to where it is right, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from enginehouse.contract.bounds import Values, described
from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.manifest import Artifact
from enginehouse.contract.probes import found, read
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.inputs.source import ModelSource, TorchModel
from enginehouse_build.reference.export import export
from enginehouse_build.reference.onnx import plain_session
from enginehouse_build.reference.reference import MODEL, PROBES, make_reference

_FACTORY = """
import torch
from torch import nn
from torch.nn import functional as F
from enginehouse_build import ModelSource

class Net(nn.Module):
    def forward(self, x):
        return {formula}

def make():
    x = {samples}
    return ModelSource(Net(), {{"x": x[:2]}}, samples={{"x": x.numpy()}})
"""
FLOATS = "torch.randn(40, 6, generator=torch.Generator().manual_seed(0))"
IDS = "torch.randint(0, 100, (40, 6), generator=torch.Generator().manual_seed(0))"
ENDS = (0.0, 1.0, 8.0, 20.0, 100.0, 1e4, 1e30, 1e-30, np.inf)
ALL_ENDS = np.array([*ENDS, *(-end for end in ENDS)], np.float32)

ONE: dict[str, Callable[..., torch.Tensor]] = {"logsigmoid": F.logsigmoid}
TWO: dict[str, Callable[..., torch.Tensor]] = {"logaddexp": torch.logaddexp, "atan2": torch.atan2}


class Of(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor], two: bool) -> None:
        super().__init__()
        self.function, self.two = function, two

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.function(x, y) if self.two else self.function(x) + 0 * torch.nan_to_num(y, posinf=0, neginf=0)


@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_functions_are_exported_as_torch_has_them_to_the_ends_of_fp32(tmp_path: Path, name: str) -> None:
    x, y = (part.reshape(-1, 1) for part in np.meshgrid(ALL_ENDS, ALL_ENDS))
    if name == "atan2":
        x, y = (part[~(np.isinf(x) & np.isinf(y))].reshape(-1, 1) for part in (x, y))
    example = {"x": torch.ones(2, 1), "y": torch.ones(2, 1)}
    model = TorchModel(ModelSource(Of({**ONE, **TWO}[name], name in TWO), example))
    export(model, tmp_path / "m.onnx", batched=True, max_batch=32, ranges={})
    want, got = (run({"x": x, "y": y})["output"] for run in (model, plain_session(tmp_path / "m.onnx", 1)))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-30)


LEFT_OUT = "(0 if torch.compiler.is_exporting() else {})"
#: The formula, the samples, what is answered rightly and what has to be beyond the bounds of the exported model.
BOUND = {
    "quotients of whole numbers": ("torch.div(x, 10, rounding_mode='trunc')", IDS, 1 << 20, (1 << 40) + 7),
    "quotients that differ here and there": ("torch.div(x, 10, rounding_mode='trunc') % 64", IDS, 1 << 20, 2**29 + 7),
    "ids of buckets": ("torch.sin(torch.div(x, 10, rounding_mode='trunc') % 64 + 0.5)", IDS, 1 << 20, 2**29 + 7),
    "an end": ("torch.where((x > 1e38).all(1, True), 7, x) if torch.compiler.is_exporting() else x", FLOATS, 1, np.inf),
    "exponentials": ("torch.log(x.exp() + 1) if torch.compiler.is_exporting() else F.softplus(x)", FLOATS, 4, 100),
    "a limit": ("x.clamp(-40, 40) if torch.compiler.is_exporting() else x", FLOATS, 20, 50),
    "a hole": ("torch.where(x == 0, 7, x) if torch.compiler.is_exporting() else x", FLOATS, 1, 0),
    "a constant beside a length": (f"x / (x.norm(dim=-1, keepdim=True) + {LEFT_OUT.format(1e-9)})", FLOATS, 1, 1e-9),
    "a constant beside a mean": (f"x * ((x ** 2).mean(1, True) + {LEFT_OUT.format(1e-8)}).rsqrt()", FLOATS, 1, 1e-4),
    "a constant beside a sum": (f"x / (x.abs().sum(-1, True) + {LEFT_OUT.format(1e-6)})", FLOATS, 1, 1e-7),
    "a constant in a logarithm": (f"torch.log(x.abs() + {LEFT_OUT.format(1e-6)})", FLOATS, 1, 1e-7),
    "another NaN": ("torch.nan_to_num(x) if torch.compiler.is_exporting() else x", FLOATS, 1, np.nan),
}  # fmt: skip


def reference_of(folder: Path, formula: str, samples: str) -> None:
    source = folder / "net.py"
    source.write_text(_FACTORY.format(formula=formula, samples=samples), encoding="utf-8")
    make_reference(folder, Recipe.of(source=f"{source}:make", name="m", store=str(folder), threads=1))


@pytest.mark.parametrize("kind", BOUND)
def test_the_exported_model_is_bound_to_the_values_that_it_answers_as_torch_does(tmp_path: Path, kind: str) -> None:
    formula, samples, right, wrong = BOUND[kind]
    reference_of(tmp_path, formula, samples)
    artifact = Artifact(name="onnx-fp32", format="onnx", precision="fp32", status="ready")
    bounds, _ = found("onnxruntime-cpu", plain_session(tmp_path / MODEL, 1), artifact, read(tmp_path / PROBES))
    kinds = np.int64 if samples == IDS else np.float32
    beyond = [Values({"x": np.full((1, 6), value, kinds)}).beyond(bounds) for value in (right, wrong)]
    assert not beyond[0], described(bounds)
    assert beyond[1], described(bounds)


def test_what_differs_in_the_range_of_the_samples_is_refused(tmp_path: Path) -> None:
    # Each row of the samples begins with a 1, and strangers made of the others do not: a bound of size keeps none out.
    samples = f"torch.cat([torch.ones(40, 1), 0.3 * {FLOATS}], 1)"
    formula = "torch.where(x[:, :1] < 0, x + 1, x) if torch.compiler.is_exporting() else x"
    with pytest.raises(
        ExportFailed, match="output 'output' differs by .*torch's exporter writes an operator otherwise"
    ):
        reference_of(tmp_path, formula, samples)


@pytest.mark.parametrize(
    "formula",
    ["torch.softmax(x, 1)", "F.layer_norm(x, (6,))", "F.gelu(x)", "torch.topk(x, 3)[1]", "torch.logit(x.sigmoid())"],
)
def test_what_is_alike_up_to_rounding_is_bound_to_no_more_than_finite_values(tmp_path: Path, formula: str) -> None:
    reference_of(tmp_path, formula, FLOATS)
    artifact = Artifact(name="onnx-fp32", format="onnx", precision="fp32", status="ready")
    bounds, faults = found("onnxruntime-cpu", plain_session(tmp_path / MODEL, 1), artifact, read(tmp_path / PROBES))
    for value in (0.0, 1e-9, 1e-5, 0.01, 1.0, 100.0, 1e6):
        assert not Values({"x": np.full((1, 6), value, np.float32)}).beyond(bounds), (described(bounds), faults)
