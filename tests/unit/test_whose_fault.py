"""What a request hears, and as what it is counted, for every error there is: the same by every way in."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from httpx import ASGITransport, AsyncClient
from tests.integration.bundles import publish as publish_scale
from tests.unit.catalogs import Cluster
from tests.unit.test_errors import CLASSES, example
from tests.unit.test_router import Asked, Engine, routed

from enginehouse import app
from enginehouse.contract.config import Catalog, ModelConfig
from enginehouse.contract.errors import EnginehouseError, Overloaded
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.faces.http import body as request_body
from enginehouse.faces.http import routes
from enginehouse.pools.hosting import HostedModels
from enginehouse.routing.counting import telemetry
from enginehouse.routing.hints import Hints

LIMIT = 10_000
INFER = "/v2/models/m/infer"
GOOD: dict[str, Any] = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


class Failing(Engine):
    """Ends every call with this error."""

    def __init__(self, error: EnginehouseError) -> None:
        super().__init__()
        self.error = error

    async def __call__(self, model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        self.calls += 1
        raise self.error


class Ingress:
    """Both HTTP ways in, past Starlette's routes and through them, and the handle; over one data plane."""

    def __init__(self, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plane = asked.plane
        self.versions: Any = asked.plane.versions
        self.limits = request_body.Limits(LIMIT, LIMIT)
        self.max_strings = 100
        monkeypatch.setattr(routes, "_ingress", lambda: self)
        # Counts stay where they can be read.
        monkeypatch.setattr(telemetry, "PERIOD_S", 1000.0)

    async def shortcut(self, scope: Any, receive: Any, send: Any) -> None:
        scope["path_params"] = {"model": scope["path"].split("/")[3], "version": None}
        await routes.answer(self, scope, receive, send)

    @contextlib.asynccontextmanager
    async def client(self, way: str) -> AsyncIterator[AsyncClient]:
        transport = ASGITransport(routes.http if way == "routes" else self.shortcut)
        async with AsyncClient(transport=transport, base_url="http://here") as client:
            yield client

    async def by_handle(self, inputs: dict[str, np.ndarray], **hints: Any) -> Any:
        return await app.Ingress.infer(self, "m", inputs, **hints)  # type: ignore[arg-type]

    def counted(self) -> dict[tuple[str, ...], float]:
        """(face, model, backend, outcome) -> requests."""
        counts = self.plane.metrics._counts
        return {
            (face, model, backend, outcome): requests
            for (face, model, _, backend, outcome), (requests, __) in counts.items()
        }


@pytest.mark.parametrize("way", ["routes", "shortcut"])
@pytest.mark.parametrize("cls", CLASSES)
async def test_http_answers_every_error_with_its_status_and_counts_it(
    cluster: Cluster,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cls: type[EnginehouseError],
    way: str,
) -> None:
    error = cls("full", 3) if issubclass(cls, Overloaded) else example(cls)
    async with routed(cluster, store, {"ort": Engine()}) as (asked, _):
        ingress = Ingress(asked, monkeypatch)

        async def fails(*_: Any) -> Any:
            raise error

        monkeypatch.setattr(asked.plane.router, "infer", fails)
        async with ingress.client(way) as client:
            answer = await client.post(INFER, json=GOOD, headers={"x-request-id": "asked-7"})
        assert answer.status_code == cls.fault.http
        inside = f"{cls.__name__}: the reason is in the server's log under request asked-7"
        assert answer.json() == {"error": inside if cls.fault.http == 500 else str(error)}
        logged = f"request asked-7 to {INFER}: {cls.__name__}: {error}"
        assert (logged in caplog.text) == (cls.fault.http == 500)
        assert ("retry-after" in answer.headers) == (cls.retryable and cls.status != 504)
        assert ingress.counted() == {("http", "m", "", cls.__name__): 1}


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls.fault.help == "another"])
async def test_what_another_backend_may_help_is_asked_of_it_and_else_answered_at_once(
    cluster: Cluster, store: Path, cls: type[EnginehouseError]
) -> None:
    first, second = Failing(example(cls)), Engine()
    async with routed(cluster, store, {"ort": first, "vino": second}) as (asked, _):
        answer = await asked.infer("m", {"x": np.zeros((1, 4), np.float32)})
        assert (answer.choice.backend.pool, answer.attempts) == ("vino", 2)
        with pytest.raises(EnginehouseError) as caught:
            # Not after its deadline: waiting does not help.
            await asyncio.wait_for(asked.infer("m", {"x": np.zeros((1, 4), np.float32)}, Hints(backend="ort")), 5)
        assert type(caught.value) is cls


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls.fault.help == "nothing"])
async def test_what_is_the_requests_fault_is_asked_of_no_other(
    cluster: Cluster, store: Path, cls: type[EnginehouseError]
) -> None:
    first, second = Failing(example(cls)), Engine()
    async with routed(cluster, store, {"ort": first, "vino": second}) as (asked, _):
        for _ in range(6):
            with pytest.raises(cls):
                await asked.infer("m", {"x": np.zeros((1, 4), np.float32)}, Hints(backend="ort"))
        assert second.calls == 0


def moved_away(store: Path) -> None:
    store.rename(store.with_name("elsewhere"))


def not_mounted(store: Path) -> None:
    moved_away(store)
    store.mkdir()


def a_file(store: Path) -> None:
    moved_away(store)
    store.write_text("where the folder was")


def unreadable(store: Path) -> None:
    """As for one who may not read it, on any account: the manifest links to itself (ELOOP)."""
    manifest = store / "scale" / "1" / "manifest.json"
    manifest.unlink()
    manifest.symlink_to(manifest)


@pytest.mark.parametrize("way", ["routes", "shortcut"])
@pytest.mark.parametrize("outage", [moved_away, not_mounted, a_file, unreadable])
async def test_an_outage_of_the_store_is_a_retryable_503_and_the_next_request_is_answered(
    cluster: Cluster,
    store: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    outage: Callable[[Path], None],
    way: str,
) -> None:
    """A replica that has just unloaded the model loads it again for a request, from a store that has gone."""
    bundles = tmp_path_factory.mktemp("outage") / "store"
    publish_scale(bundles, "scale", "1", 3.0)
    config = ModelConfig(name="scale", version="1")
    hosted = HostedModels("ort", ("onnxruntime-cpu",), 1, lambda _: False, unload_after_s=60, router=True)
    hosted.follow(Catalog(store=str(bundles), models=(config,)))

    async def infer(_: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        loaded = await hosted.get(config.key, budget_s)
        outputs, timing = await loaded.infer(requests, rows, budget_s)
        return {"x": outputs["y"]}, timing

    async with routed(cluster, store, {"ort": infer}) as (asked, _):
        ingress = Ingress(asked, monkeypatch)
        kept = bundles.with_name("kept")
        shutil.copytree(bundles, kept)
        outage(bundles)
        async with ingress.client(way) as client:
            answer = await asyncio.wait_for(client.post(INFER, json=GOOD), 10)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text
            assert "cannot be read" in answer.json()["error"]
            assert ingress.counted() == {("http", "m", "", "StoreUnavailable"): 1}
            if bundles.is_dir():
                shutil.rmtree(bundles)
            else:
                bundles.unlink(missing_ok=True)
            kept.rename(bundles)
            again = await client.post(INFER, json=GOOD)
        assert again.json()["outputs"][0]["data"] == [3, 6, 9, 12], again.text


async def test_each_refusal_is_counted_once_by_its_outcome_and_no_label_is_made_up_by_a_client(
    cluster: Cluster, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "BODY_TIMEOUT_S", 0.05)
    tried = 0
    async with routed(cluster, store, {"ort": Engine()}) as (asked, _):
        ingress = Ingress(asked, monkeypatch)

        async def endless() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(10)

        wrong: dict[str, Any] = {"inputs": [GOOD["inputs"][0] | {"shape": [1, 5], "data": [0] * 5}]}
        sent: list[tuple[dict[str, Any], int, tuple[str, str]]] = [
            ({"content": b"{"}, 400, ("m", "InvalidInput")),
            ({"json": wrong}, 400, ("m", "InvalidInput")),
            ({"json": GOOD, "headers": {"enginehouse-priority": "77"}}, 400, ("", "InvalidInput")),
            ({"json": GOOD, "headers": {"enginehouse-backend": "invented"}}, 400, ("m", "InvalidInput")),
            ({"json": GOOD, "headers": {"inference-header-content-length": "x"}}, 400, ("m", "InvalidInput")),
            ({"url": "/v2/models/invented/infer", "json": GOOD}, 404, ("", "ModelNotFound")),
            ({"content": bytes(LIMIT + 1)}, 413, ("m", "RequestTooLarge")),
            ({"content": b"{", "headers": {"content-encoding": "br"}}, 415, ("m", "UnsupportedEncoding")),
            ({"content": endless()}, 408, ("m", "BodyTimeout")),
            ({"json": GOOD, "headers": {"enginehouse-deadline-ms": "0"}}, 504, ("m", "DeadlineExceeded")),
        ]
        for way in ("routes", "shortcut"):
            async with ingress.client(way) as client:
                for request, status, (model, outcome) in sent:
                    if way == "shortcut" and not isinstance(request.get("content", b""), bytes):
                        continue
                    before = ingress.counted().get(("http", model, "", outcome), 0)
                    answer = await client.post(**{"url": INFER, **request})
                    assert answer.status_code == status, answer.text
                    assert ingress.counted()["http", model, "", outcome] == before + 1, (way, outcome)
                    tried += 1
                asked.plane.admission.max_requests = 0
                assert (await client.post(INFER, json=GOOD)).status_code == 429
                asked.plane.admission.max_requests = 1000
                tried += 1
        with pytest.raises(ValueError, match="InvalidInput: priority 77"):
            await ingress.by_handle({"x": np.zeros((1, 4), np.float32)}, priority=77)
        with pytest.raises(ValueError, match="InvalidInput: .*shape"):
            await ingress.by_handle({"x": np.zeros((1, 5), np.float32)})
        counted = ingress.counted()
        assert counted["http", "m", "", "Overloaded"] == 2
        assert (counted["handle", "", "", "InvalidInput"], counted["handle", "m", "", "InvalidInput"]) == (1, 1)
        assert sum(counted.values()) == tried + 2
        assert {model for _, model, __, ___ in counted} == {"", "m"}


@pytest.mark.parametrize("way", ["routes", "shortcut"])
async def test_who_leaves_while_it_sends_or_waits_is_counted_as_cancelled(
    cluster: Cluster, store: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    async def held(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        await asyncio.Event().wait()
        raise AssertionError

    content = httpx.Request("POST", "http://here", json=GOOD).content
    async with routed(cluster, store, {"ort": held}) as (asked, _):
        ingress = Ingress(asked, monkeypatch)
        application: Any = routes.http if way == "routes" else ingress.shortcut
        for messages in (
            [{"type": "http.request", "body": content[:5], "more_body": True}, {"type": "http.disconnect"}],
            [{"type": "http.request", "body": content, "more_body": False}, {"type": "http.disconnect"}],
        ):

            async def receive(messages: list[dict[str, Any]] = messages) -> dict[str, Any]:
                return messages.pop(0)

            async def send(_: Any) -> None:
                pass

            scope = {"type": "http", "method": "POST", "path": INFER, "headers": [], "query_string": b""}
            task = asyncio.create_task(application(scope, receive, send))
            if way == "routes" and not messages[0]["more_body"]:
                # Serve cancels the task of a request whose client has gone.
                await asyncio.sleep(0.1)
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, 5)
        assert ingress.counted() == {("http", "m", "", "cancelled"): 2}


async def test_a_model_that_is_not_warm_is_counted_under_its_name(
    cluster: Cluster, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with routed(cluster, store, {"ort": Engine()}) as (asked, _):
        ingress = Ingress(asked, monkeypatch)
        versions: Any = asked.plane.versions
        versions.apply(Catalog.parse({"store": str(store), "models": [{"name": "cold", "version": "9"}]}))
        async with ingress.client("routes") as client:
            assert (await client.post("/v2/models/cold/infer", json=GOOD)).status_code == 503
        assert ingress.counted() == {("http", "cold", "", "NoBackend"): 1}


def test_the_handles_builtins_follow_the_table() -> None:
    for cls in CLASSES:
        error = app._builtin(example(cls))
        usual = RuntimeError if cls.status == 429 or cls.status >= 500 else ValueError
        wanted = {404: LookupError, 504: TimeoutError}.get(cls.status, usual)
        assert type(error) is wanted
        assert str(error).endswith(" (retryable)") == (cls.retryable and cls.status != 504)
