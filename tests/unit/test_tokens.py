"""A cluster that asks for a token: who sends none hears at once what to set, by every way to connect."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
import ray

from enginehouse.cluster import deploy, ray_private, tokens
from enginehouse.contract.errors import ConfigError
from enginehouse.faces.python.client import Client
from enginehouse.faces.scoring import start

TOLD = "the Ray cluster at {} asks for a token: set RAY_AUTH_MODE=token before Ray is imported"


class Answers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers every call with this status, as a cluster's control store does."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            is_right = ("authorization", "Bearer right") in context.invocation_metadata()
            if self._code is not grpc.StatusCode.OK and not is_right:
                context.abort(self._code, "so it is")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a control store that answers with the status in the parameter, by default that a token is missing."""
    server = grpc.server(
        futures.ThreadPoolExecutor(2), [Answers(getattr(request, "param", grpc.StatusCode.UNAUTHENTICATED))]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    monkeypatch.setattr(ray_private, "sends_token", lambda: False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize(
    "connect",
    [
        Client,
        deploy.router_handle,
        deploy.live_catalog,
        deploy.deployed_catalog,
        lambda: start.score("m", "in.parquet", "out"),
        lambda: start.score("m", "in.parquet", "out", store="store", via="engines"),
    ],
    ids=["client", "handle", "live catalog", "deployed catalog", "score", "score by engines"],
)
def test_every_way_to_connect_says_at_once_what_to_set(
    connect: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=TOLD.format(address) + "$"):
        connect()
    assert time.monotonic() - began < tokens.ASK_S


def test_who_has_no_token_is_told_where_it_is_looked_for(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(ConfigError, match=r"and its token in RAY_AUTH_TOKEN or ~/\.ray/auth_token$"):
        tokens.check(address)
    # What Ray finds by itself it would send no token to either.
    monkeypatch.setattr(ray_private, "found_address", lambda: address)
    with pytest.raises(ConfigError, match=TOLD.format(address)):
        tokens.check_usual()


def test_who_sends_one_or_is_connected_is_not_held_up(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_private, "found_address", lambda: address)
    # Ray sends it by itself.
    tokens.check_usual()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError):
        tokens.check_usual()
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    tokens.check_usual()
    monkeypatch.setattr(ray_private, "sends_token", lambda: True)
    tokens.check(address)


def test_a_token_that_is_refused_is_told_apart_from_one_that_is_not(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_private, "sends_token", lambda: True)
    for token, is_told in (("right", False), ("wrong", True)):
        monkeypatch.setattr(ray_private, "token_headers", lambda token=token: {"Authorization": f"Bearer {token}"})
        with pytest.raises(ConfigError, match="asks for another token") if is_told else contextlib.nullcontext():
            tokens.check_sent(address)


@pytest.mark.parametrize("address", [grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED], indirect=True)
def test_a_cluster_that_asks_for_none_is_left_to_ray(address: str) -> None:
    assert not tokens.is_asked(address)


@pytest.mark.parametrize("wrong", ["auto", "", "local", "ray://127.0.0.1", ":6379"])
def test_what_is_no_address_is_left_to_ray(wrong: str) -> None:
    tokens.check(wrong)


def test_so_is_what_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ASK_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not tokens.is_asked(f"127.0.0.1:{silent.getsockname()[1]}")
    assert not tokens.is_asked("127.0.0.1:1")
