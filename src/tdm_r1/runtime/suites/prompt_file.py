"""Prompts of a user's file: one per line, a CSV with a header, or JSON objects."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tdm_r1.artifacts.lines import json_lines
from tdm_r1.errors import ConfigError
from tdm_r1.worlds.world import WorldPrompt

TEXTS: Final = ("prompt", "prompts", "text")
"""Columns or keys that may hold the prompt, in any case."""
TAGS: Final = ("tag", "category")
UNTAGGED: Final = "prompts"
MOST_BYTES: Final = 64 << 20

Row = Mapping[str, Any]


def read_prompts(path: Path) -> list[WorldPrompt]:
    """The prompts of a file, in its order, by its suffix: `.txt`, `.csv` or `.jsonl`.

    A row's other columns become the metadata that scorers see. `tag` or `category` groups prompts in tables.

    Raises:
        ConfigError: naming the line that holds no prompt.
    """
    readers = {".txt": _lines, ".csv": _table, ".jsonl": _objects}
    if path.suffix not in readers or not path.is_file():
        what = "no file" if path.suffix in readers else f"of no known form: `{path.suffix}`"
        raise ConfigError(f"`{path}` is {what}", hint=f"expected a file that ends in {', '.join(readers)}")
    if path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"`{path}` has more than {MOST_BYTES:,} bytes", hint="give a file of prompts")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"`{path}` is no UTF-8: {error}", hint="save it as UTF-8") from error
    found: list[WorldPrompt] = []
    numbers = Counter[str]()
    for line, row in readers[path.suffix](text, path):
        prompt, tag = _first(row, TEXTS), _first(row, TAGS) or UNTAGGED
        if not isinstance(prompt, str) or not prompt.strip() or not isinstance(tag, str):
            raise ConfigError(f"line {line} of `{path}` has no prompt", hint=f"give it as one of {', '.join(TEXTS)}")
        slug = re.sub(r"[^\w]+", "_", tag.strip()).strip("_").lower() or UNTAGGED
        found.append(WorldPrompt(f"{slug}-{numbers[slug]:04d}", prompt.strip(), slug, "test", dict(row)))
        numbers[slug] += 1
    if not found:
        raise ConfigError(f"`{path}` holds no prompt")
    return found


def _first(row: Row, names: tuple[str, ...]) -> Any:
    folded = {key.strip().lower(): value for key, value in row.items() if isinstance(key, str)}
    return next((folded[name] for name in names if folded.get(name)), None)


def _lines(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    del path
    lines = io.StringIO(text, newline=None)  # `splitlines` would also cut at U+2028 and form feeds
    return ((number, {"prompt": line}) for number, line in enumerate(lines, start=1) if line.strip())


def _table(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(io.StringIO(text))
    if not {name.strip().lower() for name in reader.fieldnames or ()} & set(TEXTS):
        raise ConfigError(f"`{path}` has the columns {reader.fieldnames}", hint=f"one must be {', '.join(TEXTS)}")
    try:
        yield from ((reader.line_num, {key: value for key, value in row.items() if key}) for row in reader)
    except csv.Error as error:
        raise ConfigError(f"line {reader.line_num + 1} of `{path}` is no CSV: {error}") from error


def _objects(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    for number, row in json_lines(text, path):
        if not isinstance(row, dict):
            raise ConfigError(f"line {number} of `{path}` is no JSON object", hint='write {"prompt": "…"}')
        yield number, row
