"""Broken artifacts do not get past the gates: graphs broken in known ways, converted and judged as in a build."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from benchmarks.mutations.judged import Subject, caught
from benchmarks.mutations.models import MODELS
from benchmarks.mutations.mutants import MUTANTS

from enginehouse.contract.bounds import InputBounds, Region
from enginehouse.contract.manifest import Format
from enginehouse.contract.parity import LIMITS
from enginehouse_build.judge.verify import Verified

FORMATS: tuple[Format, ...] = ("onnx", "openvino")
#: What OpenVINO does not read, or answers wrongly as it is.
KEPT_OUT = {("labeller", "openvino")}
#: The whole fault, and a part of it.
STRENGTHS = (1.0, 1 / 16)
Judge = Callable[[str, bool], tuple[Subject, dict[Format, Verified]]]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """The subject of a model, with the user's rows or made-up ones, and what is said of its sound artifacts."""
    known: dict[tuple[str, bool], tuple[Subject, dict[Format, Verified]]] = {}

    def made(name: str, with_rows: bool) -> tuple[Subject, dict[Format, Verified]]:
        if (name, with_rows) not in known:
            subject = Subject.of(MODELS[name], tmp_path_factory.mktemp(name) / "of", with_rows=with_rows)
            known[name, with_rows] = subject, {format: subject.judged(format, "fp32") for format in FORMATS}
        return known[name, with_rows]

    return made


@pytest.mark.parametrize("with_rows", [True, False], ids=["rows", "made-up"])
@pytest.mark.parametrize("name", MODELS)
def test_sound_artifacts_pass(judge: Judge, name: str, with_rows: bool) -> None:
    for format, sound in judge(name, with_rows)[1].items():
        assert (sound.status == "failed") == ((name, format) in KEPT_OUT), sound.reason


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_broken_in_fp32_is_caught(judge: Judge, name: str, format: Format) -> None:
    mutant = MUTANTS[name]
    if (mutant.model, format) in KEPT_OUT:
        pytest.skip(f"the sound {mutant.model} is kept out of {format}")
    for with_rows in (True, False):
        subject, sound = judge(mutant.model, with_rows)
        for strength in STRENGTHS:
            change = mutant.change(strength)
            changed, distance = subject.effect(change)
            if strength == 1 or (with_rows and (changed or distance > 2 * LIMITS["fp32"].relative_l2)):
                found = subject.judged(format, "fp32", change)
                assert caught(found, sound[format]), f"{strength}: {changed:.1%} changed, {distance:.1e} off"


@pytest.mark.parametrize(
    ("name", "strength", "with_rows", "what"),
    [
        ("lost rare class, segmenter", 1, True, r"of \d+ in all \d+ are other ones, rounding decides"),
        ("swapped classes, labeller", 1 / 4, False, "limit"),
        ("one scale for all rows, classifier", 1 / 1024, True, "a row that shares its batch otherwise than alone"),
        ("rest cut off, pooler", 1, True, r"at height = \d+: .*--axis height=MIN:OPT:MAX limits requests"),
        ("rest cut off, pooler", 1, False, r"at height = \d+: "),
        ("shifted ids, encoder", 1 / 16, False, "for ids all over the table of 'ids'"),
    ],
)
def test_what_the_samples_do_not_show_is_caught_and_told(
    judge: Judge, name: str, strength: float, with_rows: bool, what: str
) -> None:
    mutant = MUTANTS[name]
    found = judge(mutant.model, with_rows)[0].judged("onnx", "fp32", mutant.change(strength))
    assert found.status == "failed"
    assert re.search(what, found.reason or ""), found.reason


@pytest.mark.parametrize(
    ("name", "strength", "with_rows", "bounds"),
    [
        ("saturated activations, segmenter", 1 / 4, True, {"x": Region(at_least=-1, less_than=4)}),
        ("integers off by one, counter", 1, False, {"id": Region(less_than=256)}),
    ],
)
def test_what_is_wrong_beyond_the_samples_only_binds_requests(
    judge: Judge, name: str, strength: float, with_rows: bool, bounds: InputBounds
) -> None:
    mutant = MUTANTS[name]
    subject, sound = judge(mutant.model, with_rows)
    assert not any(sound["onnx"].inputs_only.values())
    found = subject.judged("onnx", "fp32", mutant.change(strength))
    assert (found.status, found.inputs_only) == ("ready", {"onnxruntime-cpu": bounds})


def test_missing_values_that_are_answered_otherwise_bind_requests(judge: Judge) -> None:
    mutant = MUTANTS["NaN to 0, tabular"]
    subject, sound = judge("tabular", True)
    assert [each.inputs_only for each in sound.values()] == [{}, {}]
    found = subject.judged("onnx", "fp32", mutant.change(1))
    assert (found.status, found.inputs_only) == ("ready", {"onnxruntime-cpu": {"x": "finite"}})
