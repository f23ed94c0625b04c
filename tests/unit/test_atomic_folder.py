"""A folder is published whole or not at all, by one of those who try; what a killed process left is cleared away."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enginehouse.contract.store.atomic_folder import locked, publish, stage, staged


def test_of_many_that_publish_at_once_one_wins_and_the_others_leave_nothing(tmp_path: Path) -> None:
    start = threading.Barrier(4)

    def attempt(number: int) -> bool:
        with staged(tmp_path / "shop") as folder:
            (folder / "by").write_text(str(number))
            start.wait()
            return publish(folder, tmp_path / "names" / "target")

    with ThreadPoolExecutor(4) as publishers:
        won = list(publishers.map(attempt, range(4)))
    assert won.count(True) == 1
    assert (tmp_path / "names" / "target" / "by").read_text() == str(won.index(True))
    assert list((tmp_path / "shop").iterdir()) == []


def test_what_cannot_be_published_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = stage(tmp_path)
    with pytest.raises(OSError):
        publish(folder, tmp_path / "file" / "target")
    assert folder.is_dir()


def test_staging_takes_away_what_nobody_holds_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / "left.part"
    (left / "half").mkdir(parents=True)
    (tmp_path / "published").mkdir()
    (tmp_path / "file.part").touch()
    mine = [stage(tmp_path), stage(tmp_path)]
    assert set(tmp_path.iterdir()) == {*mine, tmp_path / "published", tmp_path / "file.part"}


def test_a_lock_is_held_by_one_at_a_time_though_its_file_is_moved_away(tmp_path: Path) -> None:
    inside: list[int] = []

    def take(number: int) -> None:
        with locked(tmp_path / "lock") as stream:
            inside.append(number)
            time.sleep(0.02)
            assert inside == [number]
            inside.clear()
            Path(stream.name).rename(tmp_path / f"moved-{number}")

    with ThreadPoolExecutor(4) as takers:
        list(takers.map(take, range(4)))
    assert len(list(tmp_path.glob("moved-*"))) == 4
