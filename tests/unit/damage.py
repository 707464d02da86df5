"""How the tests damage and forge the records of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from tdm_r1.artifacts.codec import Record
from tdm_r1.artifacts.records import RECORDS
from tdm_r1.artifacts.repository import commit, load
from tdm_r1.artifacts.store import open_store


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def hashed(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sha256(text.encode()).hexdigest()


def sealed(body: dict[str, Any]) -> dict[str, Any]:
    """The manifest with a digest and a seal that fit its content, as a forger would write them."""
    body = {key: value for key, value in body.items() if key not in ("digest", "seal")}
    content = {key: value for key, value in body.items() if key != "provenance"}
    content["files"] = {
        name: {key: value for key, value in entry.items() if key not in ("stored_as", "blocks")}
        for name, entry in body["files"].items()
    }
    body["digest"] = hashed(content)
    return body | {"seal": hashed(body)}


def doctor(root: Path, location: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest in place and make its digest and seal fit again."""
    path = root / location / "manifest.json"
    body = json.loads(path.read_bytes())
    edit(body)
    path.write_text(json.dumps(sealed(body)))


def forge(root: Path, location: str, change: Callable[[Any], Record]) -> None:
    """Commit a changed record in the place of another, consistent in itself."""
    store = open_store(str(root))
    kind = RECORDS[json.loads((root / location / "manifest.json").read_bytes())["kind"]]
    record, manifest = load(store, location, kind)
    changed = change(record)
    store.delete_prefix(location)
    given = {"parents": manifest.parents, "config_digest": manifest.config_digest}
    commit(store, location, changed, provenance=manifest.provenance, **given)  # type: ignore[arg-type]
