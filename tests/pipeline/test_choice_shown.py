"""Whatever the table shows to be faster than what was chosen is named beside the choice, with why it was not taken."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from enginehouse.contract.manifest import Manifest, Objective
from enginehouse.tools.cli.inspect import show
from enginehouse_build.judge.choice import choose

from .test_choice import artifact, manifest, table

NAMES = ("onnx-fp32", "openvino-fp32", "openvino-fp16", "openvino-bf16", "onnx-int8", "openvino-int8")


def shown(made: Manifest, objective: Objective) -> str:
    """What `build` and `inspect` print of it, each sentence in one line."""
    told = io.StringIO()
    show(Console(file=told, width=1000), made.model_copy(update={"chosen": choose(made, objective, None)}))
    return told.getvalue()


def test_why_the_most_exact_one_was_taken_is_printed() -> None:
    noisy = "2 of 6 points did not settle"
    slow, fast = table("onnx-fp32", {1: 10.0}, reason=noisy), table("openvino-fp32", {1: 4.0}, reason=noisy)
    told = shown(
        manifest(slow, fast, artifacts=(artifact("onnx-fp32", 1e-7), artifact("openvino-fp32", 2e-7))), "latency"
    )
    assert "best for latency (full): onnx-fp32" in told
    assert "Taken as the most exact one: an INVALID measurement decides nothing." in told
    assert "openvino-fp32 on openvino-cpu had 4 ms, which an INVALID measurement cannot tell from chance." in told
    # Why a table is INVALID is a note of the table, and said once.
    assert told.count(noisy) == 1


@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize("seed", range(40))
def test_what_is_faster_in_the_table_is_named(seed: int, objective: Objective) -> None:
    rng = np.random.default_rng(seed)
    tables, artifacts = [], []
    for name in rng.permutation(NAMES)[: rng.integers(2, len(NAMES) + 1)].tolist():
        one = float(rng.choice([4.0, 4.05, 4.1, 6.0, 10.0]))
        reason = "points did not settle" if rng.random() < 0.4 else ""
        tables.append(table(name, {1: one, 4: one * float(rng.uniform(1, 3))}, reason=reason))
        artifacts.append(artifact(name, float(10 ** rng.uniform(-7, -3))))
    made = manifest(*tables, artifacts=tuple(artifacts))
    for chosen in choose(made, objective, None):
        printed = (
            shown(made, objective).partition(f"best for {objective} ({chosen.numerics}): ")[2].partition("best for")[0]
        )
        of_class = [each for each in tables if made.artifact(each.artifact).numerics_class == chosen.numerics]
        cost = {
            each.artifact: min(point.median_ms / point.rows for point in each.points)
            if objective == "throughput"
            else each.points[0].median_ms
            for each in of_class
        }
        faster = [name for name, ms in cost.items() if ms < cost[chosen.artifact]]
        for name in faster:
            assert f"{name} on " in printed, (chosen.artifact, cost, printed)
