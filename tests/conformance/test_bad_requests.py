"""What an engine cannot compute because of what is in the request is refused as such, and spoils no later request."""

from __future__ import annotations

import numpy as np
import pytest
from tests.conformance.bad_requests import ALL, HUGE, Bad
from tests.conformance.conftest import Load

from enginehouse import engines
from enginehouse.contract.errors import EngineUnavailable, InferenceFailed, InvalidInput
from enginehouse.contract.manifest import EngineKind


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a warm-up, whose example has an extent of 1 for every free dimension: many of these graphs refuse it."""
    monkeypatch.setattr(engines, "warm_up", lambda *_: None)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.model.name)
def test_a_request_that_no_model_can_answer_is_the_requests_fault(
    kind: EngineKind, load: Load, case: Bad, threads: int
) -> None:
    if kind == "openvino-cpu" and case.lax:
        pytest.skip("it answers something: the door has to know better")
    try:
        engine = load(case.model, threads=threads)
    except EngineUnavailable as error:
        pytest.skip(str(error)[:200])
    expected = engine.infer(case.good)
    for _ in range(2):
        with pytest.raises(InvalidInput) as caught:
            engine.infer(case.bad)
        told = str(caught.value)
        assert told.startswith(f"{kind}: ")
        # Which node and why, or at least what it could not run with.
        assert all(f"{name!r} {list(array.shape)}" in told for name, array in case.bad.items()), told
        assert caught.value.fault.help == "nothing", "another engine would be asked"
        # The very shapes that it has answered before, and others.
        for name, array in engine.infer(case.good).items():
            np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("threads", [1, 2])
def test_too_little_memory_is_not_the_requests_fault(kind: EngineKind, load: Load, threads: int) -> None:
    if kind == "openvino-cpu" and threads == 1:
        pytest.skip("with one thread it does not say why it gave up")
    engine = load(HUGE.model, threads=threads)
    engine.infer(HUGE.good)
    with pytest.raises(InferenceFailed):
        engine.infer(HUGE.bad)
    engine.infer(HUGE.good)
