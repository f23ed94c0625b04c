"""A real S3-protocol server to break, and a line to it that can be slow or break."""

from __future__ import annotations

import hashlib
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from enginehouse.contract.store import Store


class Server:
    """moto's S3 server in a process of its own. It keeps its objects in memory."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/moto-api/", timeout=2).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("moto's server does not answer")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Wire(socketserver.ThreadingTCPServer):
    """The line to a server: it counts what comes down, and can be slow or break."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.upstream = ("127.0.0.1", port)
        self.came = 0
        self.bytes_per_s = 1e12
        self.breaks_at: list[int] = []
        self.counting = threading.Lock()
        super().__init__(("127.0.0.1", 0), Connection)


class Connection(socketserver.BaseRequestHandler):
    server: Wire

    def handle(self) -> None:
        try:
            upstream = socket.create_connection(self.server.upstream)
        except ConnectionRefusedError:
            return
        with upstream:
            up = threading.Thread(target=self._pump, args=(self.request, upstream, self._sent))
            up.start()
            self._pump(upstream, self.request, self._came)
            up.join()

    def _pump(self, source: socket.socket, sink: socket.socket, account: Callable[[int], bool]) -> None:
        try:
            while (data := source.recv(1 << 16)) and account(len(data)):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _sent(self, count: int) -> bool:
        time.sleep(count / self.server.bytes_per_s)
        return True

    def _came(self, count: int) -> bool:
        time.sleep(count / self.server.bytes_per_s)
        with self.server.counting:
            self.server.came += count
            breaks = bool(self.server.breaks_at) and self.server.came > self.server.breaks_at[0]
            if breaks:
                self.server.breaks_at.pop(0)
        return not breaks


def connect(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Wire]:
    with Wire(server.port) as wire:
        thread = threading.Thread(target=wire.serve_forever, args=(0.05,))
        thread.start()
        # This is all that a user sets for a server that is not Amazon's.
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.server_address[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "cache"))
        S3FileSystem.clear_instance_cache()
        yield wire
        wire.shutdown()
        thread.join()


def new_store(tmp_path: Path) -> Store:
    bucket = "bucket-" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]
    S3FileSystem().mkdir(bucket)
    return Store(f"s3://{bucket}/models")
