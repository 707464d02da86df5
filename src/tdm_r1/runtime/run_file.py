"""`run.json` and what made the run longer: read without the tensor library, for those who only look after a run.

`run.json` never changes. A longer run has a file `lengths/NNNNN.json` beside it, written once, that names the
configuration it extends; the run is as long as the longest of them says. See ADR 0018.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tdm_r1.artifacts.seal import canonical_json, parse_object, seal_of, take_seal
from tdm_r1.artifacts.store import Store
from tdm_r1.config import RunConfig
from tdm_r1.errors import ConfigError, CorruptArtifactError
from tdm_r1.runtime.layout import LENGTHS, RUN_FILE


def run_file_bytes(values: Mapping[str, Any]) -> bytes:
    """`run.json` of a resolved configuration: indented, with a seal over all of it at the end."""
    return json.dumps({**values, "seal": seal_of(values)}, indent=2, ensure_ascii=False).encode() + b"\n"


def stored_values(data: bytes) -> dict[str, Any]:
    """The configuration in `run.json` as it stands there, without its seal; one of an earlier version has none.

    Raises:
        ValueError: when it is not a JSON object.
        CorruptArtifactError: when its seal does not fit.
    """
    body = parse_object(data)
    take_seal(body, "configuration")
    return body


def digest_of(values: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, as every manifest records it."""
    return hashlib.sha256(canonical_json(values)).hexdigest()


def digest_of_config(config: RunConfig) -> str:
    """SHA-256 of the resolved configuration as `run.json` has it: a longer run is the same run."""
    return digest_of(config.declared.model_dump(mode="json"))


def length_key(iterations: int) -> str:
    """Where it is written that the run has so many iterations, below the root."""
    return f"{LENGTHS}/{iterations:05d}.json"


def length_bytes(iterations: int, config_digest: str) -> bytes:
    """The file at `length_key`: the same bytes whoever writes it."""
    return run_file_bytes({"iterations": iterations, "config_digest": config_digest})


def listed_lengths(keys: Iterable[str]) -> dict[str, int]:
    """Iterations that an extension gives the run, by its key, among the keys of a root."""
    pattern = re.compile(rf"{LENGTHS}/(\d{{5}})\.json")
    return {key: int(match[1]) for key in keys if (match := pattern.fullmatch(key))}


def read_config(store: Store) -> RunConfig:
    """Parse `run.json`, with the iterations of the longest extension.

    Raises:
        ConfigError: when it is missing or not a valid configuration.
        CorruptArtifactError: when it, or the extension, is not what was written.
    """
    config, digest = _declared_config(store)
    lengths = listed_lengths(store.list(LENGTHS))
    if not lengths:
        return config
    key, longest = max(lengths.items(), key=lambda item: item[1])
    if longest <= config.iterations or store.read_bytes(key) != length_bytes(longest, digest):
        raise CorruptArtifactError(
            f"`{store.root}/{key}` is not what `tdm-r1 extend` writes for this {RUN_FILE}",
            hint="restore it from a copy, or delete it if nobody extended this run",
        )
    return config.extended(longest)


def _declared_config(store: Store) -> tuple[RunConfig, str]:
    """`run.json` parsed, and the digest of what stands there."""
    if not store.exists(RUN_FILE):
        raise ConfigError(
            f"`{store.root}` holds no {RUN_FILE}, so it is not a run",
            hint=f"start one with `tdm-r1 run --preset shapes_smoke --root {store.root}`",
        )
    try:
        stored = stored_values(store.read_bytes(RUN_FILE))
        return RunConfig.model_validate_json(json.dumps(stored)), digest_of(stored)
    except CorruptArtifactError as error:
        raise CorruptArtifactError(
            f"`{store.root}/{RUN_FILE}` was changed after it was written: {error.message}",
            hint="restore it from a copy; a run with other knobs is another run: choose another --root",
        ) from error
    except (ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
        raise ConfigError(
            f"`{store.root}/{RUN_FILE}` is not a valid configuration: {error}",
            hint="it was written by another version or by hand: choose another --root",
        ) from error
