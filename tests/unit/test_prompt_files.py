"""Claims about prompts of a user's own file: lists, tables and objects are read, and what is none is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdm_r1.errors import ConfigError
from tdm_r1.presets import resolve
from tdm_r1.runtime.suites.judging import judging
from tdm_r1.runtime.suites.suite import open_suite, remarks


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "a cat\n\n a dog \na cat\n"),
        ("p.txt", "a cat\r\n\r\na\u2028dog\r\na cat"),
        ("p.csv", '\ufeffPrompts,Category\na cat,Colors\n" a dog ",Colors\na cat,"Rare Words"\n'),
        ("p.jsonl", '{"prompt": "a cat", "seed": 1}\n\n{"text": " a dog "}\n{"prompt": "a cat", "tag": "rare"}\n'),
        ("p.jsonl", '{"prompt": "a cat", "note": "a\u2028b"}\r\n{"text": "a dog"}\n{"prompt": "a cat", "tag": "rare"}'),
    ],
)
def test_prompts_are_read_from_lists_tables_and_objects(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    suite = open_suite("drawbench", tmp_path / name)
    assert [row.text.replace("\u2028", " ") for row in suite.prompts] == ["a cat", "a dog", "a cat"]
    assert len({row.prompt_id for row in suite.prompts}) == 3
    tags = {
        "p.txt": ["prompts"] * 3,
        "p.csv": ["colors", "colors", "rare_words"],
        "p.jsonl": ["prompts"] * 2 + ["rare"],
    }
    assert [row.tag for row in suite.prompts] == tags[name]
    assert "not DrawBench's" in remarks(suite)[0]


@pytest.mark.parametrize(
    ("name", "text", "claim"),
    [
        ("p.csv", "word,tag\na,b\n", "columns"),
        ("p.csv", f"prompt\na\n{'a' * 200_000}\n", "line 3 .* is no CSV: field larger"),
        ("p.jsonl", '{"prompt": "a"}\n{"seed": 1}\n', "line 2 .* has no prompt"),
        ("p.jsonl", '{"prompt": "a"}\n[1]\n', "line 2 .* is no JSON object"),
        ("p.jsonl", "{\n", "line 1 .* is no JSON"),
        ("p.txt", "\n", "holds no prompt"),
        ("p.txt", b"\xff\xfe", "no UTF-8"),
        ("p.xlsx", "a", "no known form"),
    ],
)
def test_a_file_without_prompts_is_refused_with_its_line(
    name: str, text: str | bytes, claim: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=claim):
        open_suite("prompts", tmp_path / name)


def test_drawbench_says_where_its_prompts_are_and_needs_a_scorer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"imagen\.research\.google"):
        open_suite("drawbench")
    (tmp_path / "p.txt").write_text("a cat")
    with pytest.raises(ConfigError, match="no scorer was named"):
        judging(open_suite("drawbench", tmp_path / "p.txt"), resolve("shapes_cpu", {}), {}, None)
    with pytest.raises(ConfigError, match="no suite `genval`"):
        open_suite("genval")
