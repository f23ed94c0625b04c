"""Counts of a node: of processes that live and of killed ones, each once, whoever reads and however often."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enginehouse.contract.errors import DeadlineExceeded, InferenceFailed, InvalidInput, Overloaded
from enginehouse.contract.tensors import Timing
from enginehouse.counts import ledger, node, rows
from enginehouse.counts.engines import BatchCounts
from enginehouse.counts.ledger import Ledger
from enginehouse.counts.node import Told
from enginehouse.counts.requests import Counted, reason_of
from enginehouse.counts.rows import Batches, Requests

REQUESTS, BATCHES = ("requests", "m", "1"), ("batches", "m", "1", "pool", "3")


class Counting:
    """One such process."""

    def __init__(self, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.counting_process", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said()

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.said()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ledger:
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ledger, "_ledgers", {})
    monkeypatch.setattr(ledger, "_here", Ledger(None))
    return ledger.begin("node")


@pytest.fixture
def counting(here: Ledger) -> Iterator[Callable[[], Counting]]:
    started: list[Counting] = []

    def start() -> Counting:
        started.append(Counting("node"))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def read(here: Ledger, key: rows.Key = REQUESTS) -> Sequence[int]:
    return node.read(here, "node").rows[key]


def test_the_living_and_the_killed_are_counted_once_each(here: Ledger, counting: Callable[[], Counting]) -> None:
    first, second = counting(), counting()
    first.tell("5")
    second.tell("7")
    for _ in range(3):
        assert read(here)[Requests.SUCCESS] == 12
    assert read(here)[Requests.UNDER_WAY] == 2
    first.tell("1")
    first.kill()
    for _ in range(3):
        known = read(here)
        assert (known[Requests.SUCCESS], known[Requests.ROWS]) == (13, 39)
        assert known[Requests.UNDER_WAY] == 1, "what was under way on it no longer is"
        assert read(here, BATCHES)[Batches.COUNT] == 13
    third = counting()
    third.tell("2")
    second.kill()
    third.kill()
    assert read(here)[Requests.SUCCESS] == 15
    assert here.folder is not None and not list(here.folder.glob("*.counts")), "nothing is left of them but the sum"


def test_who_reads_may_be_killed_between_adding_and_removing(
    here: Ledger, counting: Callable[[], Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = counting()
    first.tell("5")
    first.kill()
    with monkeypatch.context() as patched:
        patched.setattr(node, "_remove", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            node.read(here, "node")
    assert here.folder is not None and list(here.folder.glob("*.counts"))
    for _ in range(2):
        assert read(here)[Requests.SUCCESS] == 5
    assert not list(here.folder.glob("*.counts"))


def test_several_readers_at_once_tell_the_same(here: Ledger, counting: Callable[[], Counting]) -> None:
    several = [counting() for _ in range(3)]
    for each in several:
        each.tell("4")
        each.kill()
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: read(here)[Requests.SUCCESS], range(24)))
    assert told == [12] * 24


def test_a_reader_that_hangs_holds_up_no_other_for_long(
    here: Ledger, counting: Callable[[], Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "LOCK_S", 0.1)
    other = counting()
    assert other.tell("hang") == "hangs"
    with pytest.raises(TimeoutError):
        node.read(here, "node")
    other.kill()
    assert node.read(here, "node").rows


def test_more_rows_than_a_file_holds(here: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "ROWS", 4)
    for number in range(11):
        here.row("refused", "m", "1", str(number))[0] += number
    known = node.read(here, "node").rows
    assert {int(key[3]): values[0] for key, values in known.items()} == {number: number for number in range(11)}


def test_only_its_user_can_read_them(here: Ledger) -> None:
    here.row("refused", "m", "1", "x")[0] += 1
    node.read(here, "node")
    assert here.folder is not None
    for path in (here.folder, here.folder.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_without_a_folder_its_own_process_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "file"))
    alone = Ledger(ledger._folder("node"))
    alone.row("refused", "m", "1", "x")[0] += 2
    told = node.read(alone, "node")
    assert told.place == f"node/{alone.process}", "nobody who reads the folder of the node counts it again"
    assert told.rows["refused", "m", "1", "x"][0] == 2


def test_what_is_told_arrives_as_it_was(here: Ledger) -> None:
    here.row("refused", "m/n", "1", "x")[0] += 2
    told = node.read(here, "node")
    assert Told.of(told.plain()) == Told(told.place, told.at, {key: list(row) for key, row in told.rows.items()})


def test_folders_of_clusters_that_have_ended_go(here: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here.folder is not None
    other, mine = here.folder.parent / "other", here.row("refused", "m", "1", "x")
    mine[0] += 1
    living = Ledger(here.folder.parent / "living")
    living.folder.mkdir()  # type: ignore[union-attr]
    living.row("refused", "m", "1", "x")
    other.mkdir()
    (other / "1-1-1.counts").touch()
    node.remove_left_over(here)
    assert other.exists(), "it may be that of a cluster that will be read"
    monkeypatch.setattr(node, "KEPT_S", -10.0)
    node.remove_left_over(here)
    assert not other.exists()
    assert here.folder.exists() and living.folder is not None and living.folder.exists()


def test_requests_are_counted_by_what_became_of_them(here: Ledger) -> None:
    counts = Counted(here).of("m", "1")
    for ns in (400_000, 500_000, 500_001, 40_000_000_000):
        counts.succeeded(ns, 1, 2, 4, Timing(1.5, 2.5, 8), 2)
    for error in (Overloaded("full"), InvalidInput("wrong"), InferenceFailed("broken"), ValueError()):
        counts.failed(type(error), type(error).__name__, 7)
    known = node.read(here, "node").rows
    row = known[REQUESTS]
    assert (row[Requests.SUCCESS], row[Requests.ROWS], row[Requests.FAILOVERS]) == (4, 16, 4)
    assert (row[Requests.QUEUE_NS], row[Requests.INFER_NS]) == (6_000_000, 10_000_000)
    assert (row[Requests.REJECTED], row[Requests.OTHER], row[Requests.BACKEND], row[Requests.FAIL_NS]) == (1, 1, 2, 28)
    latency = known["latency", "m", "1"]
    assert (latency[0], latency[1], latency[len(rows.BOUNDS_NS)]) == (2, 1, 1), "a bound is in its bucket"
    assert known["refused", "m", "1", "Overloaded"][0] == 1


@pytest.mark.parametrize(
    ("kind", "outcome", "reason"),
    [
        (DeadlineExceeded, "DeadlineExceeded", "REJECTED"),
        (InvalidInput, "InvalidInput", "OTHER"),
        (InferenceFailed, "InferenceFailed", "BACKEND"),
        (KeyboardInterrupt, "cancelled", "CANCELED"),
    ],
)
def test_reasons_are_tritons(kind: type[BaseException], outcome: str, reason: str) -> None:
    assert reason_of(kind, outcome) == reason


def test_a_call_in_pieces_is_as_many_calls(here: Ledger) -> None:
    BatchCounts("m", "1", "pool").computed(19, 8, 0.19, 1.9, 0.0)
    known = node.read(here, "node").rows
    batches = {int(key[4]): values for key, values in known.items()}
    assert {size: row[Batches.COUNT] for size, row in batches.items()} == {8: 2, 3: 1}
    assert sum(row[Batches.INFER_NS] for row in batches.values()) == pytest.approx(1.9e9, abs=10)


def test_the_latest_inference_of_several_processes() -> None:
    one, other = [0] * rows.WIDTH, [0] * rows.WIDTH
    one[Requests.LAST_MS], other[Requests.LAST_MS], other[Requests.SUCCESS] = 5, 9, 2
    assert rows.total([{REQUESTS: one}, {REQUESTS: other}, {REQUESTS: one}])[REQUESTS][Requests.LAST_MS] == 9
