"""What tests of compiled pipelines share: the committed YAML, and a program that records what it is asked."""

from __future__ import annotations

import copy
import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from pipelines import ir as compiled
from pipelines.compile import COMPILED
from pipelines.local import task_argvs

RECORDER = '''\
"""Stands for `tdm-r1`: records its argv and writes the outputs that the command line promises."""
import hashlib, json, pathlib, sys
here, argv = pathlib.Path(__file__).parent, sys.argv[1:]
with (here / "record.jsonl").open("a") as log:
    log.write(json.dumps(argv) + "\\n")
told = json.loads((here / "told.json").read_text())
words = argv[2:] if argv[0] == "stage" else argv[1:]
options = dict(zip(words[::2], words[1::2]))
name = argv[1] if argv[0] == "stage" else "next"
if name == told["crash_at"]:
    sys.exit(75)
if "--out" in options:
    left = told["ahead"]
    pathlib.Path(options["--out"]).write_text(str(left[0]) if left else "none")
    (here / "told.json").write_text(json.dumps({**told, "ahead": left[1:]}))
if "--executor-input" not in options:
    sys.exit(0)
task = json.loads(options["--executor-input"])
iteration = int(options.get("--iteration", -1)) + int(options.get("--offset", 0))
stop = told["stop_at"] >= 0 and (iteration > told["stop_at"] if name == "next" else iteration == told["stop_at"])
answers = {"done": hashlib.sha256(" ".join(argv[:-1]).encode()).hexdigest(),
           "stop": json.dumps(stop), "iterations": json.dumps(told["ahead"])}
for output, place in task["outputs"]["parameters"].items():
    pathlib.Path(place["outputFile"]).write_text(answers[output])
'''


class Bench(NamedTuple):
    """A recording program, and what it has recorded."""

    folder: Path

    def programs(self, **told: Any) -> dict[str, list[str]]:
        """Programs in place of the containers', and what the recorder answers."""
        answers = {"stop_at": -1, "crash_at": "", "ahead": [], **told}
        (self.folder / "recorder.py").write_text(RECORDER)
        (self.folder / "told.json").write_text(json.dumps(answers))
        return {"tdm-r1": [sys.executable, str(self.folder / "recorder.py")], "python": [sys.executable]}

    def execute(self, ir: dict[str, Any], given: dict[str, Any] | None = None, **told: Any) -> list[list[str]]:
        """Execute a pipeline with the recorder in place of `tdm-r1`."""
        programs = self.programs(**told)
        asked = {"root": "runs/a", "start": 10, "shards": [0.0, 1.0]} if given is None else given
        return list(task_argvs(ir, asked, scratch=self.folder / "scratch", programs=programs))

    def run(self, name: str, given: dict[str, Any] | None = None, **told: Any) -> list[list[str]]:
        return self.execute(documents(name)[0], given, **told)

    def record(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "record.jsonl").read_text().splitlines()]

    def steps(self) -> list[str]:
        return [step(argv) for argv in self.record()]


@functools.cache
def _parsed(name: str) -> list[dict[str, Any]]:
    return compiled.documents((COMPILED / f"{name}.yaml").read_text(encoding="utf-8"))


def documents(name: str) -> list[dict[str, Any]]:
    """Return the pipeline and the platform document, as a copy that a test may break."""
    return copy.deepcopy(_parsed(name))


def step(argv: list[str]) -> str:
    """Shorten an argv of the recorder: `rollout 10+2 shard 1`."""
    words = argv[2:] if argv[0] == "stage" else argv[1:]
    options = dict(zip(words[::2], words[1::2], strict=True))
    name = argv[1] if argv[0] == "stage" else argv[0]
    offset = f"+{options['--offset']}" if "--offset" in options else ""
    where = f" {options['--iteration']}{offset}" if "--iteration" in options else ""
    variant = f" as {options['--variant']}" if "--variant" in options else ""
    return name + where + (f" shard {options['--shard']}" if "--shard" in options else "") + variant


def iteration_steps(at: str) -> list[str]:
    shards = [f"{stage} {at} shard {shard}" for shard in (0, 1) for stage in ("rollout", "reward_scoring")]
    return [*shards, *(f"{stage} {at}" for stage in ("surrogate_update", "generator_update", "evaluation"))]
