"""Reading the parents of a task while the base is opened: a stage waits for the longer of the two, not for both."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import RECORDS
from tdm_r1.runtime.layout import TRAINED, Task, parents_of
from tdm_r1.runtime.run import READERS, Run

WITH_BASE: Final = frozenset({*TRAINED, "rollout", "evaluation"})
"""Stages that ask the network and read records; `encode_prompts` reads none."""


def open_base(run: Run, task: Task) -> None:
    """Open the base in this thread, to which its device belongs, and read the task's parents in others.

    The stage finds both in memory. Damage that the reading meets is told where the stage loads that record.

    Raises:
        MissingParentError: before anything is opened, when a parent was never committed.
    """
    if task.variant or task.stage not in WITH_BASE or run.is_open:
        return
    parents = parents_of(task, run.config)
    with ThreadPoolExecutor(READERS, "parents") as pool:
        manifests = list(pool.map(lambda parent: run.manifest_of(parent, RECORDS[parent.stage]), parents))
        for parent, manifest in zip(parents, manifests, strict=True):
            pool.submit(_read, run, task, parent, manifest)
        run.open()


def _read(run: Run, task: Task, parent: Task, manifest: Manifest) -> None:
    if parent.stage == "rollout" and task.stage in TRAINED:
        run.load_paths([parent])
    elif parent.stage != "encode_prompts":  # of which a stage reads what it uses
        run.load(parent, RECORDS[parent.stage], manifest=manifest)
