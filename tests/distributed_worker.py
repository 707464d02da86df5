"""Ranks for tests: several `tdm-r1 stage` commands in one process, for a fresh process costs more than a tiny stage.

`torchrun … tests/distributed_worker.py STAGE[/N] … -- ROOT …`. With TDM_R1_TEST_DIE=RANK:PATH that rank is killed as
soon as PATH exists.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from tdm_r1.console import end_rank
from tdm_r1.runtime.command import run_stage
from tdm_r1.telemetry.outlets import Outlets


def die_when(path: Path) -> None:
    while not path.exists():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    rank, _, path = os.environ.get("TDM_R1_TEST_DIE", "").partition(":")
    if path and rank == os.environ.get("RANK", "0"):
        threading.Thread(target=die_when, args=(Path(path),), daemon=True).start()
    cut = sys.argv.index("--")
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for root in sys.argv[cut + 1 :]:
        for word in sys.argv[1:cut]:
            stage, _, iteration = word.partition("/")
            run_stage(
                stage, root, iteration=int(iteration or 0), shard=0, variant="", executor_input="", outlets=Outlets()
            )
    if dist.is_initialized():
        dist.destroy_process_group()
        end_rank(0)


if __name__ == "__main__":
    main()
