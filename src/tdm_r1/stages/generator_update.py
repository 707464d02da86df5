"""Stage `generator_update`: fake score, then generator, along the surrogate's reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tdm_r1.artifacts.records import (
    GeneratorState,
    Paths,
    PromptSet,
    Rollout,
    SurrogateState,
    TrainingState,
    join_roles,
    role_tensors,
)
from tdm_r1.config import GeneratorConfig, RunConfig
from tdm_r1.ema import average_decay, blend, over
from tdm_r1.errors import NumericalError
from tdm_r1.models.adapters import Adapter, RoleTensors
from tdm_r1.models.backbone import Backbone, Weights
from tdm_r1.models.checkpoints import NO_CHECKPOINTS, Checkpoints
from tdm_r1.models.distiller import (
    Batch,
    Student,
    effective,
    estimates,
    fake_loss,
    replay,
    replay_path,
    teacher_queries,
)
from tdm_r1.models.levels import Step, dealt_steps, own_levels, shared_noise, steps
from tdm_r1.models.metrics import MetricLog, by_sigma, work
from tdm_r1.models.optimizer import RoleOptimizer
from tdm_r1.models.optimizers import open_optimizer
from tdm_r1.models.progress import Progress, silent
from tdm_r1.models.prompts import PromptTable
from tdm_r1.models.sampler import Query, answers
from tdm_r1.models.samples import Samples, rows_by_group
from tdm_r1.models.world import ALONE, World, dealt, rounds
from tdm_r1.objectives.distillation import Directions, distillation_directions
from tdm_r1.objectives.generator import Reward, generator_loss, reward_direction
from tdm_r1.rng import Keys
from tdm_r1.sampling import renoise


@dataclass(frozen=True)
class _Trainer:
    backbone: Backbone
    table: PromptTable
    adapter: Adapter
    fake_adapter: Adapter
    samples: Samples
    config: RunConfig
    keys: Keys
    log: MetricLog

    @property
    def section(self) -> GeneratorConfig:
        return self.config.generator

    def microbatches(self, update: int) -> list[list[int]]:
        """Rows of one optimizer step in a keyed order, cut to `microbatch`."""
        groups = list(dict.fromkeys(self.samples.groups))
        per_pass = max(1, len(self.samples.groups) // self.section.minibatch)
        order = self.keys.permutation("generator/groups", update // per_pass, count=len(groups))
        rows = rows_by_group(self.samples.groups, [groups[i] for i in order], self.section.minibatch_of)
        start = update % per_pass * self.section.minibatch
        chosen = rows[start : start + self.section.minibatch]
        return [chosen[i : i + self.section.microbatch] for i in range(0, len(chosen), self.section.microbatch)]

    def batch(self, rows: list[int], step: Step) -> tuple[Batch, list[int]]:
        pick = torch.tensor(rows, dtype=torch.int64)
        batch = Batch(
            step=step,
            x=self.samples.states[pick, step.index],
            x_next=self.samples.states[pick, step.index + 1],
            noise=self.samples.states[pick, 0],
            condition=self.table.condition([self.samples.prompt_ids[row] for row in rows]),
            sample_ids=[self.samples.sample_ids[row] for row in rows],
        )
        return batch, [self.samples.groups[row] for row in rows]

    def chosen_steps(self, role: str, update: int, number: int) -> list[Step]:
        """M of the K steps for one microbatch, or the last one, at whose end the whole path is judged."""
        grid = steps(self.config.sampler)
        if self.section.path == "trajectory":
            return grid[-1:]
        deck = self.keys.permutation(f"{role}/steps", update, 0, count=len(grid))
        return dealt_steps([grid[index] for index in deck], number, self.section.steps_per_trajectory)

    def train_fake(self, update: int, turn: int, fake: RoleOptimizer) -> None:
        """One optimizer step of the fake score on this iteration's trajectories."""
        chunks, world = self.microbatches(update), self.log.world
        total = sum(map(len, chunks)) * self.section.steps_per_trajectory
        fake.expect(rounds(chunks, world) * self.section.steps_per_trajectory)
        for number, rows in dealt(chunks, world):
            for step in self.chosen_steps(f"fake{turn}", update, number):
                batch, _ = self.batch(rows, step)
                weights = self.fake_adapter.apply(fake.params)
                result = fake_loss(
                    self.backbone,
                    batch,
                    weights,
                    self.section.fake,
                    self.keys,
                    update,
                    turn,
                    step.index,
                    mode=self.section.interval,
                )
                if not bool(result.loss.isfinite()):
                    raise NumericalError("fake/loss", update, hint="lower generator.fake.optimizer.learning_rate")
                fake.backward(result.loss * (len(rows) / total))
                self.log.add(update, "fake", {"loss": float(result.loss.detach()), "error": float(result.score_error)})
                self.log.add(update, "fake", by_sigma("error", result.errors, result.levels))
        done = self.work(total * self.section.fake_updates)
        self.log.add_once(update, "fake", {"gradient_norm": fake.step(update), **done})

    def work(self, rows: int) -> dict[str, float]:
        """Of one update on all ranks; turns of the fake score are averaged in the log, so each names the sum of all."""
        return work(rows, self.samples.states[:, 0], self.table.empty)

    def student(self, batch: Batch, weights: Weights) -> Student:
        """What the directions reach: one replayed step, or all of them back from the final image."""
        if self.section.path == "step":
            return replay(self.backbone, batch, weights)
        return replay_path(self.backbone, batch, weights, self.config.sampler)

    def reward_queries(
        self, student: Student, batch: Batch, groups: list[int], surrogate: Weights, *counters: int
    ) -> list[Query]:
        """Surrogate with and without the prompt, and base, at τ_R: floored, with noise shared inside a group."""
        level = own_levels(batch.step, self.keys, "reward", batch.sample_ids, *counters, mode=self.section.interval)
        level = level.clamp_min(self.section.t_min)
        noise = shared_noise(self.keys, "reward", groups, *counters, shape=tuple(batch.x.shape[1:]))
        x_level = renoise(student.x_next.detach(), noise, batch.step.sigma_next, level)
        base: Weights = {}
        asked = [(batch.condition, surrogate), (batch.condition.null(self.table.empty), surrogate)]
        if self.section.surrogate_guidance == 1:  # the empty prompt cancels
            asked = asked[:1]
        return [Query(x_level, level, condition, weights) for condition, weights in (*asked, (batch.condition, base))]

    @torch.no_grad()
    def targets(self, teacher: list[Query], reward: list[Query]) -> tuple[Directions, Reward | None]:
        """δ_KL, δ_CFG and, when it is asked for, δ_R: all roles in one pass where they lie beside the base."""
        queries = [*teacher, *reward]
        found = estimates(queries, answers(self.backbone, queries))
        directions = distillation_directions(found[0], found[1], found[2], self.section.guidance)
        if not reward:
            return directions, None
        learned, base = found[3:-1], found[-1]
        return directions, reward_direction(learned[0], learned[-1], base, rl_cfg=self.section.surrogate_guidance)

    def train_generator(self, update: int, generator: RoleOptimizer, fake: Weights, surrogate: Weights) -> None:
        """One optimizer step of the generator."""
        chunks, world = self.microbatches(update), self.log.world
        total = sum(map(len, chunks)) * self.section.steps_per_trajectory
        generator.expect(rounds(chunks, world) * self.section.steps_per_trajectory)
        for number, rows in dealt(chunks, world):
            for step in self.chosen_steps("generator", update, number):
                batch, groups = self.batch(rows, step)
                self._accumulate(batch, groups, generator, fake, surrogate, update, len(rows) / total)
        self.log.add_once(update, "generator", {"gradient_norm": generator.step(update), **self.work(total)})

    def _accumulate(
        self,
        batch: Batch,
        groups: list[int],
        generator: RoleOptimizer,
        fake: Weights,
        surrogate: Weights,
        update: int,
        share: float,
    ) -> None:
        section, counters = self.section, (update, batch.step.index)
        student = self.student(batch, self.adapter.apply(generator.params))
        teacher = teacher_queries(student, batch, self.table.empty, fake, self.keys, *counters, mode=section.interval)
        trunc_steps = section.trunc_steps if update < section.updates else 0
        wanted = batch.step.index < trunc_steps
        reward = self.reward_queries(student, batch, groups, surrogate, *counters) if wanted else []
        directions, pull = self.targets(teacher, reward)
        result = generator_loss(
            student.x0,
            directions,
            pull,
            step=batch.step.index,
            trunc_steps=trunc_steps,
            cfg_share=section.cfg_share,
            reward_weight=section.reward_weight,
            kl_weight=section.kl_weight,
        )
        if not bool(result.loss.isfinite()):
            raise NumericalError("generator/loss", update, hint="lower generator.optimizer.learning_rate")
        generator.backward(result.loss * share)
        self.log.add(
            update,
            "generator",
            {
                "loss": float(result.loss.detach()),
                "cfg": float(result.cfg_error),
                "kl": float(result.kl_error),
                "reward": float(result.reward_error),
                **by_sigma("loss", result.loss.detach()[None], torch.tensor([batch.step.sigma])),
            },
        )


def _optimizer(
    role: str, last: TrainingState, tensors: RoleTensors, config: RunConfig, world: World, *, carry: bool
) -> RoleOptimizer:
    section = config.generator.optimizer if role == "generator" else config.generator.fake.optimizer
    moments = last.optimizer_of(role) if carry else {}
    return open_optimizer(role, tensors, section, moments, world, config.distributed)


def generator_update(
    prompts: PromptSet,
    shards: Sequence[Rollout | Paths],
    surrogate: SurrogateState,
    previous: TrainingState,
    *,
    first: bool,
    backbone: Backbone,
    config: RunConfig,
    keys: Keys,
    progress: Progress = silent,
    world: World = ALONE,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
) -> GeneratorState:
    """Take steps of the fake score and the generator on this iteration's trajectories; none before `start`.

    `updates` steps follow the surrogate, `free_updates` after them the teacher alone.

    Args:
        previous: the generator of the iteration before, or what stage 0 left.
        first: whether `previous` is stage 0's, so that optimizers start afresh.
    """
    section, adapter, saved = config.generator, Adapter(backbone.base(), config.model.adapter), checkpoints.found
    last, carry = (previous, not first) if saved is None else (saved.record, True)
    fake_adapter = Adapter(backbone.base(), config.fake_adapter)
    restart = not carry and section.fake_start == "base"
    fake_tensors = fake_adapter.new(keys.at(0), "fake") if restart else role_tensors(last.state, "fake")
    fake = _optimizer("fake", last, fake_tensors, config, world, carry=carry)
    generator = _optimizer("generator", last, role_tensors(last.state, "generator"), config, world, carry=carry)
    log, samples = MetricLog(world), Samples.of(shards)
    if saved is not None:
        log.restore(saved.record.metrics)
    trainer = _Trainer(backbone, PromptTable(prompts), adapter, fake_adapter, samples, config, keys, log)
    learned = effective(Adapter(backbone.base(), config.surrogate_adapter), surrogate.followed)
    updates = section.updates + section.free_updates if keys.iteration >= section.start else 0
    for update in progress(range(0 if saved is None else saved.steps, updates), "generator"):
        for turn in range(section.fake_updates):
            trainer.train_fake(update, turn, fake)
        trainer.train_generator(update, generator, effective(fake_adapter, fake.params), learned)
        checkpoints.offer(update + 1, lambda: _state(generator, fake, {}, log))
    decay = over(average_decay(keys.iteration), max(1, updates), scaled=section.scale_decays)
    average = blend(role_tensors(previous.state, "generator_ema"), generator.tensors(), decay)
    return _state(generator, fake, {"generator_ema": average}, log)


def _state(
    generator: RoleOptimizer, fake: RoleOptimizer, more: Mapping[str, RoleTensors], log: MetricLog
) -> GeneratorState:
    return GeneratorState(
        state=join_roles({"generator": generator.tensors(), **more, "fake": fake.tensors()}),
        optimizer=join_roles({"generator": generator.state(), "fake": fake.state()}),
        metrics=log.table(),
    )
