"""Scorers by name: those of this package, and those of any installed package that declares the entry point."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, Final, cast

from pydantic import ValidationError

from tdm_r1.errors import ConfigError, ScorerError
from tdm_r1.rewards.protocol import Scorer

GROUP: Final = "tdm_r1.scorers"
"""In a package's `pyproject.toml`: `[project.entry-points."tdm_r1.scorers"]`, then `name = "module:Class"`."""

SHIPPED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "shapes": "tdm_r1.rewards.shapes:ShapesScorer",
        "plane": "tdm_r1.rewards.plane:PlaneScorer",
        "words": "tdm_r1.rewards.words:WordsScorer",
        "geneval": "tdm_r1.rewards.geneval:GenEvalScorer",
        "ocr": "tdm_r1.rewards.ocr:OcrScorer",
        "clipscore": "tdm_r1.rewards.clip_scorers:ClipScore",
        "pickscore": "tdm_r1.rewards.clip_scorers:PickScore",
        "hpsv2": "tdm_r1.rewards.clip_scorers:HpsV2",
        "aesthetic": "tdm_r1.rewards.clip_scorers:Aesthetic",
        "vlm": "tdm_r1.rewards.vlm:VlmJudge",
        "unifiedreward": "tdm_r1.rewards.vlm:UnifiedReward",
        "deqa": "tdm_r1.rewards.vlm:Deqa",
        "hpsv3": "tdm_r1.rewards.vlm:HpsV3",
        "imagereward": "tdm_r1.rewards.imagereward:ImageReward",
        "jpeg": "tdm_r1.rewards.jpeg:JpegSize",
        "nsfw": "tdm_r1.rewards.nsfw:Nsfw",
        "feedback": "tdm_r1.rewards.feedback:Feedback",
    }
)


def available() -> dict[str, EntryPoint]:
    """Every scorer that can be opened here, by name; shipped ones first.

    Raises:
        ScorerError: when two packages declare the same name.
    """
    found = {name: EntryPoint(name, value, GROUP) for name, value in SHIPPED.items()}
    for point in entry_points(group=GROUP):
        present = found.setdefault(point.name, point)
        if present.value != point.value:
            raise ScorerError(
                f"two scorers are called `{point.name}`: `{present.value}` and `{point.value}`",
                hint="uninstall one of the packages, or rename its entry point",
            )
    return found


def open_scorer(name: str, options: Mapping[str, Any] | None = None) -> Scorer:
    """Make a scorer; nothing heavy is loaded yet.

    Args:
        name: as registered, or `module:Class` of a scorer that no package declares.
        options: arguments of its constructor.

    Raises:
        ScorerError: for a name that no installed package declares, or one that cannot be imported.
        ConfigError: for an option that the scorer refuses.
    """
    points = available()
    if ":" in name:
        points[name] = EntryPoint(name, name, GROUP)
    if name not in points:
        raise ScorerError(
            f"no installed package has a scorer `{name}`",
            hint=f"there are {', '.join(points)}; install the package that declares it under `{GROUP}`",
        )
    try:
        factory = points[name].load()
    except (ImportError, AttributeError, ValueError) as error:
        raise ScorerError(
            f"scorer `{name}` is `{points[name].value}`, which cannot be imported: {error}",
            hint="install what it needs; docs/rewards.md names the extra of each shipped scorer",
        ) from error
    try:
        return cast(Scorer, factory(**(options or {})))
    except (TypeError, ValidationError) as error:
        raise ConfigError(f"scorer `{name}` refuses its options: {_first(error)}", hint=_known(factory)) from error


def _first(error: TypeError | ValidationError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    detail = error.errors()[0]
    return f"`{'.'.join(map(str, detail['loc']))}` is {detail['input']!r}: {detail['msg']}"


def _known(factory: Any) -> str:
    fields = getattr(getattr(factory, "Options", None), "model_fields", None)
    if fields is None:
        return "see the arguments of its constructor"
    return f"its options are {', '.join(fields)}" if fields else "it has no options"
