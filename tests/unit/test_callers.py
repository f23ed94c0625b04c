"""Who may ask: tokens, roles, models and rates, from the file to the router, which knows hashes only."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginehouse.contract.config import ROUTER, AppConfig, Catalog, ModelConfig, serve_config
from enginehouse.contract.config import tokens_file as file
from enginehouse.contract.config.access import ROLES, CallerConfig, digest, tag
from enginehouse.contract.errors import (
    ConfigError,
    ModelNotFound,
    PermissionDenied,
    RateExceeded,
    Unauthenticated,
)
from enginehouse.routing.admission import callers as module
from enginehouse.routing.admission.callers import ANYBODY, Callers

TOKEN = "5f0c7d6b3a9e48d2b1c0a7e6f5d4c3b2"
OTHER = "another-token.of_36~characters+00000"


def entry(**changes: Any) -> CallerConfig:
    return CallerConfig.model_validate({"name": "shop", "sha256": digest(TOKEN), "roles": ["infer"]} | changes)


def known(*entries: CallerConfig, routers: int = 1) -> Callers:
    callers = Callers(routers)
    callers.follow(entries)
    return callers


def tokens_file(folder: Path, content: Any, mode: int = 0o600) -> Path:
    path = folder / "tokens.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    path.chmod(mode)
    return path


# The file.


def test_a_file_of_tokens_becomes_hashes(tmp_path: Path) -> None:
    entries = [
        {"name": "shop", "token": TOKEN, "roles": ["infer", "read"], "models": ["a*"], "rows_per_s": 5},
        {"name": "ops", "sha256": digest(OTHER), "roles": ["admin"]},
    ]
    found = file.read(tokens_file(tmp_path, {"tokens": entries}))
    assert [(each.name, each.sha256, each.roles) for each in found] == [
        ("shop", digest(TOKEN), ("infer", "read")),
        ("ops", digest(OTHER), ("admin",)),
    ]
    assert (found[0].models, found[0].rows_per_s, found[1].models) == (("a*",), 5.0, None)
    assert file.read(tokens_file(tmp_path, json.dumps({"tokens": entries}))) == found
    assert file.read(tokens_file(tmp_path, {"tokens": []})) == ()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_file_that_others_could_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tokens_file(tmp_path, {"tokens": []}, mode)
    with pytest.raises(ConfigError, match=f"has mode {mode:04o}: .*chmod 600 {path}"):
        file.read(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f"tokens:\n- name: [{TOKEN}\n", "is no YAML, line"),
        ([{"name": "a", "token": TOKEN}], "a list under `tokens:`"),
        ({"tokens": {}, "others": []}, "a list under `tokens:`"),
        ({"tokens": [TOKEN]}, "entry 1 needs name"),
        ({"tokens": [{"name": "a", "token": TOKEN}]}, "entry 1: roles: Field required"),
        ({"tokens": [{"name": "a", "token": TOKEN, "roles": []}]}, "entry 1: roles: "),
        ({"tokens": [{"name": "a", "token": TOKEN, "roles": [TOKEN]}]}, "entry 1: roles: "),
        ({"tokens": [{"name": "a", "token": TOKEN, "roles": ["read"], TOKEN: 1}]}, "entry 1: a key: is none of name"),
        ({"tokens": [{"name": TOKEN * 3, "token": TOKEN, "roles": ["read"]}]}, "entry 1: name: "),
        ({"tokens": [{"name": "a", "token": TOKEN[:20], "roles": ["read"]}]}, "openssl rand -hex 32"),
        ({"tokens": [{"name": "a", "token": 5 * 10**30, "roles": ["read"]}]}, "openssl rand -hex 32"),
        ({"tokens": [{"name": "a", "token": f"{TOKEN} {TOKEN}", "roles": ["read"]}]}, "openssl rand -hex 32"),
        ({"tokens": [{"name": "a", "token": TOKEN, "sha256": digest(TOKEN), "roles": ["read"]}]}, "either token or"),
        ({"tokens": [{"name": "a", "sha256": TOKEN, "roles": ["read"]}]}, "entry 1: sha256: "),
        ({"tokens": [{"name": "a", "token": TOKEN, "roles": ["read"], "rows_per_s": 0}]}, "entry 1: rows_per_s: "),
        ({"tokens": [{"name": n, "token": TOKEN, "roles": ["read"]} for n in "ab"]}, "2 has the token of one before"),
        (
            {"tokens": [{"name": "a", "token": t, "roles": ["read"]} for t in (TOKEN, OTHER)]},
            "2 has the name 'a' of one before",
        ),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_and_never_quoted(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        file.read(tokens_file(tmp_path, content))
    assert TOKEN[:20] not in str(caught.value) and OTHER not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        file.read(tmp_path / "none")
    assert file.signature(tmp_path / "none") == ()


# The catalog.


def test_only_routers_are_told_who_may_ask() -> None:
    model = ModelConfig(name="m", version="1")
    catalog = Catalog(store="/s", models=(model,), callers=(entry(),))
    (application,) = serve_config(AppConfig(), catalog)["applications"]
    configs = {each["name"]: each["user_config"] for each in application["deployments"]}
    assert Catalog.parse(configs.pop(ROUTER)) == catalog
    assert configs and all(Catalog.parse(config) == catalog.with_callers(None) for config in configs.values())
    assert TOKEN not in json.dumps(application)


def test_nobody_and_everybody_are_two_things_in_a_config() -> None:
    for callers in ((), None):
        catalog = Catalog(store="/s", callers=callers)
        assert Catalog.parse(catalog.user_config(ROUTER)).callers == callers


def test_changes_of_models_keep_who_may_ask() -> None:
    catalog = Catalog(store="/s", callers=(entry(),))
    model = ModelConfig(name="m", version="1")
    assert catalog.with_model(model).callers == catalog.callers
    assert catalog.with_model(model).without("m") == catalog
    assert pickle.loads(pickle.dumps(catalog)) == catalog


def test_a_token_in_the_place_of_a_hash_is_not_shown() -> None:
    caller = {"name": "a", "sha256": TOKEN, "roles": ["read"]}
    with pytest.raises(ConfigError, match=r"callers\.0\.sha256") as caught:
        Catalog.parse({"store": "/s", "callers": [caller]})
    assert TOKEN not in str(caught.value)


# Routers.


def test_without_callers_anybody_may_ask() -> None:
    callers = Callers()
    assert not callers.are_asked
    assert callers.find(None) is callers.find(b"Bearer x") is ANYBODY
    for role in ROLES:
        ANYBODY.check(role)
        ANYBODY.check(role, "m")
    callers.follow(())
    with pytest.raises(Unauthenticated):
        callers.find(f"Bearer {TOKEN}")


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}".encode(), f"BEARER   {TOKEN} ".encode()])
def test_a_token_finds_its_caller(given: bytes | str) -> None:
    caller = known(entry(), entry(name="other", sha256=digest(OTHER))).find(given)
    assert caller.config is not None and caller.config.name == "shop"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "a token is needed"),
        ("", "no bearer token"),
        (b"Basic dXNlcjpwYXNz", "no bearer token"),
        (f"Bearer{TOKEN}", "no bearer token"),
        ("Bearer ", "not known here"),
        (f"Bearer {TOKEN[:-1]}", "not known here"),
        (f"Bearer {TOKEN.upper()}", "not known here"),
        (f"Bearer {digest(TOKEN)}", "not known here"),
        ("Bearer \u20ac", "not known here"),
        (b"Bearer \xff\x00", "not known here"),
    ],
)
def test_no_token_or_a_wrong_one_is_not_quoted(given: bytes | str | None, told: str) -> None:
    with pytest.raises(Unauthenticated, match=told) as caught:
        known(entry()).find(given)
    assert TOKEN[:10].lower() not in str(caught.value).lower()


def test_a_token_that_was_taken_out_is_unknown() -> None:
    callers = known(entry(), entry(name="other", sha256=digest(OTHER)))
    callers.follow([entry(name="other", sha256=digest(OTHER))])
    with pytest.raises(Unauthenticated):
        callers.find(f"Bearer {TOKEN}")
    callers.find(f"Bearer {OTHER}")


def test_a_role_includes_no_other() -> None:
    for role in ROLES:
        caller = known(entry(roles=[role])).find(f"Bearer {TOKEN}")
        for asked in ROLES:
            if asked == role:
                caller.check(asked, "m")
                caller.check(asked)
            else:
                with pytest.raises(PermissionDenied, match=f"not the role '{asked}'"):
                    caller.check(asked, "m")


def test_models_are_globs_and_leave_the_server_as_a_whole_out() -> None:
    caller = known(entry(models=["res*", "digits"])).find(f"Bearer {TOKEN}")
    for name in ("resnet50", "digits"):
        caller.check("infer", name)
    for name in ("digits2", "Digits", "a/resnet", ""):
        with pytest.raises(PermissionDenied, match="not for this model"):
            caller.check("infer", name)
    with pytest.raises(PermissionDenied, match="about all"):
        caller.check("infer")
    caller.check_role("infer")
    error = caller.shown(ModelNotFound("resnet9", None, ("resnet50@1", "secret@1", "digits@2")))
    assert "secret" not in str(error) and "resnet50@1, digits@2" in str(error)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_requests_have_their_rate_of_which_a_router_lets_through_its_share(clock: Clock) -> None:
    caller = known(entry(requests_per_s=10), routers=2).find(f"Bearer {TOKEN}")
    passed = 0
    for _ in range(100):
        clock.now += 0.1
        try:
            caller.begin()
            passed += 1
        except RateExceeded as error:
            assert "'shop' is over its rate of 10 requests a second" in str(error)
            assert 0 < error.retry_after_s <= 0.2
    # A second's worth at once, and then five a second.
    assert 50 <= passed <= 55
    clock.now += 3600
    for _ in range(5):
        caller.begin()
    with pytest.raises(RateExceeded):
        caller.begin()


def test_rows_are_counted_once_known_and_refused_before_the_body_from_then_on(clock: Clock) -> None:
    caller = known(entry(rows_per_s=10)).find(f"Bearer {TOKEN}")
    caller.begin()
    # Larger than a second's worth: it passes, and all that comes after waits for it.
    caller.take(50)
    for _ in range(2):
        with pytest.raises(RateExceeded, match="10 rows a second") as caught:
            caller.begin()
    assert caught.value.retry_after_s == pytest.approx(4.1)
    clock.now += caught.value.retry_after_s + 0.001
    caller.begin()
    caller.take(1)


def test_an_entry_that_stays_keeps_what_is_left_of_its_rate(clock: Clock) -> None:
    callers = known(entry(requests_per_s=1))
    callers.find(f"Bearer {TOKEN}").begin()
    callers.follow([entry(requests_per_s=1), entry(name="new", sha256=digest(OTHER))])
    with pytest.raises(RateExceeded):
        callers.find(f"Bearer {TOKEN}").begin()
    callers.follow([entry(requests_per_s=2)])
    callers.find(f"Bearer {TOKEN}").begin()


def test_a_router_says_which_callers_it_knows_and_no_hash_of_theirs() -> None:
    callers, entries = Callers(), (entry(), entry(name="other", sha256=digest(OTHER)))
    seen = [callers.tag]
    for given in (entries, entries[:1], ()):
        callers.follow(given)
        seen.append(callers.tag)
        # As it came through a config.
        assert callers.tag == tag(Catalog.parse(Catalog(store="/s", callers=given).user_config(ROUTER)).callers)
    assert len(set(seen)) == 4
    assert not any(each.sha256[:8] in callers.tag for each in entries)
    callers.follow(None)
    assert callers.tag == tag(None) == ""
