"""Replicas follow how busy the engines are."""

from __future__ import annotations

import pytest

from enginehouse.autoscaling import HardwareAndLoad

POOL = HardwareAndLoad(["cpu"], min_replicas=1, max_replicas=4, target_busy=0.8)


@pytest.mark.parametrize(
    ("busy", "wanted"),
    [
        (0.0, 1),
        (0.8, 1),
        (1.0, 2),
        (1.6, 2),
        # All are fully busy: one more, as far as it goes.
        (2.0, 3),
        (3.0, 4),
        (4.0, 4),
    ],
)
def test_there_are_as_many_as_the_work_takes_at_the_target(busy: float, wanted: int) -> None:
    assert POOL.wanted(busy) == wanted
