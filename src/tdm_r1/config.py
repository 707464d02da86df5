"""Every knob of a run: frozen, unknown keys refused, documented under the field.

The resolved configuration is written once as `run.json`; a preset is a function in
`presets.py` that returns a complete `RunConfig`. Defaults are the published values where a
publication gives one; `[paper]` is arXiv 2603.07700, `[TDM]` arXiv 2503.06674, `[DGPO]`
arXiv 2510.08425, `[ours]` was chosen here (see docs/log.md).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr, model_validator

from tdm_r1.addresses import require_no_credentials

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
WORLDS: Final = ("shapes", "plane", "geneval", "ocr")


MOST_ITERATIONS: Final = 99_999
"""Of a run: their folders have five digits."""


class Section(BaseModel):
    """Base of all sections: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class NumericsConfig(Section):
    threads: Positive = 2
    """CPU threads of the tensor library. Part of the result: another count gives other last bits."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where tensors are computed; noise is always drawn on the CPU."""


class AdapterConfig(Section):
    kind: Literal["lora", "full"] = "lora"
    """`lora`: one low-rank adapter per role on a frozen base. `full`: every role owns all weights."""
    rank: Positive = 32
    """Rank of the low-rank update [paper]."""
    alpha: Rate = 64.0
    """Scale of the low-rank update is alpha / rank [paper]."""
    targets: tuple[str, ...] = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    )
    """Linear layers that get an adapter: every module whose name ends so [paper]."""
    application: Literal["auto", "merged", "factored"] = "auto"
    """W + BA as one weight, or Wx + B(Ax); `auto` is the second above 100 M parameters. The last bits differ."""


class ModelConfig(Section):
    backbone: Literal["sd3", "z_image", "flux", "plane"] = "sd3"
    """Which file of `models/` runs the network."""
    source: str = "embedded:shapes"
    """Weights: `embedded:NAME` in the package, `hub:OWNER/NAME`, `s3://BUCKET/PREFIX`, or a pipeline's folder."""
    revision: str = ""
    """What pins the weights: a commit of the hub, else the `sha256:…` that `tdm-r1 model` prints; empty is unpinned."""
    resolution: Count = 0
    """Pixels per side of an image; 0 is what the base says of itself."""
    max_tokens: Count = 0
    """Tokens of a prompt for T5 or the language model, longer ones are cut; 0 is the pipeline's own number."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """In which the frozen base is held and computed; roles, optimizers, latents and losses stay in float32."""
    autocast: Literal["none", "bfloat16"] = "none"
    """With bfloat16 a float32 base computes matrix products so, and norms and sums in float32 (torch.autocast)."""
    checkpointing: bool = False
    """Keep the inputs of each block only, and run it again in the backward pass: less memory, a third more work."""
    compile: bool = False
    """Compile each kind of block of the network for each shape it sees (torch.compile); part of the last bits."""
    decode_batch: Positive = 64
    """Images per decoder call; a fixed partition, so part of the last bits."""
    adapter: AdapterConfig = AdapterConfig()
    """How a role differs from the base."""
    fake_adapter: AdapterConfig | None = None
    """How the fake score differs from the base; none is as `adapter` says. It never leaves the run either [ours]."""

    @model_validator(mode="after")
    def _plane_is_merged(self) -> ModelConfig:
        if self.backbone == "plane" and self.adapter.application == "factored":
            raise ValueError("adapter.application is `factored`, but the plane has no modules to adapt")
        if self.backbone == "plane" and (self.checkpointing or self.compile or self.autocast != "none"):
            raise ValueError("checkpointing, compile and autocast are of networks with blocks, and the plane has none")
        if self.autocast != "none" and self.dtype != "float32":
            raise ValueError(f"autocast is for a base held in float32, and dtype is `{self.dtype}`")
        return self


class SamplerConfig(Section):
    steps: Annotated[int, Field(ge=1, le=64)] = 4
    """K, network evaluations of the few-step generator."""
    shift: Rate = 3.0
    """Timestep shift s of the σ grid."""
    solver: Literal["euler", "dpmpp2m"] = "euler"
    """Rollout solver; `euler` makes the replayed training step equal the rollout's step."""
    replicate: bool = False
    """Round network timesteps to integers, as the authors' code does."""


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


class RolloutConfig(Section):
    groups: Positive = 48
    """Prompts per iteration."""
    group_size: Annotated[int, Field(ge=2)] = 24
    """G, trajectories per prompt [paper]."""
    tag_shares: dict[str, NonNegative] = {}
    """How often prompts of a tag are drawn, relative to the others; a tag that is absent has 1."""
    world_shares: dict[str, NonNegative] = {}
    """How often prompts of a world of a mix are drawn, relative to the others; one that is absent has 1. Empty: as
    often as their tags are."""
    shards: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Parts that roll out and are scored independently."""
    microbatch: Positive = 256
    """Trajectories per network call; a fixed partition, so part of the last bits."""

    @model_validator(mode="after")
    def _shards_hold_whole_groups(self) -> RolloutConfig:
        if self.shards > self.groups:
            raise ValueError(f"shards={self.shards} is above groups={self.groups}; a group is never split")
        if self.groups % self.shards:
            raise ValueError(f"groups={self.groups} is not a multiple of shards={self.shards}; a group is never split")
        return self


class ScorerConfig(Section):
    use: str = ""
    """Registered name of the scorer, or `module:Class`; empty is the key under `reward.scorers`."""
    options: dict[str, JsonValue] = {}
    """What the scorer itself can be told; it refuses what it does not know. See `tdm-r1 scorer list`."""
    worlds: tuple[str, ...] = ()
    """Worlds of a mix about whose prompts it is asked; empty is all. Of others it has no value, and no share."""
    weight: NonNegative = 1.0
    """Share in the reward; 0 only records. A scorer of which less is better counts with a minus sign."""
    scale: float = 1.0
    """The reward takes weight · clip(scale · value + shift, low, high); the stored value stays raw."""
    shift: float = 0.0
    """Added after the scale."""
    low: float | None = None
    """Lower bound of the scaled value; none is unbounded."""
    high: float | None = None
    """Upper bound of the scaled value; none is unbounded."""
    on_error: Literal["drop", "group_mean", "fail"] = "drop"
    """A row that cannot be scored leaves its group, takes the mean of its group, or fails the stage. Never 0."""

    @model_validator(mode="after")
    def _no_credentials(self) -> ScorerConfig:
        require_no_credentials(self.options, "the options of a scorer")
        return self

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> ScorerConfig:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        return self


class RewardConfig(Section):
    scorers: Annotated[dict[str, ScorerConfig], Field(min_length=1)] = {"shapes": ScorerConfig()}
    """Black boxes by name. The first that is asked about a prompt is the one that `evaluation` measures."""
    max_error_rate: Share = 0.1
    """Share of the rows of a shard that a scorer may fail on, before the stage fails."""
    workers: Count | None = None
    """Scoring processes; none is one per core, 0 scores in the stage's own process. Never changes a result."""
    time_limit: Rate = 30.0
    """Seconds for one call of a scorer, or 5 × its stated cost if that is more; then its process is killed."""
    recycle_rows: Positive = 4096
    """Rows after which a scoring process is replaced by a fresh one."""
    recycle_memory_mb: Positive = 8192
    """Resident memory above which a scoring process is replaced by a fresh one."""

    @property
    def people(self) -> tuple[str, ...]:
        """Scorers that read what people said: their stage waits for the stage `feedback`."""
        return tuple(name for name, section in self.scorers.items() if (section.use or name) == "feedback")

    @model_validator(mode="after")
    def _something_measures(self) -> RewardConfig:
        if (first := next(iter(self.scorers))) in self.people:
            raise ValueError(
                f"`{first}` is the first scorer, which `evaluation` measures, but nobody judges its images;"
                " name another one before it, with weight 0 if it shall only measure"
            )
        return self


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
    fake_updates: Positive = 1
    """Fake-score steps per generator step."""
    minibatch: Positive = 1152
    """Trajectories per optimizer step, drawn from this iteration's rollout."""
    minibatch_of: Literal["groups", "samples"] = "groups"
    """Whether an optimizer step takes whole groups, or samples of as many groups as it can [ours]."""
    microbatch: Positive = 256
    """Trajectories per network call with gradient."""


class EvaluationConfig(Section):
    every: Count = 1
    """Evaluate after every this many iterations, and after the last; 0 only after the last."""
    prompts: Positive = 600
    """Held-out prompts, spread over the tags as the split has them."""
    images_per_prompt: Positive = 1
    """Images per prompt."""
    teacher_images_per_prompt: Count = 0
    """Images per prompt of the rows that sample with guidance, the first of the others'; 0 and more mean all [ours]."""
    teacher_steps: Count = 40
    """Steps of the teacher's row at iteration 0; two network evaluations each. 0 leaves the row out."""
    teacher_guidance: NonNegative = 4.5
    """CFG weight of the teacher's rows."""
    bootstrap: Positive = 1000
    """Resamples of the 95% interval."""
    surrogate_steps: Count = 0
    """Steps of a row that samples from the surrogate itself; 0 leaves it out. A health check: it never generates."""
    split: Literal["test", "train"] = "test"
    """Held-out prompts, or training prompts for tuning without touching the held-out ones."""


class DistributedConfig(Section):
    engine: Literal["none", "deepspeed"] = "none"
    """`none` holds a role and its optimizer whole in every process, `deepspeed` shards the optimizer (ZeRO)."""
    zero_stage: Literal[1, 2, 3] = 2
    """What DeepSpeed shards: 1 the optimizer, 2 the gradients too, 3 the trained role too, between its uses."""
    offload: bool = False
    """Whether DeepSpeed keeps the optimizer in the memory of the host."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which DeepSpeed holds and reduces a role that is trained; its masters are float32."""
    checkpoint_every: Count = 0
    """Optimizer steps between checkpoints inside a training stage; 0 stores none, for most stages are short [ours]."""
    timeout_seconds: Positive = 1800
    """How long a rank waits for the others before all of them give up; a rank that dies is noticed at once [ours]."""


class RunConfig(Section):
    preset: str
    """Name of the preset that this configuration started from."""
    seed: Count = 0
    """Root of every random draw."""
    world: str = "shapes"
    """Prompts of both splits, with what a scorer must know to judge their images; `geneval+ocr` mixes two worlds."""
    iterations: Annotated[int, Field(ge=1, le=MOST_ITERATIONS)] = 100
    """Iterations of reinforcement; `tdm-r1 extend` adds more to a run."""
    numerics: NumericsConfig = NumericsConfig()
    """What the last bits of a result depend on."""
    model: ModelConfig = ModelConfig()
    """The frozen base, and how a role differs from it."""
    sampler: SamplerConfig = SamplerConfig()
    """The few-step path of the generator."""
    distill: DistillConfig = DistillConfig()
    """Stage 0: from the base to the few-step generator."""
    rollout: RolloutConfig = RolloutConfig()
    """How many trajectories an iteration draws, and in which parts."""
    reward: RewardConfig = RewardConfig()
    """Which black boxes score an image, and how their values become one reward."""
    surrogate: SurrogateConfig = SurrogateConfig()
    """How the differentiable reward is learned."""
    generator: GeneratorConfig = GeneratorConfig()
    """How the generator follows it."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When and on what the generator is measured."""
    distributed: DistributedConfig = DistributedConfig()
    """How the processes of one training stage work together; `torchrun` says how many they are."""

    _declared: int | None = PrivateAttr(default=None)

    @property
    def declared(self) -> RunConfig:
        """As `run.json` has it: `iterations` without what `tdm-r1 extend` added, which no digest counts."""
        return self if self._declared is None else self.extended(self._declared)

    def extended(self, iterations: int) -> RunConfig:
        """The same configuration with another length; `declared` still tells the first one."""
        found = self.model_copy(update={"iterations": iterations})
        first = self._declared or self.iterations
        found._declared = None if iterations == first else first
        return found

    @property
    def worlds(self) -> tuple[str, ...]:
        """Those that are mixed, in order; usually one."""
        return tuple(self.world.split("+"))

    @property
    def surrogate_adapter(self) -> AdapterConfig:
        """Of the surrogate."""
        return self.surrogate.adapter or self.model.adapter

    @property
    def fake_adapter(self) -> AdapterConfig:
        """Of the fake score."""
        return self.model.fake_adapter or self.model.adapter

    @model_validator(mode="after")
    def _worlds_are_judged(self) -> RunConfig:
        worlds = self.worlds
        if unknown := [name for name in worlds if name not in WORLDS]:
            raise ValueError(
                f"there is no world `{unknown[0]}`, only {', '.join(WORLDS)} and mixes such as geneval+ocr"
            )
        if len(set(worlds)) < len(worlds):
            raise ValueError(f"world={self.world} names a world twice")
        named = {f"reward.scorers.{name}.worlds": section.worlds for name, section in self.reward.scorers.items()}
        for key, names in {**named, "rollout.world_shares": self.rollout.world_shares}.items():
            if strange := [name for name in names if name not in worlds]:
                raise ValueError(f"{key} has `{strange[0]}`, but the world is {self.world}")
        scorers = list(self.reward.scorers.values())
        asked = [one.worlds or worlds for one in [one for one in scorers if one.weight] or scorers]
        if alone := [name for name in worlds if not any(name in judged for judged in asked)]:
            raise ValueError(f"no scorer with a weight is asked about prompts of `{alone[0]}`")
        return self

    @model_validator(mode="after")
    def _steps_exist(self) -> RunConfig:
        if self.generator.steps_per_trajectory > self.sampler.steps:
            raise ValueError(
                f"generator.steps_per_trajectory={self.generator.steps_per_trajectory} "
                f"but sampler.steps={self.sampler.steps}"
            )
        return self

    @model_validator(mode="after")
    def _optimizers_fit(self) -> RunConfig:
        distill, generator = self.distill, self.generator
        adams = (distill.fake.optimizer, distill.generator, self.surrogate.optimizer, generator.optimizer)
        eight = any(adam.kind == "adamw8bit" for adam in (*adams, generator.fake.optimizer))
        if eight and self.distributed.engine == "deepspeed":
            raise ValueError(
                "an optimizer has kind=adamw8bit, but distributed.engine=deepspeed shards moments in float32"
            )
        return self

    @model_validator(mode="after")
    def _generator_can_follow(self) -> RunConfig:
        section, steps = self.generator, self.sampler.steps
        if section.start > self.iterations:
            raise ValueError(f"generator.start={section.start} but iterations={self.iterations}: it would never move")
        if section.path == "trajectory" and (section.steps_per_trajectory, section.trunc_steps) != (1, steps):
            raise ValueError(
                "generator.path=trajectory judges the final image alone: it needs generator.steps_per_trajectory=1 and "
                f"generator.trunc_steps={steps}, not {section.steps_per_trajectory} and {section.trunc_steps}"
            )
        return self
