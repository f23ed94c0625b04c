"""The reference of a build: the fp32 ONNX model, its signature, real requests, and what it should answer to them.

Made once, in a process of its own, into a folder that all later steps read:

    model.onnx          one self-contained file, pre- and post-processing included
    requests.npz        what artifacts are compared on, and answers.npz, what the source itself says to that
    probes.npz          requests with values that samples rarely have, and what model.onnx says to them
    samples.npz         rows to measure latency and the task metric with, and labels.npy
    calibration.npz     rows that int8 takes its ranges from; only real ones
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx as onnx_format

from enginehouse.contract import probes, tensor_file
from enginehouse.contract.bundle import sha256_of
from enginehouse.contract.errors import BuildError, ExportFailed
from enginehouse.contract.manifest import Axis
from enginehouse.contract.signature_record import with_free_dims
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.graph.pixels import Pixels
from enginehouse_build.inputs import samples as sampling
from enginehouse_build.inputs.metric import check_labels, metric_name, score
from enginehouse_build.inputs.opened import OpenedFiles
from enginehouse_build.inputs.postprocess import Postprocess
from enginehouse_build.inputs.postprocess import of as postprocess_of
from enginehouse_build.inputs.preprocess import Preprocess
from enginehouse_build.inputs.recipe import AxisRange, Recipe
from enginehouse_build.reference.adopt import adopt
from enginehouse_build.reference.onnx import finish, plain_session
from enginehouse_build.reference.probes import make as make_probes
from enginehouse_build.reference.proof import asked, prove_dynamic
from enginehouse_build.reference.scores import prove_scores

MODEL = "model.onnx"
REQUESTS = "requests.npz"
ANSWERS = "answers.npz"
PROBES = "probes.npz"
SAMPLES = "samples.npz"
LABELS = "labels.npy"
CALIBRATION = "calibration.npz"

#: Rounding alone makes equal rows differ by less than this share of their magnitude.
_SAME = 1e-6

if TYPE_CHECKING:
    from enginehouse_build.inputs.source import TorchModel

Run = Callable[[Tensors], Mapping[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class TaskMetric:
    """The metric's name, and its value for the reference on `rows` labelled rows."""

    name: str
    value: float
    rows: int


@dataclass(frozen=True, slots=True)
class Reference:
    """What is known about the reference besides its files.

    `origin` says what gave the answers and to what; `depends` are the digests of all files that it was made from.
    """

    signature: Signature
    axes: tuple[Axis, ...]
    max_rows: int
    origin: str
    remarks: tuple[str, ...]
    preprocess: str
    postprocess: str
    metric: TaskMetric | None
    depends: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Core:
    """The model without pre- and post-processing: how the source itself answers, and names of its free dimensions."""

    run: Run
    answered_by: str
    batched: bool
    names: Mapping[tuple[str, int], str]
    ranges: Mapping[str, AxisRange]
    remarks: tuple[str, ...] = ()


def make_reference(folder: Path, recipe: Recipe) -> Reference:
    """Load the source, write the files above into `folder`, and prove that the batch is dynamic.

    Raises BuildError for a source or samples that cannot be used, ExportFailed for a model that cannot be exported.
    """
    # torch takes seconds to import, and only this step needs it.
    from enginehouse_build.inputs.source import TorchModel, load_source

    opened = OpenedFiles()
    source = load_source(recipe.source)
    model = folder / MODEL
    core = _from_torch(source, recipe, model) if isinstance(source, TorchModel) else _from_file(source, recipe, model)
    given = source.source if isinstance(source, TorchModel) else None
    before = recipe.preprocess or (Preprocess.of(given.preprocess) if given and given.preprocess else None)
    after = recipe.postprocess or (postprocess_of(given.postprocess) if given and given.postprocess else None)
    signature, run, pixels = _wrapped(core, model, before, after)
    max_rows = recipe.max_rows if signature.batched else 1

    real, asked_with = _real_samples(recipe, given.samples if given else None)
    axes = _axes(signature, core, real)
    # Samples have to pass the same door as requests.
    door = with_free_dims(signature, axes, core.ranges)
    rows = sampling.made_up(signature, axes) if real is None else sampling.checked(real, door, asked_with)
    exported = plain_session(model, recipe.threads)
    if signature.batched:
        prove_dynamic(exported, run, rows, axes, core.ranges)
        prove_scores(onnx_format.load(model), rows, folder, recipe.threads)
    requests = sampling.requests(rows, signature, max_rows, axes)
    answers = [asked(run, request) for request in requests]
    tensor_file.write(folder / REQUESTS, requests)
    tensor_file.write(folder / ANSWERS, answers)
    tensor_file.write(folder / SAMPLES, [rows])
    probes.write(folder / PROBES, make_probes(exported, onnx_format.load(model), rows, signature))
    calibration = _calibration(recipe, given.calibration if given else None, real, door)
    if calibration is not None:
        tensor_file.write(folder / CALIBRATION, sampling.calibration(calibration, signature, max_rows))
    labels = sampling.read_labels(recipe.labels) if recipe.labels else given.labels if given else None
    if labels is not None and real is None:
        raise BuildError("there are labels and no samples that they are for; give --samples FILE.npz")
    wanted = recipe.metric or (given.metric if given else None) or ("accuracy" if labels is not None else None)
    metric = None
    if wanted is not None:
        metric = _metric(metric_name(wanted), labels, rows, run, max_rows if signature.batched else None, folder)
    depends = [*opened.files(), *(Path(file).resolve() for file in (given.files if given else ()))]
    return Reference(
        signature=signature,
        axes=axes,
        max_rows=max_rows,
        origin=f"compared with {core.answered_by} on {asked_with}",
        remarks=(*core.remarks, *_doubts(real is not None, metric, answers, signature)),
        preprocess=pixels.describe() if pixels else "",
        postprocess=after.describe() if after else "",
        metric=metric,
        depends={str(file): sha256_of(file) for file in depends if not file.is_relative_to(folder.resolve())},
    )


def in_batches(run: Run, rows: Tensors, max_rows: int | None) -> Mapping[str, np.ndarray]:
    """The answers to all `rows`, asked `max_rows` at a time; None is for models without a batch: all at once."""
    if max_rows is None:
        return run(rows)
    count = min(len(array) for array in rows.values())
    answers = [
        run({name: array[start : start + max_rows] for name, array in rows.items()})
        for start in range(0, count, max_rows)
    ]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def _from_torch(source: TorchModel, recipe: Recipe, path: Path) -> _Core:
    from enginehouse_build.reference.export import export

    own = {name: AxisRange(min=low, opt=opt, max=high) for name, (low, opt, high) in source.source.ranges.items()}
    ranges = own | recipe.axes
    signature = export(source, path, batched=recipe.batched, max_batch=recipe.max_batch, ranges=ranges)
    have = {spec.name for spec in signature.inputs + signature.outputs}
    wanted = {*source.inputs, *source.outputs}
    if have != wanted:
        raise ExportFailed(
            f"the exported model has the tensors {', '.join(sorted(have))} instead of {', '.join(sorted(wanted))}: "
            "an input that does not reach any output, or an output that is an input, cannot be exported"
        )
    names = {(name, dim): axis for name, dims in source.source.axes.items() for dim, axis in dims.items()}
    return _Core(source, "torch", recipe.batched, names, ranges)


def _from_file(source: Path, recipe: Recipe, path: Path) -> _Core:
    adopted = adopt(source, path, batched=recipe.batched)
    names = {
        (name, dim): text
        for name, dims in adopted.dim_names.items()
        for dim, text in enumerate(dims)
        if text and not (adopted.signature.batched and dim == 0)
    }
    run = plain_session(path, recipe.threads)
    told = "ONNX Runtime without graph fusions"
    return _Core(run, told, adopted.signature.batched, names, recipe.axes, adopted.remarks)


def _wrapped(
    core: _Core, path: Path, before: Preprocess | None, after: Postprocess | None
) -> tuple[Signature, Run, Pixels | None]:
    """Put pre- and post-processing into the file at `path`; the signature, and how the whole should answer."""
    model = onnx_format.load(path)
    run, pixels = core.run, None
    if before is not None:
        pixels = before.fit(model)
        model, run = pixels.attach(model), _after_pixels(pixels.input, pixels.reference, run)
    if after is not None:
        model, run = after.attach(model), _then(run, after.reference)
    return finish(model, path, core.batched), run, pixels


def _after_pixels(name: str, reference: Callable[[np.ndarray], np.ndarray], run: Run) -> Run:
    return lambda inputs: run({**inputs, name: reference(inputs[name])})


def _then(run: Run, reference: Callable[[Tensors], dict[str, np.ndarray]]) -> Run:
    return lambda inputs: reference(run(inputs))


def _real_samples(recipe: Recipe, given: Mapping[str, np.ndarray] | None) -> tuple[dict[str, np.ndarray] | None, str]:
    if recipe.samples is not None:
        return sampling.read_samples(recipe.samples, "--samples"), f"samples of {recipe.samples.name}"
    if given is not None:
        return dict(given), "samples of the factory"
    return None, f"random samples (seed {sampling.SEED})"


def _calibration(
    recipe: Recipe,
    given: Mapping[str, np.ndarray] | None,
    real: Mapping[str, np.ndarray] | None,
    signature: Signature,
) -> Mapping[str, np.ndarray] | None:
    if recipe.calibration is not None:
        rows = sampling.read_samples(recipe.calibration, "--calibration")
        return sampling.checked(rows, signature, f"--calibration {recipe.calibration}")
    return real if given is None else sampling.checked(given, signature, "the factory's calibration")


def _axes(signature: Signature, core: _Core, real: Mapping[str, np.ndarray] | None) -> tuple[Axis, ...]:
    """Every free dimension but the batch that has a range, declared or the extent it has in the samples."""
    found: dict[str, list[tuple[str, int]]] = {}
    for spec in signature.inputs:
        for dim, extent in enumerate(spec.shape):
            if extent is None and not (signature.batched and dim == 0):
                found.setdefault(core.names.get((spec.name, dim), f"{spec.name}.{dim}"), []).append((spec.name, dim))
    if unknown := sorted(core.ranges.keys() - found.keys()):
        have = ", ".join(found) or "none"
        raise BuildError(f"--axis {unknown[0]}: the model has no free dimension of that name; it has {have}")
    axes = []
    for name in sorted(found, key=lambda name: (name not in core.ranges, [*core.ranges, name].index(name))):
        dims = found[name]
        if name in core.ranges:
            extents = core.ranges[name]
            axes.append(Axis(name=name, min=extents.min, opt=extents.opt, max=extents.max, dims=tuple(dims)))
        elif real is not None and (extent := _extent(real, dims)) is not None:
            if not extent:
                raise BuildError(
                    f"the samples have no values along {name!r} (dimension {dims[0][1]} of input {dims[0][0]!r}): with "
                    "an extent of 0 nothing that flows through it is compared; give samples of a later call, whose "
                    "past is not empty"
                )
            axes.append(Axis(name=name, min=extent, opt=extent, max=extent, dims=tuple(dims)))
    return tuple(axes)


def _doubts(
    is_real: bool, metric: TaskMetric | None, answers: Sequence[Tensors], signature: Signature
) -> tuple[str, ...]:
    """Remarks for all that makes an agreement with this reference say less than it seems."""
    remarks = [] if is_real else ["parity is checked on made-up inputs only: give real ones with --samples FILE.npz"]
    if metric is not None and metric.value <= 0:
        remarks.append(f"{metric.name} of the reference itself is {metric.value:g}: are these the right labels?")
    largest = max(answers, key=lambda answer: len(np.atleast_1d(next(iter(answer.values())))))
    for name, array in largest.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        if not np.isfinite(array).all():
            share = 1 - np.isfinite(array).mean()
            remarks.append(f"{share:.0%} of the reference's values of output {name!r} are not finite numbers")
        elif signature.batched and len(array) > 1:
            spread = np.abs(array - array[:1]).max(initial=0)
            if spread <= _SAME * np.abs(array).max(initial=0):
                remarks.append(
                    f"output {name!r} is the same for all samples (to {_SAME:.0e}), so parity says little about it"
                )
    return tuple(remarks)


def _extent(samples: Mapping[str, np.ndarray], dims: Sequence[tuple[str, int]]) -> int | None:
    name, dim = dims[0]
    array = samples.get(name)
    return None if array is None or array.ndim <= dim else int(array.shape[dim])


def _metric(
    name: str, labels: np.ndarray | None, rows: Tensors, run: Run, max_rows: int | None, folder: Path
) -> TaskMetric:
    if labels is None:
        raise BuildError(f"metric {name!r} needs labels: give --labels FILE.npy or ModelSource(labels=...)")
    count = min(len(array) for array in rows.values())
    check_labels(name, labels, count)
    np.save(folder / LABELS, labels)
    return TaskMetric(name, score(name, in_batches(run, rows, max_rows), labels), count)
