"""What a black-box reward is: a function of pixels, prompts and metadata that says who it is.

A scorer is any object with the members of `Scorer`. `PerImage` is the short way to write one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tdm_r1.config import Section
from tdm_r1.rewards.extras import versions

Image = npt.NDArray[np.uint8]
"""[height, width, 3] uint8, RGB."""
Metadata = Mapping[str, Any]
Parts = tuple[tuple[str, float], ...]


NO_OPINION: Final = "no opinion"
"""How the error of a sample begins that no one judged."""
NOT_ASKED: Final = "not_asked"
"""In place of an error: the scorer's `worlds` are others than the prompt's, so that it has no part in its reward."""


@dataclass(frozen=True, kw_only=True)
class ScorerInfo:
    """Who a scorer is, what it needs and what it costs."""

    name: str
    version: str
    licence: str
    """Of code and weights, as SPDX where there is one."""
    revision: str = ""
    """SHA-256 over all that can change a value: code, options, weights. Part of every key of the result cache; of a
    scorer that names none, nothing is kept."""
    needs: tuple[Literal["image", "prompt", "metadata", "feedback"], ...] = ("image",)
    """What it looks at; what it does not look at is no part of the cache's key. `feedback` is what people said of the
    sample's group: the stage puts it into the metadata under that name."""
    low: float = -math.inf
    """Smallest value it can give."""
    high: float = math.inf
    """Largest value it can give."""
    higher_is_better: bool = True
    deterministic: bool = True
    """The same input gives the same value, whatever else is in the batch."""
    min_side: int = 8
    """Pixels; smaller pictures are refused before it sees them."""
    batch: int = 1
    """Images per call that suit it."""
    device: Literal["cpu", "cuda", "remote"] = "cpu"
    cpu_seconds: float = 0.01
    """Of one core, per image; sets the time limit and the progress line."""
    memory_mb: float = 200.0
    """Resident, of one process."""
    extra: str = ""
    """Extra of this package that installs what it imports."""
    weights: str = ""
    """What must be there before it can serve, and which option names it; empty is nothing."""
    caveat: str = ""
    """What is said beside every number that it gives; empty is nothing."""


@dataclass(frozen=True)
class Score:
    """The verdict on one image: a value, or the error that prevented it. A failure is never a value of 0."""

    value: float | None
    """Raw, in the scorer's own unit."""
    parts: Parts = ()
    """Named terms. A part called `correct` or `strict` is a verdict, 0 or 1."""
    detail: str | None = None
    """JSON for people: boxes, recognised text, an answer."""
    error: str | None = None

    def __post_init__(self) -> None:
        """Make numbers of NumPy and Torch plain ones, and texts such as UTF-8 can hold: a record stores them."""
        if (self.value is None) == (self.error is None):
            raise ValueError(f"a score has a value or an error, but {self.value} and {self.error!r} were given")
        for name, value in (("value", self.value), *self.parts):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"a score is finite, but {name}={value} was given; say what failed in `error`")
        plain = {
            "value": None if self.value is None else float(self.value),
            "parts": tuple((str(name), float(value)) for name, value in self.parts),
            "detail": _stored(self.detail, "detail"),
            "error": _stored(self.error, "error"),
        }
        for name, content in plain.items():
            object.__setattr__(self, name, content)

    def part(self, name: str) -> float | None:
        """The first part of that name."""
        return next((value for part, value in self.parts if part == name), None)


def _stored(text: str | None, name: str) -> str | None:
    """A text without the halves of characters that a decoder of JSON lets through."""
    if text is not None and not isinstance(text, str):
        raise TypeError(f"the {name} of a score is a text, but a {type(text).__name__} was given")
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


def failed(reason: str) -> Score:
    """The score of an image that could not be judged."""
    return Score(value=None, error=reason[:500] or "no reason given")


def is_failure(error: str | None) -> bool:
    """Whether a score's error says that something failed, and not that there was nothing to judge."""
    return error is not None and error != NOT_ASKED and not error.startswith(NO_OPINION)


def abstained(reason: str) -> Score:
    """The score of an image on which there is no opinion: it has no reward, and does not count as a failure."""
    return Score(value=None, error=f"{NO_OPINION}: {reason}")


class Scorer(Protocol):
    """A black box. It lives in one process, which loads it once, tests it, and then asks it many times."""

    @property
    def info(self) -> ScorerInfo:
        """Known before `load`, and never different afterwards."""

    def load(self, threads: int) -> None:
        """Read weights. No network, unless an option asked for it.

        Args:
            threads: CPU threads that this process may use.
        """

    def selftest(self) -> None:
        """Score a golden picture, and raise when the value is not the one it must be."""

    def score(self, images: Sequence[Image], prompts: Sequence[str], metadata: Sequence[Metadata]) -> Sequence[Score]:
        """One score per image, in the same order. What it raises becomes the error of the row that made it raise."""


class NoOptions(Section):
    """Of a scorer that can be told nothing."""


class BaseScorer(ABC):
    """Options, info and revision of a scorer that is a class.

    The revision covers `about`, the options, the file that defines the class, `code`, `files` and `libraries`.
    """

    about: ClassVar[ScorerInfo]
    Options: ClassVar[type[Section]] = NoOptions
    code: ClassVar[tuple[ModuleType, ...]] = ()
    """Further modules that can change a value."""
    options: Section

    def __init__(self, **options: Any) -> None:
        self.options = self.Options(**options)

    def describe(self) -> ScorerInfo:
        """`about`, with what options change in it; the revision is added."""
        return self.about

    def files(self) -> Sequence[Path]:
        """Weights on disk."""
        return ()

    def libraries(self) -> Sequence[str]:
        """Installed distributions of which another version may give another value."""
        return ()

    @cached_property
    def info(self) -> ScorerInfo:
        digest = hashlib.sha256(json.dumps([self.about.name, self.about.version, self.options.model_dump()]).encode())
        for path in [Path(inspect.getfile(type(self))), *(Path(str(module.__file__)) for module in self.code)]:
            digest.update(path.read_bytes())
        for path in self.files():
            with path.open("rb") as weights:
                digest.update(hashlib.file_digest(weights, "sha256").digest())
        if found := versions(self.libraries()):
            digest.update(json.dumps(found).encode())
        return replace(self.describe(), revision=digest.hexdigest())

    def load(self, threads: int) -> None:
        del threads

    @abstractmethod
    def selftest(self) -> None:
        """Score a golden picture, and raise when the value is not the one it must be."""


class PerImage(BaseScorer):
    """A scorer that looks at one image at a time."""

    @abstractmethod
    def score_one(self, image: Image, prompt: str, metadata: Metadata) -> Score:
        """Judge one image [height, width, 3] uint8, RGB."""

    def score(self, images: Sequence[Image], prompts: Sequence[str], metadata: Sequence[Metadata]) -> Sequence[Score]:
        scores = []
        for image, prompt, row in zip(images, prompts, metadata, strict=True):
            try:
                scores.append(self.score_one(image, prompt, row))
            except Exception as error:
                scores.append(failed(reason_of(error)))
        return scores


def reason_of(error: BaseException) -> str:
    """An exception as the reason of a row: `ValueError: what it said`."""
    return f"{type(error).__name__}: {error}"


def golden(
    scorer: Scorer,
    image: Image,
    value: float,
    *,
    prompt: str = "",
    metadata: Metadata | None = None,
    tolerance: float = 1e-6,
) -> None:
    """Raise unless the scorer gives this picture this value: what a self-test is made of."""
    (score,) = scorer.score([image], [prompt], [metadata or {}])
    if score.value is None:
        raise ValueError(f"the golden picture failed: {score.error}")
    if not abs(score.value - value) <= tolerance:
        raise ValueError(f"the golden picture scored {score.value:.6g}, expected {value:.6g} ± {tolerance:g}")
