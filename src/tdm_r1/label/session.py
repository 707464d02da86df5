"""What the page asks and what people answer, without HTTP."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from threading import Lock
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tdm_r1.artifacts.records import PromptSet
from tdm_r1.errors import ConfigError
from tdm_r1.label.pictures import Pictures, Sample
from tdm_r1.runtime.ballots import Ballot, Box
from tdm_r1.runtime.feedback_votes import Election
from tdm_r1.runtime.layout import Task

ASSETS: Final[Mapping[str, str]] = {
    "": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
}
"""Files of the page, by the last part of their address, with their types."""


class Said(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["like", "pair", "undo"]
    sample: str = Field(default="", max_length=200)
    other: str | None = Field(default=None, max_length=200)
    """Of a pair, the one that is not chosen."""
    verdict: bool = True
    key: str = Field(default="", max_length=64)
    """The same one again is the same request."""


def asset(name: str) -> bytes:
    """One file of the page."""
    return (files("tdm_r1.label") / "page" / (name or "index.html")).read_bytes()


def page_version() -> str:
    """Of the page as it is shown: first digits of the SHA-256 of its files."""
    return hashlib.sha256(b"\0".join(asset(name) for name in ASSETS)).hexdigest()[:16]


@dataclass
class Session:
    """One rater on one iteration."""

    election: Election
    pictures: Pictures
    box: Box

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._page = page_version()

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """Prompts by their ids."""
        table, _ = self.election.run.load_table(Task("encode_prompts"), PromptSet, "prompts")
        return dict(zip(table["prompt_id"].to_pylist(), table["text"].to_pylist(), strict=True))

    @cached_property
    def groups(self) -> Mapping[int, Sequence[Sample]]:
        found: dict[int, list[Sample]] = {}
        for sample in self.pictures.samples.values():
            found.setdefault(sample.group, []).append(sample)
        return dict(sorted(found.items()))

    def shown(self) -> dict[str, Any]:
        """All that the page needs to begin, what this rater said before included."""
        groups = [
            {
                "group": number,
                "prompt": self.texts[samples[0].prompt_id],
                "samples": [sample.sample_id for sample in samples],
                "pairs": list(self.pairs(number)),
            }
            for number, samples in self.groups.items()
        ]
        about = {"root": self.election.run.root, "iteration": self.election.iteration, "rater": self.box.rater}
        return {**about, "page": self._page, "groups": groups, **self.state()}

    def pairs(self, group: int) -> Iterator[tuple[str, str]]:
        """Which samples of a group this rater is asked to compare: a ring in an order of the rater's own.

        Every sample stands twice, once on the left. Nobody sees all pairs, and together raters see many.
        """
        names = [sample.sample_id for sample in self.groups[group]]
        random.Random(f"{self.box.rater}/{group}").shuffle(names)
        yield from zip(names, [*names[1:], names[0]] if len(names) > 2 else names[1:], strict=False)

    def state(self) -> dict[str, Any]:
        """What stands of what this rater said."""
        likes: dict[str, bool] = {}
        pairs: dict[str, str] = {}
        for ballot in self.box.standing():
            if ballot.other_id is None:
                likes[ballot.sample_id] = ballot.verdict
            else:
                pairs["/".join(sorted((ballot.sample_id, ballot.other_id)))] = ballot.sample_id
        return {"likes": likes, "pairs": pairs, "ballots": len(self.box.ballots)}

    def take(self, body: bytes) -> dict[str, Any]:
        """Store what a rater said.

        Raises:
            ConfigError: for a body that is not as declared, or names what is not here.
            ArtifactError: when the votes were committed meanwhile.
        """
        try:
            said = Said.model_validate_json(body)
        except ValidationError as error:
            raise ConfigError(f"this is no vote: {error.errors()[0]['msg']:.200}") from error
        with self._lock:
            self.election.require_open()
            ballot = self._undo(said) if said.kind == "undo" else self._vote(said)
            answer: dict[str, Any] = {**self.state(), "sample": ballot.sample_id if ballot else None}
            return answer | {"other": ballot.other_id if ballot else None}

    def _vote(self, said: Said) -> Ballot:
        sample = self._sample(said.sample)
        if (said.kind == "pair") != (said.other is not None):
            raise ConfigError("a pair has two samples, and a like has one")
        if said.other is not None and (
            self._sample(said.other).group != sample.group or said.other == sample.sample_id
        ):
            raise ConfigError("a pair is two samples of one group")
        if said.kind == "pair" and not said.verdict:
            raise ConfigError("of a pair, name the better one as `sample`")
        return self.box.append(
            kind=said.kind, other_id=said.other, verdict=said.verdict, key=said.key, **self._about(sample)
        )

    def _undo(self, said: Said) -> Ballot | None:
        """Take the last vote that stands back; None when there is none."""
        standing = self.box.standing()
        if any(ballot.key and ballot.key == said.key for ballot in self.box.ballots) or not standing:
            return None
        last = standing[-1]
        sample = self._sample(last.sample_id)
        return self.box.append(
            kind="undo", undoes=last.number, other_id=last.other_id, key=said.key, **self._about(sample)
        )

    def _sample(self, name: str) -> Sample:
        if name not in self.pictures.samples:
            raise ConfigError(f"{name!r:.80} is no sample of iteration {self.election.iteration}")
        return self.pictures.samples[name]

    def _about(self, sample: Sample) -> dict[str, str]:
        named = {"sample_id": sample.sample_id, "picture": sample.picture, "rollout": sample.rollout}
        return {**named, "page": self._page}
