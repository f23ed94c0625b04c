"""Who may ask what `enginehouse serve` serves: what its options say, and the file that is followed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_callers import OTHER, TOKEN, entry, tokens_file

from enginehouse.contract.config import Catalog
from enginehouse.contract.config.access import ROLES, digest, is_loopback
from enginehouse.contract.errors import ConfigError
from enginehouse.tools.cli import access


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True), ("127.0.0.2", True), ("localhost", True), ("::1", True), ("[::1]", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("my.host", False), ("", False),
    ],
)  # fmt: skip
def test_what_others_reach_is_told_by_the_address(host: str, is_local: bool) -> None:
    assert is_loopback(host) == is_local
    assert access.is_reached(host) != is_local


def test_grpc_of_a_cluster_is_reached_whatever_the_address() -> None:
    assert access.is_reached("127.0.0.1", 8001, is_local=False)
    assert not access.is_reached("127.0.0.1", 8001, is_local=True)
    assert not access.is_reached("127.0.0.1", 0, is_local=False)


def test_off_loopback_a_token_is_made_and_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []
    (made,) = access.chosen(None, False, True, shown.append) or ()
    (line,) = shown
    assert made.sha256 == digest(line.rpartition(" ")[2])
    assert made.roles == ROLES and made.models is None
    assert line.rpartition(" ")[2] not in "".join(capsys.readouterr())
    again: list[str] = []
    access.chosen(None, False, True, again.append)
    assert again != shown


def test_who_may_ask_stays_unless_something_else_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def never(_: str) -> None:
        raise AssertionError("a token was made")

    live = Catalog(store="/s", callers=(entry(),))
    path = tokens_file(tmp_path, {"tokens": [{"name": "b", "token": OTHER, "roles": ["read"]}]})
    assert access.chosen(None, False, True, never, live) == live.callers
    assert access.chosen(None, False, False, never, live) == live.callers
    assert access.chosen(None, False, False, never) is None
    assert access.chosen(None, True, True, never, live) is None
    assert "--no-auth: whoever reaches" in capsys.readouterr().err
    assert [each.name for each in access.chosen(path, False, True, never, live) or ()] == ["b"]
    with pytest.raises(ConfigError, match="exclude"):
        access.chosen(path, True, True, never)


def test_a_changed_file_is_followed_and_a_broken_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from enginehouse.cluster import deploy

    given: list[Any] = []
    monkeypatch.setattr(deploy, "set_callers", given.append)
    path = tokens_file(tmp_path, {"tokens": []})
    followed = access.Followed(path, None)
    followed.look(tmp_path)
    assert given == []
    path.write_text(f"tokens: [{TOKEN}")
    for _ in range(3):
        followed.look(tmp_path)
    path.unlink()
    followed.look(tmp_path)
    assert given == []
    # Lines end where they are as wide as a terminal.
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("is no YAML") == 1 and "as it was before" in said and TOKEN not in said
    tokens_file(tmp_path, {"tokens": [{"name": "b", "token": TOKEN, "roles": ["read"]}]})
    for _ in range(2):
        followed.look(tmp_path)
    assert [[each.name for each in callers] for callers in given] == [["b"]]
    stop = threading.Event()
    stop.set()
    followed.wait(stop, tmp_path)
