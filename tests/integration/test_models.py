"""Models added, updated and removed under load: every process stays, no request is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.integration import bundles
from tests.integration.bundles import WIDTH, flip
from tests.integration.cluster import wait_for
from tests.integration.conftest import House
from tests.integration.load import Report, by_handle, by_http, load

from enginehouse.contract.config import ModelConfig
from enginehouse.faces.python.client import Client

#: Seconds of load before, and after each change.
PHASE_S = 2.0
X = np.arange(2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)


def processes(house: House) -> dict[str, list[int]]:
    return {name: house.cluster.replicas(name) for name in ("Router", "gpu-pool", "cpu-pool")}


@contextlib.contextmanager
def under_load(house: House, scale_factors: tuple[float, ...]) -> Iterator[list[Report]]:
    """`scale` and `other`, each over HTTP and by handle."""
    with (
        load("scale by HTTP", by_http(house.url, "scale"), scale_factors) as first,
        load("scale by handle", by_handle("scale"), scale_factors) as second,
        load("other by HTTP", by_http(house.url, "other"), (7,)) as third,
        load("other by handle", by_handle("other"), (7,)) as fourth,
    ):
        yield [first, second, third, fourth]


def test_models_come_change_and_go_under_load(house: House, scale: str) -> None:
    house.publish("third", "1", 5)
    before = processes(house)
    assert {name: len(pids) for name, pids in before.items()} == {"Router": 2, "gpu-pool": 1, "cpu-pool": 1}
    changes = {
        "quiet": lambda: None,
        "add third": lambda: house.add("third", "1"),
        "update scale": lambda: house.add("scale", "2"),
        "remove third": lambda: house.remove("third"),
        "quiet again": lambda: None,
    }
    spans: dict[str, tuple[float, float]] = {}
    with under_load(house, (2, 3)) as reports:
        for change, make in changes.items():
            began = time.monotonic()
            make()
            time.sleep(PHASE_S)
            spans[change] = (began, time.monotonic())
    for change, span in spans.items():
        worst = ", ".join(f"{report.name} {report.worst_ms(*span):.0f}" for report in reports)
        print(f"worst ms while {change!r}: {worst}")
    assert processes(house) == before
    assert [problem for report in reports for problem in report.problems] == []
    assert all(report.sent > 50 for report in reports)
    # Both versions answered, each one with its own factor.
    assert all(report.factors[2] > 10 and report.factors[3] > 10 for report in reports[:2])
    quiet = max(report.worst_ms(*spans[name]) for report in reports for name in ("quiet", "quiet again"))
    busy = max(report.worst_ms(*spans[name]) for report in reports for name in spans if "quiet" not in name)
    print(f"worst of all: quiet {quiet:.0f} ms, while changing {busy:.0f} ms")
    # What was promised is 100 ms; a shared machine of two cores adds its own noise to that.
    assert busy < max(quiet, 100) + 400
    np.testing.assert_array_equal(by_handle("scale")()(X)[0], X * 3)


def test_a_bad_bundle_leaves_the_old_version_serving(house: House, scale: str) -> None:
    folder = house.publish("scale", "66", 66)
    files = [folder / "onnx-fp32" / "model.onnx", folder / "openvino-fp32" / "model.xml"]
    digests = [bundles.sha256_of(file) for file in files]
    for file in files:
        flip(file)
    before = processes(house)
    with under_load(house, (2,)) as reports:
        result = house.cluster.cli("models", "add", "scale@66")
    print(result.stderr)
    assert result.returncode == 1
    assert "DigestMismatch" in result.stderr
    for file, digest in zip(files, digests, strict=True):
        assert str(file) in result.stderr
        assert digest in result.stderr
        assert bundles.sha256_of(file) in result.stderr
    assert [problem for report in reports for problem in report.problems] == []
    assert processes(house) == before
    assert house.model("scale")["serving"] == "1"


def test_a_version_that_one_engine_cannot_load_takes_over_only_by_force(house: House, scale: str) -> None:
    file = house.publish("scale", "67", 67) / "onnx-fp32" / "model.onnx"
    flip(file)
    with under_load(house, (2,)) as reports:
        result = house.cluster.cli("models", "add", "scale@67")
    assert result.returncode == 1
    told = " ".join(result.stderr.split())
    assert "scale@1 goes on serving, scale@67 cannot: gpu-pool: DigestMismatch" in told
    assert "--force changes to it all the same" in told
    assert [problem for report in reports for problem in report.problems] == []
    assert (house.model("scale")["serving"], house.model("scale")["wanted"]) == ("1", "1")
    result = house.cluster.cli("models", "add", "scale@67", "--force")
    assert result.returncode == 0, result.stderr
    assert "scale@67 is served without gpu-pool, which failed to load it" in result.stderr
    y, backend = by_http(house.url, "scale")()(X)
    np.testing.assert_array_equal(y, X * 67)
    assert backend == "cpu-pool"


def test_one_bad_artifact_leaves_the_other_engine_serving(house: House) -> None:
    file = house.publish("half", "1", 11) / "onnx-fp32" / "model.onnx"
    flip(file)
    house.add("half", "1")
    try:
        wait_for(lambda: house.state("half", "gpu-pool") == "failing", 30, "the bad artifact is refused")
        y, backend = by_http(house.url, "half")()(X)
        np.testing.assert_array_equal(y, X * 11)
        assert backend == "cpu-pool"
        states = {entry["pool"]: entry for entry in house.model("half")["backends"]}
        assert states["cpu-pool"]["state"] == "live"
        assert "DigestMismatch" in states["gpu-pool"]["reason"]
        assert str(file) in states["gpu-pool"]["reason"]
    finally:
        house.remove("half")


def test_a_removed_model_is_refused_and_its_neighbour_stays(house: House) -> None:
    house.publish("brief", "1", 13)
    house.add("brief", "1")
    send = by_http(house.url, "brief")()
    np.testing.assert_array_equal(send(X)[0], X * 13)
    house.remove("brief")
    with pytest.raises(RuntimeError, match="404.*brief"):
        send(X)
    np.testing.assert_array_equal(by_http(house.url, "scale")()(X)[0], X * 2)


def test_three_are_added_at_once_and_each_command_waits_for_its_own(house: House) -> None:
    for name, version, factor in (("one", "1", 2), ("two", "1", 3), ("moved", "1", 4), ("moved", "2", 5)):
        house.publish(name, version, factor)
    house.add("moved", "1")
    try:
        with ThreadPoolExecutor() as commands:
            began = time.monotonic()
            adds = {
                model: commands.submit(house.cluster.cli, "models", "add", model, "--timeout", "40", timeout=100)
                for model in ("one", "two", "moved@2")
            }
            for model, add in adds.items():
                done = add.result()
                assert done.returncode == 0, (model, done.stdout, done.stderr)
        print(f"three adds at once took {time.monotonic() - began:.1f} s")
        for name, factor in (("one", 2), ("two", 3), ("moved", 5)):
            np.testing.assert_array_equal(Client().infer(name, {"x": X})["y"], X * factor)
    finally:
        for name in ("one", "two", "moved"):
            house.remove(name)


def test_what_a_failed_add_takes_back_is_only_its_own(house: House) -> None:
    from enginehouse.cluster import deploy

    house.publish("mine", "1", 5)
    house.publish("mine", "2", 6)
    house.add("mine", "1")
    try:
        first, second = deploy.live_catalog().find("mine"), ModelConfig(name="mine", version="2")
        assert first is not None
        # Somebody else has gone on to another version: it stays.
        deploy.take_back(second, None)
        assert deploy.live_catalog().find("mine") == first
        deploy.take_back(first, second)
        assert deploy.live_catalog().find("mine") == second
    finally:
        house.remove("mine")
