"""`enginehouse bench` on a live cluster: figures with everything that belongs to them, and no wrong answer unseen.

How fast anything is, is not for a test to say.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tests.integration.conftest import House

from enginehouse.tools.bench import live


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


#: Arrivals of the server scenario; the search for a rate makes more than ten of them.
SERVER = {"a trace": "t\n0\n0.1\n0.3", "the highest rate": ""}


@pytest.mark.parametrize("server", ["a trace", pytest.param("the highest rate", marks=pytest.mark.slow)])
def test_every_scenario_gives_a_figure(house: House, tmp_path: Path, server: str) -> None:
    lines, plot, trace = tmp_path / "figures.jsonl", tmp_path / "plot.svg", tmp_path / "trace.csv"
    trace.write_text(SERVER[server])
    result = house.cluster.cli(
        *("bench", "scale", "--seconds", "1", "--connections", "2,4", "--p99-ms", "1000"),
        *("--json", str(lines), "--plot", str(plot)),
        *(("--trace", str(trace)) if SERVER[server] else ()),
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    figures = lines_of(lines)
    assert [(figure["scenario"], figure["connections"]) for figure in figures] == [
        ("single-stream", 1), ("server", 0), ("offline", 4), ("closed-loop", 2), ("closed-loop", 4)
    ]  # fmt: skip
    for figure in figures:
        assert figure["errors"] == 0, figure["error"]
        assert figure["answers"] > 0
        assert figure["latency"]["p50"] <= figure["latency"]["p99"]
        assert figure["usage"]["serving_s"] > 0
        assert figure["cpu_ms"] > figure["overhead_cpu_ms"]
        assert 0 < figure["share_of_limit"] < 1
        assert figure["limit"]["engine"] in ("onnxruntime-cpu", "openvino-cpu")
        assert (figure["limit"]["engines"], figure["limit"]["threads"]) == (1, 1)
        assert (figure["model"], figure["version"], figure["synthetic"]) == ("scale", "1", True)
        assert {"enginehouse", "ray", "python", "onnxruntime", "openvino"} <= figure["versions"].keys()
        assert figure["host"]["cores"] >= 1
        # One second is never enough.
        assert figure["verdict"] == "INVALID"
        assert any("at least 5 s" in reason for reason in figure["reasons"])
        assert f"INVALID: {'; '.join(figure['reasons'])}" in result.stdout
    assert figures[1]["checked"] >= figures[1]["answers"]
    assert figures[2]["rows"] == 8
    assert "SYNTHETIC" in result.stdout
    assert "</svg>" in plot.read_text()


def test_own_rows_and_an_own_trace(house: House, tmp_path: Path) -> None:
    lines = tmp_path / "figures.jsonl"
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32))
    (tmp_path / "trace.csv").write_text("t,rows\n" + "".join(f"{10 + at / 50},{1 + at % 3}\n" for at in range(60)))
    result = house.cluster.cli(
        *("bench", "scale@1", "--samples", str(tmp_path / "rows.npz"), "--trace", str(tmp_path / "trace.csv")),
        *(
            "--scenarios",
            "server",
            "--json-body",
            "--json",
            str(lines),
            "--url",
            f"http://{house.url}",
            "--seconds",
            "1",
        ),
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    (figure,) = lines_of(lines)
    assert (figure["answers"], figure["checked"], figure["errors"]) == (60, 60, 0)
    assert (figure["rows"], figure["samples"], figure["synthetic"]) == (2, "rows.npz", False)
    assert figure["rate"] == pytest.approx(50, rel=0.05)
    assert "SYNTHETIC" not in result.stdout


@pytest.fixture
def swapped(house: House) -> Iterator[str]:
    """A model that serves other values than the bundle in its place in the store says."""
    house.publish("swapped", "1", 2)
    house.add("swapped", "1")
    house.wait_live("swapped", "gpu-pool", "cpu-pool")
    shutil.rmtree(house.store / "swapped")
    house.publish("swapped", "1", 3)
    yield "swapped"
    house.remove("swapped")


def test_a_wrong_value_fails_the_run(house: House, swapped: str) -> None:
    result = house.cluster.cli("bench", swapped, "--seconds", "1", "--scenarios", "single-stream", timeout=120)
    assert result.returncode == 1
    assert "gave a wrong answer to request 0" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("absent",), "'absent' is not served by this cluster, which serves other@1"),
        (("scale@9",), "'scale@9' is not served"),
        (("scale", "--scenarios", "offline,fast"), "no scenario fast; there are single-stream"),
        (("scale", "--connections", "8,x"), "give numbers by comma"),
        (("scale", "--plot", "figure.gif"), ".svg or .png"),
        (("scale", "--url", "http://127.0.0.1:1"), "127.0.0.1:1"),
    ],
)
def test_a_mistake_is_one_line(house: House, arguments: tuple[str, ...], said: str) -> None:
    result = house.cluster.cli("bench", *arguments)
    assert result.returncode == 1
    assert said in result.stderr.replace("scale@1, ", "")
    assert "Traceback" not in result.stderr


def test_all_processes_of_the_cluster_are_known_and_no_others(house: House) -> None:
    import ray

    session = Path(ray._private.worker.global_worker.node.get_session_dir_path()).name
    found = {process.pid for root in live.processes_of(session) for process in (root, *root.children(recursive=True))}
    assert {process.pid for node in house.cluster.nodes for process in node.processes()} <= found
    me = psutil.Process()
    assert not found & {process.pid for process in (me, *me.parents())}
