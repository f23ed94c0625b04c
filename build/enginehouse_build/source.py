"""What a build starts from: a torch factory (`package.module:factory`, `path/to/file.py:factory`) or an ONNX file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np
import torch

from enginehouse.errors import BuildError, ExportFailed
from enginehouse.tensors import Tensors

ExampleInputs: TypeAlias = Mapping[str, torch.Tensor] | Sequence[torch.Tensor] | torch.Tensor


@dataclass(frozen=True)
class ModelSource:
    """What a factory returns: a trained module and what one call of it looks like.

    `inputs` are example tensors: a mapping from input name to tensor, or tensors in the order of `forward`'s
    arguments, which then name them. `outputs` names the outputs (default `output`, or `output_0`, `output_1`, ...; a
    module that returns a mapping names its own). `samples` are numpy arrays by input name, real data that artifacts
    are compared on: rows along dim 0, or one whole request for a build without a batch.
    """

    module: torch.nn.Module
    inputs: ExampleInputs
    outputs: Sequence[str] | None = None
    samples: Mapping[str, np.ndarray] | None = None


class TorchModel:
    """A ModelSource made definite: eval mode, inputs by name in the order of `forward`, outputs by name."""

    def __init__(self, source: ModelSource) -> None:
        """Raises ExportFailed for inputs that do not fit `forward`, and when the module fails on its own example."""
        self.module = source.module.eval()
        self.inputs = _named_inputs(source)
        self.samples = source.samples
        self._wanted = tuple(source.outputs) if source.outputs is not None else None
        try:
            self.outputs = tuple(self._call(list(self.inputs.values())))
        except ExportFailed:
            raise
        except Exception as error:
            raise ExportFailed(
                f"the module fails on its example inputs ({', '.join(self.inputs)}): {type(error).__name__}: {error}"
            ) from error

    def __call__(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """The torch answer to numpy inputs, by output name: what every artifact is compared with."""
        # torch warns about arrays it may not write to; a copy is cheaper than the doubt.
        tensors = [torch.from_numpy(np.array(inputs[name])) for name in self.inputs]
        return {name: tensor.detach().cpu().numpy() for name, tensor in self._call(tensors).items()}

    def _call(self, tensors: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return _named_outputs(self.module(*tensors), self._wanted)


def load_source(text: str) -> TorchModel | Path:
    """Resolve SOURCE: the torch model its factory makes, or the path of an ONNX file.

    Raises BuildError when nothing is there, and ExportFailed when what is there is no usable model.
    """
    if text.endswith(".onnx"):
        path = Path(text)
        if not path.is_file():
            raise BuildError(f"source {text!r}: no such file (looked at {path.resolve()})")
        return path
    where, _, factory = text.rpartition(":")
    if not where or not factory.isidentifier():
        raise BuildError(
            f"source {text!r} is not known; give package.module:factory, path/to/file.py:factory or FILE.onnx"
        )
    module = _module_from_file(text, Path(where)) if where.endswith(".py") else _module_by_name(text, where)
    function = getattr(module, factory, None)
    if not callable(function):
        callables = sorted(
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        )
        raise BuildError(
            f"source {text!r}: {where} has no function {factory!r}; it has {', '.join(callables) or 'none'}"
        )
    return TorchModel(_made_by(text, function))


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
        f"source {text!r}: the factory returned {type(made).__name__}; return enginehouse_build.source.ModelSource "
        "or (torch.nn.Module, example inputs)"
    )


def _module_by_name(text: str, name: str) -> ModuleType:
    # An installed command does not look into the current directory as `python -m` does.
    _importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise BuildError(
            f"source {text!r}: cannot import {name!r}: {type(error).__name__}: {error}; "
            "run from the folder that contains it, or give path/to/file.py:factory"
        ) from error


def _module_from_file(text: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise BuildError(f"source {text!r}: no such file (looked at {path.resolve()})")
    _importable(path.resolve().parent)
    name = f"enginehouse_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise BuildError(f"source {text!r}: Python cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and torch's exporter look a class's module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BuildError(f"source {text!r}: {path} raised {type(error).__name__}: {error}") from error
    return module


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _named_inputs(source: ModelSource) -> dict[str, torch.Tensor]:
    arguments = [
        parameter.name
        for parameter in inspect.signature(source.module.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    inputs = source.inputs
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


def _named_outputs(result: object, wanted: tuple[str, ...] | None) -> dict[str, torch.Tensor]:
    if isinstance(result, torch.Tensor):
        found = {"output": result}
    elif isinstance(result, Mapping):
        found = {str(name): value for name, value in result.items()}
    elif isinstance(result, tuple | list):
        found = {f"output_{index}": value for index, value in enumerate(result)}
    else:
        raise ExportFailed(
            f"the module returns a {type(result).__name__}; return a tensor, a tuple or a mapping of tensors"
        )
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise ExportFailed(f"output {name!r} is a {type(value).__name__}; every output must be a tensor")
    if wanted is None:
        return found
    if len(wanted) != len(found):
        raise ExportFailed(f"the module has {len(found)} outputs, but {len(wanted)} names: {', '.join(wanted)}")
    return dict(zip(wanted, found.values(), strict=True))
