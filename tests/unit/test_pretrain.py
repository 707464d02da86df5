"""Claims about what `tdm-r1 pretrain` makes from nothing."""

from __future__ import annotations

import json
from pathlib import Path

from tdm_r1.pretrain.scenes import SHAPES
from tdm_r1.pretrain.text import SPECIAL, new_tokenizer
from tdm_r1.worlds.shapes.grammar import vocabulary


def test_the_tokenizer_is_the_same_every_time_and_has_one_token_per_word(tmp_path: Path) -> None:
    """Its trainer counts with hash tables, each of which has an order of its own."""
    made = [new_tokenizer(SHAPES, tmp_path / str(number)) for number in range(4)]
    files = [{path.name: path.read_bytes() for path in (tmp_path / str(number)).iterdir()} for number in range(4)]
    assert files[0].keys() == {"vocab.json", "merges.txt"}
    assert all(other == files[0] for other in files)
    numbers = json.loads(files[0]["vocab.json"])
    assert [numbers[token] for token in SPECIAL] == [0, 1]
    assert sorted(numbers.values()) == list(range(len(numbers)))
    spelt = [made[0](word)["input_ids"] for word in sorted(vocabulary())]
    assert all(len(ids) == 3 and (ids[0], ids[2]) == (0, 1) for ids in spelt)
    assert len({ids[1] for ids in spelt}) == len(vocabulary())
