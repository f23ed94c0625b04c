"""What is reached without a proxy, whatever the environment says of proxies."""

from __future__ import annotations

import pytest

from enginehouse.cluster.proxies import exceptions

HOSTS = ("127.0.0.2", "::1")


@pytest.mark.parametrize("environment", [{}, {"no_proxy": "localhost"}, {"http_proxy": ""}])
def test_without_a_proxy_nothing_is_set(environment: dict[str, str]) -> None:
    assert exceptions(HOSTS, environment) == {}


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "grpc_proxy"])
@pytest.mark.parametrize(
    ("given", "listed"),
    [
        ({}, ""),
        ({"no_proxy": "localhost,127.0.0.1"}, "localhost,127.0.0.1,"),
        ({"NO_PROXY": "localhost, .corp"}, "localhost,.corp,"),
        ({"no_proxy": "a", "NO_PROXY": "b,a"}, "a,b,"),
        ({"no_proxy": "::1,127.0.0.2"}, None),
    ],
)
def test_hosts_are_added_to_what_is_an_exception_already(proxy: str, given: dict[str, str], listed: str | None) -> None:
    wanted = "::1,127.0.0.2" if listed is None else f"{listed}127.0.0.2,::1"
    assert exceptions(HOSTS, {proxy: "http://127.0.0.1:9", **given}) == {"no_proxy": wanted, "NO_PROXY": wanted}


def test_a_list_for_grpc_alone_goes_before_the_other_one_so_it_is_extended_too() -> None:
    found = exceptions(HOSTS, {"http_proxy": "http://127.0.0.1:9", "no_grpc_proxy": "x"})
    assert found["no_grpc_proxy"] == found["NO_GRPC_PROXY"] == "x,127.0.0.2,::1"
    assert found["no_proxy"] == "127.0.0.2,::1"
