"""`run.json`: read without the tensor library, for those who only look after a run."""

from __future__ import annotations

from pydantic import ValidationError

from tdm_r1.artifacts.store import Store
from tdm_r1.config import RunConfig
from tdm_r1.errors import ConfigError
from tdm_r1.runtime.layout import RUN_FILE


def read_config(store: Store) -> RunConfig:
    """Parse `run.json`.

    Raises:
        ConfigError: when it is missing or not a valid configuration.
    """
    if not store.exists(RUN_FILE):
        raise ConfigError(
            f"`{store.root}` holds no {RUN_FILE}, so it is not a run",
            hint=f"start one with `tdm-r1 run --preset shapes_smoke --root {store.root}`",
        )
    try:
        return RunConfig.model_validate_json(store.read_bytes(RUN_FILE))
    except ValidationError as error:
        raise ConfigError(
            f"`{store.root}/{RUN_FILE}` is not a valid configuration: {error}",
            hint="it was written by another version or by hand: choose another --root",
        ) from error
