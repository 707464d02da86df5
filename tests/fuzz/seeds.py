"""Valid inputs of every reader, for fuzzers to damage."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.picture import Stamp, pixel_digest, write_png
from tdm_r1.artifacts.store import open_store
from tdm_r1.artifacts.tombstone import bury
from tdm_r1.presets import resolve
from tdm_r1.runtime.run import config_bytes
from tests.unit.artifact_examples import EXAMPLES, PROVENANCE, WHERE, evaluation, put, rollout

SMALL: dict[str, Callable[[], Record]] = {
    **EXAMPLES,
    "rollout": lambda: rollout(3),
    "evaluation": lambda: evaluation(3),
}


def seeds() -> dict[str, list[bytes]]:
    """Valid bytes by the name of their reader."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        return _seeds(Path(folder))


def _seeds(folder: Path) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {"manifest": [], "tensors": [], "tombstone": []}
    for kind, example in SMALL.items():
        store, record = open_store(str(folder / kind)), example()
        manifest = put(store, record)
        found["manifest"].append(manifest.to_bytes())
        stone = bury(manifest, list(manifest.files), pruned=PROVENANCE.finished, rule="--keep-last 1")
        found["tombstone"].append(stone.to_bytes())
        for file in record.files():
            data = (folder / kind / WHERE / file).read_bytes()
            name = {".parquet": f"{kind}/{file}", ".safetensors": "tensors"}.get(Path(file).suffix)
            if name is not None:
                found.setdefault(name, []).append(data)
        if record.version > 1:
            lists = folder / f"{kind}-1"
            lists.mkdir()
            record.write(lists, version=1)
            found[f"{kind}/{(file := next(iter(record.files())))}"].append((lists / file).read_bytes())
    found["run"] = [config_bytes(resolve("plane", {}))]
    found["picture"] = [picture(folder / "a.png"), plain_picture()]
    return found


def picture(path: Path, **change: object) -> bytes:
    """A stamped PNG."""
    image = Image.effect_mandelbrot((8, 6), (-2, -1, 1, 1), 20).convert("RGB")
    about: dict[str, object] = {"run": "runs/a", "iteration": 3, "record": "a" * 64, "config": "b" * 64}
    about |= {"prompts": ["a red circle"], "count": 1, "seed": 0, "code_version": "0", "pixels": pixel_digest(image)}
    write_png(image, path, Stamp.model_validate(about | change))
    return path.read_bytes()


def plain_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format="PNG")
    return buffer.getvalue()
