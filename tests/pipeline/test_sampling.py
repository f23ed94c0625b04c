"""Of many samples those that are looked at are spread over all of them, and a remark says how many there were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from enginehouse.contract import tensor_file
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse_build.inputs import samples as sampling
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.reference.reference import CALIBRATION, REQUESTS, Reference, make_reference

from .conftest import write_onnx
from .graphs import model, node, save

SIGNATURE = Signature(
    (TensorSpec("x", np.dtype(np.float32), (None, 3)),), (TensorSpec("y", np.dtype(np.float32), (None, 2)),)
)


@pytest.mark.parametrize("count", [1, 2, 5, 255, 256, 257, 300, 301, 1000, 60_000])
@pytest.mark.parametrize("most", [1, 32, 256])
def test_rows_are_spread_from_the_first_to_the_last(count: int, most: int) -> None:
    (rows,) = sampling.spread({"x": np.arange(count)}, most).values()
    assert len(rows) == min(count, most)
    assert rows[0] == 0
    if most > 1:
        assert rows[-1] == count - 1
    steps = np.diff(rows)
    assert (steps >= 1).all()
    assert steps.max(initial=1) - steps.min(initial=steps.max(initial=1)) <= 1


def sorted_rows(count: int) -> dict[str, np.ndarray]:
    """Ten classes, one after the other, as data sets are often stored."""
    kinds = (np.arange(count) * 10 // count).astype(np.float32)
    return {"x": np.repeat(kinds[:, None], 3, axis=1)}


@pytest.mark.parametrize("count", [300, 1000, 20_000])
def test_every_class_of_sorted_samples_is_compared_and_calibrated(count: int) -> None:
    rows = sorted_rows(count)
    compared = sampling.requests(rows, SIGNATURE, 32, ())
    calibrated = sampling.calibration(rows, SIGNATURE, 32)
    for requests, most in ((compared, sampling.ROWS_COMPARED), (calibrated, sampling.ROWS_CALIBRATED)):
        seen = np.concatenate([request["x"][:, 0] for request in requests])
        _, times = np.unique(seen, return_counts=True)
        assert len(times) == 10
        assert times.min() >= most // 10 - 1


@pytest.mark.parametrize("count", [64, 100, 256, 300, 20_000])
def test_each_batch_has_rows_of_everywhere_and_together_they_have_all(count: int) -> None:
    batches = [request["x"][:, 0] for request in sampling.requests(sorted_rows(count), SIGNATURE, 32, ())[2:]]
    assert all(len(np.unique(batch)) >= 9 for batch in batches)
    rows = sampling.requests({"x": np.arange(count)}, SIGNATURE, 32, ())[2:]
    assert len(np.unique(np.concatenate([request["x"] for request in rows]))) == min(count, sampling.ROWS_COMPARED)


def clipped(folder: Path, low: float, count: int) -> Reference:
    """The reference of a model that is constant up to `low`, on sorted samples from 0 to 1."""
    nodes = [node("Max", ["x", "low"], ["y"])]
    path = write_onnx(folder / "m.onnx", nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, low=np.array(low, np.float32))
    np.savez(folder / "x.npz", x=np.repeat(np.linspace(0, 1, count, dtype=np.float32)[:, None], 3, axis=1))
    made = folder / "made"
    made.mkdir()
    return make_reference(
        made,
        Recipe.of(
            source=str(path), name="m", store=str(folder), threads=1, samples=folder / "x.npz", precisions="fp32"
        ),
    )


@pytest.mark.parametrize("count", [40, 256, 5000])
def test_an_output_that_changes_late_in_sorted_samples_is_not_called_constant(count: int, tmp_path: Path) -> None:
    assert clipped(tmp_path, 0.9, count).remarks == ()
    requests = tensor_file.read(tmp_path / "made" / REQUESTS)
    assert max(float(request["x"].max()) for request in requests) == 1
    assert (tmp_path / "made" / CALIBRATION).exists()


@pytest.mark.parametrize(
    ("count", "looked_at"), [(40, "all 40"), (256, "all 256"), (5000, "256 evenly spread of 5000")]
)
def test_an_output_that_never_changes_is_called_so_with_what_was_looked_at(
    count: int, looked_at: str, tmp_path: Path
) -> None:
    (remark,) = clipped(tmp_path, 2.0, count).remarks
    assert remark.startswith(f"output 'y' is the same for {looked_at} samples (to 1e-06), so parity says little")


@pytest.mark.parametrize("dtype", ["U", "S"])
@pytest.mark.parametrize("words", [("a", "bcd", "ü", ""), ("same",)])
def test_text_is_sampled_as_numpy_has_it(tmp_path: Path, dtype: str, words: tuple[str, ...]) -> None:
    nodes = [node("StringConcat", ["s", "mark"], ["t"])]
    given = np.array(words) if dtype == "U" else np.array([word.encode() for word in words])
    np.savez(tmp_path / "text.npz", s=given)
    proto = model(nodes, {"s": (object, ["n"])}, {"t": (object, ["n"])}, {"mark": np.array(["!"], object)})
    path = save(tmp_path / "text.onnx", proto)
    recipe = Recipe.of(source=str(path), name="m", store=str(tmp_path), samples=tmp_path / "text.npz", threads=1)
    make_reference(tmp_path, recipe)
    asked = tensor_file.read(tmp_path / REQUESTS)
    assert {word for request in asked for word in request["s"].tolist()} == {word.encode() for word in words}
