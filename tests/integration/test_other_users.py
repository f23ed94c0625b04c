"""What another user of the machine can do to a local server: nothing, whatever the umask."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from tests.integration import bundles
from tests.integration.cluster import adopt_orphans
from tests.integration.local_server import LocalServer
from tests.unit.other_user import as_other_user, needs_root, plants, reads, replaces


def _options(server: LocalServer, name: str) -> set[str]:
    """What the processes of a server were given as this option."""
    words = [word for process in server.left() for word in process.cmdline()]
    return {word.partition("=")[2] for word in words if word.startswith(f"{name}=")}


def _connects(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_token_sessions_and_sockets_are_this_users_alone(tmp_path: Path, umask: int) -> None:
    adopt_orphans()
    # pytest's folders are private already, and homes often are not.
    modes = {folder: folder.stat().st_mode for folder in (tmp_path, *tmp_path.parents) if folder.is_relative_to("/tmp")}
    modes.pop(Path("/tmp"), None)
    for folder in modes:
        folder.chmod(0o755)
    before = os.umask(umask)
    try:
        store = tmp_path / "store"
        bundles.publish(store, "scale", "1", 2)
        server = LocalServer(tmp_path, store, TMPDIR="/tmp")
        try:
            server.wait_ready()
            assert server.infer("scale").status_code == 200
            (session,) = map(Path, _options(server, "--session_dir"))
            token = tmp_path / ".ray" / "auth_token"
            sockets = list((session / "sockets").iterdir())
            assert len(sockets) >= 2
            tried = {
                "read the token": reads(token),
                "replace the token": replaces(token),
                "read Ray's logs": reads(session / "logs"),
                "plant a package": plants(session / "runtime_resources"),
                "replace the session": replaces(session),
                **{f"connect to {path.name}": lambda path=path: _connects(path) for path in sockets},
                **{f"replace {path.name}": replaces(path) for path in sockets},
            }
            for config in _configs(server):
                tried |= {"read HAProxy's files": reads(config.parent), "plant one there": plants(config.parent)}
                tried["connect to HAProxy's socket"] = lambda config=config: _connects(config.parent / "admin.sock")
            assert [what for what, act in tried.items() if as_other_user(act)] == []
        finally:
            server.stop()
    finally:
        os.umask(before)
        for folder, mode in modes.items():
            folder.chmod(mode)


def _configs(server: LocalServer) -> set[Path]:
    commands = [process.cmdline() for process in server.left() if process.name() == "haproxy"]
    return {Path(command[command.index("-f") + 1]) for command in commands if "-f" in command}
