"""Torch to ONNX: the module exported as the fp32 reference, with a free batch dimension."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxscript.optimizer
import torch

from enginehouse.errors import ExportFailed
from enginehouse.tensors import Signature
from enginehouse_build.onnx import PROOF_ROWS, finish, reason
from enginehouse_build.source import TorchModel

#: 17 silently becomes 18; from 23 on the exporter emits `Attention`, which TensorRT-RTX cannot build in fp32.
OPSET = 20


def export(model: TorchModel, path: Path, *, batched: bool, max_batch: int) -> Signature:
    """Write `model` as ONNX to `path`; dim 0 of every input and output is free when `batched`.

    Raises ExportFailed with the exporter's reason, or naming the tensor whose batch dimension is baked in.
    """
    examples = tuple(model.inputs.values())
    shapes: tuple[Mapping[int, Any], ...] | None = None
    if batched:
        examples = tuple(_two_rows(name, tensor) for name, tensor in model.inputs.items())
        batch = torch.export.Dim("batch", min=1, max=max(max_batch, *PROOF_ROWS))
        shapes = tuple({0: batch} for _ in examples)
    try:
        with _quiet():
            program = torch.onnx.export(
                model.module,
                examples,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=list(model.inputs),
                output_names=list(model.outputs),
                verbose=False,
            )
            if program is None:
                raise ExportFailed("torch's exporter returned nothing")
            # Passing the file to `export` itself writes weights to a second file even for small models.
            program.save(path, external_data=False)
            proto = onnxscript.optimizer.optimize(onnx.load(path))
    except ExportFailed:
        raise
    except Exception as error:
        raise ExportFailed(f"torch cannot export the module: {reason(error)}") from error
    return finish(proto, path, batched)


def _two_rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
    # torch.export specialises on sizes 0 and 1, so the example must have two rows at least.
    if tensor.dim() == 0:
        raise ExportFailed(f"example input {name!r} is a scalar: it has no batch dimension; build with --no-batch")
    return tensor[:2] if len(tensor) >= 2 else torch.cat([tensor, tensor])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs, warns and prints graphs even when all is well; what matters comes as an exception."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
