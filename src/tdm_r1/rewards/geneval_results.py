"""GenEval's result file, one JSON object per image, and the summary that the benchmark prints of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tdm_r1.artifacts.lines import json_lines
from tdm_r1.errors import ConfigError
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.protocol import Score
from tdm_r1.worlds.geneval import TAGS

FIELDS = ("filename", "tag", "prompt", "correct", "reason", "metadata", "details")
KINDS: Final[Mapping[str, type]] = MappingProxyType({"tag": str, "correct": bool, "metadata": object})
"""What a summary needs of a row."""


@dataclass(frozen=True)
class Sample:
    """One image of the benchmark's folder layout: `NNNNN/metadata.jsonl`, `NNNNN/samples/*.png`."""

    path: Path
    metadata: dict[str, Any]

    @property
    def question(self) -> Question:
        """An unreadable file is an error of its row."""
        try:
            content = self.path.read_bytes()
        except OSError:
            content = b""
        return Question(content, self.metadata.get("prompt", ""), self.metadata)


def samples(folder: Path) -> list[Sample]:
    """Every image below a folder of the benchmark's layout, in order.

    Raises:
        ConfigError: when there is none, or a metadata file cannot be read.
    """
    found = []
    for row in sorted(folder.glob("*/metadata.jsonl")):
        try:
            metadata = json.loads(row.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"`{row}` is no JSON object: {error}", hint="it holds one row of the prompts") from error
        if not isinstance(metadata, dict):
            raise ConfigError(f"`{row}` is no JSON object", hint="it holds one row of the prompts")
        found += [Sample(path, metadata) for path in sorted((row.parent / "samples").glob("*.png"))]
    if not found:
        raise ConfigError(
            f"`{folder}` holds no image",
            hint="each prompt has NNNNN/metadata.jsonl and NNNNN/samples/0000.png",
        )
    return found


def result_row(filename: str, metadata: Mapping[str, Any], score: Score) -> dict[str, Any]:
    """The official row of a judged image; one that could not be judged has `correct` false and says why.

    A detector that is not the benchmark's adds the field `caveat`.
    """
    detail = json.loads(score.detail or "{}")
    return {
        "filename": filename,
        "tag": metadata.get("tag"),
        "prompt": metadata.get("prompt"),
        "correct": score.part("correct") == 1.0,
        "reason": detail.get("reason", "") if score.error is None else f"error: {score.error}",
        "metadata": json.dumps(metadata),
        "details": json.dumps(detail.get("details", {})),
        **({"caveat": detail["caveat"]} if "caveat" in detail else {}),
    }


def read_results(path: Path) -> list[dict[str, Any]]:
    """Rows of a result file, ours or the benchmark's own.

    Raises:
        ConfigError: naming the line that is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"`{path}` is no UTF-8: {error}") from error
    rows = []
    for number, row in json_lines(text, path):
        found = row if isinstance(row, dict) else {}
        wrong = [name for name, kind in KINDS.items() if name not in found or not isinstance(found[name], kind)]
        if wrong:
            raise ConfigError(
                f"line {number} of `{path}` is no result: {', '.join(wrong)} is missing or of another type",
                hint=f"each line has {', '.join(FIELDS)}",
            )
        rows.append(found)
    if not rows:
        raise ConfigError(f"`{path}` holds no result")
    return rows


@dataclass(frozen=True)
class Summary:
    """What the benchmark prints."""

    images: int
    prompts: int
    correct_images: float
    correct_prompts: float
    tags: tuple[tuple[str, int, int], ...]
    """Tag, correct images, images; in the order of the file."""

    @property
    def overall(self) -> float:
        """The unweighted mean of the tags' accuracies: not the mean over images."""
        return math.fsum(right / count for _, right, count in self.tags) / len(self.tags)

    @property
    def missing(self) -> list[str]:
        """Tags without any image: the overall score is then no GenEval score."""
        return [tag for tag in TAGS if tag not in {name for name, _, _ in self.tags}]

    def lines(self) -> Iterator[str]:
        """The benchmark's own text."""
        yield from ("Summary", "=======", f"Total images: {self.images}", f"Total prompts: {self.prompts}")
        yield f"% correct images: {self.correct_images:.2%}"
        yield f"% correct prompts: {self.correct_prompts:.2%}"
        yield from ("", "Task breakdown", "==============")
        for tag, right, count in self.tags:
            yield f"{tag:<16} = {right / count:.2%} ({right} / {count})"
        yield from ("", f"Overall score (avg. over tasks): {self.overall:.5f}")


def summarize(rows: Sequence[dict[str, Any]]) -> Summary:
    """Count a result file; a prompt is a distinct `metadata`, and is correct when any of its images is."""
    by_prompt: dict[str, list[bool]] = {}
    by_tag: dict[str, list[bool]] = {}
    for row in rows:
        by_prompt.setdefault(str(row["metadata"]), []).append(row["correct"])
        by_tag.setdefault(row["tag"], []).append(row["correct"])
    return Summary(
        images=len(rows),
        prompts=len(by_prompt),
        correct_images=_share(row["correct"] for row in rows),
        correct_prompts=_share(any(verdicts) for verdicts in by_prompt.values()),
        tags=tuple((tag, sum(verdicts), len(verdicts)) for tag, verdicts in by_tag.items()),
    )


def _share(verdicts: Iterable[bool]) -> float:
    found = list(verdicts)
    return sum(found) / len(found)
