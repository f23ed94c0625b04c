"""Task metrics on labelled samples: larger is better."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from enginehouse.contract.errors import BuildError
from enginehouse.contract.tensors import Tensors
from enginehouse_build.inputs.functions import load_function

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


def score(name: str, outputs: Tensors, labels: np.ndarray) -> float:
    """The value of the metric called `name`. Raises BuildError naming it when it fails or gives no finite number."""
    metric = load_metric(name)
    try:
        value = float(metric(outputs, labels))
    except BuildError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise BuildError(
            f"metric {name!r} raised {type(error).__name__}: {error} ({where.filename}:{where.lineno}); "
            f"it gets the outputs by name ({', '.join(outputs)}) and {len(labels)} labels, and returns a number"
        ) from error
    if not math.isfinite(value):
        raise BuildError(f"metric {name!r} is {value}; it must be a finite number, larger being better")
    return value


def check_labels(name: str, labels: np.ndarray, rows: int) -> None:
    """Raises BuildError unless there is one label for each of `rows` samples, for accuracy a class number each."""
    if labels.ndim == 0 or len(labels) != rows:
        raise BuildError(f"the labels have shape {list(labels.shape)} for {rows} samples; give one for each")
    if name == "accuracy" and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise BuildError(
            f"the labels are {labels.dtype} of shape {list(labels.shape)}; accuracy needs whole numbers [{rows}]"
        )


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
