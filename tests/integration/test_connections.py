"""No process of ours, native code and HAProxy included, connects to anything but this machine, where the cluster is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.integration import bundles
from tests.integration.cluster import adopt_orphans, clean_env
from tests.integration.local_server import LocalServer
from tests.recorder import is_here

_CONNECT = re.compile(r'connect\(\d+, \{sa_family=AF_INET6?,.*?(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')


def _recording(to: Path) -> list[str]:
    """A command that runs another one and records whom it and all below it connect to; it stays a child of ours."""
    return ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect", "-o", str(to)]


def _strangers(record: Path) -> set[str]:
    # Of sockets for both families, addresses of IPv4 are written as those of IPv6.
    found = {whom.removeprefix("::ffff:") for whom in _CONNECT.findall(record.read_text())}
    return {whom for whom in found if not is_here(whom)} - _name_servers()


def _name_servers() -> set[str]:
    """HAProxy readies a socket for each at its start (UDP: nothing is sent), whatever its configuration names."""
    lines = [line.split() for line in Path("/etc/resolv.conf").read_text().splitlines()]
    return {words[1] for words in lines if words[:1] == ["nameserver"]}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace records connections, and is not here")
def test_no_process_connects_to_anything_but_the_cluster(tmp_path: Path) -> None:
    adopt_orphans()
    home, store = tmp_path / "home", tmp_path / "store"
    home.mkdir()
    bundles.publish(store, "scale", "1", 2)
    np.savez(tmp_path / "rows.npz", id=np.arange(100), x=np.ones((100, 4), np.float32))
    server = LocalServer(home, store, "--models", "scale", under=_recording(tmp_path / "serve"), CI="unset")
    records = [tmp_path / "serve"]

    def run(name: str, *arguments: str) -> None:
        records.append(tmp_path / name)
        done = subprocess.run(
            [*_recording(records[-1]), sys.executable, "-m", "enginehouse", *arguments],
            env={key: value for key, value in clean_env(HOME=str(home)).items() if key not in ("CI", "NNCF_CI")},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        # The recorder ends after what it records.
        time.sleep(0.5)

    try:
        server.wait_ready()
        assert server.infer("scale").status_code == 200
        (address,) = re.findall(r"--address (\S+)", server.said())
        run("status", "status", "--address", address)
        run("doctor", "doctor", "--address", address)
        run("score", "score", "scale", str(tmp_path / "rows.npz"), str(tmp_path / "scored"), "--address", address)
        run("infer", "infer", "scale", "--help")
        run(
            *("build", "build", "examples.digits:digits", "--name", "digits", "--store", str(store), "--quick"),
            *("--formats", "onnx,openvino", "--precisions", "fp32,int8", "--max-batch", "2", "--threads", "1"),
        )
    finally:
        server.stop()
    text = records[0].read_text()
    # It sees HAProxy and replicas connect to each other.
    assert len({line.split()[0] for line in text.splitlines() if "127.0.0." in line}) >= 5
    assert {record.name: _strangers(record) for record in records} == {record.name: set() for record in records}
