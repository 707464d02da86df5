"""The compiled pipelines: what is committed, what the checker refuses, and what runs when they are executed here."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"

import copy
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from kfp import compiler, dsl

from pipelines.check import MAX_BYTES, BrokenPipelineError, check, graph_faults
from pipelines.compile import COMPILED, stale
from pipelines.local import TaskFailedError, UnsupportedPipelineError, task_argvs

ROOT = Path(__file__).parents[2]
STAGES = [
    *("encode_prompts", "distill_base", "rollout", "reward_scoring"),
    *("surrogate_update", "generator_update", "evaluation"),
]

RECORDER = '''\
"""Stands for `tdm-r1`: records its argv and writes the outputs that the command line promises."""
import hashlib, json, pathlib, sys
here, argv = pathlib.Path(__file__).parent, sys.argv[1:]
with (here / "record.jsonl").open("a") as log:
    log.write(json.dumps(argv) + "\\n")
options = dict(zip(argv[2::2], argv[3::2]))
task = json.loads(options["--executor-input"])
if argv[1] == (here / "crash_at").read_text():
    sys.exit(75)
iteration = int(options.get("--iteration", -1)) + int(options.get("--offset", 0))
answers = {"done": hashlib.sha256(" ".join(argv[:-1]).encode()).hexdigest(),
           "stop": json.dumps(iteration == int((here / "stop_at").read_text()))}
for name, output in task["outputs"]["parameters"].items():
    pathlib.Path(output["outputFile"]).write_text(answers[name])
if argv[1] == "evaluation":
    artifacts = task["outputs"]["artifacts"]
    pathlib.Path(artifacts["report"]["artifacts"][0]["uri"]).write_text("<html></html>")
    shown = {"metrics": {"artifacts": [{**artifacts["metrics"]["artifacts"][0], "metadata": {"reward": 0.5}}]}}
    pathlib.Path(task["outputs"]["outputFile"]).write_text(json.dumps({"artifacts": shown}))
'''


class Bench(NamedTuple):
    """A recording program, and what it has recorded."""

    folder: Path

    def execute(self, ir: dict[str, Any], stop_at: int = -1, crash_at: str = "", **more: Any) -> list[list[str]]:
        """Execute a pipeline with the recorder in place of `tdm-r1`."""
        for name, text in {"recorder.py": RECORDER, "stop_at": str(stop_at), "crash_at": crash_at}.items():
            (self.folder / name).write_text(text)
        programs = {"tdm-r1": [sys.executable, str(self.folder / "recorder.py")], "python": [sys.executable]}
        given = {"root": "runs/a", "start": 10, "shards": [0.0, 1.0], **more}
        return list(task_argvs(ir, given, scratch=self.folder / "scratch", programs=programs))

    def run(self, name: str, **more: Any) -> list[list[str]]:
        return self.execute(documents(name)[0], **more)

    def record(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "record.jsonl").read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@functools.cache
def _parsed(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((COMPILED / f"{name}.yaml").read_text(encoding="utf-8")))


def documents(name: str) -> list[dict[str, Any]]:
    """Return the pipeline and the platform document, as a copy that a test may break."""
    return copy.deepcopy(_parsed(name))


def step(argv: list[str]) -> str:
    """Shorten an argv of the recorder: `rollout 10+2 shard 1`."""
    options = dict(zip(argv[2::2], argv[3::2], strict=True))
    where = f" {options['--iteration']}+{options['--offset']}" if "--iteration" in options else ""
    return argv[1] + where + (f" shard {options['--shard']}" if "--shard" in options else "")


def iteration_steps(offset: int) -> list[str]:
    at = f"10+{offset}"
    shards = [f"{stage} {at} shard {shard}" for shard in (0, 1) for stage in ("rollout", "reward_scoring")]
    return [*shards, *(f"{stage} {at}" for stage in ("surrogate_update", "generator_update", "evaluation"))]


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_compiling_again_gives_the_committed_files(hash_seed: str) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TDM_R1_")}
    command = [sys.executable, "-m", "pipelines.compile", "--check"]
    result = subprocess.run(
        command, cwd=ROOT, env={**clean, "PYTHONHASHSEED": hash_seed}, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_a_changed_or_missing_golden_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "same.yaml").write_text("a: 1\n")
    (tmp_path / "changed.yaml").write_text("a: 1\n")
    texts = {"same.yaml": "a: 1\n", "changed.yaml": "a: 2\n", "missing.yaml": "a: 1\n"}
    assert stale(texts, tmp_path) == ["changed.yaml", "missing.yaml"]


@pytest.mark.parametrize("stage", [*STAGES, "skipped"])
def test_the_readme_of_a_component_states_its_ports_its_pool_and_its_argv(stage: str) -> None:
    ir, platform = documents("block")
    readme = (ROOT / "components" / stage / "README.md").read_text(encoding="utf-8")
    label = stage.replace("_", "-")
    component = ir["components"][f"comp-{label}"]
    definitions = (component.get("inputDefinitions", {}), component["outputDefinitions"])
    ports = {port for side in definitions for kind in side.values() for port in kind}
    assert set(re.findall(r"^\| (?:in|out) \| `(\w+)`", readme, re.MULTILINE)) == ports
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{label}"]
    assert f"Pool: **{settings['nodeSelector']['labels']['tdm-r1/pool'].upper()}**" in readme
    if stage != "skipped":
        container = ir["deploymentSpec"]["executors"][f"exec-{label}"]["container"]
        names = {"root": "ROOT", "start": "START", "offset": "K", "shard": "I"}
        argv = " ".join([*container["command"], *container["args"]])
        argv = re.sub(r"\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}", lambda found: names[found[1]], argv)
        assert f"```\n{argv}\n```" in readme


def _task(ir: dict[str, Any], name: str) -> dict[str, Any]:
    task: dict[str, Any] = ir["components"]["comp-tdm-r1-iteration"]["dag"]["tasks"][name]
    return task


def _argument(ir: dict[str, Any], text: str) -> None:
    ir["deploymentSpec"]["executors"]["exec-rollout"]["container"]["args"].append(text)


SEEDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "metadata placeholder": (lambda ir: _argument(ir, "{{$.inputs.artifacts['m'].metadata['k']}}"), "never resolved"),
    "placeholder inside a word": (lambda ir: _argument(ir, "--x={{$.pipeline_root}}"), "never resolved"),
    "loop over artifacts": (lambda ir: _task(ir, "for-loop-1").update(artifactIterator={}), "loop over artifacts"),
    "list of artifacts": (
        lambda ir: ir["components"]["comp-rollout"]["inputDefinitions"].update(
            artifacts={"m": {"isArtifactList": True}}
        ),
        "a list of artifacts",
    ),
    "missing producer task": (
        lambda ir: ir["components"]["comp-tdm-r1-iteration"]["dag"]["tasks"].pop("surrogate-update"),
        "producer surrogate-update is not a task here",
    ),
    "missing producer output": (
        lambda ir: ir["components"]["comp-surrogate-update"]["outputDefinitions"]["parameters"].pop("done"),
        "producer surrogate-update has no output done",
    ),
    "missing branch output": (
        lambda ir: ir["components"]["comp-condition-3"]["outputDefinitions"]["parameters"].clear(),
        "producer condition-3 has no output",
    ),
    "missing dependency": (lambda ir: _task(ir, "evaluation")["dependentTasks"].append("gone"), "waits for gone"),
    "missing required input": (
        lambda ir: _task(ir, "evaluation")["inputs"]["parameters"].pop("root"),
        "the input root is not given",
    ),
    "input unknown one level up": (
        lambda ir: ir["components"]["comp-tdm-r1-iteration"]["inputDefinitions"]["parameters"].pop("start"),
        "the input start does not exist one level up",
    ),
    "missing component": (lambda ir: ir["components"].pop("comp-evaluation"), "comp-evaluation does not exist"),
    "port called Output": (
        lambda ir: ir["components"]["comp-rollout"]["outputDefinitions"]["parameters"].update(Output={}),
        "no port may be called Output",
    ),
    "importer": (lambda ir: ir["deploymentSpec"]["executors"].update(e={"importer": {}}), "is not a container"),
    "cache": (lambda ir: _task(ir, "evaluation").update(cachingOptions={"enableCache": True}), "caching is on"),
    "If without Else": (
        lambda ir: ir["components"]["comp-condition-branches-1"]["dag"]["tasks"].pop("condition-3"),
        "an If without an Else",
    ),
}


@pytest.mark.parametrize("name", ["iteration", "block"])
def test_the_checker_accepts_the_committed_pipelines(name: str) -> None:
    check((COMPILED / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_checker_refuses_a_seeded_fault(seed: str) -> None:
    breaks, complaint = SEEDS[seed]
    ir = documents("block")[0]
    breaks(ir)
    assert complaint in "\n".join(graph_faults(ir))


def test_the_checker_refuses_a_file_that_is_too_large() -> None:
    text = (COMPILED / "iteration.yaml").read_text(encoding="utf-8")
    with pytest.raises(BrokenPipelineError, match="use fewer iterations per block"):
        check(text + "#" * MAX_BYTES)


@dsl.container_component
def toy(dep: str, done: dsl.OutputPath(str), stop: dsl.OutputPath(bool)) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="toy", command=["toy"], args=[dsl.ConcatPlaceholder(["--dep=", dep])])


def _compiled(pipeline: Any, folder: Path) -> str:
    compiler.Compiler().compile(pipeline, str(folder / "toy.yaml"))
    return (folder / "toy.yaml").read_text()


def test_the_checker_refuses_a_concat_that_the_sdk_compiles(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipelineError, match="is never resolved"):
        check(_compiled(toy, tmp_path))


def test_the_checker_refuses_a_oneof_inside_an_if_that_the_sdk_compiles(tmp_path: Path) -> None:
    @dsl.pipeline
    def chain(dep: str, stop: bool) -> None:
        for _ in range(2):
            with dsl.If(stop == False):  # noqa: E712
                ran = toy(dep=dep)
            with dsl.Else():
                passed = toy(dep=dep)
            dep = dsl.OneOf(ran.outputs["done"], passed.outputs["done"])
            stop = dsl.OneOf(ran.outputs["stop"], passed.outputs["stop"])

    with pytest.raises(BrokenPipelineError, match=r"condition-branches-1 has no output"):
        check(_compiled(chain, tmp_path))


def test_a_block_runs_every_stage_in_the_order_of_its_parents(bench: Bench) -> None:
    bench.run("block")
    expected = ["encode_prompts", "distill_base", *(name for k in range(5) for name in iteration_steps(k))]
    assert [step(argv) for argv in bench.record()] == expected


def test_the_argv_of_a_stage_is_the_one_command(bench: Bench) -> None:
    bench.run("iteration", offset=3)
    rollout = bench.record()[0]
    shape = "stage rollout --root runs/a --iteration 10 --offset 3 --shard 0 --executor-input"
    assert " ".join(rollout[:-1]) == shape
    assert list(json.loads(rollout[-1])["outputs"]["parameters"]) == ["done"]


def test_each_task_receives_the_digest_of_the_task_it_waits_for(bench: Bench) -> None:
    bench.run("iteration", dep="digest-of-base")
    received = [json.loads(argv[-1])["inputs"]["parameterValues"] for argv in bench.record()]
    scratch = bench.folder / "scratch"
    done = {path.parent.parent.name: path.read_text() for path in scratch.rglob("outputs/done")}
    assert received[0]["dep"] == "digest-of-base"
    assert received[4]["deps"] == [
        (scratch / f"for-loop-1.{shard}/reward-scoring/outputs/done").read_text() for shard in (0, 1)
    ]
    assert received[5]["dep"] == done["surrogate-update"]
    assert received[6]["dep"] == done["generator-update"]


def test_after_a_stop_the_later_iterations_are_skipped(bench: Bench) -> None:
    ran = bench.run("block", stop_at=11)
    expected = ["encode_prompts", "distill_base", *iteration_steps(0), *iteration_steps(1)]
    assert [step(argv) for argv in bench.record()] == expected
    assert [argv[0] for argv in ran[len(expected) :]] == ["python"] * 3
    handed_on = [(bench.folder / f"scratch/tdm-r1-guarded-iteration-{k}").rglob("outputs/done") for k in (3, 5)]
    first, last = ({path.read_text() for path in paths if "skipped" in path.parts} for paths in handed_on)
    assert first == last != set()


def test_a_failing_stage_ends_the_run_with_its_exit_code(bench: Bench) -> None:
    with pytest.raises(TaskFailedError, match="exited with 75") as caught:
        bench.run("block", crash_at="surrogate_update")
    assert caught.value.code == 75
    assert step(bench.record()[-1]) == "surrogate_update 10+0"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda ir: _task(ir, "evaluation").update(artifactIterator={}), "do not know artifactIterator"),
        (lambda ir: _task(ir, "evaluation").update(triggerPolicy={"condition": "1 < 2"}), "do not know the condition"),
        (lambda ir: _argument(ir, "{{$.pipeline_root}}"), "do not know the placeholder"),
        (lambda ir: ir["root"]["inputDefinitions"]["parameters"].pop("start"), "no such inputs: do not know start"),
        (lambda ir: ir["root"]["inputDefinitions"]["parameters"].update(more={}), "no value for more"),
    ],
)
def test_the_executor_refuses_what_it_does_not_know(
    change: Callable[[dict[str, Any]], Any], complaint: str, bench: Bench
) -> None:
    ir = documents("block")[0]
    change(ir)
    with pytest.raises(UnsupportedPipelineError, match=re.escape(complaint)):
        bench.execute(ir)
