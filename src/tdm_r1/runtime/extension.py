"""Make a run longer without changing anything of it: what is committed stays, and `run` goes on."""

from __future__ import annotations

from tdm_r1.artifacts.store import open_store
from tdm_r1.config import MOST_ITERATIONS, RunConfig
from tdm_r1.errors import ConfigError
from tdm_r1.runtime.layout import RUN_FILE
from tdm_r1.runtime.run_file import digest_of, length_bytes, length_key, read_config, stored_values


def extend_run(root: str, iterations: int) -> RunConfig:
    """Write that the run at `root` has so many iterations. The same length again is free.

    Returns:
        The configuration of the longer run.

    Raises:
        ConfigError: when the run is not that short, or its last evaluation would not be due in a longer one.
    """
    store = open_store(root)
    config = read_config(store)
    if iterations == config.iterations != config.declared.iterations:
        return config
    if not config.iterations < iterations <= MOST_ITERATIONS:
        raise ConfigError(
            f"--iterations is {iterations}, expected more than the run's {config.iterations} "
            f"and at most {MOST_ITERATIONS:,}",
            hint=f"a run never becomes shorter; to stop it early, create the file {root}/STOP",
        )
    every = config.evaluation.every
    if not every or config.iterations % every:
        raise ConfigError(
            f"iteration {config.iterations} is evaluated as the last one: evaluation.every={every} does not divide it",
            hint="a longer run would not ask for that record; start another run with more iterations",
        )
    digest = digest_of(stored_values(store.read_bytes(RUN_FILE)))
    store.require_writable()
    store.write_bytes_if_absent(length_key(iterations), length_bytes(iterations, digest))
    return read_config(store)
