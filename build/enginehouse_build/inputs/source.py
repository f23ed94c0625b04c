"""What a build starts from: a torch factory (`package.module:factory`, `path/to/file.py:factory`) or an ONNX file."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from enginehouse.contract.errors import BuildError, ExportFailed
from enginehouse.contract.tensors import Tensors
from enginehouse_build.inputs.functions import check_there, load_function
from enginehouse_build.inputs.held import ranges

#: Where torch keeps layers whose weights are packed for its own kernels.
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")

#: Kinds of layers that a remark names.
_NAMED = 3

ExampleInputs: TypeAlias = Mapping[str, torch.Tensor] | Sequence[torch.Tensor] | torch.Tensor


@dataclass(frozen=True)
class ModelSource:
    """What a factory returns: a trained module, what one call of it looks like, and real data.

    - `inputs`: example tensors: a mapping from input name to tensor, or tensors in the order of `forward`'s arguments,
      which then name them.
    - `outputs`: names of the outputs (default `output`, or `output_0`, `output_1`, ...; `result` where an input has
      that name; a module that returns a mapping names its own).
    - `axes`: names of free dimensions besides the batch, by input and dimension: `{"input_ids": {1: "sequence"}}`.
      Dimensions of one name always have the same extent. `ranges` gives `(min, opt, max)` for each name.
    - `samples`: numpy arrays by input name that artifacts are compared on: rows along dim 0, or one whole request for
      a build without a batch. `labels`: one for each row of `samples`.
    - `metric`: "accuracy", or a function of a module `(outputs by name, labels) -> float`, larger being better.
    - `calibration`: like `samples`, for the ranges of int8; default `samples`. Other rows than those of the metric
      make the metric an honest one.
    - `preprocess`, `postprocess`: what to put around the module in the graph, as the options of the same name. The
      samples are then what comes before the pre-processing.
    - `files`: files that the factory reads in ways Python cannot see (safetensors maps them, say), so that a change of
      them is noticed. Environment variables are not watched: build with `--fresh` after changing one.
    """

    module: torch.nn.Module
    inputs: ExampleInputs
    outputs: Sequence[str] | None = None
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    samples: Mapping[str, np.ndarray] | None = None
    labels: np.ndarray | None = None
    metric: str | Callable[[Tensors, np.ndarray], float] | None = None
    calibration: Mapping[str, np.ndarray] | None = None
    preprocess: str | None = None
    postprocess: str | None = None
    files: Sequence[Path | str] = ()


class TorchModel:
    """A ModelSource made definite: eval mode, inputs by name in the order of `forward`, outputs by name.

    `remarks` say what that changes.
    """

    def __init__(self, source: ModelSource) -> None:
        """Raises ExportFailed for inputs that do not fit `forward`, and when the module fails on its own example."""
        self.source = source
        module = _exportable(source.module)
        self.remarks = _put_to_rest(module)
        self.module = module.eval()
        self.inputs = _named_inputs(source.inputs, self.module)
        self._wanted = tuple(source.outputs) if source.outputs is not None else None
        try:
            outputs = self._call(list(self.inputs.values()))
        except ExportFailed:
            raise
        except Exception as error:
            ids = {name: each.numpy(force=True) for name, each in self.inputs.items() if not each.is_floating_point()}
            held = f"; {ranges(ids)}" if ids else ""
            why = f"{type(error).__name__}: {error}{held}"
            raise ExportFailed(f"the module fails on its example inputs ({', '.join(self.inputs)}): {why}") from error
        self.outputs = tuple(outputs)
        for what, found in (("input", self.inputs), ("output", outputs)):
            _check_tensors(what, found)
        if both := sorted(self.inputs.keys() & outputs.keys()):
            raise ExportFailed(
                f"an input and an output are both called {both[0]!r}; name the outputs with ModelSource(outputs=[...])"
            )

    def __call__(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """The torch answer to numpy inputs, by output name: what every artifact is compared with."""
        # torch warns about arrays it may not write to; a copy is cheaper than the doubt.
        tensors = [torch.from_numpy(np.array(inputs[name])) for name in self.inputs]
        return {name: tensor.detach().cpu().numpy() for name, tensor in self._call(tensors).items()}

    def _call(self, tensors: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return _named_outputs(self.module(*tensors), self._wanted, self.inputs.keys())


def load_source(text: str) -> TorchModel | Path:
    """Resolve SOURCE: the torch model its factory makes, or the path of an ONNX file.

    Raises BuildError when nothing is there, and ExportFailed when what is there is no usable model.
    """
    if text.endswith(".onnx"):
        check_there("source", text)
        return Path(text)
    return TorchModel(_made_by(text, load_function(text, "source")))


def _made_by(text: str, factory: Callable[[], object]) -> ModelSource:
    try:
        made = factory()
    except Exception as error:
        raise BuildError(f"source {text!r}: the factory raised {type(error).__name__}: {error}") from error
    if isinstance(made, tuple) and len(made) == 2:
        made = ModelSource(*made)
    if isinstance(made, ModelSource) and isinstance(made.module, torch.nn.Module):
        return made
    raise BuildError(
        f"source {text!r}: the factory returned {type(made).__name__}; return enginehouse_build.ModelSource "
        "or (torch.nn.Module, example inputs)"
    )


def _exportable(module: torch.nn.Module) -> torch.nn.Module:
    """`module`, out of what spreads it over devices. Raises ExportFailed for what is compiled or quantized already."""
    while isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        module = module.module
    if isinstance(module, torch.jit.ScriptModule):
        raise ExportFailed(
            "the module is TorchScript (torch.jit.script, trace or load), which torch does not export; return the "
            "nn.Module that it was made from, its weights set with load_state_dict(scripted.state_dict())"
        )
    for name, part in module.named_modules():
        if type(part).__module__.startswith(_QUANTIZED) and hasattr(part, "_packed_params"):
            raise ExportFailed(
                f"{name or 'the module'} ({type(part).__name__}) is quantized by torch already, which torch does not "
                "export; return the module as it was before: enginehouse quantizes it with --precisions int8"
            )
    return module


def _put_to_rest(module: torch.nn.Module) -> tuple[str, ...]:
    """A remark where parts of `module` are in training mode and would answer otherwise than they are built."""
    parts = Counter(type(part).__name__ for part in module.modules() if part.training and _trains(part))
    if not parts:
        return ()
    kinds = [f"{name} ({count})" if count > 1 else name for name, count in parts.most_common()]
    named = ", ".join(kinds[:_NAMED]) + (" and others" if len(kinds) > _NAMED else "")
    return (
        f"the factory's module is in training mode, in which {named} may answer otherwise: it is built in eval mode, "
        "as module.eval() makes it",
    )


def _trains(part: torch.nn.Module) -> bool:
    """Whether a layer does something else in training mode, its own parts aside."""
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p > 0
    if isinstance(part, nn.modules.batchnorm._NormBase):
        # Without these it takes the statistics of its input in either mode.
        return part.track_running_stats
    if isinstance(part, nn.RNNBase | nn.MultiheadAttention):
        return part.dropout > 0
    if isinstance(part, nn.RReLU):
        return True
    code = getattr(type(part).forward, "__code__", None)
    return code is not None and not type(part).__module__.startswith("torch.nn.") and "training" in code.co_names


def _check_tensors(what: str, found: Mapping[str, torch.Tensor]) -> None:
    """Raises ExportFailed for tensors that no request can carry."""
    for name, tensor in found.items():
        if tensor.dtype == torch.bfloat16:
            raise ExportFailed(
                f"{what} {name!r} is bfloat16, which ONNX Runtime neither takes nor gives in a request; return "
                "module.float() with float32 inputs (--precisions bf16 makes an engine of it that computes in bfloat16)"
            )
        if tensor.is_complex():
            raise ExportFailed(
                f"{what} {name!r} is complex, and requests carry real numbers; wrap the module in one that "
                "has torch.view_as_real of it"
            )


def _named_inputs(inputs: ExampleInputs, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    by_keyword = [
        parameter.name
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    ]
    if by_keyword:
        raise ExportFailed(
            f"forward takes {', '.join(by_keyword)} by keyword only; wrap the module in one whose forward takes "
            f"({', '.join(by_keyword)}) and hands them on by name"
        )
    arguments = [
        parameter.name
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, Mapping):
        names = arguments + [f"input_{index}" for index in range(len(arguments), len(inputs))]
        inputs = dict(zip(names, inputs, strict=False))
    elif set(inputs) <= set(arguments):
        inputs = {name: inputs[name] for name in arguments if name in inputs}
        if list(inputs) != arguments[: len(inputs)]:
            raise ExportFailed(
                f"example inputs {', '.join(inputs)} skip an argument of forward({', '.join(arguments)})"
            )
    if not inputs:
        raise ExportFailed("there are no example inputs; give at least one tensor")
    for name, tensor in inputs.items():
        if not isinstance(tensor, torch.Tensor):
            raise ExportFailed(f"example input {name!r} is a {type(tensor).__name__}; give a torch.Tensor")
    return dict(inputs)


def _named_outputs(result: object, wanted: tuple[str, ...] | None, inputs: Set[str]) -> dict[str, torch.Tensor]:
    if isinstance(result, torch.Tensor):
        found = {"result" if "output" in inputs else "output": result}
    elif isinstance(result, Mapping):
        found = {str(name): value for name, value in result.items()}
    elif isinstance(result, tuple | list):
        stem = "output" if inputs.isdisjoint(f"output_{index}" for index in range(len(result))) else "result"
        found = {f"{stem}_{index}": value for index, value in enumerate(result)}
    else:
        raise ExportFailed(
            f"the module returns {type(result).__name__!r}; return a tensor, a tuple or a mapping of tensors (wrap the "
            "module in one that does)"
        )
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise ExportFailed(
                f"output {name!r} is a {type(value).__name__}; every output must be a tensor (wrap the module in one "
                "that returns them flat)"
            )
    if wanted is None:
        return found
    if len(wanted) != len(found):
        raise ExportFailed(f"the module has {len(found)} outputs, but {len(wanted)} names: {', '.join(wanted)}")
    return dict(zip(wanted, found.values(), strict=True))
