"""The wind tunnel: a whole reinforcement of the world `plane` in memory, with the run's own stages.

Each iteration calls the functions `rollout`, `reward_scoring`, `surrogate_update` and
`generator_update` as the run directory's loop does, with the same keys; only storage is left out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tdm_r1.artifacts.records import (
    Base,
    GeneratorState,
    PromptSet,
    Rewards,
    Rollout,
    SurrogateState,
    TrainingState,
    join_roles,
    role_tensors,
)
from tdm_r1.config import RunConfig
from tdm_r1.ema import average_decay, blend
from tdm_r1.models.adapters import Adapter, RoleTensors
from tdm_r1.models.backbone import Backbone
from tdm_r1.models.levels import steps
from tdm_r1.models.open import open_backbone
from tdm_r1.models.optimizer import RoleOptimizer
from tdm_r1.models.progress import silent
from tdm_r1.models.prompts import PromptTable, PromptTexts
from tdm_r1.models.sampler import guided_sample, trajectory, velocity_at
from tdm_r1.objectives.surrogate import Gates, drift, group_preference_loss, velocity_error
from tdm_r1.rewards.ask import Question
from tdm_r1.rewards.judges import Judges
from tdm_r1.rewards.scored import Trajectories, score
from tdm_r1.rng import Keys
from tdm_r1.stages.distill_base import distill_base
from tdm_r1.stages.encode_prompts import encode_prompts
from tdm_r1.stages.generator_update import generator_update
from tdm_r1.stages.reward_scoring import reward_scoring
from tdm_r1.stages.rollout import drawn_prompts, rollout
from tdm_r1.stages.surrogate_update import surrogate_update
from tdm_r1.worlds.world import open_world


@dataclass(frozen=True)
class Landing:
    """Where a generator's points fall."""

    success: float
    """Share on a right mode of their class."""
    spread: float
    """Root mean square distance to the nearest mode."""
    landed: float
    """Share on any mode."""
    balance: float
    """Mean over classes of min/max of the counts on its two right modes: 1 is even, 0 is one mode lost."""


@dataclass(frozen=True)
class Tunnel:
    """What stays the same over a run."""

    config: RunConfig

    @cached_property
    def backbone(self) -> Backbone:
        return open_backbone(self.config.model)

    @cached_property
    def judges(self) -> Judges:
        return Judges(self.config.reward)

    @cached_property
    def prompts(self) -> PromptSet:
        return encode_prompts(open_world(self.config.world), backbone=self.backbone)

    def keys(self, iteration: int) -> Keys:
        return Keys(self.config.seed, iteration)

    def distil(self) -> Base:
        """Stage 0."""
        return distill_base(
            self.prompts, start=None, backbone=self.backbone, config=self.config, keys=self.keys(0), progress=silent
        )

    def draw(self, state: TrainingState, iteration: int) -> tuple[Rollout, Rewards]:
        """One iteration's trajectories of the live generator and what the black box says of them."""
        live = role_tensors(state.state, "generator")
        keys, texts = self.keys(iteration), PromptTexts(self.prompts.prompts)
        prompt_ids = drawn_prompts(texts, shard=0, config=self.config, keys=keys)
        drawn = rollout(self.prompts, prompt_ids, live, shard=0, backbone=self.backbone, config=self.config, keys=keys)
        return drawn, reward_scoring(self.prompts.prompts, drawn, judges=self.judges, config=self.config)


def landing(tunnel: Tunnel, points: Tensor, prompt_ids: list[str]) -> Landing:
    """Judge points [N, 2, 1, 1] with the run's scorer."""
    rows = PromptTable(tunnel.prompts).rows
    images = tunnel.backbone.decode(points).numpy()
    asked = [Question(i, rows[p]["text"], rows[p]["metadata"]) for i, p in zip(images, prompt_ids, strict=True)]
    scores = tunnel.judges.score(tunnel.judges.first, asked)
    parts = [dict(found.parts) for found in scores]
    counts: dict[str, dict[float, int]] = {
        p: dict.fromkeys(map(float, rows[p]["metadata"]["modes"]), 0) for p in prompt_ids
    }
    for prompt, found, part in zip(prompt_ids, scores, parts, strict=True):
        if found.value:
            counts[prompt][part["mode"]] += 1
    return Landing(
        success=sum(bool(found.value) for found in scores) / len(scores),
        spread=math.sqrt(math.fsum(part["distance"] ** 2 for part in parts) / len(parts)),
        landed=sum(part["landed"] for part in parts) / len(parts),
        balance=math.fsum(min(c.values()) / max(1, *c.values()) for c in counts.values()) / len(counts),
    )


def judged(tunnel: Tunnel, split: str, per_class: int) -> tuple[list[str], Tensor]:
    """Prompt ids and their fixed initial noise [N, 2, 1, 1]: the same for every generator of a seed."""
    ids = [prompt for rows in PromptTable(tunnel.prompts).by_tag(split).values() for prompt in rows * per_class]
    names = [f"{prompt}/{number}" for number, prompt in enumerate(ids)]
    return ids, tunnel.keys(0).normals("evaluation/noise", names, shape=tunnel.backbone.latent_shape)


def measure(tunnel: Tunnel, role: RoleTensors, *, split: str = "test", per_class: int = 256) -> Landing:
    """The few-step generator with these weights."""
    ids, noise = judged(tunnel, split, per_class)
    condition = PromptTable(tunnel.prompts).condition(ids)
    weights = Adapter(tunnel.backbone.base(), tunnel.config.model.adapter).apply(role)
    path = trajectory(tunnel.backbone, noise, condition, weights, tunnel.config.sampler, len(noise))
    return landing(tunnel, path[:, -1], ids)


def measure_teacher(tunnel: Tunnel, guidance: float, *, split: str = "test", per_class: int = 256) -> Landing:
    """The frozen base with CFG, in `evaluation.teacher_steps` steps."""
    ids, noise = judged(tunnel, split, per_class)
    table = PromptTable(tunnel.prompts)
    points = guided_sample(
        tunnel.backbone,
        noise,
        table.condition(ids),
        table.empty,
        {},
        steps=tunnel.config.evaluation.teacher_steps,
        shift=tunnel.config.sampler.shift,
        guidance=guidance,
        microbatch=len(noise),
    )
    return landing(tunnel, points, ids)


def reinforce(tunnel: Tunnel, base: Base) -> Iterator[GeneratorState]:
    """TDM-R1: the generator after each iteration."""
    state: TrainingState = base
    surrogate: SurrogateState | None = None
    window: deque[tuple[int, list[tuple[Rollout, Rewards]]]] = deque(maxlen=tunnel.config.surrogate.replay + 1)
    for n in range(1, tunnel.config.iterations + 1):
        shard = tunnel.draw(state, n)
        window.append((n, [shard]))
        common: dict[str, Any] = {"backbone": tunnel.backbone, "config": tunnel.config, "keys": tunnel.keys(n)}
        surrogate = surrogate_update(tunnel.prompts, list(window), surrogate, **common)
        state = generator_update(tunnel.prompts, [shard[0]], surrogate, state, first=n == 1, **common)
        yield state


def curve(states: Iterator[GeneratorState], judge: Callable[[RoleTensors], Landing], every: int) -> dict[int, Landing]:
    """The averaged generator every so many iterations."""
    return {
        n: judge(role_tensors(state.state, "generator_ema"))
        for n, state in enumerate(states, start=1)
        if n % every == 0
    }


def direct_step(tunnel: Tunnel, optimizer: RoleOptimizer, origin: RoleTensors, batch: Trajectories, n: int) -> None:
    """The control: one step of the group preference on the student's own error at its own states, no surrogate.

    ℓ_i = mean (v_θ(x_j) − (x_j − x_0)/σ_j)² for each step j of the trajectory that ended in x_0; the reference
    and the drift gate are the student that reinforcement started from.
    """
    section, backbone = tunnel.config.surrogate, tunnel.backbone
    adapter = Adapter(backbone.base(), tunnel.config.model.adapter)
    condition = PromptTable(tunnel.prompts).condition(batch.prompt_ids)
    grid = steps(tunnel.config.sampler)
    for step in grid:
        x = batch.states[:, step.index]
        target = (x - batch.states[:, -1]) / step.sigma
        with torch.no_grad():
            reference = velocity_at(backbone, x, step.sigma, condition, adapter.apply(origin))
        prediction = velocity_at(backbone, x, step.sigma, condition, adapter.apply(optimizer.params))
        gates = Gates(drift=drift(prediction.detach(), reference), drift_limit=section.drift_gate)
        preference = group_preference_loss(
            velocity_error(prediction, target),
            velocity_error(reference, target),
            batch.advantages.float(),
            batch.group_numbers(),
            beta=section.beta,
            gates=gates,
            valid_N=batch.valid,
        )
        torch.autograd.backward(preference.loss / len(grid))
    optimizer.step(n)


def reinforce_directly(tunnel: Tunnel, base: Base) -> Iterator[GeneratorState]:
    """The control's run: stage 0's loss goes on, and the rewards act on the student itself.

    Both losses have the generator's learning rate, and as many steps per iteration as TDM-R1's generator.
    """
    section = tunnel.config.generator.model_copy(update={"trunc_steps": 0, "cfg_share": 1.0})
    config = tunnel.config.model_copy(update={"generator": section})
    origin = role_tensors(base.state, "generator")
    unused = SurrogateState(state=join_roles({"surrogate": origin}), optimizer={}, metrics=base.metrics)
    state: TrainingState = base
    moments: RoleTensors = {}
    for n in range(1, config.iterations + 1):
        shard = tunnel.draw(state, n)
        state = generator_update(
            tunnel.prompts,
            [shard[0]],
            unused,
            state,
            first=n == 1,
            backbone=tunnel.backbone,
            config=config,
            keys=tunnel.keys(n),
        )
        optimizer = RoleOptimizer("generator", role_tensors(state.state, "generator"), section.optimizer, moments)
        batch, _ = score([shard], n, config.surrogate, config.reward)
        for _ in range(section.updates):
            direct_step(tunnel, optimizer, origin, batch, n)
        moments = optimizer.state()
        state = moved(state, optimizer.tensors(), n)
        yield state


def moved(state: TrainingState, live: RoleTensors, n: int) -> GeneratorState:
    """The same state with another live generator, averaged as the stage does."""
    average = blend(role_tensors(state.state, "generator_ema"), live, average_decay(n))
    others = {"fake": role_tensors(state.state, "fake")}
    return GeneratorState(
        state=join_roles({"generator": live, "generator_ema": average, **others}),
        optimizer=state.optimizer,
        metrics=state.metrics,
    )
