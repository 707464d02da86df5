"""Write `docs/memory_tables.md` from the model of memory: `python -m tdm_r1.plan.document FILE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from tdm_r1.plan.memory_view import markdown
from tdm_r1.presets import resolve

PRESETS: Final = ("sd35_medium_geneval", "z_image_turbo_hpsv3")
INTRODUCTION: Final = """\
<!-- Made by `make golden` from src/tdm_r1/plan; do not edit. -->
# Memory of the published presets: computed

**Computed, not measured on a GPU**; what is counted and assumed: [memory.md](memory.md). GB of 10⁹ bytes per process.

- `rows`: trajectories of one call as configured; `fits`: the most that fit the card, whole groups in
  `surrogate_update`, a multiple of `sampler.steps` in `distill_base`.
- `peak`: with 2 GB for context and workspaces, and 10% more than the activations of the network or of the
  decoder's call, whichever are more. `host`: masters, gradients and moments in the memory of the host.
- `TFLOP`: of one optimizer step of each role, or of a shard's rollout; `s`: at 40% of the card's bfloat16 peak.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(f"{markdown(resolve(preset, {}), 1)}\n" for preset in PRESETS)])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
