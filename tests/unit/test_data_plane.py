"""A turn of the data plane: what is decided before the body is read, and what is counted whatever becomes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.unit.catalogs import Cluster, answers, catalog, until
from tests.unit.test_router import KEY, Asked, Engine, X, routed

from enginehouse.contract.config import ModelConfig
from enginehouse.contract.errors import InvalidInput, ModelNotFound, NoBackend, Overloaded
from enginehouse.routing.admission.callers import ANYBODY
from enginehouse.routing.counting import telemetry
from enginehouse.routing.hints import NO_HINTS, Hints


def counted(asked: Asked) -> dict[tuple[str, ...], float]:
    """(model, version, backend, outcome) -> requests, since the last report."""
    return {tags[1:]: requests for tags, (requests, _) in asked.plane.metrics._counts.items()}


async def test_each_request_is_counted_once_by_what_became_of_it(cluster: Cluster, store: Path) -> None:
    async with routed(cluster, store, {"ort": Engine()}) as (asked, _):
        await asked.infer("m", X)
        with pytest.raises(InvalidInput):
            await asked.infer("m", {"y": np.zeros((1, 4), np.float32)})
        with pytest.raises(InvalidInput, match="backend 'nobody' is not known"):
            await asked.infer("m", X, Hints(backend="nobody"))
        for name in ("invented", "names", "without end"):
            with pytest.raises(ModelNotFound):
                await asked.infer(name, X)
        with asked.plane.open(ANYBODY, "tests", "m") as turn, pytest.raises(Overloaded):
            asked.plane.admission.max_bytes = 10
            with asked.plane.open(ANYBODY, "tests", "m"):
                turn.take(100)
        assert counted(asked) == {
            ("m", "1", "ort", "ok"): 1,
            ("m", "1", "", "InvalidInput"): 2,
            # Nobody's name: clients could make up as many as they like.
            ("", "", "", "ModelNotFound"): 3,
            ("m", "1", "", "Overloaded"): 1,
            ("m", "1", "", "ok"): 1,
        }
        assert (asked.plane.admission.requests, asked.plane.admission.bytes) == (0, 0)


async def test_a_request_that_takes_no_time_ends_no_counting(
    cluster: Cluster, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's counters refuse to count nothing, and what they raise would end the only reports of the process."""
    monkeypatch.setattr(telemetry, "PERIOD_S", 0.01)
    async with routed(cluster, store, {"ort": Engine()}) as (asked, _):
        with pytest.raises(InvalidInput), asked.plane.refusals("tests", "m"):
            Hints(backend=3)  # type: ignore[arg-type]
        await until(lambda: not counted(asked))
        await asked.infer("m", X)
        await until(lambda: not counted(asked))
        reporter = asked.plane.metrics._reporter
        assert reporter is not None
        assert not reporter.done()


async def test_an_unknown_model_and_a_full_house_are_refused_before_the_body(cluster: Cluster, store: Path) -> None:
    async with routed(cluster, store, {"ort": Engine()}) as (asked, _):
        with pytest.raises(ModelNotFound), asked.plane.open(ANYBODY, "tests", "nobody"):
            pytest.fail("the body would be read")
        with pytest.raises(ModelNotFound, match="version '7'"), asked.plane.open(ANYBODY, "tests", "m", "7"):
            pytest.fail("the body would be read")
        asked.plane.admission.max_requests = 1
        with asked.plane.open(ANYBODY, "tests", "m"):
            with pytest.raises(Overloaded, match="1 requests are under way"), asked.plane.open(ANYBODY, "tests", "m"):
                pytest.fail("the body would be read")
            assert asked.plane.admission.by_model == {KEY: 1}
        with asked.plane.open(ANYBODY, "tests", "m") as turn:
            assert (await turn.infer(X, turn.signature.check(X), NO_HINTS)).choice.backend.pool == "ort"


async def test_a_model_that_gets_warm_while_the_body_arrives_is_answered(cluster: Cluster, store: Path) -> None:
    async with routed(cluster, store, {"ort": Engine()}) as (asked, _):
        versions = asked.plane.versions
        versions.answering = type(versions.answering)()  # type: ignore[attr-defined]
        versions._coming.clear()  # type: ignore[attr-defined]
        with asked.plane.open(ANYBODY, "tests", "m") as turn:
            with pytest.raises(NoBackend, match="'m@1' is not warm yet"):
                _ = turn.signature
            await until(lambda: answers(versions) == "1")  # type: ignore[arg-type]
            await turn.infer(X, turn.signature.check(X), NO_HINTS)
        assert counted(asked) == {("m", "1", "ort", "ok"): 1}


async def test_the_version_is_the_one_that_answers_when_the_body_is_there(cluster: Cluster, store: Path) -> None:
    async with routed(cluster, store, {"ort": Engine()}) as (asked, _):
        (replica,) = cluster.replicas["ort"]
        with asked.plane.open(ANYBODY, "tests", "m") as turn:
            second = ModelConfig(name="m", version="2", numerics="any")
            replica.reports = {**replica.reports, second.key: replica.reports[KEY]}
            asked.plane.versions.apply(catalog(store, "2", numerics="any"))  # type: ignore[attr-defined]
            await until(lambda: answers(asked.plane.versions) == "2")  # type: ignore[arg-type]
            answer = await turn.infer(X, turn.signature.check(X), NO_HINTS)
        assert answer.origin()["version"] == "2"


async def test_a_server_that_ends_is_first_not_ready_and_then_refuses_whom_it_did_not_know(
    cluster: Cluster, store: Path
) -> None:
    async with routed(cluster, store, {"ort": Engine()}) as (asked, _):
        plane = asked.plane
        assert plane.is_ready("m")
        with plane.open(ANYBODY, "tests", "m") as turn:
            assert plane.drain(refuse=False) == 1
            assert not plane.is_ready("m")
            # Who has not heard of it yet is answered.
            await asked.infer("m", X)
            assert plane.drain(refuse=True) == 1
            with pytest.raises(NoBackend, match="this server is ending") as caught:
                await asked.infer("m", X)
            assert caught.value.retryable
            # There is no way back.
            assert plane.drain(refuse=False) == 1
            with pytest.raises(NoBackend), plane.open(ANYBODY, "tests", "m"):
                pytest.fail("the body would be read")
            # Under way is under way.
            await turn.infer(X, turn.signature.check(X), NO_HINTS)
        assert plane.drain(refuse=True) == 0
