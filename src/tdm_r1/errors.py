"""Every error this project raises on purpose.

TdmR1Error                      exit code
├── ConfigError                 2   a knob or an argument is refused
├── ArtifactError               2   a record in storage is not what was asked for
│   ├── MissingParentError      2   it was never committed
│   ├── CorruptArtifactError    2   its bytes are not those of its manifest
│   ├── PrunedError             2   its files were dropped on purpose
│   ├── SchemaError             2   its kind, version, columns, shapes or dtypes are not the declared ones
│   ├── RootMismatchError       2   the run directory belongs to another run
│   └── ShardError              2   a shard is missing, doubled or out of range
├── NumericalError              2   a loss term is NaN or infinite
├── ScorerError                 2   a scorer is missing, fails its self-test, or fails on too many images
├── StorageFullError            2   no space left where the record should go
└── TemporaryError              75  the same command may succeed later
    └── TemporaryStorageError   75  object storage throttles, fails or cannot be reached

Exit code 2 means: do not retry. Exit code 75 means: retry. Any other exception is a crash.
"""

from __future__ import annotations

from typing import ClassVar


class TdmR1Error(Exception):
    """What was found, what was expected and, as a hint, what to do."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n\nhint: {self.hint}"


class ConfigError(TdmR1Error):
    """A knob or an argument is refused."""


class ArtifactError(TdmR1Error):
    """A record in storage is not what was asked for."""


class MissingParentError(ArtifactError):
    """The record was never committed."""


class CorruptArtifactError(ArtifactError):
    """The bytes of a record are not those its manifest names."""


class PrunedError(ArtifactError):
    """Files of a record were dropped on purpose; its manifest still stands."""


class SchemaError(ArtifactError):
    """The kind, version, columns, shapes or dtypes of a record are not the declared ones."""


class RootMismatchError(ArtifactError):
    """The run directory belongs to another run."""


class ShardError(ArtifactError):
    """A shard is missing, doubled or out of range."""


class NumericalError(TdmR1Error):
    """A loss term is NaN or infinite.

    Args:
        term: name of the term, such as `surrogate/preference`.
        step: optimizer step at which it happened, counted from 0.
    """

    def __init__(self, term: str, step: int, *, hint: str | None = None) -> None:
        super().__init__(f"`{term}` is not finite at step {step}", hint=hint)
        self.args = (term, step)  # what pickle passes to this constructor again
        self.term = term
        self.step = step


class ScorerError(TdmR1Error):
    """A scorer is missing, fails its self-test, or fails on too many images."""


class StorageFullError(TdmR1Error):
    """No space is left where the record should go."""


class TemporaryError(TdmR1Error):
    """A fault that may pass by itself: the same command may succeed later."""

    exit_code: ClassVar[int] = 75


class TemporaryStorageError(TemporaryError):
    """Object storage throttles, fails or cannot be reached, also after all retries."""
