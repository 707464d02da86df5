"""Stage `distill_base` (stage 0): the few-step generator TDM, with its fake score."""

from __future__ import annotations

from dataclasses import dataclass

from tdm_r1.artifacts.records import Base, PromptSet, join_roles
from tdm_r1.config import DistillConfig, RunConfig
from tdm_r1.ema import average_decay, blend
from tdm_r1.errors import NumericalError
from tdm_r1.models.adapters import Adapter, RoleTensors
from tdm_r1.models.backbone import Backbone
from tdm_r1.models.distiller import Batch, effective, fake_loss, replay, teacher_directions, teacher_queries
from tdm_r1.models.levels import steps
from tdm_r1.models.metrics import MetricLog
from tdm_r1.models.optimizer import RoleOptimizer
from tdm_r1.models.progress import Progress
from tdm_r1.models.prompts import PromptTable
from tdm_r1.models.sampler import trajectory
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
        """Fresh trajectories of the live generator, cut into one batch per step j of the grid."""
        ids = [f"{step}-{row}" for row in range(self.section.batch)]
        condition = self.table.condition(self.table.draw(ids, self.keys))
        noise = self.keys.normals("rollout/noise", ids, shape=self.backbone.latent_shape)
        weights = effective(self.adapter, generator.params)
        states = trajectory(self.backbone, noise, condition, weights, self.config.sampler, self.section.batch)
        grid = steps(self.config.sampler)
        share = self.section.batch // len(grid) or 1
        found = []
        for position, index in enumerate(self.keys.permutation("step", step, count=len(grid))):
            rows_ = slice(position * share, (position + 1) * share)
            if self.section.batch > position * share:
                found.append(
                    Batch(
                        grid[index], states[rows_, index], states[rows_, index + 1], condition.take(rows_), ids[rows_]
                    )
                )
        return found

    def train_fake(self, step: int, batches: list[Batch], fake: RoleOptimizer) -> None:
        """One optimizer step of the fake score; `step` counts its own."""
        for batch in batches:
            weights = self.fake_adapter.apply(fake.params)
            result = fake_loss(
                self.backbone, batch, weights, self.section.fake, self.keys, step, mode=self.section.interval
            )
            if not bool(result.loss.isfinite()):
                raise NumericalError("fake/loss", step, hint="lower distill.fake.optimizer.learning_rate")
            (result.loss / len(batches)).backward()
            self.log.add(step, "fake", {"loss": float(result.loss.detach()), "error": float(result.score_error)})
        self.log.add(step, "fake", {"gradient_norm": fake.step(step)})

    def train_generator(self, step: int, batches: list[Batch], generator: RoleOptimizer, fake: RoleOptimizer) -> None:
        fake_weights = effective(self.fake_adapter, fake.params)
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
            (result.loss / len(batches)).backward()
            self.log.add(step, "generator", {"kl": float(result.kl_error), "cfg": float(result.cfg_error)})
        self.log.add(step, "generator", {"gradient_norm": generator.step(step)})


def distill_base(
    prompts: PromptSet,
    *,
    start: RoleTensors | None,
    backbone: Backbone,
    config: RunConfig,
    keys: Keys,
    progress: Progress,
) -> Base:
    """Distil the frozen base into K steps: `fake_updates` fake-score steps, then one generator step, `steps` times.

    Before them come `warmup` steps of the fake score alone: a generator that is imported has none of its own, and what
    the base says in its place would push it away from where it is.

    Source: TDM, arXiv 2503.06674; section 2 of the algorithm document.

    Args:
        start: an imported generator; None starts from the base.
    """
    section, adapter = config.distill, Adapter(backbone.base(), config.model.adapter)
    fake_adapter = Adapter(backbone.base(), config.fake_adapter)
    trainer = _Trainer(backbone, PromptTable(prompts), adapter, fake_adapter, config, keys, MetricLog())
    generator = RoleOptimizer("generator", start or adapter.new(keys, "generator"), section.generator, {})
    fake = RoleOptimizer("fake", fake_adapter.new(keys, "fake"), section.fake.optimizer, {})
    average = generator.tensors()
    for step in progress(range(section.warmup + section.steps), "distill_base"):
        batches = trainer.batches(step, generator)
        for turn in range(section.fake_updates):
            trainer.train_fake(step * section.fake_updates + turn, batches, fake)
        if step >= section.warmup:
            trainer.train_generator(step, batches, generator, fake)
            average = blend(average, generator.tensors(), average_decay(step - section.warmup))
    return Base(
        state=join_roles({"generator": generator.tensors(), "generator_ema": average, "fake": fake.tensors()}),
        optimizer=join_roles({"generator": generator.state(), "fake": fake.state()}),
        metrics=trainer.log.table(),
    )
