"""How slow engines are lately: what all share, what each has of its own, and that it is forgotten."""

from __future__ import annotations

import pytest

from enginehouse.routing.pace import CONTENTION_HALF_LIFE_S, HALF_LIFE_S, MOST_CONTENTION, Contention, Contentions, Pace


def test_nothing_heard_is_as_measured() -> None:
    assert Pace().of("p", 5.0) == {0: 1.0}


def test_what_is_heard_again_and_again_is_believed() -> None:
    pace = Pace()
    for _ in range(100):
        pace.note("p", 8, 3.0, 1.0)
    assert pace.of("p", 1.0)[4] == pytest.approx(3.0, rel=0.05)


def test_a_busy_machine_makes_the_engines_that_nobody_asks_slow_too() -> None:
    pace = Pace()
    for _ in range(100):
        pace.note("asked", 1, 2.0, 1.0)
    assert pace.of("idle", 1.0) == {0: pytest.approx(2.0, rel=0.05)}


def test_one_engine_alone_does_not_deviate_from_itself() -> None:
    pace = Pace()
    pace.note("p", 1, 3000.0, 1.0)
    assert pace.of("p", 1.0)[1] == pace.of("other", 1.0)[0] == 3000.0
    for _ in range(20):
        pace.note("p", 1, 6000.0, 1.0)
    assert pace.of("p", 1.0)[1] / pace.of("other", 1.0)[0] < 1.2


def test_one_call_that_was_held_up_does_not_make_everything_late() -> None:
    pace = Pace()
    for _ in range(20):
        pace.note("p", 1, 1.0, 1.0)
    pace.note("p", 1, 200.0, 1.0)
    assert pace.of("p", 1.0)[0] < 2
    # What stays so is believed after some calls.
    for _ in range(20):
        pace.note("p", 1, 200.0, 1.0)
    assert pace.of("p", 1.0)[0] > 150


def test_one_engine_that_is_slower_than_the_others_stays_so_at_its_rows() -> None:
    pace = Pace()
    for _ in range(200):
        pace.note("fast", 1, 1.0, 1.0)
        pace.note("slow", 1, 3.0, 1.0)
    fast, slow = pace.of("fast", 1.0), pace.of("slow", 1.0)
    assert slow[1] / fast[1] == pytest.approx(3.0, rel=0.2)
    assert slow[1] == pytest.approx(3.0, rel=0.2)


def test_what_is_no_longer_heard_is_forgotten() -> None:
    pace = Pace()
    for _ in range(100):
        pace.note("p", 1, 3.0, 1.0)
    once = pace.of("p", 1.0)[0]
    assert pace.of("p", 1.0 + HALF_LIFE_S)[0] == pytest.approx(1 + (once - 1) / 2)
    assert pace.of("p", 1.0 + 50 * HALF_LIFE_S)[1] == pytest.approx(1.0)


def test_a_call_that_was_held_up_is_no_reason_to_prefer_another_engine() -> None:
    pace = Pace()
    for _ in range(20):
        pace.note("near", 1, 1.0, 1.0)
    pace.note("near", 1, 2.0, 1.0)
    assert pace.of("near", 1.0)[1] == pace.of("far", 1.0)[0]


def test_a_crowd_is_noticed_by_the_models_that_were_not_asked_and_soon_over() -> None:
    contention, asked, other = Contention(), Pace(), Pace()
    for _ in range(20):
        asked.note("p", 1, 1.0, 1.0, contention)
    for _ in range(20):
        asked.note("p", 1, 3.0, 1.0, contention)
    assert other.of("p", 1.0, contention.at(1.0))[0] > 1.5
    assert asked.of("p", 1.0, contention.at(1.0))[1] == pytest.approx(3.0, rel=0.1)
    assert contention.at(1.0 + 10 * CONTENTION_HALF_LIFE_S) == pytest.approx(1.0, abs=0.01)


def test_what_is_slow_for_one_model_alone_is_its_pace_and_no_crowd() -> None:
    contention, slow, usual = Contention(), Pace(), Pace()
    for _ in range(300):
        slow.note("p", 1, 3.0, 1.0, contention)
        usual.note("p", 1, 1.0, 1.0, contention)
    assert slow.of("p", 1.0, contention.at(1.0))[1] / usual.of("p", 1.0, contention.at(1.0))[1] == pytest.approx(
        3.0, rel=0.2
    )
    assert slow.of("p", 1.0, contention.at(1.0))[1] == pytest.approx(3.0, rel=0.2)


def test_the_first_call_and_one_after_a_silence_are_believed_once() -> None:
    contention, pace = Contention(), Pace()
    for now in (1.0, 61.0, 121.0):
        pace.note("p", 1, 3.0, now, contention)
        assert pace.of("p", now, contention.at(now))[1] == pytest.approx(3.0, rel=0.15)


def test_one_call_that_was_held_up_makes_nothing_late_for_long() -> None:
    contention, pace, other = Contention(), Pace(), Pace()
    for _ in range(20):
        pace.note("p", 1, 1.0, 1.0, contention)
        other.note("p", 1, 1.0, 1.0, contention)
    pace.note("p", 1, 200.0, 1.0, contention)
    assert pace.of("p", 1.0, contention.at(1.0))[1] < 2.5
    assert other.of("p", 1.0, contention.at(1.0))[1] < 2
    assert pace.of("p", 5.0, contention.at(5.0))[1] < 1.7
    assert other.of("p", 5.0, contention.at(5.0))[1] < 1.2


def test_a_pause_that_held_up_many_models_makes_others_no_later_than_a_crowd_may() -> None:
    contention, paces, other = Contention(), [Pace() for _ in range(8)], Pace()
    for pace in [*paces, other]:
        for _ in range(20):
            pace.note("p", 1, 1.0, 1.0, contention)
    for pace in paces:
        pace.note("p", 1, 50.0, 1.0, contention)
    assert other.of("p", 1.0, contention.at(1.0))[1] < MOST_CONTENTION
    # And calls that are as fast as ever say that it is over.
    for _ in range(10):
        other.note("p", 1, 1.0, 1.1, contention)
    assert other.of("p", 1.1, contention.at(1.1))[1] < 1.3


def test_pools_that_share_a_node_share_its_crowd() -> None:
    contentions = Contentions()
    here = contentions.of("cpu", frozenset("ab"))
    assert contentions.of("cpu", frozenset("bc")) is here
    assert contentions.of("cpu", frozenset("cd")) is here
    assert contentions.of("cpu", frozenset("ef")) is not here
    assert contentions.of("gpu", frozenset("ab")) is not here
    assert contentions.of("cpu", frozenset("ab")) is here
