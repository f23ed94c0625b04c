"""The gate once more where an engine is loaded that was made elsewhere or just now, before it answers anybody."""

from __future__ import annotations

from collections.abc import Callable

from enginehouse.contract import probes, tensor_file
from enginehouse.contract.bounds import InputBounds, narrower
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import EnginehouseError, EngineUnavailable, InferenceFailed, InvalidInput, ParityFailed
from enginehouse.contract.manifest import ACCELERATOR_OF, Artifact, EngineKind, Manifest, Parity
from enginehouse.contract.parity import first_difference, gate, limits_of
from enginehouse.contract.slices import compare_slices
from enginehouse.contract.tensors import Tensors
from enginehouse.engines.hardware import int8_products, probe_cpu
from enginehouse.engines.padding import Padder
from enginehouse.engines.usual import CHECK_REQUESTS

#: Where a bundle keeps the reference's answers to CHECK_REQUESTS, in the format of `contract.tensor_file`.
CHECK_ANSWERS = "check/answers.npz"
#: The same of values that samples rarely have, in the format of `contract.probes`.
CHECK_PROBES = "check/probes.npz"
#: Rows of the requests that are padded.
_FEW = 2


def needs_recheck(kind: EngineKind, manifest: Manifest, artifact: Artifact) -> bool:
    """Whether nobody has verified `artifact` on an engine of this kind that computes as the one of this node does."""
    if artifact.status == "unverified":
        return True
    if ACCELERATOR_OF[kind] == "cpu":
        # Without VNNI uint8 products may saturate, and bf16 or fp16 are computed in other precisions.
        flags = manifest.hardware.get("cpu_flags")
        has_other_flags = flags is not None and flags.split() != list(probe_cpu().flags)
        return has_other_flags or artifact.int8_products not in (None, int8_products())
    # The build times what it has verified, and a CPU that computes a file in fp32 knows nothing of its fp16. An engine
    # file has a key, which says on what it was verified.
    was_judged = artifact.effective_precision is not None
    return kind != "tensorrt" and was_judged and manifest.latency_of(kind, artifact.name) is None


def recheck(kind: EngineKind, infer: Callable[[Tensors], Tensors], bundle: Bundle, artifact: Artifact) -> Parity:
    """Let `infer` answer the bundle's check requests and return its figures.

    Raises EngineUnavailable when they are past the artifact's gate, or cannot be had; DigestMismatch.
    """
    files = {file.path: file for file in bundle.manifest.files}
    if not files.keys() >= {CHECK_REQUESTS, CHECK_ANSWERS}:
        raise EngineUnavailable(
            kind,
            f"artifact {artifact.name!r} was not verified for this machine, and the bundle has no {CHECK_REQUESTS} "
            "to do so; build it again",
        )
    requests, answers = (tensor_file.read(bundle.verified(files[path])) for path in (CHECK_REQUESTS, CHECK_ANSWERS))
    limits = limits_of(artifact.precision, artifact.limit)
    try:
        pairs = zip(requests, answers, strict=True)
        batched = bundle.manifest.signature.batched
        figures, slices = compare_slices(kind, infer, pairs, limits.relative_l2, batched=batched)
        gate(artifact.name, limits, figures)
        slices.gate(artifact.name, kind, limits)
    except (ParityFailed, InferenceFailed, InvalidInput) as error:
        raise EngineUnavailable(kind, f"verified on loading: {error}") from None
    return figures


def bounds_here(
    kind: EngineKind, infer: Callable[[Tensors], Tensors], bundle: Bundle, artifact: Artifact
) -> InputBounds:
    """For which values of inputs `artifact` is right on this engine too, by the bundle's probes if it has any.

    Raises DigestMismatch.
    """
    carried = [file for file in bundle.manifest.files if file.path == CHECK_PROBES]
    if not carried:
        return artifact.bounds_on(kind)
    found, _ = probes.found(kind, infer, artifact, probes.read(bundle.verified(carried[0])))
    return narrower(artifact.bounds_on(kind), found)


def pads_here(kind: EngineKind, infer: Callable[[Tensors], Tensors], bundle: Bundle, artifact: Artifact) -> bool:
    """Whether the bundle's check requests are answered as they are when they are padded as `artifact` says.

    For an engine that computes otherwise than the one with which that was proven: a few rows, padded to the next edge
    and to the last. Raises DigestMismatch.
    """
    padding = artifact.padding.get(kind)
    carried = [file for file in bundle.manifest.files if file.path == CHECK_REQUESTS]
    if padding is None or not carried:
        return False
    padder, limits, asked = Padder(padding), limits_of(artifact.precision, artifact.limit), 0
    for request in tensor_file.read(bundle.verified(carried[0])):
        length, edge = padder.length(request), padder.place(request).edge
        if not edge or max(map(len, request.values())) > _FEW:
            continue
        try:
            own = infer(request)
            for longer in {edge, padding.edges[-1]} - {length}:
                padded = padder.cut(infer(padder.joined([request], longer)), length)
                if first_difference(padded, own, limits.relative_l2, limits.worst_row) is not None:
                    return False
                asked += 1
        except EnginehouseError:
            return False
    return asked > 0
