"""Settings of a live model: warm beside, then switched, or refused; they stay across versions, and clients go on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from tests.integration.bundles import WIDTH
from tests.integration.cluster import wait_for
from tests.integration.conftest import House
from tests.integration.load import by_handle, by_http, load

# Minutes of switches under load; what decides about settings is tested without a cluster as well.
pytestmark = pytest.mark.slow

X = np.arange(2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)
#: Of the versions of `tuned`, by numerics class.
FULL, INT8 = {"1": 2.0, "2": 3.0}, {"1": 5.0, "2": 7.0}


@pytest.fixture(scope="module")
def tuned(house: House) -> Iterator[House]:
    """The house with a model `tuned` whose int8 artifacts multiply by something else, in version 1."""
    for version, factor in FULL.items():
        house.publish("tuned", version, factor, int8_factor=INT8[version])
    house.publish("tuned", "3", 11)
    house.publish("tuned", "4", 2, output="z")
    house.add("tuned", "1")
    yield house
    house.remove("tuned")


def add(house: House, *arguments: str, told: str = "") -> str:
    """What the command says on stderr; it has to fail where it is to say something."""
    ran = house.cluster.cli("models", "add", *arguments, timeout=100)
    assert ran.returncode == (1 if told else 0), (arguments, ran.stdout, ran.stderr)
    assert told in ran.stderr, ran.stderr
    return ran.stderr + ran.stdout


def factor(house: House) -> float:
    y, _ = by_http(house.url, "tuned")()(X)
    return float(y[0, 1] / X[0, 1])


@contextlib.contextmanager
def always_ready(house: House) -> Iterator[None]:
    """Readiness of model and server is asked all the while, and is never denied."""
    stop, denied = threading.Event(), list[str]()

    def ask() -> None:
        with httpx.Client(base_url=f"http://{house.url}", timeout=30) as client:
            while not stop.is_set():
                for path in ("/v2/models/tuned/ready", "/v2/health/ready"):
                    answer = client.get(path)
                    if answer.status_code != 200:
                        denied.append(f"{path}: {answer.text}")
                time.sleep(0.05)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        yield
    finally:
        stop.set()
        asking.join(60)
    assert denied == []


def test_settings_are_switched_under_load_kept_across_versions_and_reset_by_name(tuned: House) -> None:
    steps = [
        (("tuned@1", "--numerics", "int8"), INT8["1"], {"numerics": "int8"}),
        (("tuned@2",), INT8["2"], {"numerics": "int8"}),
        (("tuned@2", "--max-batch-size", "4"), INT8["2"], {"numerics": "int8", "max_batch_size": 4}),
        (("tuned@1", "--batch-wait-ms", "1"), INT8["1"], {"numerics": "int8", "max_batch_size": 4, "batch_wait_ms": 1}),
        (("tuned@2", "--numerics", "full"), FULL["2"], {"numerics": "full", "max_batch_size": 4, "batch_wait_ms": 1}),
        (("tuned@1", "--reset"), FULL["1"], {}),
    ]
    factors = (*FULL.values(), *INT8.values())
    with (
        load("by HTTP", by_http(tuned.url, "tuned"), factors) as first,
        load("by handle", by_handle("tuned"), factors) as second,
        always_ready(tuned),
    ):
        for arguments, answers, settings in steps:
            said = add(tuned, *arguments)
            assert factor(tuned) == answers, (arguments, said)
            assert tuned.model("tuned")["settings"] == settings
            if arguments == ("tuned@2",):
                assert "with numerics int8 as before (--reset for the defaults)" in said
                assert "onnx-fp32, openvino-fp32 left out: numerics 'int8' is what answers" in " ".join(said.split())
    assert first.problems + second.problems == []
    assert all(report.factors[one] > 0 for report in (first, second) for one in factors)


def test_what_no_artifact_meets_is_refused_at_once_and_changes_nothing(tuned: House) -> None:
    before = tuned.model("tuned")["settings"]
    began = time.monotonic()
    told = "tuned@3 has no artifact of the numerics class 'int8'; it has onnx-fp32 (full), openvino-fp32 (full)"
    add(tuned, "tuned@3", "--numerics", "int8", told=told)
    assert time.monotonic() - began < 30
    # Also when the class was named for the version before.
    add(tuned, "tuned@1", "--numerics", "int8")
    add(tuned, "tuned@3", told=told)
    assert factor(tuned) == INT8["1"]
    add(tuned, "tuned@1", "--reset")
    assert tuned.model("tuned")["settings"] == before == {}


def test_a_version_that_clients_could_not_go_on_with_needs_to_be_forced(tuned: House) -> None:
    add(tuned, "tuned@4", told="clients of tuned@1 could not go on with tuned@4: output 'y' is gone")
    assert factor(tuned) == FULL["1"]
    with pytest.raises(Exception, match="output 'y' is gone; .* --force"):
        tuned.add("tuned", "4")
    try:
        add(tuned, "tuned@4", "--force")
        assert tuned.model("tuned")["serving"] == "4"
    finally:
        add(tuned, "tuned@1", "--force")
    wait_for(lambda: factor(tuned) == FULL["1"], 10, "back to version 1")
