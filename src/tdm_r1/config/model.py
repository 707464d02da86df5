"""The network, how roles differ from it, and the path that it is sampled along."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tdm_r1.config.base import Count, Positive, Rate, Section


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
    """In which the frozen base is held and computed; roles, optimizers, latents and losses stay in float32. float16 is
    for sampling only: its gradients vanish."""
    autocast: Literal["none", "bfloat16"] = "none"
    """With bfloat16 a float32 base computes matrix products so, and norms and sums in float32 (torch.autocast)."""
    checkpointing: bool = False
    """Keep the inputs of each block only, and run it again in the backward pass: less memory, a third more work."""
    compile: bool = False
    """Compile each kind of block of the network for each shape it sees (torch.compile); part of the last bits."""
    decode_batch: Positive = 64
    """Images per decoder call; a fixed partition, so part of the last bits."""
    decode_tile: Count = 0
    """Edge in pixels of the tiles in which larger images are decoded, with blended seams; 0 decodes them whole."""
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
