"""Task metrics on labelled samples: larger is better."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from enginehouse.errors import BuildError
from enginehouse.tensors import Tensors
from enginehouse_build.functions import load_function

Metric: TypeAlias = Callable[[Tensors, np.ndarray], float]


def metric_name(metric: str | Metric) -> str:
    """The text by which another process finds `metric`. Raises BuildError for lambdas and inner functions."""
    if isinstance(metric, str):
        return metric
    name, file = getattr(metric, "__qualname__", ""), inspect.getsourcefile(metric)
    if not name.isidentifier() or file is None:
        raise BuildError(f"metric {metric!r} cannot be found by name; make it a function at the top of a module")
    return f"{file}:{name}"


def load_metric(name: str) -> Metric:
    """`accuracy`, or the function that `module:function` or `file.py:function` names. Raises BuildError."""
    if name == "accuracy":
        return accuracy
    return load_function(name, "metric")


def accuracy(outputs: Tensors, labels: np.ndarray) -> float:
    """Share of rows whose answer is the label.

    The answer is the best class of top-k where there is one, else the largest value of the first float output
    [rows, classes], else the first output of one whole number per row. Raises BuildError where there is none.
    """
    for name, array in outputs.items():
        if name.endswith("_indices"):
            return float(np.mean(array[:, 0] == labels))
    for array in outputs.values():
        if array.dtype.kind == "f" and array.ndim == 2:
            return float(np.mean(array.argmax(axis=1) == labels))
    for array in outputs.values():
        if array.dtype.kind in "iu" and array.size == len(labels):
            return float(np.mean(array.ravel() == labels))
    shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in outputs.items())
    raise BuildError(f"accuracy needs an output of [rows, classes]; there are {shapes}; give --metric module:function")
