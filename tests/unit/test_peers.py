"""The comparison with other servers: the same versions for all, values checked, and no process left behind."""

from __future__ import annotations

import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from benchmarks import peers
from benchmarks.peers import PEERS, Conditions, Enginehouse, NotRun, Peer, decode, encode
from benchmarks.peers import process as process_module
from benchmarks.peers.process import running
from benchmarks.peers.table import invalid
from benchmarks.peers.turn import Durations, Turn, take

from enginehouse.tools.bench.figure import Figure, Latency
from enginehouse.tools.bench.limit import Limit
from enginehouse.tools.bench.usage import Usage

FASTAPI = next(peer for peer in PEERS if peer.name == "fastapi")
ROW = {"x": np.arange(4, dtype=np.float32).reshape(1, 4)}
LIMIT = Limit("onnxruntime-cpu", "onnx-fp32", 1, 1, 1, rows_per_s=1000.0, cpu_ms=1.0, windows=(1000.0,))


@pytest.fixture
def conditions(tmp_path: Path) -> Conditions:
    """A model that doubles its input of four numbers."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [value("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [value("y", onnx.TensorProto.FLOAT, ["batch", 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return Conditions(str(tmp_path), "double", "onnx-fp32", tmp_path / "model.onnx", workers=2, threads=1, max_batch=8)


@dataclass(frozen=True)
class OneLine(Peer):
    """A server in one line of Python."""

    program: str = ""

    def command(self, python: Path, conditions: Conditions, port: int) -> list[str]:
        return [str(python), "-c", self.program]


def one_line(program: str) -> OneLine:
    return OneLine("one-line", "", "/", program=program)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_has_a_server_and_our_version_of_onnx_runtime(peer: Peer) -> None:
    folder = peers.HERE / peer.name
    assert (folder / "server.py").exists()
    wanted = (folder / "requirements.txt").read_text().splitlines()
    constraints = (peers.HERE.parent.parent / "constraints.txt").read_text().splitlines()
    (ours,) = [line for line in constraints if line.startswith("onnxruntime==")]
    assert ours in wanted or {"onnxruntime", "-c ../../../constraints.txt"} <= set(wanted)


def test_shapes_of_enginehouse_are_told_workers_and_threads(conditions: Conditions) -> None:
    shape = Enginehouse("resident", "--threads {threads} --max-replicas {workers} --resident all")
    command = shape.command(Path("python"), conditions, 8700)
    assert command[-6:] == ["--threads", "1", "--max-replicas", "2", "--resident", "all"]
    assert command[command.index("--port") + 1] == "8700"


def test_rows_travel_as_their_bytes_or_as_a_v2_body() -> None:
    body, _ = encode(FASTAPI, ROW)
    assert decode(FASTAPI, body, {}, ROW)["x"].tolist() == ROW["x"].tolist()
    body, headers = encode(Enginehouse("enginehouse", ""), ROW)
    assert int(headers["Inference-Header-Content-Length"]) == len(body) - ROW["x"].nbytes


def test_a_turn_measures_a_server_that_answers_right_and_ends_it(conditions: Conditions) -> None:
    port = free_port()
    probes = [(ROW, {"y": 2 * ROW["x"]})]
    turn = take(1, LIMIT, FASTAPI, Path(sys.executable), conditions, port, probes, Durations(1, 1))
    assert turn.failure == ""
    assert [figure.connections for figure in turn.figures] == [32, 1]
    assert all(figure.answers > 0 and figure.errors == 0 and figure.cpu_ms > 0 for figure in turn.figures)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_wrong_answer_is_a_failure(conditions: Conditions) -> None:
    probes = [(ROW, {"y": 3 * ROW["x"]})]
    turn = take(1, LIMIT, FASTAPI, Path(sys.executable), conditions, free_port(), probes, Durations(1, 1))
    assert turn.figures == ()
    assert "wrong answer" in turn.failure
    assert invalid([turn, turn]) == [turn.failure]


def test_a_server_that_ends_says_why(conditions: Conditions) -> None:
    missing = Conditions(conditions.store, "double", "onnx-fp32", conditions.file.with_name("no.onnx"), 1, 1, 8)
    with (
        running(
            one_line("import sys; sys.exit('no such model')"), Path(sys.executable), missing, free_port()
        ) as process,
        pytest.raises(NotRun, match="code 1: no such model"),
    ):
        process.until_ready(b"", {})


@pytest.mark.slow
def test_processes_that_left_their_parent_are_found_and_ended(
    conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where Ctrl-C is ignored, as of what a shell has in its background, it is waited for in vain.
    monkeypatch.setattr(process_module, "_STOP_S", 2)
    daemon = "subprocess.Popen(['sleep', '600'], start_new_session=True)"
    leaving = f"import subprocess, time; subprocess.Popen([{sys.executable!r}, '-c', \"import subprocess; {daemon}\"])"
    stubborn = f"{leaving}; time.sleep(600)"
    with running(one_line(stubborn), Path(sys.executable), conditions, free_port()) as process:
        give_up = time.monotonic() + 20
        found: list[psutil.Process] = []
        while time.monotonic() < give_up and not any(one.name() == "sleep" for one in found):
            found = [one for one in process.processes() if one.status() != psutil.STATUS_ZOMBIE]
        (daemon_process,) = [one for one in found if one.name() == "sleep"]
    assert not daemon_process.is_running()
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in found)


def test_rounds_have_to_agree() -> None:
    def turn(number: int, answers: int) -> Turn:
        latency = Latency.of({1.0: answers})
        usage = Usage(seconds=10, serving_s=10, own_s=1, foreign_s=0, cores=2)
        windows = (answers / 10,) * 5
        measured = Figure("closed-loop", "wrk", 32, 10, answers, 1, 0, latency, usage, 0.1, windows)
        return Turn(number, LIMIT, (measured, measured))

    assert invalid([turn(1, 10_000), turn(2, 11_900)]) == []
    assert invalid([turn(1, 10_000), turn(2, 12_100)]) == ["rounds lie between 1,000.0 and 1,210.0 answers/s"]
