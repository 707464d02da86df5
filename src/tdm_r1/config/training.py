"""How each trained role learns: fake score, generator in both its lives, surrogate."""

from __future__ import annotations

from typing import Literal

from tdm_r1.config.base import Count, NonNegative, Positive, Rate, Section, Share
from tdm_r1.config.model import AdapterConfig


class AdamConfig(Section):
    learning_rate: Rate
    """Peak learning rate."""
    betas: tuple[Share, Share] = (0.0, 0.999)
    """Decay of the first and second moment."""
    weight_decay: NonNegative = 1e-4
    """Decoupled weight decay."""
    epsilon: Rate = 1e-8
    """Added to the root of the second moment."""
    clip_norm: Rate = 1.0
    """Gradient norm above which a role's gradient is scaled down."""
    kind: Literal["adamw", "adamw8bit"] = "adamw"
    """`adamw8bit` holds the moments of large parameters in 8 bits (bitsandbytes): other results, less memory."""


class FakeScoreConfig(Section):
    optimizer: AdamConfig = AdamConfig(learning_rate=3e-4)
    """AdamW of the fake score [paper]."""
    teacher_weight: NonNegative = 0.02
    """Weight of the pull towards the teacher's velocity."""
    min_snr: NonNegative = 0.0
    """Min-SNR γ; 0 turns the weighting off, TDM uses 5 [TDM]."""


class DistillConfig(Section):
    steps: Count = 350
    """Fake-then-generator steps of stage 0."""
    warmup: Count = 0
    """Steps before those in which only the fake score learns; a start from an adapter needs some [ours]."""
    fake_updates: Positive = 1
    """Fake-score steps per generator step, on the same trajectories with new noise; TDM's is 1 [ours]."""
    batch: Positive = 64
    """Trajectories per step."""
    interval: Literal["to_T", "separate"] = "to_T"
    """Noise levels of a step reach up to σ=1, or to the step's own start."""
    guidance: NonNegative = 4.5
    """w of the CFG direction [TDM]."""
    huber: NonNegative = 0.0
    """Pseudo-Huber constant of the generator's loss; 0 is the squared loss."""
    adapter: str = ""
    """Folder of `tdm-r1 import-lora`, or its s3:// prefix: where the generator starts. With `steps` 0 it is stage 0."""
    adapter_revision: str = ""
    """`sha256:` and the digest of that folder; required for a prefix."""
    fake: FakeScoreConfig = FakeScoreConfig()
    """The fake score."""
    generator: AdamConfig = AdamConfig(learning_rate=7.5e-5)
    """AdamW of the generator [paper]."""

    @property
    def fake_steps(self) -> int:
        """Of the fake score, warm-up included."""
        return (self.warmup + self.steps) * self.fake_updates


class SurrogateConfig(Section):
    adapter: AdapterConfig | None = None
    """How the surrogate differs from the base; none is as `model.adapter` says. It never leaves the run, so it may be
    larger than what is released [ours]."""
    optimizer: AdamConfig = AdamConfig(learning_rate=3e-4, betas=(0.9, 0.999))
    """AdamW of the surrogate [paper]."""
    advantage_std: Literal["global", "group", "none"] = "global"
    """Rewards are divided by the deviation of the iteration, of the group, or not at all."""
    advantage_clip: Rate = 5.0
    """Advantages are clipped to ± this."""
    beta: Rate = 1.0
    """Sharpness β of the group preference."""
    beta_kl: NonNegative = 1e-3
    """Weight of the drift penalty."""
    reference: Literal["frozen", "ema"] = "frozen"
    """What the preference is measured against: the base, or a moving average of the surrogate [paper]."""
    interval: Literal["to_T", "separate"] = "to_T"
    """Range of noise levels above a state."""
    t_min: Share = 0.55
    """Floor of the state's σ when a level is drawn; lower levels carry less about composition."""
    ppo_clip: NonNegative = 1e-3
    """Range c of ρ = exp(ℓ_old − ℓ) outside of which a sample's gradient is dropped; 0 turns the gate off."""
    drift_gate: Rate = 0.05
    """D = mean‖v_φ − v_base‖² above which a sample's gradient is dropped."""
    state_weighting: Literal["linear", "last"] = "linear"
    """States are drawn with probability ∝ j+1 [paper], or only the final image is used [ours]."""
    updates: Positive = 1
    """Optimizer steps per iteration; the paper's is 1."""
    minibatch_groups: Positive = 48
    """Groups per optimizer step, drawn from the replay window."""
    microbatch_groups: Positive = 16
    """Groups per network call."""
    draw_per: Literal["microbatch", "group"] = "microbatch"
    """Whether one state index and one level are drawn for a microbatch [paper] or for each of its groups [ours]."""
    probe_draws: Count = 0
    """Noise draws of the held-out probe: pairs of this iteration ordered by the surrogate of the one before."""
    draws: Positive = 1
    """Noise draws per state and step, each with its own level."""
    replay: Count = 0
    """Earlier iterations whose scored rollouts are used too: labels do not depend on the policy [ours]."""
    negative_weight: NonNegative = 1.0
    """Weight of worse-than-average samples' gradient [ours]."""
    average: Share = 0.0
    """Decay per iteration of the averaged surrogate, which the generator follows; 0 follows the live one [ours]."""
    scale_decays: bool = False
    """Copies decay by the optimizer step, not by the iteration: d becomes d to the power of `updates` [ours]."""
    warm_start: bool = True
    """Continue the surrogate of the iteration before; otherwise start from the base each time."""


class GeneratorConfig(Section):
    optimizer: AdamConfig = AdamConfig(learning_rate=7.5e-5)
    """AdamW of the generator [paper]."""
    fake: FakeScoreConfig = FakeScoreConfig()
    """The fake score during reinforcement."""
    fake_start: Literal["base", "distilled"] = "base"
    """Whether the fake score starts from the base, or from what stage 0 left."""
    interval: Literal["to_T", "separate"] = "to_T"
    """Range of noise levels above a step."""
    path: Literal["step", "trajectory"] = "step"
    """Whether a direction moves the one step whose end it judges [paper], or, from the image, all of them [ours]."""
    steps_per_trajectory: Positive = 2
    """M, steps of each trajectory that are trained on; 1 for `path=trajectory`."""
    trunc_steps: Count = 4
    """Steps j ≥ this get no surrogate direction."""
    guidance: NonNegative = 4.5
    """w; the CFG direction has the factor w − 1."""
    surrogate_guidance: NonNegative = 2.5
    """`rl_cfg`, guidance of the surrogate's estimate."""
    t_min: Share = 0.25
    """Floor of τ_R, the level at which the surrogate is asked."""
    cfg_share: Share = 0.3
    """λ, share of the CFG direction against the surrogate direction."""
    reward_weight: NonNegative = 1.0
    """Factor on the learned part of δ_R [ours]."""
    kl_weight: NonNegative = 1.0
    """Factor κ on δ_KL, the reverse-KL tie to the base, at steps that get a surrogate direction [ours]."""
    start: Positive = 1
    """First iteration that moves the generator; in those before it only the surrogate learns [ours]."""
    updates: Positive = 1
    """Optimizer steps of each role per iteration; the paper's is 1."""
    free_updates: Count = 0
    """Further steps of each role after those, on other trajectories and without a surrogate direction [ours]."""
    scale_decays: bool = False
    """The average decays by the optimizer step, not by the iteration: d to the power of all updates [ours]."""
    fake_updates: Positive = 1
    """Fake-score steps per generator step."""
    minibatch: Positive = 1152
    """Trajectories per optimizer step, drawn from this iteration's rollout."""
    minibatch_of: Literal["groups", "samples"] = "groups"
    """Whether an optimizer step takes whole groups, or samples of as many groups as it can [ours]."""
    microbatch: Positive = 256
    """Trajectories per network call with gradient."""

    @property
    def all_updates(self) -> int:
        """Optimizer steps per iteration, those without a surrogate direction included."""
        return self.updates + self.free_updates
