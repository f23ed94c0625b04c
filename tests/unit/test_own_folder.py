"""The private folder of a local cluster: gone with its owner, at the latest when the next one is made."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginehouse.cluster import own_folder
from enginehouse.contract.errors import ConfigError

OWNER = """
import signal, sys
from enginehouse.cluster.own_folder import own_folder
with own_folder() as folder:
    (folder / "deep").mkdir()
    print(folder, flush=True)
    signal.pause()
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a name as short as /tmp has it, in the place of /tmp; after that of pytest, which is in there."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def other(parent: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process with such a folder."""
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_it_is_private_and_gone_at_the_end(parent: Path) -> None:
    with own_folder.own_folder() as folder:
        assert folder.parent == parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(parent.iterdir()) == []


def test_one_whose_process_was_killed_is_removed_at_the_next_start(other: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = other
    assert folder.is_dir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.is_dir()
    with own_folder.own_folder():
        assert not folder.exists()


def test_one_whose_process_lives_stays(other: tuple[subprocess.Popen[str], Path]) -> None:
    _, folder = other
    with own_folder.own_folder():
        assert (folder / "deep").is_dir()


def test_what_is_not_ours_stays(parent: Path, tmp_path: Path) -> None:
    # No owner: of somebody else, or of a server that is just making it.
    (parent / "eh-strange" / "deep").mkdir(parents=True)
    (parent / "other").mkdir()
    (parent / "other" / "owner").touch()
    # A name that leads elsewhere.
    (tmp_path / "owner").touch()
    (parent / "eh-link").symlink_to(tmp_path)
    with own_folder.own_folder():
        pass
    assert {entry.name for entry in parent.iterdir()} == {"eh-strange", "other", "eh-link"}
    assert (tmp_path / "owner").exists()


def test_one_of_another_user_stays(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = parent / "eh-theirs"
    folder.mkdir()
    (folder / "owner").touch()
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    own_folder.remove_left_over(parent)
    assert folder.is_dir()
    monkeypatch.undo()
    own_folder.remove_left_over(parent)
    assert not folder.exists()


def test_a_long_path_is_left_for_one_that_sockets_fit_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 130)))
    with own_folder.own_folder() as folder:
        assert folder.parent == Path("/tmp")


def test_no_place_for_one_is_said_in_a_line_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/no")
    with pytest.raises(ConfigError, match="/proc/no.*TMPDIR"), own_folder.own_folder():
        pass
