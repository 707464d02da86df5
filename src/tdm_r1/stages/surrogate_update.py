"""Stage `surrogate_update`: learn a differentiable reward from groups of scored trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdm_r1.advantages import Advantages
from tdm_r1.artifacts.records import Paths, PromptSet, Rewards, Rollout, SurrogateState, join_roles, role_tensors
from tdm_r1.config import RunConfig, SurrogateConfig
from tdm_r1.ema import blend, lag_decay, mean_decay, over, reference_decay
from tdm_r1.errors import NumericalError
from tdm_r1.models.adapters import Adapter, RoleTensors
from tdm_r1.models.backbone import Backbone, Condition
from tdm_r1.models.checkpoints import NO_CHECKPOINTS, Checkpoints
from tdm_r1.models.levels import Step, shared_noise, steps
from tdm_r1.models.metrics import MetricLog, Values, by_sigma, work
from tdm_r1.models.optimizer import RoleOptimizer
from tdm_r1.models.optimizers import open_optimizer
from tdm_r1.models.progress import Progress, silent
from tdm_r1.models.prompts import PromptTable
from tdm_r1.models.sampler import velocity_at
from tdm_r1.models.world import ALONE, World, dealt, rounds
from tdm_r1.objectives.surrogate import Gates, drift, group_preference_loss, surrogate_loss, velocity_error
from tdm_r1.rewards.scored import Trajectories, join, score
from tdm_r1.rng import Counter, Keys
from tdm_r1.sampling import conditional_velocity, renoise, sample_level

ROLE, AVERAGE, LAG, REFERENCE = "surrogate", "surrogate_average", "surrogate_lag", "surrogate_reference"


@dataclass(frozen=True)
class Query:
    """A microbatch of whole groups, re-noised; what is drawn is alike inside a group."""

    level: Tensor
    """[N] float64 σ_τ."""
    x_level: Tensor
    """[N, C, H, W] x_τ."""
    target: Tensor
    """[N, C, H, W] u_s of equation (3)."""
    weight: Tensor
    """[N] float64 (j+1)/K."""
    condition: Condition


def _draw_level(grid: list[Step], section: SurrogateConfig, keys: Keys, *counters: Counter) -> tuple[Step, float]:
    """A step j with P ∝ j+1 and a level above its end."""
    linear = section.state_weighting == "linear"
    weights = [float(j + 1) if linear else float(j + 1 == len(grid)) for j in range(len(grid))]
    step = grid[keys.weighted_choice("surrogate/state", *counters, weights=weights)]
    level = sample_level(
        keys.uniform("surrogate/level", *counters),
        step.sigma_next,
        floor=section.t_min,
        mode=section.interval,
        sigma_current=step.sigma,
        shift=step.shift,
    )
    assert isinstance(level, float)
    return step, level


def _draw(batch: Trajectories, table: PromptTable, config: RunConfig, keys: Keys, *counters: int) -> Query:
    section, grid = config.surrogate, steps(config.sampler)
    names = [group if section.draw_per == "group" else "" for group in batch.groups]
    drawn = {name: _draw_level(grid, section, keys, name, *counters) for name in dict.fromkeys(names)}
    step_N = [drawn[name][0] for name in names]
    level = torch.tensor([drawn[name][1] for name in names], dtype=torch.float64)
    sigma_next = torch.tensor([step.sigma_next for step in step_N], dtype=torch.float64)
    x_next = batch.states[torch.arange(len(batch)), torch.tensor([step.index + 1 for step in step_N])]
    noise = shared_noise(keys, "surrogate", batch.groups, *counters, shape=tuple(x_next.shape[1:]))
    return Query(
        level=level,
        x_level=renoise(x_next, noise, sigma_next, level),
        target=conditional_velocity(x_next, noise, sigma_next, level),
        weight=torch.tensor([(step.index + 1) / len(grid) for step in step_N], dtype=torch.float64),
        condition=table.condition(batch.prompt_ids),
    )


@dataclass(frozen=True)
class Anchors:
    """Frozen networks that the surrogate is compared with."""

    adapter: Adapter
    reference: RoleTensors | None
    """None when the reference is the base."""
    lag: RoleTensors | None
    """None when the ratio gate is off."""


def _errors(backbone: Backbone, query: Query, anchors: Anchors) -> tuple[Tensor, Tensor, Tensor | None]:
    """Base velocity [N, …], reference errors [N], lag errors [N] or None; without gradient."""

    def velocity(role: RoleTensors | None) -> Tensor:
        weights = {} if role is None else anchors.adapter.apply(role)
        return velocity_at(backbone, query.x_level, query.level, query.condition, weights)

    with torch.no_grad():
        base = velocity(None)
        reference = base if anchors.reference is None else velocity(anchors.reference)
        lag = None if anchors.lag is None else velocity_error(velocity(anchors.lag), query.target)
    return base, velocity_error(reference, query.target), lag


def _microbatch_loss(
    backbone: Backbone,
    query: Query,
    batch: Trajectories,
    params: Mapping[str, Tensor],
    anchors: Anchors,
    config: RunConfig,
) -> tuple[Tensor, Values]:
    section = config.surrogate
    base, reference_error, lag_error = _errors(backbone, query, anchors)
    prediction = velocity_at(backbone, query.x_level, query.level, query.condition, anchors.adapter.apply(params))
    error, drift_N = velocity_error(prediction, query.target), drift(prediction, base)
    preference = group_preference_loss(
        error,
        reference_error,
        batch.advantages.float(),
        batch.group_numbers(),
        beta=section.beta,
        gates=Gates(old_error=lag_error, clip=section.ppo_clip, drift=drift_N.detach(), drift_limit=section.drift_gate),
        negative_weight=section.negative_weight,
        weight_N=query.weight,
        valid_N=batch.valid,
    )
    weighted_drift_N = query.weight.float() * drift_N  # (j+1)/K is in both terms already
    result = surrogate_loss(preference, weighted_drift_N, step=0, steps=1, kl_weight=section.beta_kl)
    return result.loss, {
        "loss": float(result.loss.detach()),
        "preference": float(result.preference),
        "drift": float(result.drift),
        "clipped_fraction": float(preference.clipped_fraction),
        "drifted_fraction": float(preference.drifted_fraction),
        "pair_accuracy": pair_accuracy(reference_error - error.detach(), batch),
        "error": float(error.detach().mean()),
        **by_sigma("error", error.detach(), query.level),
    }


def pair_accuracy(gain_N: Tensor, batch: Trajectories) -> float:
    """Share of pairs of one group with different rewards that the implicit reward ℓ_ref − ℓ orders rightly.

    Args:
        gain_N: [N] ℓ_ref − ℓ; a tie counts one half. Without any pair the answer is 0.5.
    """
    group, advantage = batch.group_numbers(), batch.advantages
    better = (group[:, None] == group[None]) & (advantage[:, None] > advantage[None])
    if not bool(better.any()):
        return 0.5
    difference = (gain_N[:, None] - gain_N[None])[better]
    return float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())


@torch.no_grad()
def held_out_accuracy(
    batch: Trajectories, table: PromptTable, role: RoleTensors, *, backbone: Backbone, config: RunConfig, keys: Keys
) -> float:
    """`pair_accuracy` of a surrogate on trajectories that it was not trained on, gains averaged over `probe_draws`."""
    weights = Adapter(backbone.base(), config.surrogate_adapter).apply(role)
    gain = torch.zeros(len(batch))
    for draw in range(config.surrogate.probe_draws):
        query = _draw(batch, table, config, keys, -1, draw)
        pair = [velocity_at(backbone, query.x_level, query.level, query.condition, w) for w in ({}, weights)]
        base, learned = (velocity_error(velocity, query.target) for velocity in pair)
        gain += base - learned
    return pair_accuracy(gain, batch)


def _minibatch(window: Trajectories, section: SurrogateConfig, keys: Keys, update: int) -> list[list[int]]:
    """Rows of the groups of one optimizer step: informative groups of the window, in a keyed order without repeats."""
    groups = window.informative()
    size = min(section.minibatch_groups, len(groups))
    per_pass = max(1, len(groups) // max(size, 1))
    order = keys.permutation("surrogate/groups", update // per_pass, count=len(groups))
    start = update % per_pass * size
    return [groups[index] for index in order[start : start + size]]


def _chunks(groups: list[list[int]], section: SurrogateConfig) -> list[list[int]]:
    size = section.microbatch_groups
    return [[row for rows in groups[i : i + size] for row in rows] for i in range(0, len(groups), size)]


def _train(
    window: Trajectories,
    table: PromptTable,
    optimizer: RoleOptimizer,
    anchors: Anchors,
    *,
    backbone: Backbone,
    config: RunConfig,
    keys: Keys,
    log: MetricLog,
    progress: Progress,
    start: int,
    checkpoints: Checkpoints,
) -> None:
    section, world = config.surrogate, log.world
    for update in progress(range(start, section.updates), ROLE):
        chunks = _chunks(_minibatch(window, section, keys, update), section)
        optimizer.expect(rounds(chunks, world) * section.draws)
        for number, rows in dealt(chunks, world):
            batch = window.take(rows)
            for draw in range(section.draws):
                query = _draw(batch, table, config, keys, update, number, draw)
                loss, values = _microbatch_loss(backbone, query, batch, optimizer.params, anchors, config)
                if not bool(loss.isfinite()):
                    raise NumericalError("surrogate/loss", update, hint="lower surrogate.optimizer.learning_rate")
                optimizer.backward(loss * (len(rows) / sum(map(len, chunks)) / section.draws))
                log.add(update, "surrogate", values)
        if chunks:
            done = work(sum(map(len, chunks)) * section.draws, window.states[:, 0], table.empty)
            log.add_once(update, "surrogate", {"gradient_norm": optimizer.step(update), **done})
        checkpoints.offer(update + 1, lambda: _state({ROLE: optimizer.tensors()}, optimizer, log))


def _state(roles: Mapping[str, RoleTensors], optimizer: RoleOptimizer, log: MetricLog) -> SurrogateState:
    return SurrogateState(state=join_roles(roles), optimizer=join_roles({ROLE: optimizer.state()}), metrics=log.table())


def surrogate_update(
    prompts: PromptSet,
    window: Sequence[tuple[int, Sequence[tuple[Rollout | Paths, Rewards]]]],
    previous: SurrogateState | None,
    *,
    backbone: Backbone,
    config: RunConfig,
    keys: Keys,
    progress: Progress = silent,
    world: World = ALONE,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
) -> SurrogateState:
    """Take `updates` steps of group preference on the scored trajectories of the window.

    Args:
        window: (iteration, shards) of this iteration and, with `surrogate.replay`, of earlier ones; oldest first.
        previous: the surrogate of the iteration before; None starts from the base.
    """
    section, adapter = config.surrogate, Adapter(backbone.base(), config.surrogate_adapter)
    wanted = {AVERAGE: section.average, LAG: section.ppo_clip, REFERENCE: section.reference == "ema"}
    kept = [ROLE, *(role for role, asked in wanted.items() if asked)]
    carried, saved = previous if section.warm_start else None, checkpoints.found
    fresh = adapter.new(keys.at(0), ROLE)
    roles = {role: fresh if carried is None else role_tensors(carried.state, role) for role in kept}
    last = carried if saved is None else saved.record
    tensors, moments = (fresh, {}) if last is None else (role_tensors(last.state, ROLE), last.optimizer_of(ROLE))
    optimizer = open_optimizer(ROLE, tensors, section.optimizer, moments, world, config.distributed)
    scored = [score(shards, iteration, section, config.reward) for iteration, shards in window]
    log, table = MetricLog(world), PromptTable(prompts)
    if saved is not None:
        log.restore(saved.record.metrics)
    else:
        _log_labels(log, *scored[-1])
        if carried is not None and section.probe_draws:
            found = held_out_accuracy(
                scored[-1][0], table, carried.followed, backbone=backbone, config=config, keys=keys
            )
            log.add_once(0, "surrogate", {"held_out_accuracy": found})
    _train(
        join([part for part, _ in scored]),
        table,
        optimizer,
        Anchors(adapter=adapter, reference=roles.get(REFERENCE), lag=roles.get(LAG)),
        backbone=backbone,
        config=config,
        keys=keys,
        log=log,
        progress=progress,
        start=0 if saved is None else saved.steps,
        checkpoints=checkpoints,
    )
    live, n = optimizer.tensors(), keys.iteration
    decay = {ROLE: 0.0, AVERAGE: mean_decay(n - 1, section.average), LAG: lag_decay(n), REFERENCE: reference_decay(n)}
    scaled = {role: over(d, section.updates, scaled=section.scale_decays) for role, d in decay.items()}
    return _state({role: blend(tensors, live, scaled[role]) for role, tensors in roles.items()}, optimizer, log)


def _log_labels(log: MetricLog, trajectories: Trajectories, advantages: Advantages) -> None:
    """How the rewards of this iteration spread."""
    share = advantages.zero_variance_groups / len(trajectories.rows_by_group())
    log.add_once(0, "advantage", {"std": advantages.std, "clipped_fraction": advantages.clipped_fraction})
    log.add_once(0, "advantage", {"zero_variance_groups": share})
