"""Rows that kill their process are found by asking fewer, and only they are."""

from __future__ import annotations

import numpy as np
import pytest

from enginehouse.faces.scoring.rows.batches import Group
from enginehouse.faces.scoring.scorers.caution import Caution

ROWS = np.arange(64)
#: Rows of two shapes, so two groups.
GROUPS = [Group(ROWS[::2], {"x": ROWS[::2]}), Group(ROWS[1::2], {"x": ROWS[1::2]})]


def death(caution: Caution, deadly: set[int]) -> tuple[int, ...] | None:
    """What was asked when the process died; None if it lived, having asked all rows but the guilty once."""
    asked: list[int] = []
    for part in caution.parts(GROUPS, 16):
        assert part.inputs["x"].tolist() == part.rows.tolist()
        if deadly & set(part.rows.tolist()):
            return tuple(part.rows.tolist())
        asked += part.rows.tolist()
    assert sorted([*asked, *caution.guilty]) == ROWS.tolist()
    return None


@pytest.mark.parametrize("deadly", [set(), {0}, {63}, {5, 7}, {5, 6}, {1, 2, 3, 4, 60}])
def test_those_that_are_to_blame_are_found_and_nobody_else(deadly: set[int]) -> None:
    caution, deaths = Caution(), 0
    while (asked := death(caution, deadly)) is not None:
        caution, deaths = caution.after(asked), deaths + 1
    assert set(caution.guilty) == deadly
    assert deaths <= 6 * len(deadly)


def test_a_process_that_was_killed_once_blames_nobody() -> None:
    caution = Caution()
    for asked in ((3,), (), (3, 5), (7,), (3,)):
        caution = caution.after(asked)
    assert caution.guilty == ()
    assert death(caution, set()) is None
