"""How many replicas may be lost with a request, and what is said of it then."""

from __future__ import annotations

import random

import pytest

from enginehouse.contract.errors import EnginehouseError, InferenceFailed, ReplicaLost
from enginehouse.routing.failover import MOST_IN_COMPANY, MOST_ISOLATED, ONE_EVENT_S, Suspicion
from enginehouse.transport.router_end import CRASHED, IN_COMPANY, ISOLATED, UNDER_WAY

STAGES = {"u": UNDER_WAY, "i": ISOLATED, "c": IN_COMPANY, "x": CRASHED}


def judged(stages: str, apart_s: float = 1.0) -> EnginehouseError | None:
    """The verdict on a request whose losses come so far apart; it has to come with the last one."""
    suspicion = Suspicion()
    for place, stage in enumerate(stages, 1):
        try:
            suspicion.lost(ReplicaLost("p", "gone", STAGES[stage]), place * apart_s)
        except EnginehouseError as error:
            assert place == len(stages), f"{error} after {stages[:place]}"
            return error
    return None


@pytest.mark.parametrize("stages", ["u", "uu", "uuuuuu", "ucc", "ucuc", "uuucuuuc", "ui", "uuuui", "uicc"])
def test_what_may_have_been_another_ones_doing_is_tried_again(stages: str) -> None:
    assert judged(stages) is None


@pytest.mark.parametrize("stages", ["ux", "uuux", "ucx", "uccx", "uix"])
def test_a_request_that_crashed_a_process_alone_is_at_fault(stages: str) -> None:
    error = judged(stages)
    assert isinstance(error, InferenceFailed)
    assert "two replicas were lost while they computed this request, the second time isolated" in str(error)


@pytest.mark.parametrize("stages", ["uii", "uiui", "ucici", "uicci"])
def test_one_that_was_killed_with_its_process_is_at_fault_when_that_happens_again(stages: str) -> None:
    """Two kills from outside are no proof; and one that outgrows the memory of its node is killed each time."""
    error = judged(stages)
    assert isinstance(error, InferenceFailed)
    assert "three replicas were lost while they computed this request, two of them while it was isolated" in str(error)


@pytest.mark.parametrize("stages", ["uccc", "ucucc", "uuccuc", "uccic"])
def test_one_that_was_never_alone_ends_too_and_is_not_blamed(stages: str) -> None:
    error = judged(stages)
    assert isinstance(error, ReplicaLost)
    assert (error.status, error.retryable) == (503, True)
    assert "which of them is at fault is unknown" in str(error)


def test_what_is_lost_in_one_event_counts_once() -> None:
    """The node of all replicas ends: whatever computed there did not do it."""
    assert judged("uiixi", ONE_EVENT_S / 10) is None
    suspicion = Suspicion()
    assert suspicion.lost(ReplicaLost("p", "gone", UNDER_WAY), 10.0) == 0
    # It waits for the event to be over, so as not to end one replica after the other within it.
    assert suspicion.lost(ReplicaLost("p", "gone", ISOLATED), 10.1) == ONE_EVENT_S
    with pytest.raises(InferenceFailed):
        suspicion.lost(ReplicaLost("p", "gone", CRASHED), 10.1 + 2 * ONE_EVENT_S)


@pytest.mark.parametrize("seed", range(20))
def test_every_request_that_ends_what_computes_it_ends_soon_in_whatever_company(seed: int) -> None:
    rng, suspicion, now = random.Random(seed), Suspicion(), 100.0
    suspicion.lost(ReplicaLost("p", "gone", UNDER_WAY), now)
    for computed in range(1, 20):
        now += rng.choice([0.01, 0.3, 5.0])
        try:
            now += suspicion.lost(ReplicaLost("p", "gone", rng.choice([ISOLATED, IN_COMPANY, CRASHED])), now)
        except EnginehouseError:
            assert computed <= 2 * (MOST_IN_COMPANY + MOST_ISOLATED - 1)
            return
    pytest.fail("it goes on")
