"""A tiny CLIP with random weights and a tokenizer of whole words, in transformers' format. Its scores mean nothing."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("<pad>", "<unk>", "<start>", "a", "photo", "of", "dog", "cat", "red", "blue", "car", "depicts", "<end>")
START, END = 2, len(WORDS) - 1  # as in CLIP, the last token has the highest number: transformers may look for that
POSITIONS = 12
SIDE, PATCH, WIDTH, LAYERS, HEADS, JOINT = 32, 8, 16, 2, 2, 8


def write_tokenizer(out: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("<start>", START), ("<end>", END)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(out)


def write_clip(out: Path, *, act: str = "gelu") -> Path:
    """The same weights every time."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": HEADS, "projection_dim": JOINT}
    special = {"pad_token_id": 0, "bos_token_id": START, "eos_token_id": END}
    text = {**sizes, **special, "vocab_size": len(WORDS), "max_position_embeddings": POSITIONS, "hidden_act": act}
    vision = {**sizes, "image_size": SIDE, "patch_size": PATCH, "hidden_act": act}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=JOINT)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.constant_(model.logit_scale, 2.0)
    model.save_pretrained(out)
    write_tokenizer(out)
    return out
