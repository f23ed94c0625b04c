"""What a request may hold is checked once at the door: no engine is asked what another one would answer wrongly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from httpx import ASGITransport, AsyncClient
from tests.unit.catalogs import POOLS, Cluster, answers, catalog, until
from tests.unit.connections import TIMING, connected
from tests.unit.test_policy import artifact
from tests.unit.test_router import come_up
from typer.testing import CliRunner

from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.config import AppConfig
from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.manifest import Axis, Manifest, SignatureRecord, TensorRecord
from enginehouse.contract.tensors import Computed, Domain, FreeDim, Tensors
from enginehouse.faces.http import body as request_body
from enginehouse.faces.http import routes
from enginehouse.routing.data_plane import DataPlane
from enginehouse.routing.router import Router
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import View
from enginehouse.tools import cli

IDS = TensorRecord(name="ids", datatype="INT64", shape=(-1, -1), domain=(-10, 10))
MASK = TensorRecord(name="mask", datatype="INT64", shape=(-1, -1))
SEQUENCE = Axis(name="sequence", min=2, opt=4, max=6, dims=(("ids", 1), ("mask", 1)))
MANIFEST_OF = Manifest(
    name="m",
    version="1",
    created="2026-01-01T00:00:00Z",
    source="tests",
    signature=SignatureRecord(inputs=(IDS, MASK), outputs=(MASK.model_copy(update={"name": "y"}),)),
    max_batch=8,
    axes=(SEQUENCE,),
    artifacts=(artifact("onnx-fp32", "onnx"),),
)
DOOR = MANIFEST_OF.request_signature()


def asked(ids: int = 4, mask: int = 4, value: int = 3, rows: int = 2) -> dict[str, np.ndarray]:
    return {"ids": np.full((rows, ids), value), "mask": np.ones((rows, mask), np.int64)}


BAD = [
    (asked(4, 5), r"disagree on the dimension 'sequence': it is 4 in 'ids' \(dimension 1\) and 5 in 'mask'"),
    (asked(1, 1), r"dimension 'sequence' is 1 \(dimension 1 of input 'ids'\); the model takes 2 to 6"),
    (asked(7, 7), r"dimension 'sequence' is 7 .* takes 2 to 6"),
    (asked(0, 0), r"'sequence' is 0 \(dimension 1 of input 'ids'\); .* takes 2 to 6; .* --axis sequence=0:OPT:MAX"),
    (asked(value=1_000_000), r"input 'ids' has the value 1000000 at \[0, 0\]; .* takes -10 to 9"),
    (asked(value=-11), r"input 'ids' has the value -11 at \[0, 0\]; .* takes -10 to 9"),
]


@pytest.mark.parametrize(("inputs", "told"), BAD)
def test_what_the_signature_can_tell_is_refused_with_its_name_and_range(inputs: Tensors, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        DOOR.check(inputs)


@pytest.mark.parametrize("inputs", [asked(), asked(2, 2, -10), asked(6, 6, 9)])
def test_the_ends_of_every_range_belong_to_it(inputs: Tensors) -> None:
    assert DOOR.check(inputs) == 2


@pytest.mark.parametrize("seed", range(60))
def test_random_dimensions_pass_exactly_when_equal_names_have_equal_extents_in_range(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"d{number}" for number in range(rng.integers(1, 4))]
    specs = [[str(rng.choice(names)) for _ in range(rng.integers(1, 4))] for _ in range(rng.integers(1, 4))]
    places = {
        name: tuple(
            (f"x{at}", dim + 1) for at, dims in enumerate(specs) for dim, named in enumerate(dims) if named == name
        )
        for name in names
    }
    ranges = {name: (low := int(rng.integers(1, 4)), low + int(rng.integers(0, 3))) for name in names}
    axes = tuple(
        Axis(name=name, min=ranges[name][0], opt=ranges[name][0], max=ranges[name][1], dims=dims)
        for name, dims in places.items()
        if dims
    )
    record = SignatureRecord(
        inputs=tuple(
            TensorRecord(name=f"x{at}", datatype="FP32", shape=(-1,) * (len(dims) + 1)) for at, dims in enumerate(specs)
        ),
        outputs=(),
    )
    door = MANIFEST_OF.model_copy(update={"signature": record, "axes": axes}).request_signature()
    outcomes = Counter[bool]()
    for _ in range(40):
        extent = {name: int(rng.integers(ranges[name][0], ranges[name][1] + 1)) for name in names}
        shapes = [[extent[name] for name in dims] for dims in specs]
        if rng.random() < 0.6:
            at = int(rng.integers(len(specs)))
            shapes[at][int(rng.integers(len(shapes[at])))] = int(rng.integers(1, 7))
        seen = {
            name: {
                shape[dim] for dims, shape in zip(specs, shapes, strict=True) for dim, d in enumerate(dims) if d == name
            }
            for name in names
        }
        is_good = all(
            len(extents) <= 1
            # One extent alone is what the samples had: no range was declared.
            and (ranges[name][0] == ranges[name][1] or all(ranges[name][0] <= e <= ranges[name][1] for e in extents))
            for name, extents in seen.items()
        )
        inputs = {f"x{at}": np.zeros((1, *shape), np.float32) for at, shape in enumerate(shapes)}
        outcomes[is_good] += 1
        if is_good:
            assert door.check(inputs) == 1
        else:
            with pytest.raises(InvalidInput, match="dimension 'd"):
                door.check(inputs)
    assert outcomes[True] and (outcomes[False] or not door.free)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("high", [1, 100, 200, 70_000])
def test_the_first_value_outside_its_domain_is_found_whatever_its_dtype(dtype: type, high: int) -> None:
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(high)
    domain = Domain(-high, high)
    array = np.zeros((3, 5, 2), dtype)
    domain.check("x", array)
    domain.check("x", array[:0])
    for bad in (limits.max, limits.min, high, -high - 1):
        if -high <= bad < high or not limits.min <= bad <= limits.max:
            continue
        first = tuple(int(at) for at in rng.integers(0, array.shape))
        given = array.copy()
        given[first] = given[-1, -1, -1] = bad
        with pytest.raises(
            InvalidInput, match=rf"the value {bad} at \[{first[0]}, {first[1]}, {first[2]}\].*{-high} to"
        ):
            domain.check("x", given)
        # Not contiguous, as a transposed view is.
        with pytest.raises(InvalidInput, match=f"the value {bad} at"):
            domain.check("x", given.T)


def test_an_extent_that_only_the_samples_had_is_no_range_unless_it_was_declared() -> None:
    fixed = SEQUENCE.model_copy(update={"min": 4, "max": 4})
    any_length = MANIFEST_OF.model_copy(update={"axes": (fixed,)})
    assert any_length.request_signature().check(asked(9, 9)) == 2
    declared = any_length.model_copy(update={"recipe": {"axes": {"sequence": {"min": 4, "opt": 4, "max": 4}}}})
    with pytest.raises(InvalidInput, match="4 to 4"):
        declared.request_signature().check(asked(9, 9))


def test_an_extent_that_nobody_declared_ends_where_it_was_verified_if_the_build_looked() -> None:
    found = SEQUENCE.model_copy(update={"min": 4, "max": 4, "verified": 64})
    manifest = Manifest.parse(MANIFEST_OF.model_copy(update={"axes": (found,)}).model_dump_json(), "here")
    assert [manifest.request_signature().check(asked(size, size)) for size in (1, 4, 64)] == [2, 2, 2]
    told = r"'sequence' is 65 .*; the model takes 1 to 64: larger ones were not verified .*--axis sequence=MIN:OPT:MAX"
    with pytest.raises(InvalidInput, match=told):
        manifest.request_signature().check(asked(65, 65))
    assert "verified" not in MANIFEST_OF.model_dump_json()


@pytest.mark.parametrize("verified", [None, 64])
@pytest.mark.parametrize("lows", [(0, 0), (0, 1), (1, 0), (None, 0), (0, None), (None, None)])
def test_nothing_passes_only_where_it_was_declared(lows: tuple[int | None, int | None], verified: int | None) -> None:
    records = [TensorRecord(name=each, datatype="FP32", shape=(-1, -1, 3)) for each in ("sum", "a", "b")]
    axes = [
        Axis(name=each, min=3, opt=3, max=3, dims=((each, 1),), verified=verified)
        if low is None
        else Axis(name=each, min=low, opt=3, max=9, dims=((each, 1),))
        for each, low in zip("ab", lows, strict=True)
    ]
    axes.append(Axis(name="a + b", min=6, opt=6, max=6, dims=(("sum", 1),)))
    signature = SignatureRecord(inputs=tuple(records), outputs=())
    door = MANIFEST_OF.model_copy(update={"signature": signature, "axes": tuple(axes)}).request_signature()
    for a, b in ((0, 0), (0, 2), (2, 0), (2, 3)):
        inputs = {name: np.zeros((2, size, 3), np.float32) for name, size in (("sum", a + b), ("a", a), ("b", b))}
        at_fault = [name for name, size, low in zip("ab", (a, b), lows, strict=True) if size == 0 and low != 0]
        if not at_fault:
            assert door.check(inputs) == 2
            continue
        with pytest.raises(InvalidInput, match=rf"is 0 \(dimension 1 of input '{at_fault[0]}'\).*=0:OPT:MAX"):
            door.check(inputs)


@pytest.mark.parametrize(("name", "extra"), [("past + new", 0), ("new + past + 1", 1)])
def test_a_sum_of_other_dimensions_is_that_sum(name: str, extra: int) -> None:
    """As exporters name the mask of a decoder."""
    records = [TensorRecord(name=each, datatype="FP32", shape=(-1, -1)) for each in ("cache", "token", "mask")]
    places = {"past": (("cache", 1),), "new": (("token", 1),), name: (("mask", 1),)}
    door = MANIFEST_OF.model_copy(
        update={
            "signature": SignatureRecord(inputs=tuple(records), outputs=()),
            "axes": tuple(Axis(name=each, min=0, opt=3, max=9, dims=dims) for each, dims in places.items()),
        }
    ).request_signature()

    def sent(past: int, new: int, mask: int) -> dict[str, np.ndarray]:
        extents = {"cache": past, "token": new, "mask": mask}
        return {each: np.zeros((1, extent), np.float32) for each, extent in extents.items()}

    for past, new in ((0, 1), (3, 2), (4, 4)):
        assert door.check(sent(past, new, past + new + extra)) == 1
    for past, new, mask in ((3, 2, 4 + extra), (0, 1, 2 + extra), (4, 4, extra)):
        named = (
            rf"{re.escape(repr(name))} is {mask} \(dimension 1 of input 'mask'\), and has to be {past + new + extra}"
        )
        with pytest.raises(InvalidInput, match=named) as caught:
            door.check(sent(past, new, mask))
        assert f"{past} in 'cache'" in str(caught.value)
        assert f"{new} in 'token'" in str(caught.value)


def test_a_manifest_without_domains_has_nothing_that_the_release_before_refuses() -> None:
    plain = MANIFEST_OF.model_copy(update={"signature": SignatureRecord(inputs=(MASK,), outputs=())})
    document = orjson.loads(plain.model_dump_json())
    assert [sorted(entry) for entry in document["signature"]["inputs"]] == [["datatype", "name", "shape"]]
    assert sorted(document["signature"]) == ["batched", "inputs", "outputs"]
    again = Manifest.parse(MANIFEST_OF.model_dump_json(), "here").request_signature()
    assert again == DOOR
    assert again.free == (FreeDim("sequence", SEQUENCE.dims, (2, 6)),)


class Pool:
    """Sums what it is asked, and counts how often that is."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        self.calls += 1
        return {"y": np.concatenate([request["ids"] + request["mask"] for request in requests])}, TIMING


@pytest.fixture
async def house(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[AsyncClient, Pool]]:
    """The routes above a real router that is connected to a pool."""
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(MANIFEST_OF.model_dump_json())
    pool, pools = Pool(), {"ort": POOLS["ort"]}
    view = View(pools, None, "here")
    versions = LiveVersions(view)
    async with connected(pool) as (_, channel):
        come_up(cluster, "ort", channel)
        versions.apply(catalog(tmp_path, "1", numerics="any"))
        await until(lambda: answers(versions) == "1")
        plane = DataPlane(Router(AppConfig(pools=pools), versions, view, {}), versions, 8, 1 << 20)
        limits = request_body.Limits(1 << 20, 1 << 20)
        ingress = SimpleNamespace(plane=plane, versions=versions, limits=limits, max_strings=100)
        monkeypatch.setattr(routes, "_ingress", lambda: ingress)
        async with AsyncClient(transport=ASGITransport(routes.http), base_url="http://here") as client:
            yield client, pool


def as_json(inputs: Tensors) -> dict[str, Any]:
    entries = [
        {"name": name, "datatype": "INT64", "shape": array.shape, "data": array.ravel().tolist()}
        for name, array in inputs.items()
    ]
    return {"content": orjson.dumps({"inputs": entries})}


def as_binary(inputs: Tensors) -> dict[str, Any]:
    entries = [
        {"name": name, "datatype": "INT64", "shape": array.shape, "parameters": {"binary_data_size": array.nbytes}}
        for name, array in inputs.items()
    ]
    text = orjson.dumps({"inputs": entries})
    return {
        "content": b"".join([text, *(array.tobytes() for array in inputs.values())]),
        "headers": {"Inference-Header-Content-Length": str(len(text))},
    }


@pytest.mark.parametrize("encode", [as_json, as_binary])
async def test_over_http_it_is_a_400_and_no_pool_is_asked(
    house: tuple[AsyncClient, Pool], encode: Callable[[Tensors], dict[str, Any]]
) -> None:
    client, pool = house
    for inputs, told in BAD:
        # First a good one of the same JSON, where there is one: its form is cached, its values are not.
        await client.post("/v2/models/m/infer", **encode({name: np.ones_like(array) for name, array in inputs.items()}))
        before = pool.calls
        answer = await client.post("/v2/models/m/infer", **encode(inputs))
        assert answer.status_code == 400, answer.text
        assert pytest.raises(InvalidInput, match=told).matches(InvalidInput(answer.json()["error"]))
        assert pool.calls == before
    answer = await client.post("/v2/models/m/infer", **as_json(asked(value=9)))
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [10] * 8


async def test_the_metadata_say_what_will_be_refused(house: tuple[AsyncClient, Pool]) -> None:
    document = (await house[0].get("/v2/models/m")).json()
    assert document["parameters"] == {"sequence_min": 2, "sequence_max": 6}
    ids, mask = document["inputs"]
    assert ids == {
        "name": "ids",
        "datatype": "INT64",
        "shape": [-1, -1],
        "parameters": {"dimension_1": "sequence", "min_value": -10, "max_value": 9},
    }
    assert mask["parameters"] == {"dimension_1": "sequence"}
    assert "parameters" not in document["outputs"][0]


def test_inspect_shows_what_will_be_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(MANIFEST_OF.model_dump_json())
    ran = CliRunner().invoke(cli.app, ["inspect", str(tmp_path)])
    shown = " ".join(ran.output.split())
    assert "axes sequence: 2 to 6, usually 4, the same in ids, mask" in shown
    assert "values ids: -10 to 9" in shown
    found = SEQUENCE.model_copy(update={"min": 4, "max": 4, "verified": 64})
    (tmp_path / MANIFEST).write_text(MANIFEST_OF.model_copy(update={"axes": (found,)}).model_dump_json())
    shown = " ".join(CliRunner().invoke(cli.app, ["inspect", str(tmp_path)]).output.split())
    assert "axes sequence: 1 to 64, as far as it was verified, 4 in the samples, the same in ids, mask" in shown
