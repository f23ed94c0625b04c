"""The engine key: everything that decides what an engine file is, and so where it runs and when it is built anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, TypeAlias

from enginehouse.contract.errors import ConversionFailed
from enginehouse.contract.manifest import Axis
from enginehouse.contract.tensors import Signature, TensorSpec

Shape: TypeAlias = tuple[int, ...]


class Range(NamedTuple):
    """Shapes of one input that an engine takes, and the one that it is tuned for."""

    min: Shape
    opt: Shape
    max: Shape


#: The optimisation profile: a range for each input that has free dimensions.
Profile: TypeAlias = Mapping[str, Range]


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What an engine has to fit: TensorRT's flavour and version in this process, and its GPU's capability ("9.0")."""

    flavour: str
    version: str
    compute_capability: str


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Two engines of one key are interchangeable.

    `onnx` is the sha256 of the model that it is built from, `compute_capability` a list ("8.6,8.9").
    """

    onnx: str
    precision: str
    profile: str
    flavour: str
    version: str
    compute_capability: str

    def record(self) -> dict[str, str]:
        """The key as `Artifact.requires` has it."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """Hex sha256 of the key: the same on every machine."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()


def mismatch(requires: Mapping[str, str], key: EngineKey) -> str | None:
    """Why an engine with these `requires` is not the one that this node wants by `key`, or None if it is."""
    if not requires.get("version"):
        return "the bundle has no engine"
    was, now = requires.get("flavour"), key.flavour
    if (was, requires["version"]) != (now, key.version):
        return f"the bundle's engine was built with {was} {requires['version']}, this node has {now} {key.version}"
    built_for = requires.get("compute_capability", "").split(",")
    if key.compute_capability not in built_for:
        return (
            f"the bundle's engine was built for compute capability {', '.join(built_for)}, "
            f"this GPU has {key.compute_capability}"
        )
    changed = [name for name in ("onnx", "precision", "profile") if requires.get(name) != key.record()[name]]
    return f"the bundle's engine was built for another {', '.join(changed)}" if changed else None


def profile_of(signature: Signature, max_rows: int, axes: Sequence[Axis]) -> Profile:
    """Ranges of all inputs with free dimensions: 1 to `max_rows` for the batch, tuned for half; the rest by axis.

    Raises ConversionFailed for a free dimension that no axis covers.
    """
    rows = (1, max(1, max_rows // 2), max_rows)
    extents = {dim: (axis.min, axis.opt, axis.max) for axis in axes for dim in axis.dims}
    profile = {}
    for spec in signature.inputs:
        if None not in spec.shape:
            continue
        given = {0: rows} if signature.batched else {}
        given |= {index: extent for (name, index), extent in extents.items() if name == spec.name}
        dims = [_range(spec, index, dim, given) for index, dim in enumerate(spec.shape)]
        profile[spec.name] = Range(*(tuple(dim[which] for dim in dims) for which in range(3)))
    return profile


def profile_text(profile: Profile) -> str:
    """`profile` as the key has it, for instance `tokens=1x8/4x64/8x512`."""
    return " ".join(
        f"{name}={'/'.join('x'.join(map(str, shape)) for shape in shapes)}" for name, shapes in sorted(profile.items())
    )


def _range(
    spec: TensorSpec, index: int, dim: int | None, given: Mapping[int, tuple[int, int, int]]
) -> tuple[int, int, int]:
    if dim is not None:
        return dim, dim, dim
    if index not in given:
        raise ConversionFailed(
            f"input {spec}: TensorRT needs a range for every free dimension, and dimension {index} has none; "
            "give it one with --axis NAME=MIN:OPT:MAX"
        )
    return given[index]
