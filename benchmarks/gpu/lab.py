"""What a part has to work with, and the parts there are.

A part is a module of `benchmarks.gpu.parts` with `run(lab)`, which yields a row for each figure as soon as it has it:
what a crash or the bound cuts off is only what was not measured yet.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from enginehouse.contract.manifest import EngineKind

#: One line of a part's table: column -> value. `not run` is the column of what a figure is missing for.
Row: TypeAlias = dict[str, Any]
NOT_RUN = "not run"
_T = TypeVar("_T")


class NotRun(Exception):
    """A part or a figure that cannot be had here; the text is the reason."""


class Part(NamedTuple):
    """A part: the module's name, the seconds that it may take on a GPU, what it shows, and where the module is."""

    name: str
    seconds: float
    title: str
    package: str = "benchmarks.gpu.parts"


#: In this order, and within eight minutes together.
PARTS = (
    Part("probe", 20, "Driver, libraries and the rates of the hardware"),
    Part("build", 100, "Models that the store lacks"),
    Part("conformance", 45, "What every engine promises, and the names of the bindings"),
    Part("rivals", 85, "ResNet-50 on ONNX Runtime beside torch, and the roofline"),
    Part("parity", 30, "How far every precision is from fp32 on the CPU"),
    Part("latency", 50, "Latency by rows and precision"),
    Part("tuning", 35, "Settings of the CUDA provider"),
    Part("transfer", 35, "IO binding, pinned buffers, CUDA graphs, and copies beside computing"),
    Part("memory", 15, "Growth over 10,000 calls"),
    Part("tensorrt", 15, "TensorRT engines of the same models"),
    Part("served", 45, "Served by a router, a GPU and a CPU backend; the GPU replica is lost"),
)


@dataclass(frozen=True, slots=True)
class Lab:
    """`dry` is why there is no GPU, empty where there is one; `store` has the models; `threads` are for the CPU."""

    store: Path
    dry: str
    seconds: float
    threads: int

    @property
    def kind(self) -> EngineKind:
        """The engine that is measured: of a GPU, or its stand-in."""
        return "onnxruntime-cpu" if self.dry else "onnxruntime-cuda"

    @property
    def models(self) -> Sequence[str]:
        """The models that are measured, the cheapest first."""
        return ("digits", "encoder") if self.dry else ("digits", "encoder", "resnet50")

    @property
    def main(self) -> str:
        """The model whose cost is that of its arithmetic."""
        return "digits" if self.dry else "resnet50"

    def sized(self, gpu: _T, dry: _T) -> _T:
        """The one for this machine: a dry run does little of everything."""
        return dry if self.dry else gpu

    def need_gpu(self) -> None:
        """Raises NotRun without a GPU."""
        if self.dry:
            raise NotRun(f"no GPU: {self.dry}")


def tried(row: Row, figure: Callable[[], Row]) -> Row:
    """`row` with the columns of `figure`, or with why it could not be had: one setting that fails costs no other."""
    try:
        return row | figure()
    except NotRun as reason:
        return row | {NOT_RUN: str(reason)}
    except Exception as error:
        traceback.print_exc()
        said = str(error).strip().splitlines() or [""]
        return row | {NOT_RUN: f"{type(error).__name__}: {said[0][:200]}"}
