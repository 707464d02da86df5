"""Stock diffusers pipelines of a few thousand random weights, one per backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ("<|endoftext|>", "<pad>", "user", ":", "a", "red", "circle", "and", "two", "blue", "squares", "on", "navy")
WIDTH = 16


def word_tokenizer(**more: Any) -> Any:
    """One token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<|endoftext|>", **more)


def autoencoder(channels: int) -> Any:
    """Two pixels per latent, along one side."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def clip(kind: str) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=2,
        eos_token_id=0,
        pad_token_id=1,
    )
    return getattr(transformers, kind)(config).eval()


def t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=len(WORDS), d_model=2 * WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def amplify(transformer: Any) -> Any:
    """Fresh networks answer almost nothing: make theirs an answer of the size of noise, also where they begin at 0."""
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.7 / parameter.shape[-1] ** 0.5)
    return transformer.eval()


def tiny_sd3(folder: Path, *, seed: int = 0) -> Path:
    """As SD3.5-M is: normalised queries and keys, a second attention in the first blocks, all three text encoders."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    words = word_tokenizer(model_max_length=12)
    pipeline = StableDiffusion3Pipeline(
        transformer=amplify(transformer),
        scheduler=scheduler(),
        vae=autoencoder(4),
        text_encoder=clip("CLIPTextModelWithProjection"),
        tokenizer=words,
        text_encoder_2=clip("CLIPTextModelWithProjection"),
        tokenizer_2=words,
        text_encoder_3=t5(),
        tokenizer_3=words,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_z_image(folder: Path, *, seed: int = 0, layers: int = 2) -> Path:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(seed)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=layers,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 16, 16],
    )
    language = Qwen3Config(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    pipeline = ZImagePipeline(
        transformer=amplify(transformer),
        scheduler=scheduler(),
        vae=autoencoder(4),
        text_encoder=Qwen3Model(language).eval(),
        tokenizer=word_tokenizer(chat_template="{% for m in messages %}user : {{ m.content }}{% endfor %}"),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_flux(folder: Path, *, seed: int = 0) -> Path:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    words = word_tokenizer(model_max_length=12)
    pipeline = FluxPipeline(
        transformer=amplify(transformer),
        scheduler=scheduler(),
        vae=autoencoder(4),
        text_encoder=clip("CLIPTextModel"),
        tokenizer=words,
        text_encoder_2=t5(),
        tokenizer_2=words,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


TINY_PIPELINES = {"sd3": tiny_sd3, "z_image": tiny_z_image, "flux": tiny_flux}
"""By backbone."""
EIGHT = 16
"""Pixels per side of a picture of 8×8 latents."""
