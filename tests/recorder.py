"""Records, in the place of the network, whom the Python processes of a run connect to or ask for the address of."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

_HOOK = """
import os, sys

def record(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        # Paths of sockets are text or bytes.
        whom = address[0] if isinstance(address, tuple) else ""
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        whom = arguments[0]
    else:
        return
    if isinstance(whom, bytes):
        whom = whom.decode()
    descriptor = os.open({record!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{{whom or ''}}\\t{{os.getpid()}} {{' '.join(sys.argv)}}\\n".encode())
    os.close(descriptor)

sys.addaudithook(record)
"""


class Recorder:
    """`environment` has every Python process that is started with it record."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._record = folder / "record"
        (folder / "sitecustomize.py").write_text(_HOOK.format(record=str(self._record)))
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        # Libraries keep still where they are tested.
        self.environment = {name: value for name, value in os.environ.items() if name not in ("CI", "NNCF_CI")}
        self.environment["PYTHONPATH"] = os.pathsep.join(paths)

    def processes(self) -> int:
        """How many processes have connected to anything."""
        return len({line.partition("\t")[2].split()[0] for line in self._lines()})

    def strangers(self) -> list[str]:
        """Whom they connected to that is not this machine, and what the process was."""
        return sorted({line for line in self._lines() if not is_here(line.partition("\t")[0])})

    def _lines(self) -> list[str]:
        return self._record.read_text().splitlines() if self._record.exists() else []


def is_here(whom: str) -> bool:
    """Whether an address or a name is one of this machine."""
    if whom in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(whom)
    except ValueError:
        return False
    # Ray asks which of its own addresses this machine would use, without sending anything (UDP).
    return address.is_loopback or address.is_unspecified or whom in _own_addresses() or whom in _ASKED_BY_RAY


#: `connect` of UDP, in ray._private.services.node_ip_address_from_perspective: no packet leaves.
_ASKED_BY_RAY = ("8.8.8.8", "2001:4860:4860::8888")


def _own_addresses() -> set[str]:
    return {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
