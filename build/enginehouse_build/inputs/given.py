"""What a user gives besides the model: samples, calibration rows, labels, a metric. Read before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from enginehouse.contract.errors import BuildError
from enginehouse_build.inputs import samples as sampling
from enginehouse_build.inputs.metric import check_labels, load_metric, metric_name
from enginehouse_build.inputs.recipe import NO_RANGES, Recipe

if TYPE_CHECKING:
    from enginehouse_build.inputs.source import ModelSource

Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Given:
    """From the recipe's files, or else from the factory; None is what neither has.

    `samples_from` and `calibration_from` say where the rows are from, for messages. `metric` is found by its name.
    """

    samples: Rows | None
    samples_from: str
    calibration: Rows | None
    calibration_from: str
    labels: np.ndarray | None
    metric: str | None


def read_given(recipe: Recipe, source: ModelSource | None) -> Given:
    """Read the files of `recipe`, else what the factory's `source` has.

    Raises BuildError for what cannot be read, for int8 without real rows, and for labels, samples and metric that do
    not go together.
    """
    samples, samples_from = _samples(recipe, source)
    calibration, calibration_from = samples, samples_from
    if recipe.calibration is not None:
        calibration = sampling.read_samples(recipe.calibration, "--calibration")
        calibration_from = f"--calibration {recipe.calibration}"
    elif source is not None and source.calibration is not None:
        calibration, calibration_from = source.calibration, "the factory's calibration"
    if calibration is None and "int8" in recipe.precisions:
        raise BuildError(NO_RANGES)
    labels = sampling.read_labels(recipe.labels) if recipe.labels else source.labels if source else None
    if labels is not None and samples is None:
        raise BuildError("there are labels and no samples that they are for; give --samples FILE.npz")
    wanted = recipe.metric or (source.metric if source else None) or ("accuracy" if labels is not None else None)
    metric = metric_name(wanted) if wanted is not None else None
    if metric is not None:
        load_metric(metric)
        if labels is None:
            raise BuildError(f"metric {metric!r} needs labels: give --labels FILE.npy or ModelSource(labels=...)")
        assert samples is not None
        check_labels(metric, labels, min((len(array) for array in samples.values() if array.ndim), default=0))
    return Given(samples, samples_from, calibration, calibration_from, labels, metric)


def _samples(recipe: Recipe, source: ModelSource | None) -> tuple[Rows | None, str]:
    if recipe.samples is not None:
        return sampling.read_samples(recipe.samples, "--samples"), f"samples of {recipe.samples.name}"
    if source is not None and source.samples is not None:
        return dict(source.samples), "samples of the factory"
    return None, f"random samples (seed {sampling.SEED})"
