"""The reference of a build: the fp32 ONNX model, its signature, real requests, and what it should answer to them.

Made once, in a process of its own, into a folder that all later steps read:

    model.onnx          one self-contained file, pre- and post-processing included
    requests.npz        what artifacts are compared on, and answers.npz, what the source itself says to that
    probes.npz          requests with values that samples rarely have, and what model.onnx says to them
    samples.npz         rows to measure latency and the task metric with, and labels.npy
    calibration.npz     rows that int8 takes its ranges from; only real ones
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx as onnx_format

from enginehouse.contract import probes, tensor_file
from enginehouse.contract.bundle import sha256_of
from enginehouse.contract.errors import ConfigError, ExportFailed
from enginehouse.contract.manifest import Axis
from enginehouse.contract.signature_record import Padding, with_free_dims
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.graph.pixels import Pixels
from enginehouse_build.inputs import samples as sampling
from enginehouse_build.inputs.doubts import doubts
from enginehouse_build.inputs.given import Given, read_given
from enginehouse_build.inputs.held import named
from enginehouse_build.inputs.last_words import telling
from enginehouse_build.inputs.metric import score
from enginehouse_build.inputs.opened import OpenedFiles
from enginehouse_build.inputs.padding import paddings
from enginehouse_build.inputs.postprocess import Postprocess
from enginehouse_build.inputs.postprocess import of as postprocess_of
from enginehouse_build.inputs.preprocess import Preprocess
from enginehouse_build.inputs.recipe import AxisRange, Recipe
from enginehouse_build.reference import preflight
from enginehouse_build.reference.adopt import adopt
from enginehouse_build.reference.adopt.trial import unvaried
from enginehouse_build.reference.axes import axes_of, ranges_of, with_free_outputs
from enginehouse_build.reference.branches import Branch
from enginehouse_build.reference.conditioning import Rounding
from enginehouse_build.reference.crowds.wide import Apart, prove_wide
from enginehouse_build.reference.domains import with_refusals, without_refused
from enginehouse_build.reference.likeness import Asked, Likeness
from enginehouse_build.reference.onnx import one_by_one, plain_session, reason
from enginehouse_build.reference.probes import make as make_probes
from enginehouse_build.reference.proof import asked, company_requests, prove_dynamic, prove_rewritten
from enginehouse_build.reference.scores import prove_scores
from enginehouse_build.reference.strangers import SMALL_SIZE, Door
from enginehouse_build.reference.wrapping import Run, fitting, wrap

MODEL = "model.onnx"
REQUESTS = "requests.npz"
ANSWERS = "answers.npz"
PROBES = "probes.npz"
SAMPLES = "samples.npz"
LABELS = "labels.npy"
CALIBRATION = "calibration.npz"

if TYPE_CHECKING:
    from enginehouse_build.inputs.source import TorchModel


@dataclass(frozen=True, slots=True)
class TaskMetric:
    """The metric's name, and its value for the reference on `rows` labelled rows."""

    name: str
    value: float
    rows: int


@dataclass(frozen=True, slots=True)
class Reference:
    """What is known about the reference besides its files.

    `origin` says what gave the answers and to what; `calibrated` whether there are rows for int8; `depends` are the
    digests of all files that it was made from; `paddings` are ways to make rows equally long that are worth proving.
    """

    signature: Signature
    axes: tuple[Axis, ...]
    max_rows: int
    origin: str
    remarks: tuple[str, ...]
    preprocess: str
    postprocess: str
    metric: TaskMetric | None
    calibrated: bool
    depends: Mapping[str, str]
    paddings: tuple[Padding, ...] = ()


@dataclass(frozen=True, slots=True)
class _Core:
    """The model without pre- and post-processing: how the source itself answers, and names of its free dimensions.

    `converted` and `unvaried` are those of `Adopted`; with `rewritten`, `run` is another graph than the reference's,
    with `branches`, which may be empty, a torch module: what it does elsewhere than where these hold is not exported.
    """

    run: Run
    answered_by: str
    batched: bool
    names: Mapping[tuple[str, int], str]
    ranges: Mapping[str, AxisRange]
    remarks: tuple[str, ...] = ()
    converted: str = ""
    unvaried: tuple[str, ...] = ()
    rewritten: bool = False
    branches: tuple[Branch, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Proven:
    """The reference as it is served, what was asked of it, and how the source answers that."""

    signature: Signature
    door: Signature
    axes: tuple[Axis, ...]
    rows: Tensors
    run: Run
    exported: Run
    pixels: Pixels | None
    requests: list[dict[str, np.ndarray]]
    answers: list[Tensors]
    likeness: Likeness
    apart: Apart


def make_reference(folder: Path, recipe: Recipe) -> Reference:
    """Load the source, write the files above into `folder`, and prove that the batch is dynamic.

    Raises BuildError for a source or samples that cannot be used, ExportFailed for a model that cannot be exported.
    """
    # torch takes seconds to import, and only this step needs it.
    from enginehouse_build.inputs.source import TorchModel, load_source
    from enginehouse_build.reference.module_faults import of_fast_path

    opened = OpenedFiles()
    with telling(f"{recipe.source} was loaded"):
        source = load_source(recipe.source)
    own = source.source if isinstance(source, TorchModel) else None
    given = read_given(recipe, own)
    model = folder / MODEL
    if isinstance(source, TorchModel):
        preflight.of_module(source, recipe, given)
        core = _from_torch(source, recipe, model)
    else:
        preflight.of_file(source, recipe, given)
        core = _from_file(source, recipe, model)
    before = recipe.preprocess or (Preprocess.of(own.preprocess) if own and own.preprocess else None)
    after = recipe.postprocess or (postprocess_of(own.postprocess) if own and own.postprocess else None)
    try:
        proven = _proven(core, model, recipe, given, before, after)
    except ExportFailed as error:
        if isinstance(source, TorchModel):
            raise ExportFailed(f"{error}{of_fast_path(source, given.samples)}") from error
        if not core.converted:
            raise
        # What the conversion made of the file is not what it was: then it is served as it is.
        core = _from_file(source, recipe, model, as_it_is=reason(error))
        try:
            proven = _proven(core, model, recipe, given, before, after)
        except ConfigError:
            # It has to be converted for what is put around it.
            raise error from None
    signature, axes, rows, run = proven.signature, proven.axes, proven.rows, proven.run
    max_rows = proven.apart.rows
    answers = proven.answers
    tensor_file.write(folder / REQUESTS, proven.requests)
    tensor_file.write(folder / ANSWERS, answers)
    tensor_file.write(folder / SAMPLES, [rows])
    proto = onnx_format.load(model)
    with telling("the model was asked for values that the samples do not have"):
        made = make_probes(proven.exported, proto, rows, signature, max_rows)
        if core.branches is not None:
            made = Asked(proven.likeness).probes(made, Door.of(proto, signature.inputs))
    probes.write(folder / PROBES, made)
    if given.calibration is not None:
        calibration = fitting(given.calibration, proven.door, given.calibration_from, proven.pixels)
        tensor_file.write(folder / CALIBRATION, sampling.calibration(calibration, signature, max_rows))
    metric = None
    if given.metric is not None and given.labels is not None:
        np.save(folder / LABELS, given.labels)
        with named(run, rows, signature.batched, given.samples_from, reason):
            outputs = in_batches(run, rows, max_rows if signature.batched else None)
        metric = TaskMetric(given.metric, score(given.metric, outputs, given.labels), len(given.labels))
    depends = [*opened.files(), *(Path(file).resolve() for file in (own.files if own else ()))]
    return Reference(
        signature=signature,
        axes=axes,
        max_rows=max_rows,
        origin=f"compared with {core.answered_by} on {given.samples_from}",
        remarks=(
            *core.remarks,
            *proven.apart.remarks,
            *doubts(given.samples is not None, metric, answers, rows, signature),
        ),
        preprocess=proven.pixels.describe() if proven.pixels else "",
        postprocess=after.describe() if after else "",
        metric=metric,
        calibrated=given.calibration is not None,
        depends={str(file): sha256_of(file) for file in depends if not file.is_relative_to(folder.resolve())},
        paddings=paddings(proven.door, axes, rows, recipe.pad) if max_rows > 1 or recipe.pad else (),
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

    ranges = ranges_of(source.source.ranges, recipe.axes)
    with telling("torch exported the module"):
        signature, branches = export(source, path, batched=recipe.batched, max_batch=recipe.max_batch, ranges=ranges)
    have = {spec.name for spec in signature.inputs + signature.outputs}
    wanted = {*source.inputs, *source.outputs}
    if have != wanted:
        raise ExportFailed(
            f"the exported model has the tensors {', '.join(sorted(have))} instead of {', '.join(sorted(wanted))}: "
            "an input that does not reach any output, or an output that is an input, cannot be exported"
        )
    names = {(name, dim): axis for name, dims in source.source.axes.items() for dim, axis in dims.items()}
    return _Core(source, "torch", recipe.batched, names, ranges, source.remarks, branches=branches)


def _from_file(source: Path, recipe: Recipe, path: Path, as_it_is: str = "") -> _Core:
    with telling(f"{source.name} was adopted"):
        adopted = adopt(source, path, batched=recipe.batched, as_it_is=as_it_is, max_rows=recipe.max_rows)
    names = {
        (name, dim): text
        for name, dims in adopted.dim_names.items()
        for dim, text in enumerate(dims)
        if text and not (adopted.signature.batched and dim == 0)
    }
    rewritten = bool(adopted.converted) or adopted.freed
    # What a rewriting changed shows only beside the file as it was given.
    run = plain_session(source if rewritten else path, recipe.threads)
    return _Core(
        run=one_by_one(run) if adopted.freed else run,
        answered_by="ONNX Runtime without graph fusions",
        batched=adopted.signature.batched,
        names=names,
        ranges=recipe.axes,
        remarks=adopted.remarks,
        converted=adopted.converted,
        unvaried=adopted.unvaried,
        rewritten=rewritten,
    )


def _proven(
    core: _Core,
    path: Path,
    recipe: Recipe,
    given: Given,
    before: Preprocess | None,
    after: Postprocess | None,
) -> _Proven:
    """Wrap the model at `path`, and prove that it answers as its source does and each row on its own.

    Raises ExportFailed where it does not, BuildError for samples that do not fit.
    """
    rewritten = plain_session(path, recipe.threads) if core.rewritten else None
    signature, wrapped, pixels = wrap(path, before, after, batched=core.batched)
    run = wrapped(core.run)
    axes = axes_of(signature, core.names, core.ranges, given.samples)
    if given.samples is None:
        where = "made-up inputs (give real ones with --samples FILE.npz)"
        rows = sampling.made_up(signature, axes)
    else:
        where = given.samples_from
        door = with_free_dims(sampling.without_domains(signature), axes, core.ranges)
        rows = fitting(given.samples, door, where, pixels)
    signature = without_refused(signature, run, rows)
    if core.branches is not None:
        sizes = Door.of(onnx_format.load(path), signature.inputs).sizes
        signature = with_refusals(signature, run, rows, axes, SMALL_SIZE if sizes else 2**63)
    # Samples have to pass the same door as requests.
    door = with_free_dims(signature, axes, core.ranges)
    if given.samples is not None:
        rows = sampling.checked(rows, door, where)
    exported = plain_session(path, recipe.threads)
    max_rows = recipe.max_rows if signature.batched else 1
    with named(run, rows, signature.batched, where, reason), telling("the model was asked for proofs"):
        likeness = Likeness(exported, run, rows, axes, door, max_rows, Rounding(path, recipe.threads))
        likeness.prove_branches(core.branches or ())
        apart = Apart(max_rows)
        if signature.batched:
            proto = onnx_format.load(path)
            values = Door.of(proto, signature.inputs)
            prove_dynamic(exported, run, rows, axes, core.ranges, values, recipe.max_rows)
            apart = prove_wide(exported, rows, axes, core.ranges, max_rows)
            prove_scores(proto, rows, path.parent, recipe.threads, values, recipe.max_rows)
        if core.branches is not None:
            likeness.prove(core.branches)
        requests = sampling.requests(rows, signature, apart.rows, axes)
        answers = [asked(run, request) for request in requests]
        signature = with_free_outputs(signature, exported, rows, axes, answers)
        if rewritten is not None:
            beyond = [*company_requests(rows)] if signature.batched else []
            prove_rewritten(wrapped(rewritten), run, requests, answers, beyond)
        if core.converted and (silent := set(core.unvaried) & set(unvaried(answers))):
            outputs = ", ".join(repr(name) for name in sorted(silent))
            raise ExportFailed(f"nothing was compared in {outputs}: one value all over, in made-up inputs and samples")
    axes = apart.limited(axes)
    return _Proven(signature, door, axes, rows, run, exported, pixels, requests, answers, likeness, apart)
