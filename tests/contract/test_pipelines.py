"""The compiled pipelines: what is committed, and what runs when they are executed here."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.check import BrokenPipelineError
from pipelines.compile import compile_all, parser, stale
from pipelines.local import TaskFailedError, UnsupportedPipelineError
from tdm_r1.profiles import Pools, open_profile
from tests.bench import Bench, documents, iteration_steps

ROOT = Path(__file__).parents[2]
GIVEN: dict[str, Any] = {"root": "runs/a", "start": 10, "shards": [0.0, 1.0]}
ONCE = ["encode_prompts", "distill_base", "evaluation 0+0"]
COMPONENTS = sorted(path.parent.name for path in (ROOT / "components").glob("*/component.py"))
HOMES = {
    "next_iterations": "loop",
    "gate": "loop",
    "variant_scoring": "score_only",
    "variant_evaluation": "evaluate_only",
}
"""A pipeline in which a component stands; the block has the others."""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def limit_of(pool: str) -> int:
    assert pool in Pools.model_fields
    limit: int = getattr(open_profile("1xA100").pools, pool).timeout_seconds
    return limit


def task_of(ir: dict[str, Any], name: str) -> dict[str, Any]:
    task: dict[str, Any] = ir["components"]["comp-tdm-r1-iteration"]["dag"]["tasks"][name]
    return task


def argument(ir: dict[str, Any], text: str) -> None:
    ir["deploymentSpec"]["executors"]["exec-rollout"]["container"]["args"].append(text)


EIGHT = ["--profile", "8xH100", "--iterations", "1", "--out", "pipelines/compiled/8xH100", "block", "argo_loop"]
"""The files of which `make golden` keeps those for another profile: a node of several processes."""


@pytest.mark.parametrize(("hash_seed", "more"), [("0", []), ("1", EIGHT)], ids=["1xA100", "8xH100"])
def test_compiling_again_gives_the_committed_files(hash_seed: str, more: list[str]) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TDM_R1_")}
    command = [sys.executable, "-m", "pipelines.compile", "--check", *more]
    result = subprocess.run(
        command, cwd=ROOT, env={**clean, "PYTHONHASHSEED": hash_seed}, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_a_changed_or_missing_golden_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "same.yaml").write_text("a: 1\n")
    (tmp_path / "changed.yaml").write_text("a: 1\n")
    texts = {"same.yaml": "a: 1\n", "changed.yaml": "a: 2\n", "missing.yaml": "a: 1\n"}
    assert stale(texts, tmp_path) == ["changed.yaml", "missing.yaml"]


@pytest.mark.parametrize("stage", COMPONENTS)
def test_the_readme_of_a_component_states_its_ports_its_pool_and_its_argv(stage: str) -> None:
    ir, platform = documents(HOMES.get(stage, "block"))
    readme = (ROOT / "components" / stage / "README.md").read_text(encoding="utf-8")
    label = stage.replace("_", "-")
    component = ir["components"][f"comp-{label}"]
    definitions = (component.get("inputDefinitions", {}), component["outputDefinitions"])
    ports = {port for side in definitions for kind in side.values() for port in kind}
    assert set(re.findall(r"^\| (?:in|out) \| `(\w+)`", readme, re.MULTILINE)) == ports
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{label}"]
    pool = re.search(r"Pool: \*\*(\w+)\*\*", readme)
    assert pool
    assert settings["activeDeadlineSeconds"] == str(open_profile("1xA100").timeouts.get(stage, limit_of(pool[1])))
    if stage != "skipped":
        container = ir["deploymentSpec"]["executors"][f"exec-{label}"]["container"]
        names = {"root": "ROOT", "start": "START", "offset": "K", "shard": "I", "iteration": "N", "variant": "V"}
        names |= {"count": "COUNT"}
        argv = " ".join([*container["command"], *container["args"]])
        argv = re.sub(r"\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}", lambda found: names[found[1]], argv)
        assert f"```\n{argv}\n```" in readme


def test_a_block_runs_every_stage_in_the_order_of_its_parents(bench: Bench) -> None:
    bench.run("block")
    expected = [*ONCE, *(name for k in range(5) for name in iteration_steps(f"10+{k}"))]
    assert bench.steps() == expected


def test_the_argv_of_a_stage_is_the_one_command(bench: Bench) -> None:
    bench.run("iteration", {**GIVEN, "offset": 3})
    rollout = bench.record()[0]
    shape = "stage rollout --root runs/a --iteration 10 --offset 3 --shard 0 --executor-input"
    assert " ".join(rollout[:-1]) == shape
    asked = json.loads(rollout[-1])["outputs"]
    assert (list(asked["parameters"]), list(asked["artifacts"])) == (["done"], ["record"])


def test_each_task_receives_the_digest_of_the_task_it_waits_for(bench: Bench) -> None:
    bench.run("iteration", {**GIVEN, "dep": "digest-of-base"})
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
    expected = [*ONCE, *iteration_steps("10+0"), *iteration_steps("10+1")]
    assert bench.steps() == expected
    assert [argv[0] for argv in ran[len(expected) :]] == ["python"] * 3
    handed_on = [(bench.folder / f"scratch/tdm-r1-guarded-iteration-{k}").rglob("outputs/done") for k in (3, 5)]
    first, last = ({path.read_text() for path in paths if "skipped" in path.parts} for paths in handed_on)
    assert first == last != set()


def test_a_failing_stage_ends_the_run_with_its_exit_code(bench: Bench) -> None:
    with pytest.raises(TaskFailedError, match="exited with 75") as caught:
        bench.run("block", crash_at="surrogate_update")
    assert caught.value.code == 75
    assert bench.steps()[-1] == "surrogate_update 10+0"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda ir: task_of(ir, "evaluation").update(artifactIterator={}), "do not know artifactIterator"),
        (
            lambda ir: task_of(ir, "evaluation").update(triggerPolicy={"condition": "1 < 2"}),
            "do not know the condition",
        ),
        (lambda ir: argument(ir, "{{$.pipeline_root}}"), "do not know the placeholder"),
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


def test_the_loop_runs_what_is_next_one_after_the_other(bench: Bench) -> None:
    bench.run("loop", {"root": "runs/a", "shards": [0, 1], "count": 2}, ahead=[7, 8])
    expected = [*ONCE, "next", "next 7", *iteration_steps("7+0"), "next 8", *iteration_steps("8+0")]
    assert bench.steps() == expected
    assert bench.record()[3][:5] == ["next", "--root", "runs/a", "--count", "2"]


def test_the_loop_of_a_complete_run_starts_nothing(bench: Bench) -> None:
    bench.run("loop", {"root": "runs/a", "shards": [0, 1]}, ahead=[])
    assert bench.steps() == [*ONCE, "next"]


def test_a_stop_during_the_loop_skips_the_iterations_after_it(bench: Bench) -> None:
    ran = bench.run("loop", {"root": "runs/a", "shards": [0, 1]}, ahead=[7, 8], stop_at=7)
    assert bench.steps() == [*ONCE, "next", "next 7", *iteration_steps("7+0"), "next 8"]
    assert ran[-1][0] == "python"


def test_scoring_again_asks_for_every_shard_of_every_iteration_and_for_no_device(bench: Bench) -> None:
    given = {"root": "runs/a", "variant": "strict", "iterations": [3, 9], "shards": [0, 1]}
    bench.run("score_only", given)
    assert bench.steps() == [f"reward_scoring {n} shard {s} as strict" for n in (3, 9) for s in (0, 1)]
    bench.run("evaluate_only", {"root": "runs/a", "variant": "strict", "iterations": [0, 9]})
    assert bench.steps()[4:] == ["evaluation 0 as strict", "evaluation 9 as strict"]
    for name in ("score_only", "evaluate_only"):
        assert "nvidia" not in json.dumps(documents(name))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--profile", "9xB200"], "there is no profile `9xB200`"),
        (["--shards", "64", "block"], "in 1,667 pods, more than etcd's 1,572,864: use at most 4 shards"),
        (["blok"], "there is no pipeline `blok`"),
    ],
)
def test_what_cannot_run_is_refused_before_a_file_is_written(
    arguments: list[str], complaint: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pipelines.compile", "--out", str(tmp_path / "out"), *arguments]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert "hint:" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--shards", "0"], ["--iterations", "0"], ["--iterations", "-3"], ["--shards", "x"]])
def test_a_number_of_shards_or_iterations_is_above_zero(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parser().parse_args(words)
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert f"argument {words[0]}: expected a whole number above 0, found '{words[1]}'\n\nhint: " in error


def test_a_run_that_only_kfps_retry_cannot_bear_is_compiled_if_asked_for() -> None:
    with pytest.raises(BrokenPipelineError, match="--without-retry"):
        compile_all({"shards": 64}, ["iteration"])
    assert list(compile_all({"shards": 64}, ["iteration"], retry=False)) == ["iteration.yaml"]


def test_a_profile_reaches_every_pod(tmp_path: Path) -> None:
    """Each key of a profile that differs from the default profile is found in what is compiled."""
    profile = tmp_path / "ours.toml"
    profile.write_text(PROFILE)
    command = [sys.executable, "-m", "pipelines.compile", "--out", str(tmp_path / "out"), "--profile", str(profile)]
    subprocess.run([*command, "--iterations", "1"], cwd=ROOT, check=True)
    for name, wanted in {"block.yaml": WANTED, "argo_loop.yaml": [*WANTED, "ns-x", "account-x"]}.items():
        text = (tmp_path / "out" / name).read_text()
        assert [word for word in wanted if word not in text] == [], name


PROFILE = """
extends = "8xH100"
namespace = "ns-x"
service_account = "account-x"
shards_at_once = 33
pushgateway = "http://push.x:9091"
timeouts = {distill_base = 4242}
[security]
user = 1234
group = 2345
[storage]
endpoint = "http://s3.x:8333"
region = "x-1"
secret = {name = "secret-x", access_key = "one-x", secret_key = "two-x"}
[pools.rollout]
accelerators = 5
accelerator = "amd.com/gpu"
shared_memory = "7Gi"
scratch = "9Gi"
queue = "queue-x"
priority = "priority-x"
node_labels = {"key-x" = "value-x"}
tolerations = [{key = "taint-x", operator = "Equal", value = "yes-x", effect = "NoExecute"}]
[pools.scoring]
cpu = "13"
memory = "17Gi"
timeout_seconds = 3456
"""
WANTED = [
    *(
        "33",
        "4242",
        "1234",
        "2345",
        "http://s3.x:8333",
        "http://push.x:9091",
        "x-1",
        "secret-x",
        "one-x",
        "two-x",
        "amd.com/gpu",
        "7Gi",
        "9Gi",
    ),
    *("queue-x", "priority-x", "key-x", "value-x", "taint-x", "yes-x", "NoExecute", "13", "17Gi", "3456"),
]
