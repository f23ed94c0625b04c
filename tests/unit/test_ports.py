"""What is said of a port that is taken, and by whom."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import psutil
import pytest

from enginehouse.cluster.ports import free_ports, listen_error

LISTEN = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    sys.stdin.read()
"""


def test_the_process_that_listens_is_named() -> None:
    command = [sys.executable, "-c", LISTEN, "a\x1b[31m b"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        said = listen_error("127.0.0.1", port) or ""
        process.communicate("")
    assert f"in use by process {process.pid} ({sys.executable} -c " in said
    # Who listens chooses his command line: it may not move the cursor.
    assert said.isprintable()
    assert len(said) < 250


def test_one_of_another_user_is_said_to_be_that(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"process {os.getpid()}" in (listen_error("127.0.0.1", port) or "")
        hidden = [c._replace(pid=None) for c in psutil.net_connections("tcp")]
        monkeypatch.setattr(psutil, "net_connections", lambda kind: hidden)
        assert (listen_error("127.0.0.1", port) or "").endswith("in use by a process of another user")


def test_a_free_port_is_free_in_both_families() -> None:
    (port,) = free_ports(1)
    assert listen_error("127.0.0.1", port) is None
    assert listen_error("0.0.0.0", port) is None
    assert listen_error("localhost", port) is None


def test_an_address_that_this_machine_does_not_have_is_called_that() -> None:
    assert "assign" in (listen_error("192.0.2.1", free_ports(1)[0]) or "")
    assert "in use" not in (listen_error("no.such.name.invalid", free_ports(1)[0]) or "in use")
