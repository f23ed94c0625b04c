"""When requests are due, traces of one's own, and the search for the highest rate."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from enginehouse.contract.errors import InvalidInput
from enginehouse.tools.bench.arrivals import highest_rate, poisson, read_trace


def test_poisson_arrivals_have_their_rate_and_spread() -> None:
    due = poisson(200, 50)
    assert len(due) == pytest.approx(10_000, rel=0.05)
    assert list(due) == sorted(due)
    assert due[-1] < 50
    gaps = [after - before for before, after in itertools.pairwise(due)]
    # Exponential: as many gaps are longer than the mean as e says.
    assert sum(gap > 1 / 200 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)
    assert poisson(200, 50) == due


def test_at_least_one_request_arrives() -> None:
    assert len(poisson(0.001, 1)) == 1


@pytest.mark.parametrize(
    "text",
    ["t,rows\n12.5,1\n12.0,4\n13,\n", '{"t": 12.5}\n{"t": 12, "rows": 4}\n\n{"t": 13}\n', "rows,t\n,12.5\n4,12\n1,13"],
)
def test_a_trace_starts_at_its_first_arrival(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    trace = read_trace(path)
    assert trace.due_s == (0, 0.5, 1)
    assert trace.rows == (4, 1, 1)
    assert trace.rate == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no arrivals"),
        ("t\n", "has no arrivals"),
        ("time\n1\n", "line 2: t: Field required"),
        ("t\n1\nsoon\n", "line 3: t: "),
        ("t,rows\n1,0\n", "line 2: rows: "),
        ('{"t": NaN}', "line 1: "),
        ('{"t": 1}\n[2]\n', "line 2: the line: "),
        ("t\ninf\n", "line 2: t: "),
    ],
)
def test_a_bad_trace_is_refused_by_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"trace is CSV with the columns t") as caught:
        read_trace(path)
    assert reason in str(caught.value)
    with pytest.raises(InvalidInput, match="absent"):
        read_trace(tmp_path / "absent")


@pytest.mark.parametrize(("capacity", "start"), [(300.0, 10.0), (300.0, 5000.0), (300.0, 299.0), (0.7, 1.0)])
def test_the_search_ends_just_below_what_holds(capacity: float, start: float) -> None:
    tried: list[float] = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= capacity

    best = highest_rate(holds, start)
    assert capacity / 1.05 <= best <= capacity
    assert len(tried) <= 16
    assert len(set(tried)) == len(tried)


def test_a_server_that_never_or_always_holds_ends_the_search() -> None:
    assert highest_rate(lambda rate: False, 100, tries=5) == 0.0
    assert highest_rate(lambda rate: True, 100, tries=3) == 400
    tried: list[float] = []
    assert highest_rate(lambda rate: bool(tried.append(rate)), 100, lowest=30) == 0.0
    assert tried == [100, 50, 30]
