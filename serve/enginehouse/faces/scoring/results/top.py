"""The best classes of an output of scores, as a column of its own: `output.NAME.top`, by number or by label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from enginehouse.contract.errors import ConfigError
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse.faces.scoring.rows.columns import type_of


@dataclass(frozen=True, slots=True)
class Top:
    """How many of the best classes; their `labels` by number, none for numbers."""

    count: int
    labels: tuple[str, ...] = ()

    def outputs(self, signature: Signature) -> list[TensorSpec]:
        """The outputs that are numbers of classes, a row each. Raises ConfigError if there is none that fits."""
        found = [
            spec
            for spec in signature.outputs
            if signature.batched and len(spec.shape) == 2 and spec.dtype.kind != "b" and not spec.dtype.hasobject
        ]
        if not found:
            have = ", ".join(map(str, signature.outputs))
            raise ConfigError(f"--top-k wants an output of one number for each class; the model has {have}")
        for spec in found:
            classes = spec.shape[1]
            if classes is not None and classes < self.count:
                raise ConfigError(f"--top-k {self.count} of output {spec.name!r}, which has {classes} classes")
            if self.labels and classes not in (None, len(self.labels)):
                raise ConfigError(f"{len(self.labels)} labels for output {spec.name!r}, which has {classes} classes")
        return found

    def kind(self, spec: TensorSpec) -> pa.DataType:
        """The type of the column: the best first, each with its score."""
        name = ("label", pa.string()) if self.labels else ("class", pa.int32())
        score = type_of(TensorSpec(spec.name, spec.dtype, (None,)), True)
        return pa.list_(pa.struct([name, ("score", score)]), self.count)

    def column(self, array: np.ndarray, spec: TensorSpec) -> pa.Array:
        """Of scores [rows, classes]. Of equal ones the first class is better; NaN is worse than any number."""
        kind = self.kind(spec)
        # Numbers of any type in an order that has NaN at its end, and that keeps equal ones in theirs.
        worst_last = np.where(np.isnan(array), -np.inf, array) if array.dtype.kind not in "iu" else array
        order = np.argsort(worst_last[:, ::-1], axis=1, kind="stable")[:, ::-1][:, : self.count]
        order = array.shape[1] - 1 - order
        names: pa.Array = pa.array(order.reshape(-1).astype(np.int32))
        if self.labels:
            names = pa.array(self.labels, pa.string()).take(names)
        scores = np.take_along_axis(array, order, axis=1).reshape(-1)
        score_kind = kind.value_type.field("score").type
        fields = [kind.value_type.field(at) for at in range(2)]
        scores = pa.array(np.ascontiguousarray(scores.astype(score_kind.to_pandas_dtype(), copy=False)), score_kind)
        structs = pa.StructArray.from_arrays([names, scores], fields=fields)
        return pa.FixedSizeListArray.from_arrays(structs, type=kind)


def labels(path: str) -> tuple[str, ...]:
    """The labels in a file: a JSON list, or a line each. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--labels {path}: {getattr(error, 'strerror', None) or error}") from None
    found: Sequence[object]
    try:
        found = json.loads(text)
    except ValueError:
        found = text.splitlines()
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found) or not found:
        raise ConfigError(f"--labels {path}: neither a JSON list of texts nor a label on each line")
    return tuple(map(str, found))
