"""What a local cluster does without a home, and with a folder for temporary files that sockets do not fit in."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from enginehouse.cluster import home
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.store.cache import cache_folder


@pytest.mark.parametrize("given", [None, "", "relative", "/proc/no"])
def test_without_a_home_the_token_is_in_the_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HOME") if given is None else monkeypatch.setenv("HOME", given)
    assert not home.has_token()
    found = home.without_home(tmp_path)
    token = Path(found["RAY_AUTH_TOKEN_PATH"])
    assert token.parent == tmp_path and len(token.read_text()) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert Path(found["ENGINEHOUSE_CACHE"]).parent == tmp_path


def test_a_token_that_is_given_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    assert home.has_token()
    assert "RAY_AUTH_TOKEN_PATH" not in home.without_home(tmp_path)


def test_with_a_home_everything_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert home.without_home(tmp_path) == {}
    assert not home.has_token()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert home.has_token()


def test_sessions_go_where_their_sockets_fit(tmp_path: Path) -> None:
    def folder(**environment: str) -> str:
        return str(home.ray_folder(tmp_path, environment))

    mine = f"/tmp/ray-{os.getuid()}/ray"
    assert folder() == folder(TMPDIR="/tmp") == mine
    assert folder(TMPDIR="/tmp/" + "x" * 130) == mine
    assert folder(TMPDIR="/tmp/" + "x" * 29) == mine
    assert folder(RAY_TMPDIR="/tmp/" + "x" * 130, TMPDIR="/tmp") == mine
    if os.getuid():
        assert folder(TMPDIR="/root/x") == mine
    assert folder(TMPDIR="/proc/version/x") == mine
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as parent:
        later = Path(parent) / "later"
        assert folder(TMPDIR=str(later)) == f"{later}/ray-{os.getuid()}/ray"
        assert folder(TMPDIR=parent) == f"{parent}/ray"


def test_a_user_without_a_home_is_told_where_to_put_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        # As of a container's user that the system does not know.
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ENGINEHOUSE_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match="ENGINEHOUSE_CACHE"):
        cache_folder()
    monkeypatch.setenv("ENGINEHOUSE_CACHE", "/some/where")
    assert cache_folder() == Path("/some/where")
