"""Over HTTP, who asks is settled before anything of the body is read; what names no model is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient

from enginehouse.contract.config import AppConfig, Catalog
from enginehouse.contract.config.access import CallerConfig, digest
from enginehouse.faces.http import body, routes
from enginehouse.pools import nodes
from enginehouse.routing.admission.callers import Callers
from enginehouse.routing.counting.gathering import Gathering
from enginehouse.routing.data_plane import DataPlane
from enginehouse.routing.router import Router
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import View

LIMITS = body.Limits(10_000, 10_000)
INFER, READ, ADMIN, SOME, SLOW = (f"{name}-{'0' * 30}" for name in ("infer", "read", "admin", "some", "slow"))
ENTRIES = [
    {"name": "i", "sha256": digest(INFER), "roles": ["infer"]},
    {"name": "r", "sha256": digest(READ), "roles": ["read"]},
    {"name": "a", "sha256": digest(ADMIN), "roles": ["admin"]},
    {"name": "s", "sha256": digest(SOME), "roles": ["infer", "read", "admin"], "models": ["cold"]},
    {"name": "l", "sha256": digest(SLOW), "roles": ["infer"], "requests_per_s": 0.5},
]


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DataPlane:
    monkeypatch.setattr(nodes, "count_with", lambda _: 1)
    return _plane(monkeypatch, tmp_path)


def _plane(monkeypatch: pytest.MonkeyPatch, store: Path) -> DataPlane:
    config = AppConfig()
    view = View(config.pools, None, "here")
    versions = LiveVersions(view)
    plane = DataPlane(Router(config, versions, view, {}), versions, 8, 80_000, Callers(2))
    counts = Gathering(plane.counted.ledger, "here", ())
    # There are no others, and no Serve to find them by.
    monkeypatch.setattr(counts, "_ask_routers", lambda: asyncio.sleep(0))
    ingress = SimpleNamespace(plane=plane, versions=versions, limits=LIMITS, max_strings=100, counts=counts)
    monkeypatch.setattr(routes, "_ingress", lambda: ingress)
    return plane


@pytest.fixture(params=["starlette", "short"])
async def client(request: pytest.FixtureRequest, plane: DataPlane, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """A server that serves nothing yet, over both ways to an inference."""
    catalog = {"store": str(tmp_path), "models": [{"name": name, "version": "1"} for name in ("cold", "secret")]}
    plane.callers.follow([CallerConfig.model_validate(entry) for entry in ENTRIES])
    plane.versions.apply(Catalog.parse(catalog))  # type: ignore[attr-defined]

    async def short(scope: Any, receive: Any, send: Any) -> None:
        from enginehouse.faces.http.shortcut import _INFER

        if scope["method"] == "POST" and (match := _INFER.fullmatch(scope["path"])):
            scope["path_params"] = match.groupdict()
            await routes.answer(routes._ingress(), scope, receive, send)
        else:
            await routes.http(scope, receive, send)

    application = short if request.param == "short" else routes.http
    async with AsyncClient(transport=ASGITransport(application), base_url="http://here") as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


READS = [
    ("GET", "/v2/models"), ("POST", "/v2/repository/index"), ("GET", "/v2/models/cold"),
    ("GET", "/v2/models/cold/config"), ("GET", "/v2/models/cold/ready"), ("GET", "/v2/models/cold/versions/1"),
    ("GET", "/v2/models/cold/stats"), ("GET", "/v2/models/stats"), ("GET", "/metrics"), ("GET", "/nowhere"),
]  # fmt: skip
LOADS = [("POST", f"/v2/repository/models/cold/{what}") for what in ("load", "unload")]
CHANGES = [*LOADS, ("POST", "/v2/repository/name/models/cold/load")]
INFERS = [("POST", "/v2/models/cold/infer"), ("POST", "/v2/models/cold/versions/1/infer")]


@pytest.mark.parametrize(("method", "path"), [*READS, *CHANGES, *INFERS, ("POST", "/v2/models/none/infer")])
async def test_without_a_known_token_nothing_is_told(client: AsyncClient, method: str, path: str) -> None:
    for headers in ({}, bearer("x" * 32), {"Authorization": "Basic eDp5"}):
        answer = await client.request(method, path, headers=headers)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json().keys() == {"error"}
        assert "cold" not in answer.text and "secret" not in answer.text


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2/health/live", "/v2/health/ready"])
async def test_load_balancers_need_no_token_and_learn_no_name(client: AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == (400 if path.endswith("/ready") else 200)
    assert "cold" not in answer.text
    if path.endswith("/ready"):
        assert answer.json() == {"error": "not ready: 2 of the models"}


async def test_each_token_is_for_its_roles(client: AsyncClient) -> None:
    for asked, token in ((READS, READ), (CHANGES, ADMIN), (INFERS, INFER)):
        for method, path in asked:
            for other in (READ, ADMIN, INFER):
                status = (await client.request(method, path, headers=bearer(other))).status_code
                assert (status == 403) == (other != token), (method, path, status)
                assert status != 401


async def test_a_token_for_some_models_is_for_no_other_nor_for_all(client: AsyncClient) -> None:
    async def status(method: str, path: str) -> int:
        return (await client.request(method, path, headers=bearer(SOME))).status_code

    for method, path in (*READS, *CHANGES, *INFERS):
        one = "/cold" in path or path in ("/v2/models", "/v2/repository/index")
        assert (await status(method, path) == 403) != one, path
        if "/cold" in path:
            # Whether there is such a model or not.
            for other in ("secret", "none"):
                answer = await client.request(method, path.replace("cold", other), headers=bearer(SOME))
                assert answer.status_code == 403
                assert other not in answer.text.replace(path.replace("cold", other), "")
    assert (await client.get("/v2/models", headers=bearer(SOME))).json() == {"models": ["cold"]}
    (entry,) = (await client.post("/v2/repository/index", headers=bearer(SOME))).json()
    assert entry["name"] == "cold"


async def test_over_its_rate_a_token_is_told_when_to_go_on(client: AsyncClient) -> None:
    first = await client.post("/v2/models/cold/infer", headers=bearer(SLOW))
    assert first.status_code == 503
    second = await client.post("/v2/models/cold/infer", headers=bearer(SLOW))
    # A quarter of a request a second for each of two routers.
    assert (second.status_code, second.headers["retry-after"]) == (429, "4")
    assert (await client.post("/v2/models/cold/infer", headers=bearer(INFER))).status_code == 503


async def test_the_body_of_a_stranger_is_not_read(client: AsyncClient, plane: DataPlane) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield bytes(1000)

    answer = await client.post("/v2/models/cold/infer", content=endless())
    assert answer.status_code == 401
    assert read <= 1
    assert (plane.admission.requests, plane.admission.bytes) == (0, 0)


async def test_the_first_of_two_tokens_counts(client: AsyncClient) -> None:
    both = [("Authorization", f"Bearer {INFER}"), ("Authorization", f"Bearer {READ}")]
    assert (await client.get("/v2/models", headers=both)).status_code == 403
    assert (await client.get("/v2/models", headers=both[::-1])).status_code == 200


async def test_refusals_are_counted_under_no_name(client: AsyncClient, plane: DataPlane) -> None:
    await client.post("/v2/models/cold/infer")
    await client.post("/v2/models/invented/infer", headers=bearer(SOME))
    await client.post("/v2/models/invented/infer", headers=bearer(READ))
    counts = {tags: count for tags, (count, _) in plane.metrics._counts.items()}
    assert counts == {
        ("http", "", "", "", "Unauthenticated"): 1,
        ("http", "", "", "", "PermissionDenied"): 2,
    }
