"""`run.json`: read without the tensor library, for those who only look after a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tdm_r1.artifacts.seal import canonical_json, parse_object, seal_of, take_seal
from tdm_r1.artifacts.store import Store
from tdm_r1.config import RunConfig
from tdm_r1.errors import ConfigError, CorruptArtifactError
from tdm_r1.runtime.layout import RUN_FILE


def digest_of(values: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, as every manifest records it."""
    return hashlib.sha256(canonical_json(values)).hexdigest()


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


def read_config(store: Store) -> RunConfig:
    """Parse `run.json`.

    Raises:
        ConfigError: when it is missing or not a valid configuration.
        CorruptArtifactError: when it is not what was written.
    """
    if not store.exists(RUN_FILE):
        raise ConfigError(
            f"`{store.root}` holds no {RUN_FILE}, so it is not a run",
            hint=f"start one with `tdm-r1 run --preset shapes_smoke --root {store.root}`",
        )
    try:
        return RunConfig.model_validate_json(json.dumps(stored_values(store.read_bytes(RUN_FILE))))
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
