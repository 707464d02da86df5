"""Configurations of the published models: what the paper trains, with the values that were published.

Where each value comes from, and where it departs, is written in docs/presets.md. None of these was run here.
Prompts are GenEval's, or those of the world `ocr`. Every scorer ships; its weights or its server do not.
"""

from __future__ import annotations

from tdm_r1.config import (
    AdamConfig,
    AdapterConfig,
    DistillConfig,
    EvaluationConfig,
    GeneratorConfig,
    ModelConfig,
    NumericsConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    ScorerConfig,
    SurrogateConfig,
)

GROUP = 24
CUDA = NumericsConfig(device="cuda", threads=8)
SD35_MEDIUM = ModelConfig(
    backbone="sd3",
    source="hub:stabilityai/stable-diffusion-3.5-medium",
    revision="b940f670f0eda2d07fbb75229e779da1ad11eb80",
    resolution=512,
    max_tokens=128,
    dtype="bfloat16",
    decode_batch=16,
)
Z_IMAGE_TURBO = ModelConfig(
    backbone="z_image",
    source="hub:Tongyi-MAI/Z-Image-Turbo",
    revision="f332072aa78be7aecdf3ee76d5c247082da564a6",
    resolution=1024,
    dtype="bfloat16",
    checkpointing=True,
    decode_batch=16,
    adapter=AdapterConfig(targets=("to_q", "to_k", "to_v", "to_out.0")),
)
Z_IMAGE = Z_IMAGE_TURBO.model_copy(
    update={"source": "hub:Tongyi-MAI/Z-Image", "revision": "04cc4abb7c5069926f75c9bfde9ef43d49423021"}
)


def _published(
    preset: str,
    model: ModelConfig,
    *scorers: str,
    iterations: int,
    groups: int,
    batch: int,
    beta: float,
    clip: float,
    trunc: int,
    rl_cfg: float,
    surrogate_t_min: float,
    generator_t_min: float,
    prompts: int,
    images: int,
    world: str = "geneval",
    guidance: float = 4.5,
    cfg_share: float = 0.3,
) -> RunConfig:
    """One run of the paper.

    Args:
        scorers: registered names, each with weight 1; in a mix of worlds, asked about its own world's prompts alone.
        groups: prompts of 24 images per iteration, over eight shards.
        batch: images per network call.
        world: whose prompts it trains and is measured on.
        guidance: of the teacher; 1 for a base that was distilled from its own guidance.
    """
    mixed = world.split("+") if "+" in world else []
    return RunConfig(
        preset=preset,
        iterations=iterations,
        world=world,
        numerics=CUDA,
        model=model,
        reward=RewardConfig(scorers={n: ScorerConfig(worlds=(n,) if n in mixed else ()) for n in scorers}),
        distill=DistillConfig(steps=500, batch=64, guidance=guidance),
        rollout=RolloutConfig(
            groups=groups, group_size=GROUP, shards=8, microbatch=batch, world_shares=dict.fromkeys(mixed, 1.0)
        ),
        surrogate=SurrogateConfig(
            optimizer=AdamConfig(learning_rate=3e-4, betas=(0.9, 0.999)),
            beta=beta,
            t_min=surrogate_t_min,
            ppo_clip=clip,
            drift_gate=0.05,
            draws=2,
            minibatch_groups=groups,
            microbatch_groups=1,
        ),
        generator=GeneratorConfig(
            trunc_steps=trunc,
            guidance=guidance,
            surrogate_guidance=rl_cfg,
            t_min=generator_t_min,
            cfg_share=cfg_share,
            minibatch=GROUP * groups,
            microbatch=batch,
        ),
        evaluation=EvaluationConfig(every=60, prompts=prompts, images_per_prompt=images, teacher_guidance=guidance),
    )


def sd35_medium_geneval() -> RunConfig:
    """SD3.5-M learns GenEval in four steps: .61 to .92 in the paper, 182 GPU-hours."""
    return _published(
        "sd35_medium_geneval", SD35_MEDIUM, "geneval",
        iterations=2000, groups=48, batch=6, beta=1.0, clip=1e-3, trunc=4,
        rl_cfg=2.5, surrogate_t_min=0.55, generator_t_min=0.25, prompts=553, images=4,
    )  # fmt: skip


def sd35_medium_ocr() -> RunConfig:
    """SD3.5-M learns to write text in four steps: .58 to .95 in 480 iterations of the paper."""
    return _published(
        "sd35_medium_ocr", SD35_MEDIUM, "ocr",
        iterations=480, groups=48, batch=12, beta=10.0, clip=1e-3, trunc=4,
        rl_cfg=4.5, surrogate_t_min=0.3, generator_t_min=0.3, prompts=1018, images=1, world="ocr",
    )  # fmt: skip


def sd35_medium_imagereward() -> RunConfig:
    """SD3.5-M learns what ImageReward likes, in four steps."""
    return _published(
        "sd35_medium_imagereward", SD35_MEDIUM, "imagereward",
        iterations=480, groups=24, batch=12, beta=1.0, clip=2e-3, trunc=2,
        rl_cfg=3.5, surrogate_t_min=0.55, generator_t_min=0.4, prompts=2048, images=1,
    )  # fmt: skip


def sd35_medium_hps() -> RunConfig:
    """SD3.5-M learns what HPSv2.1 likes, in four steps."""
    return _published(
        "sd35_medium_hps", SD35_MEDIUM, "hpsv2",
        iterations=480, groups=24, batch=12, beta=10.0, clip=2e-3, trunc=2,
        rl_cfg=3.5, surrogate_t_min=0.55, generator_t_min=0.4, prompts=2048, images=1,
    )  # fmt: skip


def z_image_turbo_hpsv3() -> RunConfig:
    """Experimental: Z-Image-Turbo learns what HPSv3 likes; its base is free of guidance, so λ = 0."""
    return _published(
        "z_image_turbo_hpsv3", Z_IMAGE_TURBO, "hpsv3",
        iterations=480, groups=24, batch=4, beta=10.0, clip=2e-3, trunc=2,
        rl_cfg=1.0, surrogate_t_min=0.55, generator_t_min=0.4, prompts=2048, images=1, guidance=1.0, cfg_share=0.0,
    )  # fmt: skip


def z_image_geneval_ocr() -> RunConfig:
    """Experimental: Z-Image, with guidance as its own teacher, learns GenEval and text, half of the prompts each."""
    return _published(
        "z_image_geneval_ocr", Z_IMAGE, "geneval", "ocr",
        iterations=2000, groups=48, batch=4, beta=1.0, clip=1e-3, trunc=4,
        rl_cfg=2.5, surrogate_t_min=0.55, generator_t_min=0.25, prompts=1571, images=1, world="geneval+ocr",
    )  # fmt: skip


PUBLISHED = (
    sd35_medium_geneval,
    sd35_medium_ocr,
    sd35_medium_imagereward,
    sd35_medium_hps,
    z_image_turbo_hpsv3,
    z_image_geneval_ocr,
)
