"""Pages made from code: the table of stages, and a picture of each pipeline.

`python -m pipelines.stages PIPELINE.yaml OUT.svg` draws any compiled pipeline.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pipelines.ir import documents
from pipelines.picture import picture
from tdm_r1.artifacts.records import RECORDS
from tdm_r1.presets import revise, shapes_cpu
from tdm_r1.profiles import POOL_OF, PROFILES, Pool, Profile, open_profile
from tdm_r1.runtime.layout import ONCE, SHARDED, STAGES, Task, parents_of, variant_tasks

Node = Mapping[str, Any]

DRAWN: Final = ("iteration", "block", "loop", "score_only", "evaluate_only")
HEAD: Final = """\
# Stages, machines, inputs and outputs

Made from the code by `python -m pipelines.compile`; `make check` fails when it is not current. N is an iteration, S a
shard. In the first iteration `base` stands for `iter-(N−1)/generator_update`, and there is no surrogate before.

"""


def pages(texts: Mapping[str, str]) -> dict[str, str]:
    """Text by file name below `docs/operations`.

    Args:
        texts: compiled pipelines by file name.
    """
    drawn = {f"{name}.svg": picture(documents(texts[f"{name}.yaml"])[0]) for name in DRAWN}
    return {"stages.md": stages_page(), **drawn}


def stages_page() -> str:
    """Stages × what they read and commit, then × machines of each profile, then pools and pictures."""
    profiles = [open_profile(name) for name in PROFILES]
    parts = [
        HEAD + _table(("stage", "reads", "commits", "files", "exit codes"), [_io_row(stage) for stage in STAGES]),
        "Judged again by another reward (`docs/adr/0008-variants.md`):\n\n"
        + _table(("command", "reads", "commits"), _variant_rows()),
        "## Machines\n\nOf one pod, by profile (`src/tdm_r1/profiles.py`): cores, memory, devices, processes if "
        "several, longest time.\n\n"
        + _table(("stage", "pool", *PROFILES), [_machine_row(stage, profiles) for stage in [*STAGES, "next"]]),
        "## Where pods may go\n\n" + _table(_POOL_COLUMNS, [row for p in profiles for row in _pool_rows(p)]),
        "## Pipelines\n\n" + "\n\n".join(f"`{name}`\n\n![{name}]({name}.svg)" for name in DRAWN),
    ]
    return "\n\n".join(parts) + "\n"


_POOL_COLUMNS: Final = ("profile", "pool", "node labels", "tolerates", "Kueue queue", "priority", "spot", "per hour")


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _generic(task: Task) -> str:
    """A location with letters for the numbers."""
    text = re.sub(r"iter-(\d+)", lambda found: {3: "iter-N", 2: "iter-(N−1)"}.get(int(found[1]), "?"), task.location)
    return f"`{re.sub(r'shard-[0-9]+', 'shard-S', text)}`"


def _config() -> Any:
    """A run of one shard whose window reaches no further than its own iteration."""
    return revise(shapes_cpu(), {"surrogate.replay": 0, "rollout.shards": 1})


def _io_row(stage: str) -> tuple[str, ...]:
    task = Task(stage) if stage in ONCE else Task(stage, 3)
    reads = ", ".join(_generic(parent) for parent in parents_of(task, _config())) or "`run.json`"
    if stage == "surrogate_update":
        reads += ", and the shards of the `surrogate.replay` iterations before"
    files = ", ".join(f"`{name}`" for name in RECORDS[stage].files())
    once = " once per shard" if stage in SHARDED else " once per run" if stage in ONCE else ""
    return f"`{stage}`{once}", reads, _generic(task), files, "0, 2, 75"


def _variant_rows() -> list[tuple[str, ...]]:
    tasks = [task for task in variant_tasks("V", _config()) if task.iteration == 3 or task.stage == "evaluation"]
    found = {task.stage: Task(task.stage, 3, 0, "V") for task in tasks}
    return [
        (
            f"`stage {stage} --variant V`",
            ", ".join(_generic(parent) for parent in parents_of(task, _config())),
            _generic(task),
        )
        for stage, task in sorted(found.items(), reverse=True)
    ]


def _machine_row(stage: str, profiles: list[Profile]) -> tuple[str, ...]:
    name = f"`{stage}`" if stage in STAGES else "`next`, skipped"
    machines = (_machine(p.pool_of(stage), p.timeout_of(stage)) for p in profiles)
    return name, POOL_OF.get(stage, "control"), *machines


def _machine(pool: Pool, seconds: int) -> str:
    devices = f", {pool.accelerators} × `{pool.accelerator}`" if pool.accelerators else ""
    several = f", {pool.processes} processes" if pool.processes > 1 else ""
    return f"{pool.cpu}, {pool.memory}{devices}{several}, {seconds / 3600:g} h"


def _pool_rows(profile: Profile) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name in type(profile.pools).model_fields:
        pool: Pool = getattr(profile.pools, name)
        labels = ", ".join(f"`{key}={value}`" for key, value in pool.node_labels.items()) or "any node"
        taints = ", ".join(f"`{t.key}{'=' + t.value if t.value else ''}`" for t in pool.tolerations) or "–"
        price = "–" if pool.price_per_hour is None else f"{pool.price_per_hour:g}"
        marks = (pool.queue or "–", pool.priority or "–", "yes" if pool.spot else "no", price)
        rows.append((profile.name, name, labels, taints, *marks))
    return rows


def main() -> int:
    """Draw one compiled pipeline."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[2])
    parser.add_argument("pipeline", type=Path, help="compiled YAML")
    parser.add_argument("out", type=Path, help="SVG to write")
    given = parser.parse_args()
    ir = documents(given.pipeline.read_text(encoding="utf-8"))[0]
    given.out.write_text(picture(ir), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
