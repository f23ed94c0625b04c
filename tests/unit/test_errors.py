"""Errors cross process boundaries on Ray and become HTTP answers: both must keep what they say."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from typing import get_args

import grpc
import pytest

import enginehouse
import enginehouse_build
from enginehouse.contract import errors
from enginehouse.contract.errors import FAULTS, BuildError, EnginehouseError, Help, ModelNotFound, RequestError


def hierarchy(base: type[EnginehouseError] = EnginehouseError) -> list[type[EnginehouseError]]:
    return [base, *(found for child in base.__subclasses__() for found in hierarchy(child))]


CLASSES = sorted(set(hierarchy()), key=lambda cls: cls.__name__)


def example(cls: type[EnginehouseError]) -> EnginehouseError:
    """An instance with a distinct text for each argument."""
    if cls.__init__ is EnginehouseError.__init__:
        return cls("input 'x' has dtype float32")
    names = list(inspect.signature(cls).parameters)
    return cls(*(f"<{name}>" if name != "known" else ("digits", "resnet") for name in names))


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_pickling(cls: type[EnginehouseError]) -> None:
    error = example(cls)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)
    assert again.args == error.args


@pytest.mark.parametrize("cls", CLASSES)
def test_the_text_holds_every_argument(cls: type[EnginehouseError]) -> None:
    error = example(cls)
    words = [word for argument in error.args for word in (argument if isinstance(argument, tuple) else (argument,))]
    assert words
    assert all(word in str(error) for word in words)


def test_every_error_is_in_the_table_whatever_module_defines_it() -> None:
    for package in (enginehouse, enginehouse_build):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    assert {cls for cls in hierarchy() if cls.__module__.startswith("enginehouse")} == set(FAULTS)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_class_means_what_its_line_of_the_table_says(cls: type[EnginehouseError]) -> None:
    assert cls.fault is FAULTS[cls]
    assert (cls.status, cls.retryable) == (cls.fault.http, cls.fault.retryable)
    assert cls.fault.grpc in grpc.StatusCode.__members__
    assert cls.fault.grpc != "OK"
    assert cls.fault.help in get_args(Help)


@pytest.mark.parametrize("cls", CLASSES)
def test_only_requests_are_their_callers_fault(cls: type[EnginehouseError]) -> None:
    # 429 says of a request only that it came too early.
    assert (400 <= cls.status < 500 and cls.status != 429) == issubclass(cls, RequestError)
    assert 400 <= cls.status < 600
    # What is the request's fault no other backend is asked for, but that a replica may lack a model that others have.
    assert (cls.fault.help == "nothing") == issubclass(cls, RequestError | BuildError) or cls in (
        EnginehouseError,
        ModelNotFound,
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_what_may_be_sent_again_says_so_to_every_face_alike(cls: type[EnginehouseError]) -> None:
    assert cls.retryable == (cls.status in (429, 503, 504))
    assert cls.retryable == (cls.fault.grpc in ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"))


def test_the_tree_in_the_docstring_names_every_class() -> None:
    assert errors.__doc__
    assert not [cls.__name__ for cls in CLASSES if cls.__name__ not in errors.__doc__]


def test_an_unknown_model_is_told_with_what_there_is() -> None:
    assert str(errors.ModelNotFound("cat", None, ("digits",))) == (
        "model 'cat' is not served here; served: digits (add it with `enginehouse models add`)"
    )
