"""Files with which whoever has them runs code here or answers in our place: as plain data, and findings about them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from enginehouse.contract.store.private import exposed
from enginehouse.tools.doctor.finding import Finding, Status

#: Where Serve has HAProxy's files when nothing says otherwise (Ray 2.60).
HAPROXY_FOLDER = Path("/tmp/haproxy-serve")
_REMEDY: Mapping[str, str] = {
    "token": "chmod 700 its folder and 600 the file; with no cluster running, delete it for a new one",
    "sessions": "start Ray with --temp-dir in a short folder that only its user may enter (chmod 700)",
    "haproxy": (
        "start Ray with RAY_SERVE_HAPROXY_SOCKET_PATH, RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH, "
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC and RAY_SERVE_HAPROXY_SERVER_STATE_BASE in a folder that only its user may "
        "enter (chmod 700)"
    ),
}
_WHAT: Mapping[str, str] = {
    "token": "the token that runs code",
    "sessions": "Ray's sessions",
    "haproxy": "HAProxy's socket for administration",
}


def probe_files(daemons: Sequence[psutil.Process], haproxy: Path = HAPROXY_FOLDER) -> list[dict[str, Any]]:
    """The token of this user, the session folders of these daemons and HAProxy's sockets: what others can do with each.

    `owner` is the uid where it is neither this user's nor root's, else None.
    """
    found = []
    for kind, path in _paths(daemons, haproxy):
        with contextlib.suppress(OSError):
            uid = path.lstat().st_uid
            stranger = uid if uid not in (0, os.getuid()) else None
            found.append({"kind": kind, "path": str(path), "others": exposed(path), "owner": stranger})
    return found


def judge_files(files: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Findings about what `probe_files` found."""
    return [_judged(file) for file in files]


def _judged(file: Mapping[str, Any]) -> Finding:
    what = f"{_WHAT[file['kind']]} ({file['path']})"
    # Sessions of a cluster that another user has started are that user's.
    if file["owner"] is not None and file["kind"] != "sessions":
        return Finding("files", "fail", f"{what} belongs to another user (uid {file['owner']})", _REMEDY[file["kind"]])
    if file["others"]:
        status: Status = "fail" if file["kind"] == "token" else "warn"
        return Finding("files", status, f"other users can {', '.join(file['others'])} {what}", _REMEDY[file["kind"]])
    return Finding("files", "ok", f"{what}: this user's alone")


def _paths(daemons: Sequence[psutil.Process], haproxy: Path) -> Iterator[tuple[str, Path]]:
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path(os.environ.get("HOME") or "/-") / ".ray" / "auth_token"
    yield "token", Path(token)
    sessions, sockets = set(), set()
    # Who makes the folder first, before HAProxy starts, has its files.
    with contextlib.suppress(OSError):
        if haproxy.lstat().st_uid not in (0, os.getuid()):
            sockets.add(haproxy)
    for daemon in daemons:
        with contextlib.suppress(psutil.Error):
            command = daemon.cmdline()
            sessions |= {Path(word.partition("=")[2]) for word in command if word.startswith("--session_dir=")}
            if daemon.name() == "haproxy":
                configs = [Path(after) for word, after in pairwise(command) if word == "-f"]
                sockets |= {config.parent / "admin.sock" for config in configs}
    yield from (("sessions", path) for path in sorted(sessions))
    yield from (("haproxy", path) for path in sorted(sockets))
