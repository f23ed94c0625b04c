"""The reference of a build: the fp32 ONNX model, its signature, what it should answer, and the data to ask it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from enginehouse.errors import BuildError, ExportFailed, InvalidInput
from enginehouse.tensors import Signature, Tensors, TensorSpec
from enginehouse_build.adopt import adopt
from enginehouse_build.export import export
from enginehouse_build.onnx import prove_dynamic
from enginehouse_build.recipe import Recipe
from enginehouse_build.source import TorchModel, load_source

SEED = 0
RANDOM_ROWS = 64


@dataclass(frozen=True, slots=True)
class Reference:
    """`onnx` is one self-contained file; `run` gives the fp32 answer by output name; `samples` fit the signature.

    `origin` says what `run` and `samples` are, for the manifest.
    """

    onnx: Path
    signature: Signature
    run: Callable[[Tensors], dict[str, np.ndarray]]
    samples: Tensors
    origin: str


def make_reference(recipe: Recipe, folder: Path) -> Reference:
    """Load the source, write its ONNX file into `folder`, and prove that the batch is dynamic.

    Raises BuildError for a source or samples that cannot be used, ExportFailed for a model that cannot be exported.
    """
    path = folder / "reference.onnx"
    source = load_source(recipe.source)
    given: Mapping[str, np.ndarray] | None = None
    run: Callable[[Tensors], dict[str, np.ndarray]]
    if isinstance(source, TorchModel):
        signature = export(source, path, batched=recipe.batched, max_batch=recipe.max_batch)
        run, answered_by, given = source, "torch", source.samples
        _check_names(source, signature)
    else:
        signature = adopt(source, path, batched=recipe.batched)
        run, answered_by = _onnx_runtime(path, recipe.threads), "ONNX Runtime without graph fusions"
    if recipe.samples is not None:
        samples, asked_with = _from_file(recipe.samples, signature), f"samples of {recipe.samples.name}"
    elif given is not None:
        samples, asked_with = _checked(given, signature, "the factory's samples"), "samples of the factory"
    else:
        samples, asked_with = _random(signature), f"random samples (seed {SEED})"
    exported = run if isinstance(source, Path) else _onnx_runtime(path, recipe.threads)
    if recipe.batched:
        prove_dynamic(exported, run, samples)
    return Reference(path, signature, run, samples, f"compared with {answered_by} on {asked_with}")


def _check_names(source: TorchModel, signature: Signature) -> None:
    wanted = {*source.inputs, *source.outputs}
    have = {spec.name for spec in signature.inputs + signature.outputs}
    if have != wanted:
        raise ExportFailed(
            f"the exported model has the tensors {', '.join(sorted(have))} instead of {', '.join(sorted(wanted))}: "
            "an input that does not reach any output, or an output that is an input, cannot be exported"
        )


def _onnx_runtime(path: Path, threads: int) -> Callable[[Tensors], dict[str, np.ndarray]]:
    # Not the serving engine: that one is what is being judged, with all its fusions on.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportFailed(f"ONNX Runtime cannot load the reference model: {error}") from error
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Tensors) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


def _from_file(path: Path, signature: Signature) -> Tensors:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError) as error:
        raise BuildError(f"--samples {path}: not a readable .npz of plain arrays: {error}") from None
    return _checked(arrays, signature, f"--samples {path}")


def _checked(samples: Tensors, signature: Signature, what: str) -> Tensors:
    try:
        signature.check(samples)
    except InvalidInput as error:
        raise BuildError(f"{what}: {error}") from None
    return dict(samples)


def _random(signature: Signature) -> Tensors:
    """Standard normal floats, bytes over their range, small non-negative integers: values most models accept."""
    generator = np.random.default_rng(SEED)
    return {spec.name: _random_array(spec, signature.batched, generator) for spec in signature.inputs}


def _random_array(spec: TensorSpec, batched: bool, generator: np.random.Generator) -> np.ndarray:
    free = [axis for axis, dim in enumerate(spec.shape) if dim is None and not (batched and axis == 0)]
    if free or spec.dtype.hasobject:
        why = "holds text" if spec.dtype.hasobject else f"has a free dimension {free[0]}"
        raise BuildError(f"input {spec.name!r} {why}, which cannot be guessed; give real data with --samples FILE.npz")
    shape = [RANDOM_ROWS if dim is None else dim for dim in spec.shape]
    if spec.dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(np.bool_)
    if spec.dtype.kind in "iu":
        return generator.integers(0, 256 if spec.dtype == np.uint8 else 2, shape).astype(spec.dtype)
    return generator.standard_normal(shape).astype(spec.dtype)
