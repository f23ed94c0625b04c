"""A request goes to no backend whose artifact is not right for a value in it, and hears why when none is left."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.catalogs import POOLS, Cluster, answers, catalog, publish, serving, until
from tests.unit.connections import connected, echo
from tests.unit.test_policy import backend, choices, ranked
from tests.unit.test_router import Asked, come_up, routed

from enginehouse.contract import bounds as contract_bounds
from enginehouse.contract.bounds import InputBound, Region, Values, described, narrower
from enginehouse.contract.config import PoolConfig
from enginehouse.contract.errors import InvalidInput, NoBackend
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.routing.hints import Hints
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import View

FINITE: dict[str, InputBound] = {"x": "finite"}
#: ONNX Runtime is preferred in the tables, and limited here.
LIMITED = {"onnx-fp32": FINITE}
NAN = np.full((1, 4), np.nan, np.float32)
X = np.zeros((1, 4), np.float32)


class Engine:
    """Echoes, and remembers the requests of each call."""

    def __init__(self, hold_s: float = 0.0) -> None:
        self.calls: list[list[np.ndarray]] = []
        self._hold_s = hold_s

    async def __call__(self, model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        self.calls.append([request["x"].copy() for request in requests])
        await asyncio.sleep(self._hold_s)
        return await echo(model, requests, rows, budget_s)


DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.lists(st.one_of(st.floats(width=16), st.sampled_from([math.nan, math.inf, -math.inf])), max_size=9))
def test_what_is_beyond_bounds_is_found_in_floats_of_every_type(dtype: Any, numbers: list[float]) -> None:
    array = np.array(numbers, dtype)
    values = Values({"x": array})
    for bound, limit in (("finite", math.inf), (2**4, 16.0)):
        beyond = [number for number in array.astype(float).tolist() if not abs(number) < limit]
        bounds: dict[str, InputBound] = {"x": bound}  # type: ignore[dict-item]
        assert bool(values.beyond(bounds)) == bool(values.place(bounds)) == bool(beyond)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint32, np.int64, np.uint64])
@given(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=9), st.integers(0, 63))
def test_what_is_beyond_bounds_is_found_in_whole_numbers_of_every_type(
    dtype: Any, numbers: list[int], exponent: int
) -> None:
    info = np.iinfo(dtype)
    fitting = [number for number in numbers if info.min <= number <= info.max] + [info.max, info.min][: len(numbers)]
    values = Values({"id": np.array(fitting, dtype)})
    beyond = any(abs(number) >= 2**exponent for number in fitting)
    assert bool(values.beyond({"id": 2**exponent})) == bool(values.place({"id": 2**exponent})) == beyond


def test_a_value_is_named_by_its_kind_and_its_place() -> None:
    array = np.array([[0, 1], [2, 3]], np.float32)
    for value, named in ((math.nan, "NaN"), (-math.inf, "an infinite value"), (2.0**31, "a value of 2.147e+09")):
        array[1, 0] = value
        assert Values({"x": array}).beyond({"x": 2**30}) == f"input 'x' has {named}"
        assert Values({"x": array}).place({"x": 2**30}) == f"input 'x' has {named} at [1, 0]"
    ids = {"id": np.array([5, -(2**40)])}
    assert Values(ids).beyond({"id": 2**24}) == "input 'id' has the number 1099511627776"
    assert described({"x": "finite", "id": 2**24, "n": 90}) == "finite 'x', 'id' below 2^24, 'n' below 90"


def test_bounds_of_two_engines_keep_both() -> None:
    assert narrower({"x": "finite", "a": 2**24}, {"x": 2**15, "b": 9}) == {"x": 2**15, "a": 2**24, "b": 9}


def test_only_a_backend_that_asks_has_the_values_looked_at_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = contract_bounds._largest
    monkeypatch.setattr(contract_bounds, "_largest", lambda array: looked.append(1) or real(array))
    free, bound = backend("free", (1, 2.0)), backend("bound", (1, 1.0), inputs_only=FINITE)
    other = backend("other", (1, 1.5), inputs_only={"x": 2**15})
    values = Values({"x": NAN})
    assert ranked(free, values=values) == ["free"]
    assert ranked(free, bound._replace(replicas=0), values=values) == ["free"]
    assert looked == []
    for _ in range(3):
        assert ranked(free, bound, other, values=values) == ["free"]
    assert looked == [1]
    assert ranked(free, bound, values=Values({"x": X})) == ["bound", "free"]
    # Nothing is known of the values where a ranking is only explained.
    assert ranked(free, bound) == ["bound", "free"]


def test_the_reason_names_the_artifact_its_bound_and_the_value() -> None:
    (choice,) = choices(backend("bound", (1, 1.0), inputs_only=FINITE), values=Values({"x": NAN}))
    assert choice.reason == "its a answers finite 'x' only, and input 'x' has NaN"


async def test_a_request_that_the_best_backend_is_not_right_for_is_answered_by_another_one(
    cluster: Cluster, store: Path
) -> None:
    ort, vino = Engine(), Engine()
    async with routed(cluster, store, {"ort": ort, "vino": vino}, LIMITED) as (asked, _):
        for inputs, pool in ((X, "ort"), (NAN, "vino"), (X, "ort")):
            answer = await asked.infer("m", {"x": inputs})
            assert answer.choice.backend.pool == pool
            np.testing.assert_array_equal(answer.outputs["x"], inputs)
        explained = asked.plane.explain("m", 1, None, Hints()).document()["backends"]
        assert [(entry["pool"], entry["inputs_only"]) for entry in explained] == [("ort", "finite 'x'"), ("vino", "")]
        (model,) = asked.plane.versions.status(asked.plane.router.is_ready)["models"]  # type: ignore[attr-defined]
        assert [entry["inputs_only"] for entry in model["backends"]] == ["finite 'x'", ""]


async def test_each_replica_may_be_the_one_that_is_asked(cluster: Cluster, store: Path) -> None:
    publish(store, "1", bounds=LIMITED)
    models = await serving(cluster, store)
    version = models.get("m")

    def known() -> Any:
        (state,) = models._view.live(version, fresh=True)
        return state.inputs_only

    assert known() == FINITE, "of the manifest"
    cluster.report("ort", {version.key: "ready"}, {version.key: "ready"}, bounds=[{"x": 2**15}, {"z": "finite"}])
    assert known() == {"x": 2**15, "z": "finite"}
    cluster.report("ort", {version.key: "ready"}, bounds=[{}])
    assert known() == {}, "what its node has found counts"


async def test_no_call_to_a_limited_backend_carries_such_a_request_with_others(cluster: Cluster, store: Path) -> None:
    ort, vino = Engine(hold_s=0.02), Engine(hold_s=0.02)
    generator = np.random.default_rng(1)
    async with routed(cluster, store, {"ort": ort, "vino": vino}, LIMITED) as (asked, _):
        sent = [np.where(generator.random((1, 4)) < 0.1, np.nan, float(at)).astype(np.float32) for at in range(200)]
        answers = await asyncio.gather(*(asked.infer("m", {"x": array}) for array in sent))
    for array, answer in zip(sent, answers, strict=True):
        np.testing.assert_array_equal(answer.outputs["x"], array)
    assert max(sum(map(len, call)) for call in ort.calls) > 1, "requests shared no call"
    assert all(np.isfinite(array).all() for call in ort.calls for array in call)
    assert any(np.isnan(array).any() for call in vino.calls for array in call)


async def test_a_request_for_which_no_artifact_is_right_is_the_callers_to_change(cluster: Cluster, store: Path) -> None:
    both = {"onnx-fp32": FINITE, "openvino-int8": FINITE}
    async with routed(cluster, store, {"ort": Engine(), "vino": Engine()}, both) as (asked, _):
        with pytest.raises(InvalidInput) as caught:
            await asked.infer("m", {"x": np.array([[0, 1, np.inf, 2]], np.float32)})
    assert str(caught.value) == (
        "input 'x' has an infinite value at [0, 2], for which nothing that may answer 'm@1' is right "
        "(onnx-fp32 on onnxruntime-cpu answers finite 'x' only; openvino-int8 on openvino-cpu answers finite 'x' "
        "only); send other values"
    )


@pytest.mark.parametrize(
    ("bound", "fits", "beyond", "told"),
    [
        (Region(at_least=0), X, -X - 1, "a value of -1"),
        (Region(not_zero=((1,),)), X + 1, X, "0 all along axis 1"),
        (Region(not_constant=((1,),)), np.array([[1, 2, 1, 1]], np.float32), X + 3, "one value all along axis 1"),
    ],
)
async def test_bounds_of_other_kinds_send_requests_elsewhere_too(
    cluster: Cluster, store: Path, bound: Region, fits: np.ndarray, beyond: np.ndarray, told: str
) -> None:
    async with routed(cluster, store, {"ort": Engine(), "vino": Engine()}, {"onnx-fp32": {"x": bound}}) as (asked, _):
        for inputs, pool in ((fits, "ort"), (beyond, "vino")):
            assert (await asked.infer("m", {"x": inputs})).choice.backend.pool == pool
        with pytest.raises(InvalidInput, match=f"input 'x' has {told} at \\[0"):
            await asked.infer("m", {"x": beyond}, Hints(backend="ort"))


async def test_what_a_replica_has_found_on_its_node_counts_for_the_refusal(cluster: Cluster, store: Path) -> None:
    async with routed(cluster, store, {"ort": Engine()}, {"openvino-int8": FINITE}) as (asked, _):
        await asked.infer("m", {"x": NAN})
        (replica,) = cluster.replicas["ort"]
        for report in replica.reports.values():
            report["inputs_only"] = FINITE
        asked.view.forget()
        with pytest.raises(InvalidInput, match="onnx-fp32 on onnxruntime-cpu answers finite 'x' only"):
            await asked.infer("m", {"x": NAN})


async def test_a_hint_that_leaves_no_right_backend_is_named(cluster: Cluster, store: Path) -> None:
    async with routed(cluster, store, {"ort": Engine(), "vino": Engine()}, LIMITED) as (asked, _):
        with pytest.raises(InvalidInput, match=r"NaN at \[0, 0\].*leave out the hint that restricts who may answer"):
            await asked.infer("m", {"x": NAN}, Hints(backend="ort"))
        await asked.infer("m", {"x": X}, Hints(backend="ort"))


@pytest.mark.parametrize(
    ("hints", "inputs", "told"),
    [
        ({}, NAN, r"NaN at .*\(openvino-int8 on openvino-cpu answers finite 'x' only\); "),
        ({"min_precision": "fp32"}, X, r"with min-precision: fp32 .numerics 'int8' .*leave out the hint .*, or "),
        ({"min_precision": "fp32"}, NAN, r"with min-precision: fp32 .numerics 'int8' is what answers.; "),
    ],
)
async def test_numerics_that_leave_no_right_artifact_are_named(
    cluster: Cluster, store: Path, hints: Any, inputs: np.ndarray, told: str
) -> None:
    way = r"onnx-fp32 is right for it: `enginehouse models add m --numerics full` \(or any\)$"
    async with served(cluster, store, POOLS, "vino", {"openvino-int8": FINITE}, "int8") as asked:
        assert (await asked.infer("m", {"x": X})).choice.backend.pool == "vino"
        with pytest.raises(InvalidInput, match=told + way):
            await asked.infer("m", {"x": inputs}, Hints(**hints))


async def test_what_the_numerics_leave_out_is_not_said_to_be_wrong(cluster: Cluster, store: Path) -> None:
    both = {"onnx-fp32": FINITE, "openvino-int8": FINITE}
    async with routed(cluster, store, {"ort": Engine()}, both, numerics="full") as (asked, _):
        with pytest.raises(
            InvalidInput, match=r"is right \(onnx-fp32 on onnxruntime-cpu answers finite 'x' only\); send"
        ):
            await asked.infer("m", {"x": NAN})


async def test_a_pool_that_loads_nothing_of_the_model_is_no_backend_to_wait_for(cluster: Cluster, store: Path) -> None:
    async with routed(cluster, store, {"ort": Engine()}, numerics="full") as (asked, _):
        told = (
            r"with backend: vino .numerics 'full' is what answers.; leave out the hint .*openvino-int8 is right for it"
        )
        with pytest.raises(InvalidInput, match=told):
            await asked.infer("m", {"x": X}, Hints(backend="vino"))


async def test_hardware_that_was_never_there_is_not_to_be_waited_for(cluster: Cluster, store: Path) -> None:
    """On GPUs nobody knows of bounds, so a pool that has had one may come back."""
    pools = POOLS | {"cuda": PoolConfig(engine="onnxruntime-cuda")}
    both = {"onnx-fp32": FINITE, "openvino-int8": FINITE}
    async with served(cluster, store, pools, "ort", both, "any") as asked:
        with pytest.raises(InvalidInput, match="NaN"):
            await asked.infer("m", {"x": NAN})
        with pytest.raises(NoBackend, match=r"cuda: no live node has the label"):
            await asked.infer("m", {"x": X}, Hints(backend="cuda"))
        cluster.accelerators.add("gpu")
        await asked.view.count_nodes()
        cluster.accelerators.remove("gpu")
        await asked.view.count_nodes()
        with pytest.raises(NoBackend, match=r"input 'x' has NaN"):
            await asked.infer("m", {"x": NAN})


@contextlib.asynccontextmanager
async def served(
    cluster: Cluster,
    store: Path,
    pools: Mapping[str, PoolConfig],
    pool: str,
    bounds: Mapping[str, dict[str, InputBound]],
    numerics: str,
) -> AsyncIterator[Asked]:
    """The model is warm in `pool`, and the nodes of all `pools` were counted."""
    publish(store, "1", (), bounds)
    view = View(pools, None, "here")
    models = LiveVersions(view)
    wanted = catalog(store, "1", numerics=numerics)
    async with connected(Engine()) as (_, channel):
        come_up(cluster, pool, channel, wanted.models[0].key)
        for report in cluster.replicas[pool][0].reports.values():
            report["precision"] = "int8" if pool == "vino" else "fp32"
        models.apply(wanted)
        await until(lambda: answers(models) == "1")
        await view.count_nodes()
        yield Asked(pools, view, models)


async def test_a_right_artifact_that_is_not_live_now_may_be_later(cluster: Cluster, store: Path) -> None:
    async with routed(cluster, store, {"ort": Engine()}, LIMITED) as (asked, _):
        with pytest.raises(NoBackend, match=r"ort: its onnx-fp32 answers finite 'x' only, and input 'x' has NaN; vino"):
            await asked.infer("m", {"x": NAN})
        async with connected() as (_, channel):
            come_up(cluster, "vino", channel)
            asked.view.forget()
            assert (await asked.infer("m", {"x": NAN})).choice.backend.pool == "vino"


async def test_no_idle_pool_is_woken_or_waited_for_that_would_not_be_right(cluster: Cluster, store: Path) -> None:
    both = {"onnx-fp32": FINITE, "openvino-int8": FINITE}
    async with routed(cluster, store, {}, both, min_replicas=0) as (asked, handles):
        await until(lambda: len(asked.view.idle(asked.plane.versions.get("m"))) == 2)
        with pytest.raises(InvalidInput, match="NaN"):
            await asyncio.wait_for(asked.infer("m", {"x": NAN}), 2)
        assert {name: handle.woken for name, handle in handles.items()} == {"ort": 0, "vino": 0}


async def test_the_idle_pool_that_would_be_right_is_woken(cluster: Cluster, store: Path) -> None:
    async with routed(cluster, store, {"ort": Engine()}, LIMITED, min_replicas=0) as (asked, handles):
        # Before that it is not known whether there is hardware for the idle one.
        status = asked.plane.versions.status  # type: ignore[attr-defined]
        await until(lambda: all(pool["nodes"] for pool in status(lambda _: True)["pools"]))
        sent = asyncio.create_task(asked.infer("m", {"x": NAN}))
        await until(lambda: handles["vino"].woken == 1)
        assert handles["ort"].woken == 0
        async with connected() as (_, channel):
            come_up(cluster, "vino", channel)
            assert (await asyncio.wait_for(sent, 5)).choice.backend.pool == "vino"
