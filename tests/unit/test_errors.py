"""Errors cross process boundaries on Ray and become HTTP answers: both must keep what they say."""

from __future__ import annotations

import inspect
import pickle

import pytest

from enginehouse.contract import errors
from enginehouse.contract.errors import CapacityError, EnginehouseError


def hierarchy(base: type[EnginehouseError] = EnginehouseError) -> list[type[EnginehouseError]]:
    return [base, *(found for child in base.__subclasses__() for found in hierarchy(child))]


CLASSES = sorted(set(hierarchy()), key=lambda cls: cls.__name__)


def example(cls: type[EnginehouseError]) -> EnginehouseError:
    """An instance with a distinct text for each argument."""
    if "__init__" not in vars(cls):
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


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_an_http_status(cls: type[EnginehouseError]) -> None:
    assert isinstance(cls.status, int)
    assert 400 <= cls.status < 600


@pytest.mark.parametrize("cls", CLASSES)
def test_only_lack_of_capacity_is_worth_a_retry(cls: type[EnginehouseError]) -> None:
    assert cls.retryable == issubclass(cls, CapacityError)


def test_the_tree_in_the_docstring_names_every_class() -> None:
    assert errors.__doc__
    assert not [cls.__name__ for cls in CLASSES if cls.__name__ not in errors.__doc__]


def test_an_unknown_model_is_told_with_what_there_is() -> None:
    assert str(errors.ModelNotFound("cat", None, ("digits",))) == (
        "model 'cat' is not served here; served: digits (add it with `enginehouse models add`)"
    )
