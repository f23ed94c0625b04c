"""`--address auto` is a cluster of this user's: another's would be sent the token."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.other_user import UID, needs_root

from enginehouse.cluster import connect
from enginehouse.cluster.owners import (
    TOKEN_VARIABLES,
    cluster_of_this_user,
    clusters_of_this_machine,
    token_variables,
)
from enginehouse.contract.errors import ConfigError

ME = os.getuid()
MINE, THEIRS, THIRD = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"


@pytest.mark.parametrize(
    ("clusters", "expected"),
    [
        ({}, None),
        ({MINE: {ME}}, MINE),
        ({MINE: {0}}, MINE),
        ({THEIRS: {UID}, MINE: {ME}, THIRD: {UID + 1}}, MINE),
        # Whoever pretends to be of ours takes it from nobody.
        ({MINE: {ME, UID}}, MINE),
    ],
)
def test_it_is_the_one_of_this_user(clusters: dict[str, set[int]], expected: str | None) -> None:
    assert cluster_of_this_user(clusters) == expected


@pytest.mark.parametrize(
    ("clusters", "told"),
    [
        ({THEIRS: {UID}}, f"{THEIRS} .uid {UID}.*--address"),
        ({THEIRS: {UID}, THIRD: {UID + 1}}, f"uid {UID}.*uid {UID + 1}"),
        ({MINE: {ME}, THIRD: {ME}, THEIRS: {UID}}, f"2 Ray clusters run on this machine: {MINE}, {THIRD};"),
    ],
)
def test_others_and_several_are_refused_by_name(clusters: dict[str, set[int]], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        cluster_of_this_user(clusters)


@pytest.fixture
def pretending(tmp_path: Path) -> Iterator[str]:
    """A process of another user that looks like a node of a cluster: its address."""
    address = f"127.0.0.9:{os.getpid()}"
    code = (
        "import ctypes, os, time; ctypes.CDLL(None).prctl(15, b'raylet', 0, 0, 0);"
        f"os.setgid({UID}); os.setuid({UID}); print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, "--node_id=1", f"agent.py --gcs-address={address} --x=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        yield address
        process.kill()


@pytest.fixture
def node() -> Iterator[str]:
    """What looks like a node of this user with a token of its own: its address."""
    address = f"127.0.0.8:{os.getpid()}"
    code = (
        "import ctypes, time; ctypes.CDLL(None).prctl(15, b'raylet', 0, 0, 0); print('up', flush=True); time.sleep(60)"
    )
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/its/own", "RAY_OTHER": "1"}
    command = [sys.executable, "-c", code, f"--gcs-address={address}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        yield address
        process.kill()


def test_a_cluster_of_this_machine_has_the_token_that_it_was_started_with(node: str) -> None:
    assert token_variables(node) == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/its/own"}
    assert token_variables(f"{node}1") is None


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("is_ours", "given", "sent"),
    [
        # That of the home is for clusters of this user on this machine.
        (True, {}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/its/own"}),
        (False, {}, {}),
        (False, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_MODE": "token"}),
        (False, {"RAY_AUTH_TOKEN": "x"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}),
        (True, {"RAY_AUTH_TOKEN": "x"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}),
        (True, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": "/its/own"}),
    ],
)
def test_the_token_of_the_home_goes_to_clusters_of_this_user_alone(
    node: str,
    is_ours: bool,
    given: dict[str, str],
    sent: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / ".ray").mkdir(0o700)
    (tmp_path / ".ray" / "auth_token").write_text("of the home")
    with monkeypatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        for name, value in {"HOME": str(tmp_path), **given}.items():
            patch.setenv(name, value)
        patch.setattr(connect, "check_ray_is_not_imported", lambda: None)

        def stop(_: object) -> None:
            raise Stopped({name: os.environ[name] for name in TOKEN_VARIABLES if name in os.environ})

        # All that Ray reads is set when the proxies are.
        patch.setattr(connect.proxies, "exceptions", stop)
        # What is set below is put back.
        patch.setattr(os, "environ", dict(os.environ))
        with pytest.raises(Stopped) as caught, connect.connected(node if is_ours else "10.1.2.3:6379"):
            pass
    assert caught.value.args[0] == sent


@needs_root
def test_another_users_process_is_seen_as_such(pretending: str) -> None:
    assert clusters_of_this_machine()[pretending] == {UID}
    with pytest.raises(ConfigError, match=f"{pretending} .uid {UID}"):
        cluster_of_this_user({pretending: clusters_of_this_machine()[pretending]})


@needs_root
def test_it_is_not_connected_to(pretending: str, tmp_path: Path) -> None:
    code = (
        "import sys; from enginehouse.cluster import connect, owners;"
        "found = owners.clusters_of_this_machine();"
        # Others of this user may run here, too.
        f"connect.clusters_of_this_machine = lambda: {{{pretending!r}: found[{pretending!r}]}};"
        "exec('with connect.connected(\"auto\"): pass')"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "ConfigError" in done.stderr and "your token" in done.stderr
    assert time.monotonic() - began < 30
