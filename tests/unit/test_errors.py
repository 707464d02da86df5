"""Claims about the error tree."""

from __future__ import annotations

import pickle

import pytest

from tdm_r1 import errors
from tdm_r1.errors import (
    ArtifactError,
    ConfigError,
    NumericalError,
    TdmR1Error,
    TemporaryError,
    TemporaryStorageError,
)


def every_error() -> list[type[TdmR1Error]]:
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, TdmR1Error)]


def test_an_error_shows_its_hint_after_a_blank_line() -> None:
    assert str(ConfigError("K is 0", hint="set `steps` to 4")) == "K is 0\n\nhint: set `steps` to 4"


def test_an_error_without_a_hint_is_its_message() -> None:
    assert str(ConfigError("K is 0")) == "K is 0"


def test_only_a_temporary_error_asks_to_be_retried() -> None:
    assert {e for e in every_error() if e.exit_code == 75} == {TemporaryError, TemporaryStorageError}
    assert {e.exit_code for e in every_error()} == {2, 75}


@pytest.mark.parametrize("error", every_error())
def test_the_tree_at_the_top_of_the_module_names_every_error(error: type[TdmR1Error]) -> None:
    assert errors.__doc__ is not None
    assert error.__name__ in errors.__doc__


@pytest.mark.parametrize("name", ["MissingParentError", "CorruptArtifactError", "SchemaError", "ShardError"])
def test_whoever_catches_artifact_errors_catches_this_one(name: str) -> None:
    assert issubclass(getattr(errors, name), ArtifactError)


def test_a_numerical_error_says_which_term_and_which_step() -> None:
    error = NumericalError("surrogate/preference", 7)
    assert (error.term, error.step, str(error)) == ("surrogate/preference", 7, error.message)
    assert error.message == "`surrogate/preference` is not finite at step 7"


@pytest.mark.parametrize("error", [NumericalError("loss", 3, hint="lower it"), TemporaryError("slow", hint="wait")])
def test_an_error_survives_the_way_between_processes(error: TdmR1Error) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
