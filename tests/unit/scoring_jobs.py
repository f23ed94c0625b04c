"""Scoring jobs in this process, by functions of numpy in the place of engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import dataset, parquet

from enginehouse.contract.tensors import Signature, Tensors, TensorSpec
from enginehouse.faces.scoring import job
from enginehouse.faces.scoring.answering import Answered, ScorerPool
from enginehouse.faces.scoring.job import Asked, Scored
from enginehouse.faces.scoring.mapping import Mapped
from enginehouse.faces.scoring.readers import Limits
from enginehouse.faces.scoring.results.report import Report

Function = Callable[[Tensors], Mapping[str, np.ndarray]]


@dataclass
class ByFunction:
    """Answers by `function`, and counts the rows of every call."""

    function: Function
    batch_rows: int = 8
    in_flight: int = 2

    def __post_init__(self) -> None:
        self.calls: list[int] = []

    async def answer(self, inputs: Tensors) -> Answered:
        self.calls.append(len(next(iter(inputs.values()))))
        return Answered(dict(self.function(inputs)), "numpy", "1")

    def close(self) -> None:
        """Nothing."""


def signature(dtype: Any = np.float32, *shape: int | None, out: Any = None, **options: Any) -> Signature:
    """`x` of this type and shape, and `y` of the same."""
    x = TensorSpec("x", np.dtype(dtype), (None, *shape), options.pop("domain", None))
    return Signature((x,), (TensorSpec("y", np.dtype(out or dtype), (None, *shape)),), **options)


def same(inputs: Tensors) -> Mapping[str, np.ndarray]:
    """`y` is `x`."""
    return {"y": inputs["x"]}


def score(
    source: Path | str,
    target: Path | str,
    wanted: Signature,
    function: Function = same,
    *,
    digest: str = "0",
    limits: Limits | None = None,
    stopping: Callable[[], bool] = lambda: False,
    answering: ByFunction | None = None,
    mapped: Mapped | None = None,
    **asked: Any,
) -> Report:
    """A whole job."""
    by = answering or ByFunction(function)
    ready = job.prepared(
        Asked(str(source), str(target), mapped or Mapped(), **asked), Scored("net", "1", digest, wanted), limits
    )
    return job.run(ready, [ScorerPool("here", lambda: by)], here=True, stopping=stopping)


def results(target: Path, form: str = "parquet") -> pa.Table:
    """All rows of results."""
    return dataset.dataset(target, format={"jsonl": "json"}.get(form, form)).to_table()


def write(path: Path, group: int = 10, **columns: Any) -> Path:
    """A Parquet file with these columns."""
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path
