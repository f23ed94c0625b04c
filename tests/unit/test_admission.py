"""Who is let in: within the limits of a process, each model within its share, the urgent before the others."""

from __future__ import annotations

import contextlib

import pytest

from enginehouse.contract.config import FIRST, LAST, USUAL
from enginehouse.contract.errors import Overloaded
from enginehouse.routing.admission import Admission, Admitted


def fill(stack: contextlib.ExitStack, admission: Admission, model: str, priority: int = USUAL) -> int:
    """Let in as many as there is room for."""
    for count in range(10_000):
        try:
            stack.enter_context(Admitted(admission, model, priority))
        except Overloaded:
            return count
    raise AssertionError


def test_one_model_leaves_room_for_the_others() -> None:
    admission = Admission(1000, 1 << 30)
    with contextlib.ExitStack() as stack:
        assert fill(stack, admission, "greedy") == 800
        with pytest.raises(Overloaded, match="800 requests for 'greedy' are under way, which is its share with 200"):
            stack.enter_context(Admitted(admission, "greedy"))
        assert fill(stack, admission, "modest") == 160
        assert fill(stack, admission, "third") > 20
    assert (admission.requests, admission.bytes, dict(admission.by_model)) == (0, 0, {})


def test_the_urgent_get_in_where_others_do_not() -> None:
    admission = Admission(1000, 1 << 30)
    with contextlib.ExitStack() as stack:
        assert fill(stack, admission, "m", USUAL) == 800
        assert fill(stack, admission, "m", FIRST) > 100


def test_those_of_the_last_priority_take_no_place_and_no_bytes_from_the_others() -> None:
    admission = Admission(1000, 100)
    with contextlib.ExitStack() as stack:
        assert fill(stack, admission, "m", LAST) == 125
        stack.enter_context(Admitted(admission, "other", LAST)).take(25)
        with pytest.raises(Overloaded, match="MiB are under way"):
            stack.enter_context(Admitted(admission, "other", LAST)).take(1)
        assert fill(stack, admission, "m", USUAL) == 800
        stack.enter_context(Admitted(admission, "other")).take(100)
    assert (admission.last.requests, admission.last.bytes, dict(admission.last.by_model)) == (0, 0, {})


def test_the_limits_of_the_process_hold() -> None:
    admission = Admission(3, 100)
    with contextlib.ExitStack() as stack:
        stack.enter_context(Admitted(admission, "a")).take(500)
        second = stack.enter_context(Admitted(admission, "b"))
        with pytest.raises(Overloaded, match="0 MiB are under way"):
            second.take(1)
        stack.enter_context(Admitted(admission, "c"))
        with pytest.raises(Overloaded, match="3 requests are under way, which is the limit"):
            stack.enter_context(Admitted(admission, "d"))
