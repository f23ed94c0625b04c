"""A router answers what comes through its own cluster's HAProxy; what that one's configuration becomes."""

from __future__ import annotations

import inspect
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from ray.serve._private import haproxy_templates
from ray.serve._private.haproxy import BackendConfig

from enginehouse.cluster import haproxy, haproxy_wrapper
from enginehouse.cluster.haproxy import serve_host
from enginehouse.cluster.haproxy_wrapper import completed
from enginehouse.contract.errors import ConfigError
from enginehouse.faces.http import own_house, shortcut

CONFIGURATION = """global
    nbthread 1
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
    use_backend app
frontend grpc_frontend
    bind 127.0.0.1:8001 proto h2
    use_backend app
backend app
    option httpchk GET /-/healthz
    http-check expect status 200
    server one 127.0.0.1:30000 check
"""


def test_requests_and_health_checks_get_the_key_and_nothing_else_changes() -> None:
    text = completed(CONFIGURATION, "secret")
    added = [line for line in text.splitlines() if line not in CONFIGURATION.splitlines()]
    keyed, stream, check = (
        "    http-request set-header x-house-key secret",
        "    timeout client 3600s",
        "    http-check",
    )
    assert added == [keyed, keyed, stream, f"{check} send hdr x-house-key secret"]
    lines = text.splitlines()
    assert lines[lines.index("    bind 127.0.0.1:8000") + 1] == keyed
    assert lines[lines.index("    bind 127.0.0.1:8001 proto h2") + 1 :][:2] == [keyed, stream]
    assert lines[lines.index("    option httpchk GET /-/healthz") + 1] == added[-1]
    assert [line for line in lines if line not in added] == CONFIGURATION.splitlines()
    # HAProxy may be started twice with one file.
    assert completed(text, "secret") == text


@pytest.mark.parametrize("bind", ["[::1]", "[::] v4v6"])
def test_the_address_may_be_one_of_ipv6(bind: str) -> None:
    lines = completed(CONFIGURATION, "secret", bind).splitlines()
    host, *more = bind.split()
    assert " ".join([f"    bind {host}:8000", *more]) in lines
    assert " ".join([f"    bind {host}:8001", *more, "proto h2"]) in lines
    assert not any("127.0.0.1:800" in line for line in lines)
    assert "    bind :9101" in lines


def test_what_haproxy_answers_for_a_lost_router_can_be_tried_again() -> None:
    of_ray = CONFIGURATION + "defaults\n    errorfile 502 /r/500.http\n    errorfile 503 /r/500.http\n"
    lines = completed(of_ray, "secret", lost="/ours/503.http").splitlines()
    assert [line for line in lines if "errorfile" in line] == [
        "    errorfile 502 /ours/503.http",
        "    errorfile 503 /ours/503.http",
    ]
    head, _, body = haproxy_wrapper.LOST.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert "try again" in json.loads(body)["error"]


def test_slow_and_many_clients_and_other_users_are_kept_off() -> None:
    of_ray = (
        "global\n    stats socket /r/admin.sock mode 666 level admin expose-fd listeners\n    maxconn 8000\n"
        "defaults\n    timeout client 30s\n" + CONFIGURATION.partition("frontend prometheus")[1] + "\n"
        "    bind :9101\nfrontend http_frontend\n    bind 127.0.0.1:8000\nbackend app\n    timeout client 30s\n"
    )
    text = completed(of_ray, "secret")
    assert "    stats socket /r/admin.sock mode 600 level admin expose-fd listeners\n" in text
    assert text.count("    timeout http-request 10s\n") == 1
    front = text.partition("frontend http_frontend\n")[2].splitlines()
    assert front[1:4] == [
        "    stick-table type ipv6 size 64k expire 1m store conn_cur",
        "    tcp-request connection track-sc0 src",
        "    tcp-request connection reject if { sc0_conn_cur gt 6000 }",
    ]


@pytest.mark.parametrize(("most", "connections"), [(1024, 209), (20_000, 7800), (65_536, 8192), (-1, 8192)])
def test_haproxy_has_as_many_connections_as_it_may_have_files(
    most: int, connections: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, most))
    environment = haproxy.environment(tmp_path)
    assert environment["RAY_SERVE_HAPROXY_MAXCONN"] == str(connections)
    assert environment["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == "30"


@pytest.mark.parametrize(
    "line", ["timeout client {{", "stats socket {{ config.socket_path }} mode 666 ", "maxconn {{ config.maxconn }}"]
)
def test_ray_has_the_lines_that_they_are_put_into(line: str) -> None:
    assert f"    {line}" in haproxy_templates.HAPROXY_CONFIG_TEMPLATE.replace(
        "{% if config.timeout_client_s is not none %}", ""
    )


@pytest.mark.parametrize(("parent", "becomes"), [("ray::HAProxyManager", True), ("python", False)])
def test_only_a_process_of_ray_that_still_lives_gets_its_haproxy(tmp_path: Path, parent: str, becomes: bool) -> None:
    """A server that ends while its HAProxy changes would leave one behind: nobody kills what is started after that."""
    (tmp_path / "haproxy.cfg").write_text(CONFIGURATION)
    binary = tmp_path / "haproxy"
    binary.write_text(f"#!/bin/sh\ntouch {tmp_path}/became\n")
    binary.chmod(0o700)
    wrapper = Path(haproxy_wrapper.__file__).with_suffix(".sh")
    start = f"import subprocess; print(subprocess.run(['{wrapper}', '-f', '{tmp_path}/haproxy.cfg']).returncode)"
    env = os.environ | {
        "ENGINEHOUSE_PYTHON": sys.executable,
        haproxy_wrapper.BINARY: str(binary),
        haproxy_wrapper.SERVER: str(os.getpid()),
        haproxy_wrapper.KEY: "secret",
    }
    done = subprocess.run(
        [parent, "-c", start], executable=sys.executable, env=env, capture_output=True, text=True, timeout=60
    )
    assert (tmp_path / "became").exists() == becomes
    assert (done.stdout.strip() == "0") == becomes, done.stderr
    assert ("of Ray that wanted HAProxy is gone" in done.stderr) != becomes


def test_rays_configuration_has_the_lines_that_are_looked_for() -> None:
    assert "\nfrontend http_frontend\n    bind " in haproxy_templates.HAPROXY_CONFIG_TEMPLATE
    for code in (502, 503, 504):
        assert f"    errorfile {code} " in haproxy_templates.HAPROXY_CONFIG_TEMPLATE
    assert "    option httpchk GET " in haproxy_templates.HAPROXY_CONFIG_TEMPLATE
    assert "health_path" in inspect.getsource(BackendConfig.build_health_check_config)
    assert (own_house.HEADER, own_house.KEY) == (haproxy_wrapper.HEADER, haproxy_wrapper.KEY)


def test_serve_gets_an_address_that_its_replicas_can_have() -> None:
    assert [serve_host(host) for host in ("127.0.0.1", "0.0.0.0", "::1", "::")] == [
        *("127.0.0.1", "0.0.0.0", "127.0.0.1", "127.0.0.1")
    ]


def test_without_haproxy_an_address_of_ipv6_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from enginehouse.cluster import haproxy

    monkeypatch.setattr(haproxy, "_binary", lambda: None)
    assert haproxy.wrapped("127.0.0.1") == {}
    with pytest.raises(ConfigError, match="--host ::1.*HAProxy"):
        haproxy.wrapped("::1")


def test_the_wrapper_never_wraps_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from enginehouse.cluster import haproxy

    for name in (haproxy_wrapper.BINARY, "RAY_SERVE_HAPROXY_BINARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    once = haproxy.wrapped("127.0.0.1")
    for name, value in once.items():
        # As a task of that cluster has it.
        monkeypatch.setenv(name, value)
    assert haproxy.wrapped("127.0.0.1")[haproxy_wrapper.BINARY] == once[haproxy_wrapper.BINARY]
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/opt/mine")
    assert haproxy.wrapped("127.0.0.1")[haproxy_wrapper.BINARY] == "/opt/mine"


def test_requests_that_are_still_answered_are_known_by_their_age(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from enginehouse.cluster import haproxy

    shown = """0x1: proto=tcpv4 src=1:2 fe=http_frontend be=b srv=s ts=00 epoch=0x2 age=1m3s calls=2
0x2: proto=tcpv4 src=1:3 fe=http_frontend be=<NONE> srv=<none> ts=00 epoch=0 age=50s calls=1
0x3: proto=tcpv4 src=1:3 fe=http_frontend be=b srv=s ts=00 epoch=0 age=0s calls=1
0x4: proto=unix_stream src=unix:1 fe=GLOBAL be=<NONE> srv=<none> ts=00 epoch=0x2 age=9s calls=1
"""
    monkeypatch.setattr(haproxy, "asked", lambda folder, command: shown)
    assert [haproxy.answering(tmp_path, since) for since in (0.5, 1.5, 63, 64)] == [2, 1, 1, 0]


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def _wrapped(monkeypatch: pytest.MonkeyPatch, key: str | None) -> AsyncClient:
    """An application with our middlewares around it, as Serve puts them there."""
    monkeypatch.delenv(own_house.KEY, raising=False)
    if key:
        monkeypatch.setenv(own_house.KEY, key)
    application: Any = _hello
    for middleware in shortcut.middlewares():
        application = middleware.cls(application, *middleware.args, **middleware.kwargs)
    return AsyncClient(transport=ASGITransport(application), base_url="http://here")


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/v2/health/ready", "/-/healthz"])
async def test_who_has_not_the_key_is_sent_away_whatever_he_asks(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    async with _wrapped(monkeypatch, "secret") as client:
        for headers in ({}, {"x-house-key": "secre"}, {"x-house-key": ""}, {"house-key": "secret"}):
            refused = await client.post(path, headers=headers)
            assert refused.status_code == 503
            assert "another server" in refused.json()["error"]
            assert refused.headers["retry-after"] == "1"
        assert (await client.get(path, headers={"X-House-Key": "secret"})).text == "hello"


async def test_a_cluster_without_a_key_answers_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _wrapped(monkeypatch, None) as client:
        assert (await client.get("/v2/health/ready")).text == "hello"
