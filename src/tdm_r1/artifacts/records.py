"""THE CONTRACT: what every stage reads and writes.

This is the only place that names a column, a tensor key, a dim or a dtype. A change of any of them
raises the `version` of its record.
"""
# ruff: noqa: RUF009  a field spec is immutable

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final

import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import from_json

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.dtypes import FLOAT32, UINT8
from tdm_r1.artifacts.schema import Column, nullable, rows, table, tensors, text
from tdm_r1.errors import SchemaError

if TYPE_CHECKING:
    from torch import Tensor

SPLITS: Final = ("train", "test")
PLAIN_ID: Final = r"\A[A-Za-z0-9_][A-Za-z0-9_.:=+,@ -]*\z"
"""Of a prompt, a sample or a tag, as RE2 reads it: no separator of paths, no quote, no control character."""
MOST_ID: Final = 200
"""Characters."""
CONTROL: Final = r"[\x00-\x08\x0b-\x1f\x7f\x{80}-\x{9f}]"
SURROGATE_ROLES: Final = ("surrogate", "surrogate_average", "surrogate_lag", "surrogate_reference")


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptSet(Record):
    """The prompts of a run and their text embeddings; P prompts share U embeddings."""

    kind: ClassVar[str] = "encode_prompts"

    prompts: pa.Table = table(
        "prompts.parquet",
        "P",
        prompt_id=pa.string(),
        text=pa.string(),
        tag=pa.string(),
        split=pa.string(),
        metadata=pa.string(),
        embedding=pa.int64(),
    )
    """One row per prompt: split is `train` or `test`, metadata is JSON, embedding is a row of `embeddings`."""

    embeddings: dict[str, Tensor] = tensors(
        "embeddings.safetensors", FLOAT32, by_rows=True, sequence="U T D", pooled="U D2"
    )
    """`sequence` [U, T, D] per token and `pooled` [U, D2]; row 0 is the empty prompt."""

    @property
    def count(self) -> int:
        return int(self.prompts.num_rows)

    def check(self) -> None:
        require_ids(self.prompts, "PromptSet.prompts", "prompt_id", "tag")
        require_unique(self.prompts, "prompt_id", "PromptSet.prompts")
        require_text(self.prompts, "text", "PromptSet.prompts")
        if unknown := set(self.prompts["split"].unique().to_pylist()) - set(SPLITS):
            raise SchemaError(f"PromptSet.prompts.split has {sorted(unknown)} but only {list(SPLITS)} are declared")
        count = len(self.embeddings["sequence"])
        if outside := [i for i in self.prompts["embedding"].unique().to_pylist() if not 0 <= i < count]:
            raise SchemaError(f"PromptSet.prompts.embedding has {outside[0]} but there are {count} embeddings")
        require_json(self.prompts, "metadata", "prompt", "prompt_id")


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout(Record):
    """N trajectories of the few-step generator; samples of one group share a prompt."""

    kind: ClassVar[str] = "rollout"
    version: ClassVar[int] = 2
    readable: ClassVar[frozenset[int]] = frozenset({1, 2})

    index: pa.Table = table("part.parquet", "N", sample_id=pa.string(), prompt_id=pa.string(), group=pa.int64())
    images: Tensor = rows("N height width 3", UINT8)
    """Decoded samples [N, height, width, RGB], 0..255."""
    states: Tensor = rows("N K+1 C H W", FLOAT32)
    """States x_σ along the path; entry 0 is pure noise, entry K the clean latent."""

    @property
    def count(self) -> int:
        return int(self.index.num_rows)

    def check(self) -> None:
        check_samples(self.index)


@dataclass(frozen=True)
class Paths:
    """A rollout without its images, a third of its bytes and more: what is trained on."""

    index: pa.Table
    states: Tensor
    """As `Rollout` has them."""

    @staticmethod
    def read(directory: Path) -> Paths:
        """Read a rollout's file and decode no image.

        Raises:
            CorruptArtifactError, SchemaError: as `Rollout.read`, of all but the images.
        """
        values = Rollout.read_fields(directory, without={"images"})
        check_samples(values["index"])
        return Paths(values["index"], values["states"])


def check_samples(index: pa.Table) -> None:
    """Refuse a rollout's table whose ids are not plain, or not unique."""
    require_ids(index, "Rollout.index", "sample_id", "prompt_id")
    require_unique(index, "sample_id", "Rollout.index")


@dataclass(frozen=True, kw_only=True, eq=False)
class Rewards(Record):
    """What S scorers said of N samples, raw: weights and scales are applied when rewards are needed.

    A score is a value or an error, never both. Rows are scorer by scorer, each with all samples in one order.
    """

    kind: ClassVar[str] = "reward_scoring"
    version: ClassVar[int] = 2
    readable: ClassVar[frozenset[int]] = frozenset({2})

    scores: pa.Table = table(
        "part.parquet",
        "S·N",
        sample_id=pa.string(),
        prompt_id=pa.string(),
        group=pa.int64(),
        scorer=pa.string(),
        value=nullable(pa.float64(), finite=True),
        parts=pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())])),
        detail=nullable(pa.string()),
        error=nullable(pa.string()),
    )
    """`value` is in the scorer's own unit, `parts` are its named terms, `detail` is JSON for people."""

    scorers: pa.Table = table(
        "scorers.parquet",
        "S",
        name=pa.string(),
        use=pa.string(),
        version=pa.string(),
        revision=pa.string(),
        options=pa.string(),
        higher_is_better=pa.bool_(),
        deterministic=pa.bool_(),
        low=pa.float64(),
        high=pa.float64(),
        device=pa.string(),
        licence=pa.string(),
    )
    """Who they were. `options` is JSON; `revision` is the SHA-256 of code, options and weights."""

    @property
    def count(self) -> int:
        return int(self.scores.num_rows // max(self.scorers.num_rows, 1))

    @property
    def samples(self) -> pa.Table:
        """`sample_id`, `prompt_id` and `group` of the N samples, in order."""
        return self.scores.select(["sample_id", "prompt_id", "group"]).slice(0, self.count)

    def check(self) -> None:
        require_ids(self.scores, "Rewards.scores", "sample_id", "prompt_id")
        names, count = self.scorers["name"].to_pylist(), self.count
        require_unique(self.scorers, "name", "Rewards.scorers")
        if self.scores["scorer"].to_pylist() != [name for name in names for _ in range(count)]:
            raise SchemaError(f"Rewards.scores is not one block of {count} rows for each of {', '.join(names)}")
        samples = self.samples
        require_unique(samples, "sample_id", "Rewards.scores")
        for number, name in enumerate(names):
            block = self.scores.select(samples.column_names).slice(number * count, count)
            if not block.equals(samples):
                raise SchemaError(f"Rewards.scores has for `{name}` other samples than for `{names[0]}`")
        parts = pc.struct_field(pc.list_flatten(self.scores["parts"]), "value")
        if pc.all(pc.is_finite(parts)).as_py() is False:
            raise SchemaError("Rewards.scores.parts has a value that is NaN or infinite")
        scored, failed = (pc.is_valid(self.scores[name]) for name in ("value", "error"))
        for row in self.scores.filter(pc.equal(scored, failed)).slice(0, 1).to_pylist():
            raise SchemaError(
                f"sample `{row['sample_id']}` has value {row['value']} and error {row['error']!r} by `{row['scorer']}`",
                hint="give exactly one of them: a value, or the error that prevented it",
            )
        require_json(self.scorers, "options", "scorer", "name")


@dataclass(frozen=True, kw_only=True, eq=False)
class Feedback(Record):
    """V votes of people on the N samples of an iteration, those that do not count included."""

    kind: ClassVar[str] = "feedback"

    votes: pa.Table = table(
        "votes.parquet",
        "V",
        kind=pa.string(),
        sample_id=pa.string(),
        other_id=nullable(pa.string()),
        verdict=pa.bool_(),
        rater=nullable(pa.string()),
        time=nullable(pa.timestamp("us", "UTC")),
        impression=nullable(pa.string()),
        picture=nullable(pa.string()),
        source=pa.string(),
        fate=pa.string(),
    )
    """One row per vote, as in `rewards/votes.py`; `source` is the page's version or the file, `fate` whether it counts
    or why not, as in `rewards/counted.py`."""

    samples: pa.Table = table(
        "samples.parquet", "N", sample_id=pa.string(), prompt_id=pa.string(), group=pa.int64(), picture=pa.string()
    )
    """What could be judged; `picture` is the SHA-256 of the pixels."""

    def check(self) -> None:
        require_ids(self.samples, "Feedback.samples", "sample_id", "prompt_id")
        require_unique(self.samples, "sample_id", "Feedback.samples")
        known = self.samples["sample_id"]
        for column in ("sample_id", "other_id"):
            values = pc.drop_null(self.votes[column])
            strange = pc.filter(values, pc.invert(pc.is_in(values, value_set=known)))
            if len(strange):
                raise SchemaError(f"Feedback.votes.{column} has {strange[0].as_py()!r:.80}, which is no sample")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingState(Record):
    """Weights by role, the optimizer's moments, and M metrics of the steps that led there."""

    state: dict[str, Tensor] = tensors("state.safetensors")
    """Weights named `role/parameter`, any dtype."""
    optimizer: dict[str, Tensor] = tensors("optimizer.safetensors")
    """Optimizer state, any names and dtypes; empty when there is none to carry on."""
    metrics: pa.Table = table("metrics.parquet", "M", step=pa.int64(), name=pa.string(), value=pa.float64())
    """One row per step and metric."""

    def optimizer_of(self, role: str) -> dict[str, Tensor]:
        """Optimizer state of one role; empty when it never took a step."""
        stored = any(name.startswith(f"{role}/") for name in self.optimizer)
        return role_tensors(self.optimizer, role) if stored else {}


@dataclass(frozen=True, kw_only=True, eq=False)
class SurrogateState(TrainingState):
    """The surrogate reward model after its update: roles as in `SURROGATE_ROLES`."""

    kind: ClassVar[str] = "surrogate_update"

    @property
    def followed(self) -> dict[str, Tensor]:
        """Weights of the surrogate that the generator follows: the average where there is one, else the live ones."""
        averaged = any(name.startswith("surrogate_average/") for name in self.state)
        return role_tensors(self.state, "surrogate_average" if averaged else "surrogate")

    def check(self) -> None:
        if unknown := {name.partition("/")[0] for name in self.state} - set(SURROGATE_ROLES):
            raise SchemaError(f"SurrogateState.state has roles {sorted(unknown)} but {SURROGATE_ROLES} are declared")


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratorState(TrainingState):
    """The few-step generator after its update."""

    kind: ClassVar[str] = "generator_update"


@dataclass(frozen=True, kw_only=True, eq=False)
class Base(TrainingState):
    """The few-step generator that distillation left, before any reward."""

    kind: ClassVar[str] = "distill_base"


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation(Record):
    """M measured numbers with their intervals, S samples to look at, and the page that shows them."""

    kind: ClassVar[str] = "evaluation"
    version: ClassVar[int] = 2
    readable: ClassVar[frozenset[int]] = frozenset({2})

    metrics: pa.Table = table(
        "metrics.parquet",
        "M",
        name=pa.string(),
        nfe=pa.int64(),
        tag=pa.string(),
        value=Column(pa.float64(), finite=True),
        low=Column(pa.float64(), finite=True),
        high=Column(pa.float64(), finite=True),
        count=pa.int64(),
    )
    """One row per model (`teacher`, `tdm`, `tdm-r1`) and tag (`overall` or a prompt's); low..high is its interval."""
    samples: pa.Table = table(
        "samples.parquet",
        "S",
        name=pa.string(),
        prompt_id=pa.string(),
        text=pa.string(),
        tag=pa.string(),
        correct=nullable(pa.bool_()),
        strict=nullable(pa.bool_()),
        score=nullable(pa.float64()),
    )
    image: Tensor = rows("S height width 3", UINT8)
    """Pictures of `samples` [S, height, width, RGB], 0..255."""
    report: str = text("report.html")
    """A self-contained HTML page."""


RECORDS: Final[Mapping[str, type[Record]]] = MappingProxyType(
    {r.kind: r for r in (PromptSet, Rollout, Feedback, Rewards, SurrogateState, GeneratorState, Base, Evaluation)}
)
"""Every record by its kind."""


def role_tensors(state: Mapping[str, Tensor], role: str) -> dict[str, Tensor]:
    """Return the tensors of one role by parameter name: `surrogate/a.b` becomes `a.b`."""
    found = {name.removeprefix(f"{role}/"): t for name, t in state.items() if name.startswith(f"{role}/")}
    if not found:
        present = sorted({name.partition("/")[0] for name in state})
        raise SchemaError(f"no tensor has role `{role}`; the roles present are {present}")
    return found


def join_roles(roles: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return all tensors under `role/parameter`: the inverse of `role_tensors` for every role."""
    if bad := [role for role in roles if not role or "/" in role]:
        raise SchemaError(f"a role is a name without `/`, but {bad} were given")
    return {f"{role}/{name}": tensor for role, named in roles.items() for name, tensor in named.items()}


def require_ids(values: pa.Table, label: str, *columns: str) -> None:
    """Refuse names that could be taken for a path or a command, or that a terminal acts upon."""
    for column in columns:
        short = pc.less_equal(pc.utf8_length(values[column]), MOST_ID)
        plain = pc.and_(pc.match_substring_regex(values[column], PLAIN_ID), short)
        rest = pc.filter(values[column], pc.invert(plain))
        bad = [name for name in rest.to_pylist() if not is_name(name)]
        if bad:
            raise SchemaError(
                f"{label}.{column} has {bad[0]!r:.80}, which is no name",
                hint="1 to 200 characters: letters and digits of any script, and any of ._:=+,@ -; "
                "the first is a letter, a digit or _",
            )


def is_name(text: str) -> bool:
    """The rule of `PLAIN_ID` for letters, digits and marks of any script: RE2 needs milliseconds for their classes."""
    kinds = [unicodedata.category(char)[0] for char in text]
    inner = all(kind in "LNM" or char in "_.:=+,@ -" for kind, char in zip(kinds, text, strict=True))
    return 0 < len(text) <= MOST_ID and inner and (kinds[0] in "LN" or text[0] == "_")


def require_text(values: pa.Table, column: str, label: str) -> None:
    """Refuse control characters other than tab and line feed. `{{…}}` and markup are text like any other."""
    bad = pc.filter(values[column], pc.match_substring_regex(values[column], CONTROL))
    if len(bad):
        raise SchemaError(f"{label}.{column} has {bad[0].as_py()!r:.80} with a control character")


def require_unique(values: pa.Table, column: str, label: str) -> None:
    """Refuse a table where `column` has the same value twice."""
    if pc.count_distinct(values[column]).as_py() == values.num_rows:
        return
    ((value, times),) = Counter(values[column].to_pylist()).most_common(1)
    raise SchemaError(f"{label}.{column} has `{value}` {times} times but each may stand once")


def require_json(values: pa.Table, column: str, what: str, name: str) -> None:
    """Refuse a column with a string that is not JSON, and say of which row by its `name`."""
    for number, value in enumerate(values[column].to_pylist()):
        try:
            from_json(value)
        except ValueError as error:
            of = f"the {column} of {what} `{values[name][number].as_py()}`"
            raise SchemaError(f"{of} is not JSON: {error}") from error
