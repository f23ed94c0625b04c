"""The gate: one artifact's answers through every engine of this machine that will serve it.

On the user's samples its figures have to be within the limits of the precision, in fp32 whole numbers and text exactly
what the reference answers; then it is asked what the samples leave out (`beyond`) and what engines are known to answer
otherwise (`probes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from enginehouse.contract import parity, probes, tensor_file
from enginehouse.contract.bounds import InputBound, described
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import EngineUnavailable, InferenceFailed, InvalidInput, ParityFailed
from enginehouse.contract.manifest import (
    ENGINE_KINDS,
    FORMAT_OF,
    Artifact,
    EngineKind,
    MetricRecord,
    Parity,
)
from enginehouse.contract.parity import Limits
from enginehouse.contract.signature_record import Padding
from enginehouse.contract.slices import Slices, compare_slices
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import Engine, load_engine
from enginehouse_build.inputs.held import not_finite
from enginehouse_build.inputs.last_words import telling
from enginehouse_build.inputs.metric import score
from enginehouse_build.judge.absence import missing
from enginehouse_build.judge.beyond import Beyond
from enginehouse_build.judge.longest import narrowed
from enginehouse_build.judge.padding import Proof
from enginehouse_build.judge.rounding import by_rounding, exact, whole
from enginehouse_build.reference import conditioning
from enginehouse_build.reference.conditioning import Rounding
from enginehouse_build.reference.onnx import plain_session
from enginehouse_build.reference.reference import (
    ANSWERS,
    LABELS,
    MODEL,
    PROBES,
    REQUESTS,
    SAMPLES,
    Reference,
    in_batches,
)


@dataclass(frozen=True, slots=True)
class Verified:
    """How it ended: `parity` is the worst over `kinds`, the engines that passed; `reason` says why it is not ready.

    `remarks` are what else was noticed, `unproven` the outputs on which nothing was compared,
    `inputs_only` for which values it is right, by engine (see `enginehouse.contract.bounds`), `extents` up to where it
    is, of free dimensions without a range, `padding` how rows of several lengths share a call of an engine.
    """

    status: Literal["ready", "unverified", "failed"]
    parity: Parity | None
    effective_precision: str | None
    kinds: tuple[EngineKind, ...]
    reason: str | None = None
    remarks: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    inputs_only: dict[EngineKind, dict[str, InputBound]] = field(default_factory=dict)
    extents: dict[str, int] = field(default_factory=dict)
    padding: dict[EngineKind, Padding] = field(default_factory=dict)


def verify(
    _: Path,
    bundle: Bundle,
    name: str,
    reference: Reference,
    source: Path,
    limits: Limits,
    max_drop: float,
    threads: int,
) -> Verified:
    """Judge the artifact called `name`, with the requests, answers and labels of the reference in `source`.

    An artifact whose engines are not on this machine is `unverified`, for its first load elsewhere to verify. One that
    an engine which is here refuses is `failed`, unless another engine of its format passes; then it is remarked.
    """
    artifact = bundle.manifest.artifact(name)
    worst: Parity | None = None
    passed: dict[EngineKind, str] = {}
    absent: list[str] = []
    refused: list[str] = []
    unproven: tuple[str, ...] = ()
    bounds: dict[EngineKind, dict[str, InputBound]] = {}
    differences: list[str] = []
    extents: dict[str, int] = {}
    padding: dict[EngineKind, Padding] = {}
    rounding = Rounding(source / MODEL, threads)
    batched = reference.signature.batched
    for kind in (kind for kind in ENGINE_KINDS if FORMAT_OF[kind] == artifact.format):
        try:
            with ExitStack() as now:
                now.enter_context(telling(f"{kind} loaded it (graph optimisation)"))
                first_calls = partial(now.enter_context, telling(f"{kind} computed for the first time"))
                engine = load_engine(kind, bundle, artifact, threads=threads, loaded=first_calls)
        except EngineUnavailable as error:
            # Where the build keeps the file while it works is no part of the reason.
            if missing(kind):
                absent.append(str(error))
            else:
                refused.append(f"{kind} does not load it: {error.args[-1]}".replace(f"{bundle.path}/", ""))
            continue
        except (ParityFailed, InferenceFailed, InvalidInput) as error:
            return Verified("failed", worst, None, (), str(error))
        try:
            with telling(f"{kind} computed the samples"):
                figures, slices, answers = _measured(kind, engine, reference, source, limits, max_drop)
            worst = figures if worst is None or figures.relative_l2 > worst.relative_l2 else worst
            parity.gate(name, limits, figures)
            slices.gate(name, kind, limits)
            if artifact.precision == "fp32":
                exact(f"{name} on {kind}", answers, _pairs(source), rounding)
            unproven = slices.unproven()
            samples, right = tensor_file.read(source / SAMPLES)[0], plain_session(source / MODEL, threads)
            explains = by_rounding(rounding, right, limits)
            asked = artifact, bundle.manifest, engine.infer, right, source / MODEL, samples, limits, rounding
            with telling(f"{kind} computed values, rows and extents that the samples do not have"):
                found, faults = probes.found(kind, engine.infer, artifact, probes.read(source / PROBES), explains)
                reached = Beyond(*asked, found).check()
            for axis, size in reached.extents.items():
                extents[axis] = min(size, extents.get(axis, size))
            if (longest := reached.longest) is not None:
                with telling(f"{kind} computed whole numbers at the largest extents"):
                    found, more = narrowed(kind, engine.infer, artifact, right, longest, samples, reached.whole, found)
                faults += more
            if found:
                bounds[kind] = found
                differences.append(f"{kind} answers {described(found)} only: {'; '.join(faults)}")
            passed[kind] = engine.precision
            signature, axes = bundle.manifest.request_signature(), bundle.manifest.axes
            most = bundle.manifest.max_batch
            proof = Proof(signature, axes, samples, right, rounding, most, reached.extents)
            with telling(f"{kind} computed rows that were padded"):
                padded, harm = proof.of(reference.paddings, engine.infer, limits, found)
            if padded is not None:
                padding[kind] = padded
            elif harm:
                differences.append(f"{kind} computes requests of equal lengths together only: {harm}")
        except (ParityFailed, InferenceFailed, InvalidInput) as error:
            figures_or_none, reason = _explained(error, worst, artifact, source, threads, batched)
            return Verified("failed", figures_or_none, engine.precision, (), reason)
        finally:
            engine.close()
    if worst is None and refused:
        return Verified("failed", None, None, (), "; ".join(refused))
    if worst is None:
        return Verified("unverified", None, None, (), f"to be verified where it is first loaded: {'; '.join(absent)}")
    # The first kind is the one for machines without a GPU; the precision is reported for that.
    remarks = list(refused)
    if unproven:
        outputs = ", ".join(repr(output) for output in unproven)
        remarks.append(
            f"nothing was compared in {outputs}: empty or one value all over, in every sample; give samples that the "
            "model has something to say about"
        )
    remarks += differences
    ran = next(iter(passed.values()))
    if artifact.precision in ("fp16", "bf16") and ran != artifact.precision:
        remarks.append(
            f"computed in {ran} here, so {artifact.precision} itself is not verified yet: an engine that computes in "
            "it verifies it when it is loaded"
        )
    return Verified("ready", worst, ran, tuple(passed), None, tuple(remarks), unproven, bounds, extents, padding)


def _measured(
    kind: EngineKind, engine: Engine, reference: Reference, source: Path, limits: Limits, max_drop: float
) -> tuple[Parity, Slices, list[Tensors]]:
    """The figures, those of the slices, and the whole numbers and text among the answers to the requests."""
    answers: list[Tensors] = []

    def kept(request: Tensors) -> Tensors:
        answer = engine.infer(request)
        answers.append(whole(answer))
        return answer

    batched = reference.signature.batched
    figures, slices = compare_slices(kind, kept, _pairs(source), limits.relative_l2, batched=batched)
    metric = reference.metric
    if metric is None:
        return figures, slices, answers
    labels = np.load(source / LABELS)
    max_rows = reference.max_rows if batched else None
    outputs = in_batches(engine.infer, tensor_file.read(source / SAMPLES)[0], max_rows)
    record = MetricRecord(
        name=metric.name,
        reference=metric.value,
        value=score(metric.name, outputs, labels),
        max_drop=max_drop,
        rows=metric.rows,
    )
    return figures.model_copy(update={"metric": record}), slices, answers


def _pairs(source: Path) -> Iterator[tuple[Tensors, Tensors]]:
    """Requests and answers, without extents of 0: what is wrong there should not look like lost precision."""
    pairs = zip(tensor_file.read(source / REQUESTS), tensor_file.read(source / ANSWERS), strict=True)
    return (pair for pair in pairs if all(array.size for array in pair[0].values()))


def _explained(
    error: Exception, worst: Parity | None, artifact: Artifact, source: Path, threads: int, batched: bool
) -> tuple[Parity | None, str]:
    """The figures and reason with what the model itself has to do with it."""
    requests, answers = tensor_file.read(source / REQUESTS), tensor_file.read(source / ANSWERS)
    if parity.NOTHING_FINITE in str(error):
        why = not_finite(tensor_file.read(source / SAMPLES)[0], batched)
        return worst, f"{error} {why}".rstrip()
    explanation = conditioning.explain(source / MODEL, requests[0], answers[0], artifact.precision, threads)
    if not explanation:
        return worst, str(error)
    figures = worst.model_copy(update={"explanation": explanation}) if worst else None
    return figures, f"{error}; {explanation}"
