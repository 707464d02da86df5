"""A scripted person replaces the verifier: `python -m benchmarks.feedback` prints what the generator learns of it.

On the world `plane`, seeds 0 to 2. The person likes points above the middle, dislikes the others, and of some pairs
says which is higher. Its votes go through the files of `tdm-r1 feedback import`, and the loop through the stages.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tdm_r1 import presets
from tdm_r1.artifacts.records import Base, GeneratorState, PromptSet, Rollout, TrainingState, role_tensors
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.plane import images_to_points
from tdm_r1.models.prompts import PromptTable
from tdm_r1.models.sampler import trajectory
from tdm_r1.rng import Keys
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.feedback_votes import Election, import_votes
from tdm_r1.runtime.layout import FEEDBACK, all_tasks
from tdm_r1.runtime.run import Run, create_run

CONFIG: Final[Mapping[str, Any]] = {
    "distill.steps": 80,
    "iterations": 6,
    "reward.scorers": {"plane": {"weight": 0}, "feedback": {}},
    "evaluation.every": 0,
    "evaluation.prompts": 8,
    "evaluation.images_per_prompt": 1,
    "evaluation.teacher_steps": 0,
    "evaluation.bootstrap": 50,
}
PER_CLASS: Final = 256
"""Points of each class that are measured, from the same noise before and after."""
PAIRS: Final = 4
"""Pairs of each group that the person is asked about; likes are given to half of its samples."""


def liking(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[N] what the person has in mind: the higher a point, the better, and it likes those above the middle."""
    return points[:, 1]


def say(rollout: Rollout, iteration: int, folder: Path) -> Sequence[Path]:
    """Write what the person says of a rollout: likes as CSV, pairs as JSON lines."""
    names = rollout.index["sample_id"].to_pylist()
    groups = np.asarray(rollout.index["group"])
    value = liking(images_to_points(rollout.images.numpy()))
    likes = [f"{name},{str(value[n] > 0).lower()},script" for n, name in enumerate(names) if n % 2 == 0]
    pairs = []
    for number in np.unique(groups):
        own = np.flatnonzero(groups == number)
        for a, b in np.random.default_rng((iteration, int(number))).choice(own, (PAIRS, 2), replace=False):
            if value[a] != value[b]:
                better, worse = (a, b) if value[a] > value[b] else (b, a)
                pairs.append({"winner": names[better], "loser": names[worse], "rater": "script"})
    files = folder / f"likes-{iteration}.csv", folder / f"pairs-{iteration}.jsonl"
    files[0].write_text("\n".join(["sample_id,like,rater", *likes]) + "\n")
    files[1].write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return files


def liked(run: Run, state: TrainingState) -> float:
    """Share of the averaged generator's points that the person likes; the noise is that of no rollout."""
    table = PromptTable(run.load(all_tasks(run.config)[0], PromptSet)[0])
    ids = [prompt for rows in table.by_tag("test").values() for prompt in rows * PER_CLASS]
    noise = Keys(run.config.seed, 0).normals("evaluation/noise", [*range(len(ids))], shape=run.backbone.latent_shape)
    weights = Adapter(run.backbone.base(), run.config.model.adapter).apply(role_tensors(state.state, "generator_ema"))
    path = trajectory(run.backbone, noise, table.condition(ids), weights, run.config.sampler, len(noise))
    return float((liking(path[:, -1].flatten(1).double().numpy()) > 0).mean())


def learn(root: Path, seed: int) -> tuple[float, float]:
    """A whole run in which nothing but the person's votes is a reward; what it likes before and after."""
    run = create_run(str(root / "run"), presets.resolve("plane", {**CONFIG, "seed": seed}))
    found: list[float] = []
    for task in all_tasks(run.config):
        if task.stage == FEEDBACK:
            election = Election(run, task.iteration)
            for file in say(run.load(election.rollouts[0], Rollout)[0], task.iteration, root):
                import_votes(election, file)
        execute(run, task)
        if task.stage == "distill_base":
            found.append(liked(run, run.load(task, Base)[0]))
        elif task.stage == "generator_update" and task.iteration == run.config.iterations:
            found.append(liked(run, run.load(task, GeneratorState)[0]))
    return found[0], found[1]


def main() -> None:
    """Print a line per seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    gains = []
    for seed in range(parser.parse_args().seeds):
        with tempfile.TemporaryDirectory() as folder:
            clock = time.process_time()
            before, after = learn(Path(folder), seed)
            gains.append(after - before)
            print(f"seed {seed}: liked {before:.3f} → {after:.3f}, {time.process_time() - clock:.1f} s of one core")
    print(f"mean gain {math.fsum(gains) / len(gains):+.3f} in {CONFIG['iterations']} iterations")


if __name__ == "__main__":
    main()
