"""Old module paths that live clusters, nodes and clients of the release before still name."""

from __future__ import annotations

import importlib
import pickle

import pytest

import enginehouse
from enginehouse.contract.errors import InvalidInput, Overloaded
from enginehouse.routing.hints import Hints


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("enginehouse.shortcut:middlewares", "enginehouse.faces.http.shortcut"),
        ("enginehouse.errors:InvalidInput", "enginehouse.contract.errors"),
        ("enginehouse.hints:Hints", "enginehouse.routing.hints"),
        ("enginehouse.pool:Pool", "enginehouse.pools.deployment"),
        ("enginehouse.channel:Channel", "enginehouse.transport.router_end"),
        ("enginehouse.autoscaling:HardwareAndLoad", "enginehouse.pools.autoscaling"),
        ("enginehouse.availability:LiveReplicas", "enginehouse.routing.ray_private"),
    ],
)
def test_an_old_path_is_the_very_same_thing(old: str, new: str) -> None:
    path, _, name = old.partition(":")
    assert getattr(importlib.import_module(path), name) is getattr(importlib.import_module(new), name)


def test_a_deployment_of_the_release_before_starts_the_ingress_of_this_one() -> None:
    from enginehouse import app

    # Serve starts its replicas from `enginehouse.app.Router`, whatever else may have that name by now.
    assert app.Router is app.Ingress


def test_what_is_pickled_for_another_release_names_no_module_that_it_lacks() -> None:
    for error in (InvalidInput("x"), Overloaded("full", 2)):
        data = pickle.dumps(error)
        # `enginehouse.InvalidInput` is the public name in every release.
        assert b"contract" not in data
        assert str(pickle.loads(data)) == str(error)
    data = pickle.dumps(Hints(priority=3))
    assert b"routing" not in data
    assert pickle.loads(data) == Hints(priority=3)
    assert InvalidInput.__module__ == "enginehouse"
    assert enginehouse.InvalidInput is InvalidInput
