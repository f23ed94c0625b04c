"""What is no plain float module is looked through, or refused by its name with the way out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from enginehouse.contract.errors import ExportFailed
from enginehouse_build.inputs.recipe import AxisRange
from enginehouse_build.inputs.source import ModelSource, TorchModel
from enginehouse_build.reference.export import export
from enginehouse_build.reference.module_faults import of_fast_path

X = torch.ones(4, 8)

#: These ways are old, and what is left behind by them is served all the same.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Named(Net):
    def forward(self, output: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.inner(output)


class Pair(Net):
    def forward(self, output_1: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return self.inner(output_1), output_1 + 1


class Mapped(Net):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"x": self.inner(x)}


class Ends(Net):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).to(self.dtype)


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear}, dtype=torch.qint8)


REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, torch.Tensor]], str]] = {
    "traced": (lambda: (torch.jit.trace(Net().eval(), X), X), "is TorchScript .*load_state_dict"),
    "scripted": (lambda: (torch.jit.script(Net()), X), "is TorchScript .*load_state_dict"),
    "quantized": (lambda: (quantized(), X), "inner .Linear. is quantized by torch already.*--precisions int8"),
    "in bfloat16": (lambda: (Net().bfloat16(), X.bfloat16()), "input 'x' is bfloat16.*module.float"),
    "out of bfloat16": (lambda: (Ends(torch.bfloat16), X), "output 'output' is bfloat16.*module.float"),
    "complex": (lambda: (Ends(torch.complex64), X), "output 'output' is complex.*view_as_real"),
    "one name": (lambda: (Mapped(), X), "both called 'x'; name the outputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_is_named_with_the_way_out(name: str) -> None:
    made, message = REFUSED[name]
    with pytest.raises(ExportFailed, match=message):
        TorchModel(ModelSource(*made()))


def test_an_axis_of_the_name_of_the_batch_is_refused(tmp_path: Path) -> None:
    model = TorchModel(ModelSource(nn.ReLU(), X, axes={"input": {1: "batch"}}, ranges={"batch": (1, 8, 16)}))
    ranges = {"batch": AxisRange(min=1, opt=8, max=16)}
    with pytest.raises(ExportFailed, match="an axis is called 'batch', .* name it otherwise"):
        export(model, tmp_path / "model.onnx", batched=True, max_batch=4, ranges=ranges)


@pytest.mark.parametrize(
    ("module", "outputs"),
    [(nn.DataParallel(Net()), ["output"]), (Named(), ["result"]), (Pair(), ["result_0", "result_1"])],
)
def test_wrappers_and_names_of_outputs_are_no_hindrance(module: nn.Module, outputs: list[str], tmp_path: Path) -> None:
    signature, _ = export(
        TorchModel(ModelSource(module, X)), tmp_path / "model.onnx", batched=True, max_batch=4, ranges={}
    )
    assert [spec.name for spec in signature.outputs] == outputs


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

    def forward(self, x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        return self.encoder(x, src_key_padding_mask=pad)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("padded", [True, False])
def test_the_fast_path_of_attention_is_named_where_it_answers_otherwise(padded: bool) -> None:
    pad = torch.arange(6)[None] >= (torch.tensor([[6], [4]]) if padded else torch.tensor([[6], [6]]))
    model = TorchModel(ModelSource(Padded(), {"x": torch.randn(2, 6, 8), "pad": pad}))
    said = of_fast_path(model, {name: tensor.numpy() for name, tensor in model.inputs.items()})
    assert ("set_fastpath_enabled(False)" in said) == padded
    assert torch.backends.mha.get_fastpath_enabled()
