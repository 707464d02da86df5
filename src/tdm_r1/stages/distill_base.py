"""Stage `distill_base` (stage 0): the few-step generator TDM, with its fake score."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tdm_r1.artifacts.records import Base, PromptSet, join_roles, role_tensors
from tdm_r1.config import DistillConfig, RunConfig
from tdm_r1.ema import average_decay, blend
from tdm_r1.errors import NumericalError
from tdm_r1.models.adapters import Adapter, RoleTensors
from tdm_r1.models.backbone import Backbone
from tdm_r1.models.checkpoints import NO_CHECKPOINTS, Checkpoints
from tdm_r1.models.distiller import Batch, effective, fake_loss, replay, teacher_directions, teacher_queries
from tdm_r1.models.levels import steps
from tdm_r1.models.metrics import MetricLog, by_sigma, work
from tdm_r1.models.optimizer import RoleOptimizer
from tdm_r1.models.optimizers import open_optimizer
from tdm_r1.models.progress import Progress
from tdm_r1.models.prompts import PromptTable
from tdm_r1.models.sampler import trajectory
from tdm_r1.models.world import ALONE, World
from tdm_r1.objectives.distillation import directed_loss, normaliser
from tdm_r1.rng import Keys


@dataclass(frozen=True)
class _Trainer:
    backbone: Backbone
    table: PromptTable
    adapter: Adapter
    fake_adapter: Adapter
    config: RunConfig
    keys: Keys
    log: MetricLog

    @property
    def section(self) -> DistillConfig:
        return self.config.distill

    def batches(self, step: int, generator: RoleOptimizer) -> list[Batch]:
        """Fresh trajectories of the live generator, cut into one batch per step j of the grid.

        Every rank samples and keeps the same number of rows of each batch.
        """
        world, grid = self.log.world, steps(self.config.sampler)
        share = self.section.batch // len(grid) or 1
        own = share // world.size
        ids = [f"{step}-{row}" for row in range(self.section.batch) if row % share // own == world.rank]
        condition = self.table.condition(self.table.draw(ids, self.keys))
        noise = self.keys.normals("rollout/noise", ids, shape=self.backbone.latent_shape)
        weights = effective(self.adapter, generator.params)
        states = trajectory(self.backbone, noise, condition, weights, self.config.sampler, len(ids))
        found = []
        for position, index in enumerate(self.keys.permutation("step", step, count=len(grid))):
            rows_ = slice(position * own, (position + 1) * own)
            if len(ids) > position * own:
                found.append(
                    Batch(
                        step=grid[index],
                        x=states[rows_, index],
                        x_next=states[rows_, index + 1],
                        noise=states[rows_, 0],
                        condition=condition.take(rows_),
                        sample_ids=ids[rows_],
                    )
                )
        return found

    def train_fake(self, step: int, batches: list[Batch], fake: RoleOptimizer) -> None:
        """One optimizer step of the fake score; `step` counts its own."""
        fake.expect(len(batches))
        for batch in batches:
            weights = self.fake_adapter.apply(fake.params)
            result = fake_loss(
                self.backbone, batch, weights, self.section.fake, self.keys, step, mode=self.section.interval
            )
            if not bool(result.loss.isfinite()):
                raise NumericalError("fake/loss", step, hint="lower distill.fake.optimizer.learning_rate")
            fake.backward(result.loss / (len(batches) * self.log.world.size))
            self.log.add(step, "fake", {"loss": float(result.loss.detach()), "error": float(result.score_error)})
            self.log.add(step, "fake", by_sigma("error", result.errors, result.levels))
        self.log.add_once(step, "fake", {"gradient_norm": fake.step(step), **self.work(batches)})

    def train_generator(self, step: int, batches: list[Batch], generator: RoleOptimizer, fake: RoleOptimizer) -> None:
        fake_weights = effective(self.fake_adapter, fake.params)
        generator.expect(len(batches))
        for batch in batches:
            student = replay(self.backbone, batch, self.adapter.apply(generator.params))
            queries = teacher_queries(
                student, batch, self.table.empty, fake_weights, self.keys, step, mode=self.section.interval
            )
            directions = teacher_directions(self.backbone, queries, self.section.guidance)
            result = directed_loss(
                student.x0, directions, normaliser(student.x0, directions.guided), self.section.huber or None
            )
            if not bool(result.loss.isfinite()):
                raise NumericalError("generator/loss", step, hint="lower distill.generator.learning_rate")
            generator.backward(result.loss / (len(batches) * self.log.world.size))
            self.log.add(step, "generator", {"kl": float(result.kl_error), "cfg": float(result.cfg_error)})
        self.log.add_once(step, "generator", {"gradient_norm": generator.step(step), **self.work(batches)})

    def work(self, batches: list[Batch]) -> dict[str, float]:
        """Of all ranks: each has as many rows."""
        rows = sum(len(batch.x) for batch in batches) * self.log.world.size
        return work(rows, batches[0].x, batches[0].condition)


def distill_base(
    prompts: PromptSet,
    *,
    start: RoleTensors | None,
    backbone: Backbone,
    config: RunConfig,
    keys: Keys,
    progress: Progress,
    world: World = ALONE,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
) -> Base:
    """Distil the frozen base into K steps: `fake_updates` fake-score steps, then one generator step, `steps` times.

    Before them come `warmup` steps of the fake score alone: a generator that is imported has none of its own, and what
    the base says in its place would push it away from where it is.

    Source: TDM, arXiv 2503.06674; section 2 of the algorithm document.

    Args:
        start: an imported generator; None starts from the base.
    """
    section, adapter, saved = config.distill, Adapter(backbone.base(), config.model.adapter), checkpoints.found
    fake_adapter, log = Adapter(backbone.base(), config.fake_adapter), MetricLog(world)
    trainer = _Trainer(backbone, PromptTable(prompts), adapter, fake_adapter, config, keys, log)
    opened = partial(open_optimizer, world=world, sharding=config.distributed)
    if saved is None:
        generator = opened("generator", start or adapter.new(keys, "generator"), section.generator, {})
        fake = opened("fake", fake_adapter.new(keys, "fake"), section.fake.optimizer, {})
        average = generator.tensors()
    else:
        last = saved.record
        log.restore(last.metrics)
        average = role_tensors(last.state, "generator_ema")
        moments = {role: last.optimizer_of(role) for role in ("generator", "fake")}
        generator = opened("generator", role_tensors(last.state, "generator"), section.generator, moments["generator"])
        fake = opened("fake", role_tensors(last.state, "fake"), section.fake.optimizer, moments["fake"])
    begun, total = 0 if saved is None else saved.steps, section.warmup + section.steps
    for step in progress(range(begun, total), "distill_base"):
        batches = trainer.batches(step, generator)
        for turn in range(section.fake_updates):
            trainer.train_fake(step * section.fake_updates + turn, batches, fake)
        if step >= section.warmup:
            trainer.train_generator(step, batches, generator, fake)
            average = blend(average, generator.tensors(), average_decay(step - section.warmup))
        checkpoints.offer(step + 1, partial(_state, generator, fake, average, log))
    return _state(generator, fake, average, log)


def _state(generator: RoleOptimizer, fake: RoleOptimizer, average: RoleTensors, log: MetricLog) -> Base:
    return Base(
        state=join_roles({"generator": generator.tensors(), "generator_ema": average, "fake": fake.tensors()}),
        optimizer=join_roles({"generator": generator.state(), "fake": fake.state()}),
        metrics=log.table(),
    )
