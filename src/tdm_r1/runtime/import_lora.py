"""The command `import-lora`: an adapter of another program as a generator of ours."""

from __future__ import annotations

from pathlib import Path

from tdm_r1.artifacts.manifest import sha256_of
from tdm_r1.config import RunConfig
from tdm_r1.models.adapters import Adapter
from tdm_r1.models.lora_files import as_role, find_file, read_pairs
from tdm_r1.models.shapes import skeleton
from tdm_r1.models.sources import folder_digest
from tdm_r1.runtime.lora_folder import write_folder
from tdm_r1.runtime.release import require_exportable

CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
tags: [lora, few-step, tdm-r1]
---
# An imported adapter

`{file}` (sha256 `{digest}`) as a LoRA of rank {rank} that `load_lora_weights` of stock diffusers loads with scale 1,
and that `tdm-r1` starts from with `--set distill.adapter=FOLDER --set distill.steps=0`. Made for `{source}`{at}.
Its licence is that of the file it was made of, and of its base.
"""


def import_lora(path: Path, out: Path, config: RunConfig, *, alpha: float | None) -> str:
    """Write the folder; the base's weights are not needed, only its shapes.

    Args:
        alpha: of a file that does not say: a list without names has `model.adapter.alpha`, any other its rank.

    Returns:
        The digest that pins the folder.

    Raises:
        ConfigError: when the file is of no known format, or does not fit base, layers or rank.
    """
    require_exportable(config)
    file, model = find_file(path), config.model
    adapter = Adapter(skeleton(model), model.adapter)
    pairs = read_pairs(file, adapter.modules())
    listed = file.suffix != ".safetensors"
    role = as_role(pairs, adapter, model.adapter.alpha if listed and alpha is None else alpha, file.name)
    digest = sha256_of(file)
    origin = {"name": "imported", "file": file.name, "sha256": digest}
    write_folder(out, role, config, {**origin, "base_source": model.source, "base_revision": model.revision})
    at = f" at `{model.revision}`" if model.revision else ""
    card = CARD.format(file=file.name, digest=digest, rank=model.adapter.rank, source=model.source, at=at)
    (out / "README.md").write_text(card, encoding="utf-8")
    return folder_digest(out)
