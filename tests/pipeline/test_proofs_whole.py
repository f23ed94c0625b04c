"""Rows of whole numbers, bytes, truth values and text are proven apart over all that the door lets in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.tensors import Tensors
from enginehouse_build.graph.sizes import sizing
from enginehouse_build.reference import company
from enginehouse_build.reference.adopt import adopt
from enginehouse_build.reference.onnx import plain_session, signature_of
from enginehouse_build.reference.proof import prove_dynamic
from enginehouse_build.reference.strangers import Door, strangers

from .graphs import f32, i64, model, node, save, values
from .whole_batches import KINDS, ROWS, WIDTH, Case, looked_up, made, said

GENERATED = [(mix, kind) for kind, (_, mixes) in KINDS.items() for mix in mixes]


def proven(case: Case, folder: Path) -> None:
    run = plain_session(save(folder / "made.onnx", case.proto), 1)
    door = Door.of(case.proto, signature_of(case.proto, True).inputs)
    prove_dynamic(run, run, case.samples, (), None, door)


def is_apart(case: Case, folder: Path) -> bool:
    try:
        proven(case, folder)
    except ExportFailed as error:
        assert "a row that shares its batch is answered otherwise than alone: " in str(error)
        assert "--no-batch" in str(error)
        return False
    return True


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("mix", "kind"), GENERATED)
def test_rows_that_depend_on_what_no_sample_has_are_found(mix: str, kind: str, apart: bool, tmp_path: Path) -> None:
    for seed in range(2):
        assert is_apart(made(mix, kind, seed, apart=apart), tmp_path) == apart


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "case", [looked_up, said, lambda *, apart: looked_up(apart=apart, table=30000)], ids=["ids", "text", "many ids"]
)
def test_a_word_that_switches_the_batch_is_found(case: Callable[..., Case], apart: bool, tmp_path: Path) -> None:
    assert is_apart(case(apart=apart), tmp_path) == apart


@pytest.mark.parametrize("limit", [30, 5000, 10**7])
def test_a_number_that_switches_the_batch_is_found_however_large_it_is(limit: int, tmp_path: Path) -> None:
    """Lengths beyond a limit have the whole batch take another branch; samples are far below."""
    branches = {
        f"{name}_branch": helper.make_graph([node(op, ["x"], ["o"])], name, [], values({"o": (f32, ["n", WIDTH])}))
        for name, op in (("then", "Abs"), ("else", "Neg"))
    }
    nodes = [
        node("ReduceMax", ["length"], ["longest"], keepdims=0),
        node("Greater", ["longest", "limit"], ["condition"]),
        node("If", ["condition"], ["y"], **branches),
    ]
    shapes = {"x": (f32, ["n", WIDTH]), "length": (i64, ["n", 1])}, {"y": (f32, ["n", WIDTH])}
    proto = model(nodes, *shapes, {"limit": np.array(limit)})
    rows = {"x": np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(f32), "length": np.full((ROWS, 1), 16)}
    assert not is_apart(Case(proto, rows, False), tmp_path)


def test_the_message_names_the_company(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match=r"row 0 of the samples, beside a row with 2s in 'x': output 'y' differs"):
        proven(looked_up(apart=False), tmp_path)


@pytest.mark.parametrize("apart", [False, True])
def test_a_batch_of_one_of_bytes_is_made_dynamic_only_where_rows_are_apart(apart: bool, tmp_path: Path) -> None:
    case = made("by_span", "bytes", 0, apart=apart, rows=1)
    adopted = adopt(save(tmp_path / "one.onnx", case.proto), tmp_path / "adopted.onnx", batched=True)
    assert adopted.signature.batched == apart, adopted.remarks


def test_a_size_is_never_larger_than_in_the_samples(tmp_path: Path) -> None:
    # A row of 2^62 would be as long as that.
    nodes = [
        node("ReduceMax", ["n"], ["longest"], keepdims=0),
        node("Range", ["zero", "longest", "one"], ["places"]),
        node("Cast", ["places"], ["f"], to=1),
        node("ReduceSum", ["f"], ["sum"], keepdims=0),
        node("Mul", ["sum", "nought"], ["none"]),
        node("Add", ["x", "none"], ["y"]),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "nought": np.array(0, f32)}
    proto = model(nodes, {"n": (i64, ["b", 1]), "x": (f32, ["b", 3])}, {"y": (f32, ["b", 3])}, constants)
    assert sizing(proto)
    asked: list[int] = []
    run = plain_session(save(tmp_path / "sized.onnx", proto), 1)

    def noted(request: Tensors) -> Tensors:
        asked.append(int(request["n"].max()))
        return run(request)

    rows = {"n": np.full((8, 1), 30), "x": np.random.default_rng(0).standard_normal((8, 3)).astype(f32)}
    prove_dynamic(noted, noted, rows, (), None, Door.of(proto, signature_of(proto, True).inputs))
    assert max(asked) <= 1024


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, i64, np.uint64, f32, np.float16, np.bool_])
def test_strangers_are_rows_that_the_door_takes(dtype: type) -> None:
    proto = model([node("Identity", ["x"], ["y"])], {"x": (dtype, ["n", 3])}, {"y": (dtype, ["n", 3])})
    (spec,) = signature_of(proto, True).inputs
    samples = {"x": np.ones((4, 3), dtype)}
    row = {"x": samples["x"][:1]}
    found = [made for _, made in strangers(row, samples, Door.of(proto, [spec]))]
    assert all(made["x"].dtype == dtype and made["x"].shape == (1, 3) for made in found)
    # The row itself, and others, each once.
    assert len({made["x"].tobytes() for made in found}) == len(found)
    if np.dtype(dtype).kind in "iu":
        everything = np.concatenate([made["x"].ravel() for made in found])
        assert {0, int(np.iinfo(dtype).max)} <= set(everything.tolist())
        # Divided by -1, the least of all ends the process.
        assert everything.min() >= (0 if np.dtype(dtype).kind == "u" else -np.iinfo(dtype).max)


def test_ids_are_asked_within_their_table() -> None:
    case = looked_up(apart=False)
    (spec,) = signature_of(case.proto, True).inputs
    row = {"x": case.samples["x"][:1]}
    rows = [made["x"] for _, made in strangers(row, case.samples, Door.of(case.proto, [spec]))]
    assert spec.domain is not None
    assert set(np.concatenate(rows).ravel().tolist()) == set(range(spec.domain.low, spec.domain.high))


def test_what_the_original_refuses_alone_proves_nothing(tmp_path: Path) -> None:
    # Ids by a computed index have no domain: those beyond the table are refused, whoever asks.
    nodes = [
        node("Add", ["x", "one"], ["next"]),
        node("Gather", ["table", "next"], ["found"]),
        node("ReduceMean", ["found", "one"], ["y"], keepdims=0),
    ]
    table = np.random.default_rng(0).standard_normal((20, 4)).astype(f32)
    proto = model(nodes, {"x": (i64, ["n", 5])}, {"y": (f32, ["n", 4])}, {"one": np.array([1]), "table": table})
    rows = {"x": np.random.default_rng(1).integers(0, 19, (8, 5))}
    proven(Case(proto, rows, True), tmp_path)


def test_a_slow_model_is_asked_beside_few_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(seconds: float) -> int:
        rows: list[int] = []

        def run(inputs: Tensors) -> Tensors:
            rows.append(len(inputs["x"]))
            return {"y": inputs["x"].astype(f32)}

        monkeypatch.setattr(company, "_SECONDS", seconds)
        given = {"x": np.random.default_rng(0).integers(0, 9, (8, 4))}
        prove_dynamic(run, run, given, (), None, Door({}, tuple(range(100, 108)), False))
        return sum(rows)

    assert asked(0) < asked(60)


def test_a_row_that_is_asked_twice_is_answered_as_alone(tmp_path: Path) -> None:
    """How many rows of the batch are equal to this one: none is, among samples."""
    nodes = [
        node("Unsqueeze", ["x", "first"], ["rows"]),
        node("Unsqueeze", ["x", "zeroth"], ["columns"]),
        node("Sub", ["rows", "columns"], ["away"]),
        node("Abs", ["away"], ["distance"]),
        node("ReduceMax", ["distance", "last"], ["most"], keepdims=0),
        node("Equal", ["most", "nought"], ["same"]),
        node("Cast", ["same"], ["share"], to=1),
        node("ReduceSum", ["share", "first"], ["y"], keepdims=1),
    ]
    constants = {"zeroth": np.array([0]), "first": np.array([1]), "last": np.array([2]), "nought": np.array(0, f32)}
    proto = model(nodes, {"x": (f32, ["n", WIDTH])}, {"y": (f32, ["n", 1])}, constants)
    rows = {"x": np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(f32)}
    with pytest.raises(ExportFailed, match="a row that shares its batch is answered otherwise than alone"):
        proven(Case(proto, rows, False), tmp_path)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("both", [("int64", "int64"), ("int64", "uint8"), ("bool", "int64"), ("text", "int64")])
@pytest.mark.parametrize("seed", range(3))
def test_a_branch_may_ask_for_two_inputs_at_once(seed: int, both: tuple[str, str], apart: bool, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    nodes, inputs, constants, rows = [], {}, {"axes": np.array([1 if apart else 0])}, {}
    for name, kind in zip(("a", "b"), both, strict=True):
        mark = int(generator.integers(10, 200))
        nodes += [node("Equal", [name, f"mark_{name}"], [f"is_{name}"])]
        if kind == "text":
            constants[f"mark_{name}"] = np.array([f"word {mark}"], object)
            rows[name] = np.full((ROWS, 1), "other", object)
        else:
            constants[f"mark_{name}"] = np.array([True if kind == "bool" else mark], kind)
            rows[name] = (
                np.zeros((ROWS, 1), kind) if kind == "bool" else generator.integers(0, 9, (ROWS, 1)).astype(kind)
            )
        inputs[name] = (str if kind == "text" else rows[name].dtype, ["n", 1])
    nodes += [
        node("And", ["is_a", "is_b"], ["both"]),
        node("ReduceMax", ["x", "axes"], ["most"], keepdims=1),
        node("Where", ["both", "most", "x"], ["y"]),
    ]
    proto = model(nodes, {"x": (f32, ["n", 3]), **inputs}, {"y": (f32, ["n", 3])}, constants)
    rows["x"] = generator.standard_normal((ROWS, 3)).astype(f32)
    assert is_apart(Case(proto, rows, apart), tmp_path) == apart
