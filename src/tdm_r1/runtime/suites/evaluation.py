"""An evaluation as a folder: what is asked, pictures and scores by part, and the tables once all are there.

suite.json and prompts.parquet are written first and never changed. evaluation.json, metrics.parquet, samples.parquet
and evaluation.md are written last, and again whenever a scorer is added. No record of a run is touched.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa

from tdm_r1.artifacts.seal import canonical_json
from tdm_r1.artifacts.store import Store
from tdm_r1.config import RewardConfig
from tdm_r1.errors import ConfigError, RootMismatchError
from tdm_r1.models.progress import Progress, silent
from tdm_r1.rewards.geneval_results import result_row
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.protocol import NOT_ASKED, is_failure
from tdm_r1.rng import Keys
from tdm_r1.runtime.suites import markdown
from tdm_r1.runtime.suites.parts import (
    SCORES,
    Part,
    Row,
    parts_of,
    pictures,
    progress_steps,
    read,
    score_of,
    scored,
    write,
)
from tdm_r1.runtime.suites.subject import Subject
from tdm_r1.runtime.suites.suite import Suite, remarks
from tdm_r1.runtime.suites.tables import METRICS, metric_rows, metrics_of
from tdm_r1.stages.reward_scoring import check_errors
from tdm_r1.worlds.mix import WORLD

FORMAT: Final = 1
ASKED, RESULT, PAGE = "suite.json", "evaluation.json", "evaluation.md"
SAMPLES: Final = pa.schema([("scorer", pa.string()), ("tag", pa.string()), ("text", pa.string()), *SCORES])
"""One row per scorer and image, raw."""
Samples = dict[str, list[Row]]
"""Rows by scorer."""


@dataclass(frozen=True)
class Asked:
    """Everything that an evaluation's pictures depend on."""

    suite: Suite
    subject: Subject
    seed: int
    """Of the noise."""

    def body(self) -> dict[str, Any]:
        """`suite.json`."""
        latent = list(self.subject.generator.backbone.latent_shape)
        return {
            "format": FORMAT,
            "suite": self.suite.name,
            "prompts": self.suite.facts(),
            "noise": {"seed": self.seed, "latent": latent},
            "generator": self.subject.facts(),
        }

    def digest(self) -> str:
        """SHA-256 of the body."""
        return hashlib.sha256(canonical_json(self.body())).hexdigest()


def begin(store: Store, asked: Asked) -> str:
    """Write `suite.json` and the prompts, or go on with an evaluation that asks the same; its digest.

    Raises:
        RootMismatchError: when another one stands there.
    """
    body = asked.body()
    store.require_writable()
    if not store.write_bytes_if_absent(ASKED, json.dumps(body, indent=2).encode() + b"\n"):
        present = json.loads(store.read_bytes(ASKED))
        if present != body:
            raise RootMismatchError(
                f"`{store.root}` holds another evaluation: {difference(present, body)}", hint="choose another --out"
            )
    rows = [
        {"prompt_id": row.prompt_id, "text": row.text, "tag": row.tag, "metadata": json.dumps(row.metadata)}
        for row in asked.suite.prompts
    ]
    write(store, "prompts.parquet", pa.Table.from_pylist(rows))
    return asked.digest()


def difference(present: Any, wanted: Any, path: str = "") -> str | None:
    """The first place where two of these differ, as `a.b is 1 there and 2 here`."""
    if isinstance(present, dict) and isinstance(wanted, dict):
        keys = sorted(present.keys() | wanted.keys())
        found = (difference(present.get(key), wanted.get(key), f"{path}.{key}") for key in keys)
        return next((text for text in found if text), None)
    return None if present == wanted else f"{path.lstrip('.')} is {present!r:.80} there and {wanted!r:.80} here"


@dataclass(frozen=True)
class Share:
    """Which parts a command does: every `count`-th, from `index` on. Shares do not know each other."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(
                f"--shard is {self.index}/{self.count}, expected 0/{self.count} to {self.count - 1}/{self.count}",
                hint="shards are counted from 0",
            )

    def of(self, parts: Sequence[Part]) -> Sequence[Part]:
        """The parts of this share."""
        return parts[self.index :: self.count]


WHOLE: Final = Share()


def share_of(text: str | None) -> Share:
    """`2/8` is the third of eight; None is everything.

    Raises:
        ConfigError: for another text, or an index that is not below the count.
    """
    match = re.fullmatch(r"(\d{1,6})/([1-9]\d{0,5})", text or "0/1")
    if match is None:
        raise ConfigError(f"--shard is {text!r}, expected I/N", hint="write 0/4, 1/4, 2/4 and 3/4 for four shards")
    return Share(int(match[1]), int(match[2]))


def carry_out(store: Store, asked: Asked, judges: Judges, progress: Progress = silent, share: Share = WHOLE) -> Samples:
    """Draw and score every part of a share that does not lie there yet; all its rows by scorer."""
    digest, parts = begin(store, asked), share.of(parts_of(asked.suite))
    steps = list(progress_steps(parts, list(judges.scorers)))
    samples: Samples = {name: [] for name in judges.scorers}
    images: list[bytes] = []
    for step in progress(range(len(steps)), f"{asked.suite.name}: {len(parts)} parts"):
        part, name = steps[step]
        if name is None:
            images = pictures(part, asked.subject, asked.seed, store, digest)
        else:
            samples[name] += _described(part, scored(part, images, name, judges, store, digest))
    return samples


def _described(part: Part, rows: Sequence[Row]) -> list[Row]:
    return [{**row, "tag": one.tag, "text": one.text} for (one, _), row in zip(part.images, rows, strict=True)]


def conclude(
    store: Store, asked: Asked, judges: Judges, samples: Samples, reward: RewardConfig | None
) -> dict[str, Any]:
    """Write the tables; the content of `evaluation.json`.

    Raises:
        ScorerError: when a scorer failed on more rows than `reward.max_error_rate` bears; the others' scores stay.
    """
    for name, rows in samples.items():
        check_errors(name, [score_of(row) for row in rows if row["error"] != NOT_ASKED], judges.config)
    config, seed = asked.subject.generator.config, Keys(asked.seed, 0).seed("suite/bootstrap")
    better = {name: scorer.info.higher_is_better for name, scorer in judges.scorers.items()}
    metrics = metrics_of(samples, better, reward)
    rows = metric_rows(metrics, resamples=config.evaluation.bootstrap, seed=seed)
    content = {
        **asked.body(),
        "title": asked.subject.title,
        "origin": asked.subject.generator.origin,
        "bootstrap": {"resamples": config.evaluation.bootstrap, "seed": seed},
        "reward": None if reward is None else reward.model_dump(mode="json"),
        "scorers": {name: _about(name, judges, samples[name]) for name in judges.scorers},
        "better": {name: metric.higher_is_better for name, metric in metrics.items()},
        "metrics": rows,
        "remarks": [*remarks(asked.suite), *caveats(judges)],
    }
    table = [{"scorer": name, **row} for name, own in samples.items() for row in own]
    write(store, "samples.parquet", pa.Table.from_pylist(table, schema=SAMPLES))
    write(store, "metrics.parquet", pa.Table.from_pylist(rows, schema=METRICS))
    if "geneval" in asked.suite.worlds:
        store.overwrite("geneval.jsonl", geneval_results(asked.suite, samples["geneval"]))
    store.overwrite(PAGE, markdown.evaluation_page(content).encode())
    store.overwrite(RESULT, json.dumps(content, indent=2).encode() + b"\n")
    return content


def caveats(judges: Judges) -> list[str]:
    """What scorers want to be said beside their numbers."""
    return [f"`{name}`: {scorer.info.caveat}" for name, scorer in judges.scorers.items() if scorer.info.caveat]


def _about(name: str, judges: Judges, rows: Sequence[Row]) -> dict[str, Any]:
    info, section = judges.scorers[name].info, judges.config.scorers[name]
    asked = [row for row in rows if row["error"] != NOT_ASKED]
    about = {key: value for key, value in asdict(info).items() if key in ("version", "revision", "licence", "device")}
    told = {"use": section.use or name, "options": section.options, "higher_is_better": info.higher_is_better}
    return {**about, **told, "images": len(asked), "errors": sum(is_failure(row["error"]) for row in asked)}


def geneval_results(suite: Suite, rows: Sequence[Row]) -> bytes:
    """The benchmark's own result file, as `tdm-r1 geneval summarize` reads it."""
    place = {row.prompt_id: (number, row.metadata) for number, row in enumerate(suite.prompts)}
    lines = []
    for row in rows:
        if row["error"] != NOT_ASKED:
            number, shown = place[row["prompt_id"]]
            metadata = {key: value for key, value in shown.items() if key != WORLD}
            path = f"{number:05d}/samples/{row['number']:04d}.png"
            lines.append(json.dumps(result_row(path, metadata, score_of(row))))
    return "".join(line + "\n" for line in lines).encode()


@dataclass(frozen=True)
class Evaluated:
    """An evaluation that was carried out."""

    address: str
    content: Mapping[str, Any]
    samples: Samples


def read_evaluation(store: Store) -> Evaluated:
    """What `conclude` wrote.

    Raises:
        ConfigError: when none stands there, or it is not complete.
    """
    if not store.exists(RESULT):
        found = "an evaluation that is not complete" if store.exists(ASKED) else "no evaluation"
        raise ConfigError(
            f"`{store.root}` holds {found}", hint=f"make one with `tdm-r1 evaluate --suite … --out {store.root}`"
        )
    content = json.loads(store.read_bytes(RESULT))
    table = read(store, "samples.parquet", SAMPLES, {})
    if content.get("format") != FORMAT or table is None:
        raise ConfigError(f"`{store.root}` was written by another version", hint="evaluate again, into a new --out")
    samples: Samples = {name: [] for name in content["scorers"]}
    for row in table.to_pylist():
        samples[row["scorer"]].append(row)
    return Evaluated(store.root, content, samples)
