"""`tdm-r1 launch`: torchrun with the exit codes of a stage.

torchrun itself exits with 1 whatever its processes exited with, so that no orchestrator could tell a refusal from a
machine that was lost.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from typing import Final

from tdm_r1.errors import ConfigError, TdmR1Error, TemporaryError

TEMPORARY: Final = TemporaryError.exit_code


def launch(arguments: Sequence[str]) -> int:
    """Run `torchrun OPTIONS -m tdm_r1 stage …` in this process.

    Args:
        arguments: options of torchrun, then `stage` and all that follows it.

    Returns:
        0 when every process committed or found the record committed, 2 when one of them refused, else 75.

    Raises:
        ConfigError: when no stage is named.
    """
    if "stage" not in arguments:
        raise ConfigError(
            "launch names no stage to start",
            hint="write `tdm-r1 launch --nproc-per-node 8 stage surrogate_update --root R --iteration 3`",
        )
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    split = list(arguments).index("stage")
    given = parse_args([*arguments[:split], "-m", "tdm_r1", *arguments[split:]])
    try:
        with tempfile.TemporaryDirectory(prefix="tdm-r1-") as scratch:
            given.log_dir = given.log_dir or scratch  # without one, torchrun makes a folder that it never deletes
            run(given)
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        return TdmR1Error.exit_code if TdmR1Error.exit_code in codes else TEMPORARY
    except (SignalException, RuntimeError) as error:  # a rendezvous that failed is a RuntimeError
        print(f"error: {error}\n\nhint: nothing was committed; run the same command again", file=sys.stderr)
        return TEMPORARY
    return 0
