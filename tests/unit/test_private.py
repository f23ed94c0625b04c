"""What only its user may have: token, sessions, caches, as another user of the machine sees them, under any umask."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.other_user import UID, as_other_user, needs_root, plants, reads, replaces

from enginehouse.cluster import home
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.store import private
from enginehouse.tools.doctor.files import judge_files, probe_files

HEX = 64


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=["umask-000", "umask-022", "umask-077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may enter and read, as a home often is; pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="p", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def user_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(place))
    return place


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def others_can(path: Path) -> list[str]:
    tries = {"read": reads(path), "plant": plants(path), "replace": replaces(path)}
    return [name for name, act in tries.items() if as_other_user(act)]


@needs_root
def test_a_token_is_made_that_nobody_else_can_have(user_home: Path, umask: int) -> None:
    home.private_token()
    token = user_home / ".ray" / "auth_token"
    assert (mode(token.parent), mode(token)) == (0o700, 0o600)
    assert len(token.read_text()) == HEX
    assert home.has_token()
    assert others_can(token) == others_can(token.parent) == []


@needs_root
@pytest.mark.parametrize("folder_mode", [0o755, 0o777, 0o700])
@pytest.mark.parametrize("file_mode", [0o644, 0o666, 0o600])
def test_one_that_is_there_is_kept_and_tightened(user_home: Path, folder_mode: int, file_mode: int) -> None:
    token = user_home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("mine")
    token.chmod(file_mode)
    token.parent.chmod(folder_mode)
    home.private_token()
    assert token.read_text() == "mine"
    assert (mode(token.parent), mode(token)) == (0o700, 0o600)
    assert others_can(token) == []


@needs_root
@pytest.mark.parametrize("theirs", ["folder", "file", "link"])
def test_what_another_user_made_in_its_place_is_refused(user_home: Path, theirs: str) -> None:
    folder = user_home / ".ray"
    folder.mkdir()
    token = folder / "auth_token"
    if theirs == "link":
        (user_home / "known").write_text("known")
        token.symlink_to(user_home / "known")
    else:
        token.write_text("known")
    os.chown(folder if theirs == "folder" else token, UID, UID, follow_symlinks=False)
    with pytest.raises(ConfigError, match=f"uid {UID}"):
        home.private_token()


def test_a_token_that_is_given_stays_as_it_is(user_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    home.private_token()
    assert list(user_home.iterdir()) == []


@needs_root
def test_what_ray_has_everybody_write_is_where_nobody_else_comes(user_home: Path, umask: int) -> None:
    folder = home.ray_folder(Path("/nowhere"), {"TMPDIR": str(user_home)})
    # As Ray makes its folders.
    session = folder / "session" / "runtime_resources"
    session.mkdir(parents=True)
    for each in (folder, session.parent, session):
        each.chmod(0o777)
    (session / "file").write_text("x")
    assert others_can(session) == others_can(session / "file") == others_can(folder) == []
    assert len(str(folder)) < 40


@needs_root
def test_a_name_that_another_user_took_is_left(user_home: Path, tmp_path: Path) -> None:
    taken = user_home / f"ray-{os.getuid()}"
    taken.mkdir()
    os.chown(taken, UID, UID)
    assert home.ray_folder(tmp_path, {"TMPDIR": str(user_home)}) == tmp_path / "ray"
    taken.rmdir()
    taken.symlink_to(user_home)
    os.lchown(taken, UID, UID)
    assert home.ray_folder(tmp_path, {"TMPDIR": str(user_home)}) == tmp_path / "ray"


def test_a_folder_that_is_private_already_has_the_sessions_itself(user_home: Path) -> None:
    user_home.chmod(0o700)
    assert home.ray_folder(Path("/nowhere"), {"RAY_TMPDIR": str(user_home)}) == user_home / "ray"


@needs_root
def test_private_folders_are_made_and_tightened(place: Path, umask: int) -> None:
    deep = private.private_folder(place / "a" / "b")
    assert mode(deep) == mode(deep.parent) == 0o700
    deep.chmod(0o2775)
    assert mode(private.private_folder(deep)) == 0o700
    os.chown(deep, UID, UID)
    with pytest.raises(ConfigError, match="another user"):
        private.private_folder(deep)


@pytest.mark.parametrize(
    ("folder", "file", "expected"),
    [
        (0o700, 0o666, []),
        (0o755, 0o600, []),
        (0o755, 0o644, ["read"]),
        (0o1777, 0o600, []),
        (0o777, 0o600, ["replace"]),
        (0o777, 0o666, ["read", "replace", "write"]),
    ],
)
def test_what_others_can_do_is_found(place: Path, folder: int, file: int, expected: list[str]) -> None:
    (place / "file").touch()
    (place / "file").chmod(file)
    place.chmod(folder)
    assert private.exposed(place / "file") == expected


@pytest.mark.parametrize(("file_mode", "status"), [(0o600, "ok"), (0o644, "fail"), (0o620, "fail")])
def test_the_doctor_looks_at_the_token(user_home: Path, file_mode: int, status: str) -> None:
    (user_home / ".ray").mkdir(mode=0o755)
    token = user_home / ".ray" / "auth_token"
    token.touch()
    token.chmod(file_mode)
    (found,) = judge_files(probe_files([], user_home / "none"))
    assert (found.status, found.area) == (status, "files")
    assert str(token) in found.text
    assert bool(found.remedy) == (status != "ok")


class Daemon:
    """A process as the doctor sees it."""

    def __init__(self, name: str, *command: str) -> None:
        self._name, self._command = name, [name, *command]

    def name(self) -> str:
        return self._name

    def cmdline(self) -> list[str]:
        return self._command


def test_the_doctor_looks_at_sessions_and_at_the_socket_of_haproxy(user_home: Path) -> None:
    session, served = user_home / "session", user_home / "haproxy-serve" / "node"
    for folder in (session, served):
        folder.mkdir(parents=True)
    session.chmod(0o777)
    (served / "admin.sock").touch()
    (served / "admin.sock").chmod(0o666)
    daemons = [Daemon("raylet", f"--session_dir={session}"), Daemon("haproxy", "-f", str(served / "haproxy.cfg"))]
    found = judge_files(probe_files(daemons, user_home / "none"))  # type: ignore[arg-type]
    assert [finding.status for finding in found] == ["warn", "warn"]
    assert "--temp-dir" in found[0].remedy and "RAY_SERVE_HAPROXY_SOCKET_PATH" in found[1].remedy
    user_home.chmod(0o700)
    assert {finding.status for finding in judge_files(probe_files(daemons, user_home / "none"))} == {"ok"}  # type: ignore[arg-type]


@needs_root
def test_a_folder_of_haproxy_that_another_user_made_first_is_found(user_home: Path) -> None:
    folder = user_home / "haproxy-serve"
    folder.mkdir()
    assert probe_files([], folder) == []
    os.chown(folder, UID, UID)
    (found,) = judge_files(probe_files([], folder))
    assert found.status == "fail" and f"uid {UID}" in found.text
