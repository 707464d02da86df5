"""Read what an audit compares records with: run.json, the rewards of variants, and which records are listed."""

from __future__ import annotations

import json
import re

from tdm_r1.artifacts.repository import MANIFEST_NAME
from tdm_r1.artifacts.store import Store
from tdm_r1.config import RunConfig
from tdm_r1.errors import ArtifactError, ConfigError
from tdm_r1.runtime.audit_faults import Fault
from tdm_r1.runtime.audit_files import first_line
from tdm_r1.runtime.layout import AGAIN, BASE, FEEDBACK, ONCE, PROMPTS, RUN_FILE, SHARDED, STAGES, VARIANTS, Task
from tdm_r1.runtime.run_file import (
    digest_of,
    digest_of_config,
    length_bytes,
    listed_lengths,
    read_config,
    stored_values,
)
from tdm_r1.runtime.variants import listed_variants, reward_key, variant_config


def read_configuration(store: Store, keys: frozenset[str]) -> tuple[RunConfig | None, frozenset[str], list[Fault]]:
    """Read run.json; without a readable one the audit goes on with what the listing shows."""
    if RUN_FILE not in keys and not listed_tasks(keys):
        read_config(store)  # says that this is no run
    try:
        config = read_config(store)
        raw = store.read_bytes(RUN_FILE)
        stored = stored_values(raw)
        canonical = json.dumps(json.loads(raw), indent=2, ensure_ascii=False).encode() + b"\n"
    except (ConfigError, ArtifactError, ValueError) as error:
        found = error.message if isinstance(error, ConfigError | ArtifactError) else str(error)
        return None, frozenset(), [Fault("configuration", RUN_FILE, first_line(found), "the run's configuration")]
    digests, faults = frozenset({digest_of(stored), digest_of_config(config)}), []
    if raw != canonical:
        faults.append(Fault("configuration", RUN_FILE, "other bytes", "the bytes that `init` writes"))
    for key, length in sorted(listed_lengths(keys).items()):
        if store.read_bytes(key) != length_bytes(length, digest_of(stored)):
            faults.append(Fault("configuration", key, "other bytes", "the bytes that `extend` writes"))
    return config, digests, faults


def read_variants(
    store: Store, config: RunConfig | None, keys: frozenset[str]
) -> tuple[dict[str, RunConfig], list[Fault]]:
    """The configuration of each variant by its name, and the variants whose reward cannot be read."""
    if config is None:
        return {}, []
    configs, faults = {}, []
    for name in listed_variants(keys):
        try:
            configs[name] = variant_config(store, config, name)
        except (ConfigError, ArtifactError) as error:
            faults.append(Fault("configuration", reward_key(name), first_line(error.message), "a variant's reward"))
    return configs, faults


def listed_tasks(keys: frozenset[str]) -> list[Task]:
    """The tasks whose manifests are listed, in order of their locations."""
    found = (
        parse_location(key.removesuffix(f"/{MANIFEST_NAME}"))
        for key in sorted(keys)
        if key.endswith("/" + MANIFEST_NAME)
    )
    return [task for task in found if task is not None]


def parse_location(location: str) -> Task | None:
    """The task that commits to this location, or None."""
    once = {PROMPTS: ONCE[0], BASE: ONCE[1]}
    if location in once:
        return Task(once[location])
    pattern = rf"(?:{VARIANTS}/([a-z0-9_-]+)/)?iter-(\d{{5}})/([a-z_]+)(?:/shard-(\d{{4}}))?"
    match = re.fullmatch(pattern, location)
    if match is None or match[3] not in (*(AGAIN if match[1] else STAGES), FEEDBACK) or match[3] in ONCE:
        return None
    if (match[3] in SHARDED) != bool(match[4]):
        return None
    return Task(match[3], int(match[2]), int(match[4] or 0), match[1] or "")
