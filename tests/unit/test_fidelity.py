"""One optimizer step of each role equals the formulas, written out in float64 with diffusers' network.

Shared with the code under test is only what must be: the keyed draws (noise, levels, states), the stored trajectories
and the prompts' embeddings. Gradients are read from the optimizer's moments, which hold them to every digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from tdm_r1.artifacts.records import (
    Base,
    PromptSet,
    Rewards,
    Rollout,
    SurrogateState,
    TrainingState,
    join_roles,
    role_tensors,
)
from tdm_r1.config import RunConfig
from tdm_r1.models.adapters import Adapter, RoleTensors
from tdm_r1.models.open import open_backbone
from tdm_r1.presets import resolve
from tdm_r1.rng import Keys
from tdm_r1.stages.generator_update import generator_update
from tdm_r1.stages.surrogate_update import surrogate_update
from tests.support import once
from tests.tiny import EIGHT, TINY_PIPELINES
from tests.unit.artifact_examples import raw_scores

PROMPTS = ["", "a red circle", "two blue squares and a red circle"]
GROUP = [0, 0, 1, 1]
REWARD = [0.9, 0.1, 0.3, 0.7]
SIGMA = [3 * u / (1 + 2 * u) for u in (0.999, 0.4995)] + [0.0]
"""Two steps, shift 3."""
KEYS = Keys(11, 1)
DRAWS = 4
OVERRIDES: dict[str, Any] = {
    "model.resolution": EIGHT, "model.max_tokens": 8, "model.adapter.rank": 2, "model.adapter.alpha": 4.0,
    "model.adapter.targets": ["to_q", "to_v", "to_out.0"], "sampler.steps": 2,
    "rollout.groups": 2, "rollout.group_size": 2, "rollout.shards": 1,
    "surrogate.adapter": None, "surrogate.optimizer.betas": (0.0, 0.999), "surrogate.reference": "frozen",
    "surrogate.beta": 70.0, "surrogate.beta_kl": 0.01, "surrogate.minibatch_groups": 2,
    "surrogate.microbatch_groups": 2, "surrogate.replay": 0, "surrogate.ppo_clip": 0.0, "surrogate.drift_gate": 1e9,
    "surrogate.t_min": 0.3, "surrogate.draws": DRAWS,
    "generator.steps_per_trajectory": 2, "generator.minibatch": 4, "generator.microbatch": 4,
    "generator.trunc_steps": 1, "generator.fake_start": "distilled", "generator.guidance": 4.5,
    "generator.surrogate_guidance": 2.5, "generator.t_min": 0.4,
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """A tiny base, four scored trajectories, and three roles that differ from it."""

    name: str
    config: RunConfig
    backbone: Any
    network: Any
    """diffusers' transformer in float64."""
    prompts: PromptSet
    rollout: Rollout
    rewards: Rewards
    roles: dict[str, RoleTensors]

    def base(self) -> Base:
        metrics = Base.table("metrics", step=[0], name=["x"], value=[0.0])
        state = join_roles({r: self.roles[r] for r in ("generator", "generator_ema", "fake")})
        return Base(state=state, optimizer={}, metrics=metrics)

    def surrogate(self) -> SurrogateState:
        metrics = SurrogateState.table("metrics", step=[0], name=["x"], value=[0.0])
        return SurrogateState(state=join_roles({"surrogate": self.roles["surrogate"]}), optimizer={}, metrics=metrics)

    def velocity(self, x: Tensor, sigma: Tensor, rows: list[int], role: dict[str, Tensor] | None) -> Tensor:
        """The network with W + (α/r) B A in float64; `rows` are embeddings, 0 the empty prompt."""
        own = dict(self.network.named_parameters())
        merged = {}
        for name in [] if role is None else [n.removesuffix(".lora_A") for n in role if n.endswith(".lora_A")]:
            merged[f"{name}.weight"] = own[f"{name}.weight"] + 2.0 * role[f"{name}.lora_B"] @ role[f"{name}.lora_A"]  # type: ignore[index]
        tokens = self.prompts.embeddings["sequence"].double()[rows]
        pooled = self.prompts.embeddings["pooled"].double()[rows]
        if self.name == "sd3":
            given = {"hidden_states": x, "timestep": 1000 * sigma, "encoder_hidden_states": tokens}
            found: Tensor = functional_call(self.network, merged, (), {**given, "pooled_projections": pooled}).sample
            return found
        texts = [row[: int(count)] for row, count in zip(tokens, pooled[:, 0], strict=True)]
        images = [image[:, None] for image in x]
        answer = functional_call(self.network, merged, (images, 1 - sigma, texts)).sample
        return -torch.stack([image[:, 0] for image in answer])

    def estimate(self, x: Tensor, levels: list[float], rows: list[int], role: dict[str, Tensor] | None) -> Tensor:
        """x̂₀ = x − σ v."""
        return x - column(levels) * self.velocity(x, torch.tensor(levels, dtype=torch.float64), rows, role)

    def noise(self, purpose: str, names: Sequence[Any], j: int) -> Tensor:
        shape = tuple(self.rollout.states.shape[2:])
        return torch.stack([KEYS.normal(purpose, name, 0, j, shape=shape).double() for name in names])


@pytest.fixture(scope="module", params=["sd3", "z_image"])
def world(request: pytest.FixtureRequest, shared: Path) -> World:
    import diffusers

    name: str = request.param
    folder = once(shared / f"tiny-{name}", TINY_PIPELINES[name])
    config = resolve("shapes_smoke", {**OVERRIDES, "model.backbone": name, "model.source": str(folder)})
    backbone = open_backbone(config.model)
    kind = {"sd3": "SD3Transformer2DModel", "z_image": "ZImageTransformer2DModel"}[name]
    network = getattr(diffusers, kind).from_pretrained(folder, subfolder="transformer").double().requires_grad_(False)
    condition = backbone.encode_prompts(PROMPTS)
    ids = ["p0", "p1"]
    prompts = PromptSet(
        prompts=pa.table({
            "prompt_id": ids, "text": PROMPTS[1:], "tag": ["a", "a"], "split": ["train", "train"],
            "metadata": ["{}", "{}"], "embedding": pa.array([1, 2], pa.int64()),
        }),
        embeddings={"sequence": condition.sequence, "pooled": condition.pooled},
    )  # fmt: skip
    samples = [f"s{i}" for i in range(4)]
    index = {"sample_id": samples, "prompt_id": [ids[g] for g in GROUP], "group": pa.array(GROUP, pa.int64())}
    states = KEYS.normals("states", samples, shape=(3, *backbone.latent_shape))
    rollout = Rollout(index=pa.table(index), images=torch.zeros(4, EIGHT, EIGHT, 3, dtype=torch.uint8), states=states)
    rewards = raw_scores({"shapes": REWARD}, sample_id=samples, prompt_id=index["prompt_id"], group=GROUP)
    adapter = Adapter(backbone.base(), config.model.adapter)
    roles = {}
    for role in ("generator", "generator_ema", "fake", "surrogate"):
        shapes = adapter.new(KEYS, role)
        roles[role] = {n: 0.15 * KEYS.normal("role", role, n, shape=tuple(t.shape)) for n, t in shapes.items()}
    return World(name, config, backbone, network, prompts, rollout, rewards, roles)


def level(u: float, sigma_next: float, floor: float = 0.0) -> float:
    """u in the unshifted interval from .02 above max(σ_n, floor) to 1, shifted by 3."""
    start = max(sigma_next, floor)
    low = start / (3 - 2 * start) + 0.02
    v = low + (1 - low) * u
    return 3 * v / (1 + 2 * v)


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def noised(x: Tensor, noise: Tensor, sigma_next: float, levels: list[float]) -> Tensor:
    a = [(1 - t) / (1 - sigma_next) for t in levels]
    b = [math.sqrt(t**2 - (k * sigma_next) ** 2) for t, k in zip(levels, a, strict=True)]
    return column(a) * x + column(b) * noise


def doubled(role: RoleTensors) -> dict[str, Tensor]:
    return {name: tensor.double().requires_grad_() for name, tensor in role.items()}


def clipped(loss: Tensor, role: dict[str, Tensor]) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(loss, list(role.values()))
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    return {name: g * min(1.0, 1.0 / norm) for name, g in zip(role, gradients, strict=True)}


def adamw(role: dict[str, Tensor], gradient: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
    """The first step: both moments are unbiased again, so m̂ = g and v̂ = g²."""
    return {
        n: t.detach() * (1 - rate * 1e-4) - rate * gradient[n] / (gradient[n].abs() + 1e-8) for n, t in role.items()
    }


def agree(
    found: TrainingState, name: str, role: dict[str, Tensor], gradient: dict[str, Tensor], rate: float
) -> dict[str, Tensor]:
    """After one step the second moment is (1 − β₂) g² of the clipped gradient; with β₁ = 0 it is all that is kept.

    Moments have no sign, so the weights say which way the step went, where g is not all rounding.

    Returns:
        The role after the step of the formulas.
    """
    scale = max(float(g.abs().max()) for g in gradient.values())
    assert scale > 1e-4
    moments, after, stepped = found.optimizer_of(name), role_tensors(found.state, name), adamw(role, gradient, rate)
    for key, expected in gradient.items():
        size = (moments[f"exp_avg_sq/{key}"].double() / (1 - 0.999)).sqrt()
        torch.testing.assert_close(size, expected.abs(), rtol=0, atol=2e-4 * scale)
        sure = expected.abs() > 1e-3 * scale
        torch.testing.assert_close(after[key].double()[sure], stepped[key][sure], rtol=0, atol=0.01 * rate)
    return stepped


def pull(x0: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
    """e(δ)/W, mean over the batch."""
    return (((x0 - (x0 + delta).detach()) ** 2) / weight).mean()


def fake_gradient(world: World) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """‖(x_τ − x̂₀)/σ_τ − v_ψ‖² + .02 ‖v_base − v_ψ‖², mean over samples and both steps, clipped."""
    role, total = doubled(world.roles["fake"]), torch.zeros((), dtype=torch.float64)
    ids, rows = [f"s{i}" for i in range(4)], [g + 1 for g in GROUP]
    for j in range(2):
        x, x_next = world.rollout.states[:, j].double(), world.rollout.states[:, j + 1].double()
        x0 = x - SIGMA[j] * (x - x_next) / (SIGMA[j] - SIGMA[j + 1])
        levels = [level(KEYS.uniform("fake/level", i, 0, 0, j), SIGMA[j + 1]) for i in ids]
        noise = torch.stack([KEYS.normal("fake/noise", i, 0, 0, j, shape=tuple(x.shape[1:])).double() for i in ids])
        x_tau, sigma = noised(x_next, noise, SIGMA[j + 1], levels), torch.tensor(levels, dtype=torch.float64)
        v, base = world.velocity(x_tau, sigma, rows, role), world.velocity(x_tau, sigma, rows, None)
        total = total + (((x_tau - x0) / column(levels) - v) ** 2).mean() + 0.02 * ((base - v) ** 2).mean()
    return role, clipped(total / 2, role)


def generator_gradient(world: World, fake: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """λ e(δ_CFG)/W1 + (1−λ) e(δ_R)/W2 + e(δ_KL)/W1 at step 0; λ (e(δ_CFG) + e(δ_KL))/W1 at step 1, from trunc on."""
    role, total = doubled(world.roles["generator"]), torch.zeros((), dtype=torch.float64)
    ids, rows, empty = [f"s{i}" for i in range(4)], [g + 1 for g in GROUP], [0] * 4
    learned = {name: tensor.double() for name, tensor in world.roles["surrogate"].items()}
    for j in range(2):
        x = world.rollout.states[:, j].double()
        v = world.velocity(x, torch.full((4,), SIGMA[j], dtype=torch.float64), rows, role)
        x0, x_next = x - SIGMA[j] * v, (x - (SIGMA[j] - SIGMA[j + 1]) * v).detach()
        levels = [level(KEYS.uniform("generator/level", i, 0, j), SIGMA[j + 1]) for i in ids]
        x_tau = noised(x_next, world.noise("generator/noise", ids, j), SIGMA[j + 1], levels)
        with torch.no_grad():
            real, null, fake_x0 = (
                world.estimate(x_tau, levels, *q) for q in ((rows, None), (empty, None), (rows, fake))
            )
            cfg, kl = 3.5 * (real - null), real - fake_x0
            w1 = (x0 - (null + 4.5 * (real - null))).abs().mean((1, 2, 3), keepdim=True)
        if j >= 1:
            total = total + 0.3 * (pull(x0, cfg, w1) + pull(x0, kl, w1))
            continue
        high = [max(level(KEYS.uniform("reward/level", i, 0, j), SIGMA[j + 1]), 0.4) for i in ids]
        x_high = noised(x_next, world.noise("reward/noise", GROUP, j), SIGMA[j + 1], high)
        with torch.no_grad():
            good, blank, plain = (
                world.estimate(x_high, high, *q) for q in ((rows, learned), (empty, learned), (rows, None))
            )
            guided = blank + 2.5 * (good - blank)
            w2 = (x0 - guided).abs().mean((1, 2, 3), keepdim=True)
        total = total + 0.3 * pull(x0, cfg, w1) + 0.7 * pull(x0, guided - plain, w2) + pull(x0, kl, w1)
    return role, clipped(total / 2, role)


def test_a_step_of_fake_score_and_generator_is_the_one_of_the_formulas(world: World) -> None:
    found = generator_update(
        world.prompts, [world.rollout], world.surrogate(), world.base(), first=True, backbone=world.backbone,
        config=world.config, keys=KEYS,
    )  # fmt: skip
    section = world.config.generator
    stepped = agree(found, "fake", *fake_gradient(world), section.fake.optimizer.learning_rate)
    agree(found, "generator", *generator_gradient(world, stepped), section.optimizer.learning_rate)


def test_a_step_of_the_surrogate_is_the_one_of_the_formulas(world: World) -> None:
    """((j+1)/K) (mean σ(s_g) A ℓ + β_kl D), s_g = (β/G) Σ A (ℓ − ℓ_ref), from a surrogate that left the base."""
    found = surrogate_update(
        world.prompts, [(1, [(world.rollout, world.rewards)])], world.surrogate(), backbone=world.backbone,
        config=world.config, keys=KEYS,
    )  # fmt: skip
    role = doubled(world.roles["surrogate"])
    order = [[0, 1], [2, 3]]
    picks = KEYS.permutation("surrogate/groups", 0, count=2)
    samples = [row for pick in picks for row in order[pick]]
    mean, centred = sum(REWARD) / 4, []
    spread = math.sqrt(sum((r - mean) ** 2 for r in REWARD) / 4) + 1e-4
    for s in samples:
        group = [REWARD[i] for i in range(4) if GROUP[i] == GROUP[s]]
        centred.append((REWARD[s] - sum(group) / 2) / spread)
    advantage = torch.tensor(centred, dtype=torch.float64)
    seen, logits, loss = set[int](), list[float](), torch.zeros((), dtype=torch.float64)
    for draw in range(DRAWS):
        j = KEYS.weighted_choice("surrogate/state", "", 0, 0, draw, weights=[1.0, 2.0])
        sigma_next, tau = SIGMA[j + 1], level(KEYS.uniform("surrogate/level", "", 0, 0, draw), SIGMA[j + 1], 0.3)
        x_next = world.rollout.states[samples, j + 1].double()
        names = [f"00001-{GROUP[s]:04d}" for s in samples]
        shape = tuple(x_next.shape[1:])
        noise = torch.stack([KEYS.normal("surrogate/noise", n, 0, 0, draw, shape=shape).double() for n in names])
        a = (1 - tau) / (1 - sigma_next)
        b = math.sqrt(tau**2 - (a * sigma_next) ** 2)
        x_tau = a * x_next + b * noise
        target = -x_next / (1 - sigma_next) + noise / b * (tau + sigma_next**2 * a / (1 - sigma_next))
        sigma, rows = torch.full((4,), tau, dtype=torch.float64), [GROUP[s] + 1 for s in samples]
        v, base = world.velocity(x_tau, sigma, rows, role), world.velocity(x_tau, sigma, rows, None)
        error, reference = ((target - v) ** 2).mean((1, 2, 3)), ((target - base) ** 2).mean((1, 2, 3))
        gain = advantage * (error - reference).detach()
        logit = torch.stack([70.0 / 2 * (gain[0] + gain[1])] * 2 + [70.0 / 2 * (gain[2] + gain[3])] * 2)
        drift = ((v - base) ** 2).mean()
        seen.add(j)
        logits += logit.tolist()
        loss = loss + (j + 1) / 2 * ((logit.sigmoid() * advantage * error).mean() + 0.01 * drift) / DRAWS
    assert seen == {0, 1}
    assert max(map(abs, logits)) > 0.3  # else σ(s_g) is ½ whatever β is
    agree(found, "surrogate", role, clipped(loss, role), world.config.surrogate.optimizer.learning_rate)
