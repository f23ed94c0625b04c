"""Numerical agreement of every artifact with the fp32 reference, through the engine that will serve it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from enginehouse.bundle import Artifact, Bundle, EngineKind, Parity, Precision
from enginehouse.engines import Engine, load_engine
from enginehouse.errors import ParityFailed
from enginehouse.tensors import Tensors

FP32_LIMIT = 1e-4
#: Largest relative L2 error that passes, by precision (measured on the digits CNN: fp16 5e-4, bf16 6e-3, int8 1e-2).
LIMITS: Mapping[Precision, float] = {"fp32": FP32_LIMIT, "fp16": 5e-3, "bf16": 2e-2, "int8": 5e-2}
#: Rows of real data that are enough: more cost time on slow engines and find nothing new.
MAX_ROWS_COMPARED = 256
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Figures:
    """How far one answer is from the reference; worst case over its outputs, `output` being the worst one.

    See `enginehouse.bundle.Parity` for the meaning of each figure.
    """

    output: str
    relative_l2: float
    worst_row: float
    cosine: float
    top1_agreement: float | None


def take(samples: Tensors, start: int, rows: int) -> dict[str, np.ndarray]:
    """`rows` rows of every sample array from `start` on, beginning again at row 0 after the last one."""
    return {
        name: np.take(array, np.arange(start, start + rows) % len(array), axis=0) for name, array in samples.items()
    }


def batches(samples: Tensors, max_rows: int, batched: bool) -> list[dict[str, np.ndarray]]:
    """What artifacts are compared on: 1 row, 2 rows, then the samples in batches of `max_rows`.

    Without a batch the samples are one request.
    """
    if not batched:
        return [dict(samples)]
    found = min(len(array) for array in samples.values())
    starts = range(0, min(found, max(max_rows, MAX_ROWS_COMPARED)), max_rows)
    return [take(samples, 0, rows) for rows in {1, min(2, max_rows)}] + [take(samples, at, max_rows) for at in starts]


def verify(
    kind: EngineKind,
    bundle: Bundle,
    artifact: Artifact,
    reference: Callable[[Tensors], Tensors],
    requests: Sequence[Tensors],
    threads: int,
) -> tuple[Parity, str]:
    """Load `artifact` on `kind`, run `requests`, and return the parity and the precision it really computes in.

    Raises EngineUnavailable where the engine cannot run here, InferenceFailed, and ParityFailed when the answers are
    not finite where the reference is, or have other shapes. Whether the figures pass is for `gate` to say.
    """
    engine: Engine = load_engine(kind, bundle, artifact, threads=threads)
    try:
        results = [compare(engine.infer(request), reference(request)) for request in requests]
        precision = engine.precision
    finally:
        engine.close()
    agreements = [figures.top1_agreement for figures in results if figures.top1_agreement is not None]
    batched = bundle.manifest.signature.batched
    parity = Parity(
        engine=kind,
        rows=tuple(sorted({len(next(iter(request.values()))) if batched else 1 for request in requests})),
        relative_l2=max(figures.relative_l2 for figures in results),
        worst_row=max(figures.worst_row for figures in results),
        cosine=min(figures.cosine for figures in results),
        top1_agreement=min(agreements) if agreements else None,
        limit=LIMITS[artifact.precision],
    )
    return parity, precision


def gate(artifact: Artifact, parity: Parity) -> None:
    """Raises ParityFailed with the figures when `parity` is past its limit."""
    if parity.relative_l2 > parity.limit:
        raise ParityFailed(
            f"{artifact.name} on {parity.engine} is {parity.relative_l2:.2e} from the reference (relative L2, "
            f"worst row {parity.worst_row:.2e}, cosine {parity.cosine:.6f}); {artifact.precision} may be "
            f"{parity.limit:.0e}"
        )


def compare(got: Tensors, want: Tensors) -> Figures:
    """Figures of `got` against `want`, both by output name with dim 0 as rows.

    NaN equals NaN and an infinity itself. Raises ParityFailed for missing outputs, other shapes, and values that are
    not finite on one side only, because no distance says anything then.
    """
    results = [_compare_output(name, got, array) for name, array in want.items()]
    agreements = [figures.top1_agreement for figures in results if figures.top1_agreement is not None]
    worst = max(results, key=lambda figures: figures.relative_l2)
    return Figures(
        output=worst.output,
        relative_l2=worst.relative_l2,
        worst_row=max(figures.worst_row for figures in results),
        cosine=min(figures.cosine for figures in results),
        top1_agreement=min(agreements) if agreements else None,
    )


def _compare_output(name: str, got: Tensors, want: np.ndarray) -> Figures:
    if name not in got:
        raise ParityFailed(f"output {name!r} is missing; there are {', '.join(got) or 'none'}")
    if got[name].shape != want.shape:
        raise ParityFailed(f"output {name!r} has shape {list(got[name].shape)}, the reference {list(want.shape)}")
    if want.dtype.hasobject:
        differing = float(np.mean([a != b for a, b in zip(got[name].ravel(), want.ravel(), strict=True)] or [0]))
        return Figures(name, differing, differing, 1.0 - differing, None)
    answer, reference = got[name].astype(np.float64), want.astype(np.float64)
    special = ~np.isfinite(reference) | ~np.isfinite(answer)
    if not np.array_equal(answer[special], reference[special], equal_nan=True):
        where = np.argwhere(special & ~((answer == reference) | (np.isnan(answer) & np.isnan(reference))))
        at = tuple(int(index) for index in where[0])
        raise ParityFailed(
            f"output {name!r}: {len(where)} of {answer.size} values are not finite on one side only, first at "
            f"{list(at)}: {answer[at]} instead of {reference[at]}"
        )
    if special.size and special.all():
        raise ParityFailed(f"output {name!r}: no finite value to compare in {special.size}; are the samples right?")
    answer, reference = np.where(special, 0.0, answer), np.where(special, 0.0, reference)
    rows = want.shape[0] if want.ndim else 1
    return _distance(name, answer.reshape(rows, -1), reference.reshape(rows, -1), _top1(answer, reference))


def _distance(name: str, answer: np.ndarray, reference: np.ndarray, top1: float | None) -> Figures:
    norm = float(np.linalg.norm(reference))
    error = np.linalg.norm(answer - reference, axis=1)
    lengths = np.linalg.norm(reference, axis=1)
    # A row of (nearly) zeros has no scale of its own: it is measured on that of an average row.
    scale = np.where(lengths > 1e-6 * norm, lengths, norm / max(len(lengths), 1) ** 0.5)
    dots = np.sum(answer * reference, axis=1)
    cosines = np.divide(
        dots,
        np.linalg.norm(answer, axis=1) * lengths,
        out=np.where(error <= _TINY, 1.0, 0.0),
        where=(lengths > _TINY) & (np.linalg.norm(answer, axis=1) > _TINY),
    )
    return Figures(
        output=name,
        relative_l2=float(np.linalg.norm(error) / max(norm, _TINY)),
        worst_row=float(np.max(error / np.maximum(scale, _TINY), initial=0.0)),
        cosine=float(np.clip(np.min(cosines, initial=1.0), -1.0, 1.0)),
        top1_agreement=top1,
    )


def _top1(answer: np.ndarray, reference: np.ndarray) -> float | None:
    if reference.ndim < 2 or reference.shape[-1] < 2 or reference.size == 0:
        return None
    return float(np.mean(answer.argmax(axis=-1) == reference.argmax(axis=-1)))
