"""Tokenizer and CLIP text encoders of an embedded world: one token per word, eleven tokens per prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tdm_r1.pretrain.scenes import Scenes

MAX_TOKENS: Final = 11
SPECIAL: Final = ("<|startoftext|>", "<|endoftext|>")
"""CLIP's marks; the encoders know their numbers, 0 and 1."""
END_OF_WORD: Final = "</w>"
WIDTHS: Final = (64, 32)
"""Hidden and projection width of the two encoders; their sum is the transformer's joint width."""


def new_tokenizer(scenes: Scenes, folder: Path) -> Any:
    """A `transformers.CLIPTokenizer` whose byte pairs spell exactly a world's vocabulary, and its characters singly."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix=END_OF_WORD))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        # The trainer numbers a word's last letters in the order of a hash table and decides ties by number: named here,
        # they have the same numbers every time.
        special_tokens=[*SPECIAL, *sorted(_ends(scenes)), *sorted(scenes.characters)],
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(scenes.vocabulary) * 4, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    bpe.model.save(str(folder))
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)
    for word in scenes.vocabulary:
        count = len(tokenizer(word)["input_ids"])
        if count != 3:
            raise ValueError(f"the tokenizer spells {word!r} in {count - 2} tokens, expected one")
    return tokenizer


def _ends(scenes: Scenes) -> set[str]:
    """Tokens of last letters, and of characters that end what is spelt."""
    return {letter + END_OF_WORD for letter in {word[-1] for word in scenes.vocabulary} | set(scenes.characters)}


def new_text_encoders(vocabulary_size: int) -> tuple[Any, Any]:
    """Two untrained `CLIPTextModelWithProjection` of two layers."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    def build(width: int) -> Any:
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=vocabulary_size,
                hidden_size=width,
                intermediate_size=2 * width,
                projection_dim=width,
                num_hidden_layers=2,
                num_attention_heads=width // 16,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )

    return build(WIDTHS[0]), build(WIDTHS[1])
