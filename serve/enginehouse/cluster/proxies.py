"""Keeps a cluster's own traffic off the HTTP proxies that the environment names: gRPC takes them for its calls too."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

#: What no proxy reaches.
THIS_MACHINE = ("localhost", "127.0.0.1", "127.0.0.2", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_EXCEPTIONS = ("no_proxy", "no_grpc_proxy")


def exceptions(hosts: Iterable[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables with which `hosts` are reached directly, beside those that already are; none where no proxy is set."""
    if not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return {}
    found: dict[str, str] = {}
    for name in _EXCEPTIONS:
        # Some read one spelling, some the other: what is an exception in one is one in both.
        spellings = (name, name.upper())
        given = [environment[spelling] for spelling in spellings if environment.get(spelling)]
        if name == "no_proxy" or given:
            listed = dict.fromkeys(entry.strip() for text in given for entry in text.split(",") if entry.strip())
            found |= dict.fromkeys(spellings, ",".join(dict.fromkeys([*listed, *hosts])))
    return found
