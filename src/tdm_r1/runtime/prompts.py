"""The committed prompts of a run, as its stages read them: of a large file no more than a stage uses."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import PromptSet
from tdm_r1.models.prompts import PromptTexts
from tdm_r1.runtime.layout import Task

if TYPE_CHECKING:
    from torch import Tensor

    from tdm_r1.runtime.run import Run

TASK: Final = Task("encode_prompts")


class Prompts:
    """Reads them when they are asked for. Texts are kept, and so are the embeddings that were read last."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._lock = Lock()
        self._listed: tuple[PromptTexts, Manifest] | None = None
        self._rows: dict[int, int] = {}
        """Place in `_embeddings` by row of the file."""
        self._embeddings: dict[str, Tensor] = {}

    def listed(self) -> tuple[PromptTexts, Manifest]:
        """All prompts without their embeddings."""
        with self._lock:
            if self._listed is None:
                manifest = self._run.manifest_of(TASK, PromptSet)
                if manifest.in_blocks:
                    table, manifest = self._run.load_table(TASK, PromptSet, "prompts")
                else:  # the rest is small, and kept for those who need it next
                    table = self._run.load(TASK, PromptSet, manifest=manifest)[0].prompts
                self._listed = PromptTexts(table), manifest
            return self._listed

    def chosen(self, prompt_ids: Iterable[str]) -> tuple[PromptSet, Manifest]:
        """These prompts, in the order of the table, with their embeddings; all prompts if the file has no blocks.

        Row 0 of the embeddings stays the empty prompt. An id that no prompt has is left out.
        """
        texts, manifest = self.listed()
        if not manifest.in_blocks:
            return self._run.load(TASK, PromptSet)
        wanted = pc.is_in(texts.table["prompt_id"], value_set=pa.array(sorted(set(prompt_ids)), pa.string()))
        table = texts.table.filter(wanted)
        rows = table["embedding"].to_pylist()
        with self._lock:
            self._require({0, *rows})
            places = pa.array([self._rows[row] for row in rows], pa.int64())
            table = table.set_column(table.column_names.index("embedding"), "embedding", places)
            return PromptSet(prompts=table, embeddings=self._embeddings), manifest

    def _require(self, wanted: set[int]) -> None:
        """Have these rows in memory."""
        if wanted <= self._rows.keys():
            return
        self._rows, self._embeddings = {}, {}  # not both sets at a time
        order = sorted(wanted)
        self._embeddings, _ = self._run.load_rows(TASK, PromptSet, "embeddings", order)
        self._rows = {row: place for place, row in enumerate(order)}
