"""What a caller asks beside the answer: where it is read from, in which unit, and what is no hint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from enginehouse.contract.config import USUAL
from enginehouse.contract.errors import InvalidInput
from enginehouse.routing.hints import NO_HINTS, Hints, headers_of


@pytest.mark.parametrize(
    ("header", "parameters", "seconds"),
    [
        (None, {}, None),
        ("250", {}, 0.25),
        (None, {"deadline-ms": 250}, 0.25),
        # Triton's, in microseconds; 0 is none.
        (None, {"timeout": 250_000}, 0.25),
        (None, {"timeout": 0}, None),
        ("100", {"deadline-ms": 250, "timeout": 1}, 0.1),
        (None, {"deadline-ms": 250, "timeout": 1}, 0.25),
        (None, {"deadline-ms": 0}, 0.0),
        (None, {"deadline-ms": -5}, -0.005),
    ],
)
def test_the_deadline_is_read_in_its_unit(header: str | None, parameters: Any, seconds: float | None) -> None:
    headers = {"enginehouse-deadline-ms": header} if header else {}
    assert Hints.of(headers, parameters).deadline_s == seconds


def test_hints_come_from_headers_or_parameters() -> None:
    raw = [(b"host", b"x"), (b"enginehouse-priority", b"2"), (b"enginehouse-min-precision", b"fp16")]
    assert Hints.of(headers_of(raw), {"backend": "gpu", "priority": 7}) == Hints(None, 2, "gpu", "fp16")
    assert Hints.of({}, {"priority": 7, "min-precision": "fp32"}) == Hints(None, 7, None, "fp32")
    assert Hints.of({}, {"binary_data_output": True}) == NO_HINTS
    assert Hints.of({}, {"enginehouse-deadline-ms": 250, "deadline-ms": 1}) == Hints(0.25)
    assert Hints.of({"enginehouse-backend": "cpu"}, {"enginehouse-backend": "gpu"}) == Hints(backend="cpu")
    # Triton's usual priority.
    assert Hints.of({}, {"priority": 0}).priority == USUAL


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"deadline_ms": 5}, "'deadline_ms' is no hint; the hints are deadline_s=SECONDS, .* is deadline_s=0.005"),
        ({"deadline_ms": "5"}, "'deadline_ms' is no hint; the hints are deadline_s=SECONDS, priority, backend and"),
        ({"priority": 1, "timeout": 5}, "'timeout' is no hint; the hints are deadline_s"),
        ({"pool": "ort"}, "the hints are deadline_s=SECONDS, priority, backend and min_precision"),
        ({"deadline_s": "5"}, "deadline_s '5' is not a number of seconds"),
    ],
)
def test_an_argument_that_is_no_hint_is_told_those_there_are(given: Any, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Hints.named(given)


def test_hints_are_the_arguments_of_python_callers() -> None:
    given: Any = {"deadline_s": 0.5, "priority": 2, "backend": "gpu", "min_precision": "fp16"}
    assert Hints.named(given) == Hints(0.5, 2, "gpu", "fp16")
    assert Hints.named({}) == NO_HINTS


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"deadline-ms": "soon"}, "deadline-ms 'soon' is not a number"),
        ({"deadline-ms": []}, "is not a number"),
        ({"deadline-ms": float("nan")}, "is not a time"),
        ({"priority": 10}, "priority 10 is not one of 1"),
        ({"priority": 1.5}, "priority 1.5 is not one of 1"),
        ({"priority": "high"}, "priority 'high' is not a number"),
        ({"priority": True}, "priority true is not a number"),
        ({"deadline-ms": True}, "deadline-ms true is not a number"),
        ({"deadline-ms": False}, "deadline-ms false is not a number"),
        ({"timeout": False}, "timeout false is not a number"),
        ({"timeout": True}, "timeout true is not a number"),
        ({"enginehouse-priority": True}, "priority true is not a number"),
        ({"enginehouse-dedline-ms": 5}, "'enginehouse-dedline-ms' is no hint; the hints are enginehouse-deadline-ms, "),
        ({"enginehouse-timeout": 5}, "is no hint; .*enginehouse-min-precision"),
        ({"backend": 3}, "'backend' is 3; it must be a string"),
        ({"min-precision": "fp8"}, "'fp8' is not one of fp32, fp16, bf16, int8"),
    ],
)
def test_what_is_no_hint_is_told(parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Hints.of({}, parameters)


@pytest.mark.parametrize(
    ("hints", "told"),
    [
        ({"deadline_s": "1"}, "deadline_s '1' is not a number of seconds"),
        ({"deadline_s": True}, "deadline_s True"),
        ({"priority": "high"}, "priority 'high' is not one of 1"),
        ({"priority": 1.5}, "priority 1.5 is not one of 1"),
        ({"priority": True}, "priority True"),
        ({"backend": 3}, "backend 3 is not the name of one"),
        ({"min_precision": 8}, "min-precision 8 is not one of"),
    ],
)
def test_arguments_of_another_type_are_told(hints: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Hints(**hints)


def test_numbers_of_numpy_are_numbers() -> None:
    assert Hints(np.float32(0.5), np.int64(3)) == Hints(0.5, 3)


@pytest.mark.parametrize("name", ["enginehouse-deadline", "enginehouse-timeout", "enginehouse-", "enginehouse-x"])
def test_a_header_that_is_no_hint_is_told_with_those_there_are(name: str) -> None:
    told = f"'{name}' is no hint; the hints are enginehouse-deadline-ms, enginehouse-priority, enginehouse-backend, "
    with pytest.raises(InvalidInput, match=told):
        Hints.of(headers_of([(name.encode(), b"1")]), {})
