"""Third-party chatter: progress bars and advice of the loaders, silenced while they load and at no other time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep diffusers and transformers silent below `error`; their settings are as before afterwards."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with ExitStack() as stack:
        for library in (diffusers_logging, transformers_logging):
            stack.enter_context(_quiet(library))
        yield


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """One library: both have the same functions."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
