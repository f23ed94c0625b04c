"""Rows are proven apart where many of them meet a large extent: what they fill together fits each of them alone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.manifest import Axis
from enginehouse.contract.tensors import Tensors
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.reference.crowds import wide
from enginehouse_build.reference.crowds.wide import Apart, prove_wide
from enginehouse_build.reference.reference import make_reference

from .graphs import f32, model, node, save, weights

Run = Callable[[Tensors], Tensors]
WIDTH, USUAL, MOST = 3, 8, 32
ROWS = {"x": np.random.default_rng(0).standard_normal((64, USUAL, WIDTH)).astype(f32)}
FREE = Axis(name="t", min=USUAL, opt=USUAL, max=USUAL, dims=(("x", 1),))
RANGED = Axis(name="t", min=1, opt=USUAL, max=64, dims=(("x", 1),))


def clamped(flat: np.ndarray, places: int) -> np.ndarray:
    """Tokens beyond the buffer are all the last one in it."""
    return flat[np.minimum(np.arange(len(flat)), places - 1)]


def in_a_ring(flat: np.ndarray, places: int) -> np.ndarray:
    """Tokens beyond the buffer are written over the first ones."""
    written = flat[:places].copy()
    for at in range(places, len(flat), places):
        part = flat[at : at + places]
        written[: len(part)] = part
    return written[np.arange(len(flat)) % places]


def dropped(flat: np.ndarray, places: int) -> np.ndarray:
    """Tokens beyond the buffer are lost."""
    return np.where(np.arange(len(flat))[:, None] < places, flat, f32(0))


def with_capacity(flat: np.ndarray, places: int) -> np.ndarray:
    """Two experts, each of which takes so many tokens and passes on the others."""
    second = flat[:, :1] > 0
    turn = np.where(second, np.cumsum(second, 0), np.cumsum(~second, 0))
    return np.where(turn <= places // 2, np.tanh(flat), flat)


def shifted(flat: np.ndarray, places: int) -> np.ndarray:
    """Where there are many, the mean of all is taken off."""
    return flat - flat.mean(0) if len(flat) > places else flat


KINDS = (clamped, in_a_ring, dropped, with_capacity, shifted)


def of_all(kind: Callable[[np.ndarray, int], np.ndarray], places: int) -> Run:
    def run(request: Tensors) -> Tensors:
        x = request["x"]
        return {"y": kind(x.reshape(-1, WIDTH), places).reshape(x.shape)}

    return run


def honest(request: Tensors) -> Tensors:
    return {"y": request["x"] - request["x"].mean(1, keepdims=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_in_which_rows_depend_on_each_other_is_refused_with_the_way_out(
    kind: Callable[[np.ndarray, int], np.ndarray],
) -> None:
    # Room for all rows of the usual extent, and for few of the largest.
    run = of_all(kind, MOST * USUAL)

    with pytest.raises(ExportFailed, match=r"t = 64.*--max-batch \d+ helps.*--axis t=MIN:OPT:MAX") as error:
        prove_wide(run, ROWS, [RANGED], {"t": ...}, MOST)

    right = int(re.search(r"--max-batch (\d+)", str(error.value)).group(1))  # type: ignore[union-attr]
    assert prove_wide(run, ROWS, [RANGED], {"t": ...}, right) == Apart(right)


@pytest.mark.parametrize("kind", KINDS)
def test_an_extent_without_a_range_ends_where_rows_are_apart(
    kind: Callable[[np.ndarray, int], np.ndarray],
) -> None:
    places = 4 * MOST * USUAL

    apart = prove_wide(of_all(kind, places), ROWS, [FREE], {}, MOST)

    assert USUAL <= apart.extents["t"] <= places // MOST, apart
    if kind is not with_capacity:
        assert apart.extents["t"] > 0.8 * places / MOST
    assert apart.rows == MOST
    assert len(apart.remarks) == 1 and "--axis t=MIN:OPT:MAX" in apart.remarks[0]
    assert apart.limited([FREE])[0].verified == apart.extents["t"]


def test_rows_that_are_apart_are_allowed_all_over_the_range_and_far_beyond_the_samples() -> None:
    assert prove_wide(honest, ROWS, [RANGED], {"t": ...}, MOST) == Apart(MOST)
    assert prove_wide(honest, ROWS, [FREE], {}, MOST) == Apart(MOST, {"t": 1024})
    assert prove_wide(honest, ROWS, [FREE], {}, 1) == Apart(1)


def test_an_extent_ends_where_the_model_takes_no_larger_one() -> None:
    def with_a_table(request: Tensors) -> Tensors:
        if request["x"].shape[1] > 100:
            raise ValueError("no more places")
        return honest(request)

    assert prove_wide(with_a_table, ROWS, [FREE], {}, MOST) == Apart(MOST, {"t": 100})


def test_two_extents_end_together_or_each_by_itself() -> None:
    rows = {"x": np.random.default_rng(0).standard_normal((40, 8, 8)).astype(f32)}
    axes = [Axis(name=name, min=8, opt=8, max=8, dims=(("x", dim),)) for dim, name in ((1, "h"), (2, "w"))]

    def limited(request: Tensors) -> Tensors:
        if np.prod(request["x"].shape[1:]) > 1024:
            raise ValueError("too large")
        return {"y": request["x"] * 2}

    def packed(request: Tensors) -> Tensors:
        x = request["x"]
        if x.shape[1] > 100:
            raise ValueError("too large")
        return {"y": dropped(x.reshape(-1, 1), MOST * 1024).reshape(x.shape)}

    # The model itself refuses what is large in both, so that each may be as large as the other is small.
    assert prove_wide(limited, rows, axes, {}, MOST) == Apart(MOST, {"h": 128, "w": 128})
    end = prove_wide(packed, rows, axes, {}, MOST).extents
    assert 25 <= end["h"] == end["w"] <= 32


def test_what_takes_too_long_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(request: Tensors) -> Tensors:
        until = time.process_time() + request["x"][..., 0].size * 1e-5
        while time.process_time() < until:
            pass
        return honest(request)

    # Half of 32 rows of 64 take longer.
    monkeypatch.setattr(wide, "_ONCE", 0.01)

    ranged, free = (prove_wide(slow, ROWS, [axis], {}, MOST) for axis in (RANGED, FREE))

    assert 2 <= ranged.rows <= 20
    assert len(ranged.remarks) == 1 and "--axis t=MIN:OPT:MAX with a smaller MAX allows more" in ranged.remarks[0]
    assert free.rows == MOST
    assert USUAL <= free.extents["t"] <= 40 and not free.remarks


@pytest.mark.parametrize("axes", [{}, {"T": "1:16:400"}])
def test_a_buffer_for_all_tokens_of_a_batch_is_found_in_a_file(axes: dict[str, object], tmp_path: Path) -> None:
    nodes = [
        node("Reshape", ["x", "flat_shape"], ["flat"]),
        node("Shape", ["flat"], ["count"], end=1),
        node("Squeeze", ["count"], ["length"]),
        node("Range", ["nought", "length", "one"], ["places"]),
        node("Min", ["places", "last"], ["clamped"]),
        node("Gather", ["flat", "clamped"], ["taken"]),
        node("MatMul", ["taken", "w"], ["h"]),
        node("Shape", ["x"], ["shape"], end=2),
        node("Concat", ["shape", "four"], ["out_shape"], axis=0),
        node("Reshape", ["h", "out_shape"], ["y"]),
    ]
    constants = {
        "flat_shape": np.array([-1, 8]), "nought": np.array(0), "one": np.array(1), "last": np.array(1023),
        "four": np.array([4]), "w": weights(8, 4),
    }  # fmt: skip
    proto = model(nodes, {"x": (f32, ["N", "T", 8])}, {"y": (f32, ["N", "T", 4])}, constants)
    given = tmp_path / "rows.npz"
    np.savez(given, x=np.random.default_rng(0).standard_normal((40, 16, 8)).astype(f32))
    source = tmp_path / "packed.onnx"
    save(source, proto)
    recipe = Recipe.of(source=str(source), name="packed", store=str(tmp_path), samples=given, axes=axes)

    if axes:
        with pytest.raises(ExportFailed, match=r"otherwise than alone: .*T = 400.*--axis T=MIN:OPT:MAX"):
            make_reference(tmp_path, recipe)
        return
    reference = make_reference(tmp_path, recipe)

    assert reference.axes[0].verified in range(28, 33)
    assert any("requests end at T" in remark for remark in reference.remarks)
