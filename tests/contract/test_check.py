"""The checker: it accepts what is committed, and refuses what compiles and cannot run, with place and numbers."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl

from pipelines.check import BrokenPipelineError, check, graph_faults, main
from pipelines.check_platform import platform_faults, schema_faults
from pipelines.compile import COMPILED, PIPELINES
from tdm_r1.ceilings import MAX_ARGUMENT, MAX_FILE, MAX_RETRYABLE
from tdm_r1.drive.sizes import size_of
from tests.bench import documents


def text_of(name: str) -> str:
    return (COMPILED / f"{name}.yaml").read_text(encoding="utf-8")


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
    "cycle": (
        lambda ir: _task(ir, "generator-update")["dependentTasks"].append("evaluation"),
        "tasks wait for each other: evaluation → generator-update → evaluation",
    ),
    "retry": (lambda ir: _task(ir, "evaluation").update(retryPolicy={"maxRetryCount": 3}), "a retry policy"),
    "loop without a limit": (lambda ir: _task(ir, "for-loop-1").pop("iteratorPolicy"), "without a limit"),
    "OneOf of artifacts": (
        lambda ir: ir["components"]["comp-tdm-r1-iteration"]["dag"]["outputs"].update(
            artifacts={"m": {"artifactSelectors": [{}, {}]}}
        ),
        "a OneOf of artifacts",
    ),
    "argument too long": (lambda ir: _argument(ir, "x" * (MAX_ARGUMENT + 1)), "an argument has 131,073 bytes"),
    "If without Else": (
        lambda ir: ir["components"]["comp-condition-branches-1"]["dag"]["tasks"].pop("condition-3"),
        "an If without an Else",
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_checker_accepts_the_committed_pipelines(name: str) -> None:
    check(text_of(name))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_checker_refuses_a_seeded_fault(seed: str) -> None:
    breaks, complaint = SEEDS[seed]
    ir = documents("block")[0]
    breaks(ir)
    assert complaint in "\n".join(graph_faults(ir))


def test_the_checker_refuses_a_file_that_is_too_large() -> None:
    with pytest.raises(BrokenPipelineError, match="use fewer iterations per block"):
        check(text_of("iteration") + "#" * MAX_FILE)


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


def test_the_checker_refuses_a_loop_inside_an_exit_handler_that_the_sdk_compiles(tmp_path: Path) -> None:
    @dsl.pipeline
    def guarded(dep: str, items: list[str]) -> None:
        last = toy(dep=dep)
        with dsl.ExitHandler(last), dsl.ParallelFor(items=items, parallelism=2) as item:
            toy(dep=item)

    with pytest.raises(BrokenPipelineError, match="a loop inside an exit handler"):
        check(_compiled(guarded, tmp_path))


PLATFORM: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "no timeout": (lambda _, config: config.pop("activeDeadlineSeconds"), "exec-rollout: no timeout"),
    "root": (lambda _, config: config["securityContext"].update(runAsUser="0"), "exec-rollout: may run as root"),
    "no security": (lambda _, config: config.pop("securityContext"), "exec-rollout: may run as root"),
    "no memory": (
        lambda executor, _: executor["container"]["resources"].pop("resourceMemoryLimit"),
        "exec-rollout: no resourceMemoryLimit",
    ),
}


@pytest.mark.parametrize("seed", PLATFORM)
def test_the_checker_refuses_a_container_without_bounds(seed: str) -> None:
    breaks, complaint = PLATFORM[seed]
    ir, platform = documents("iteration")
    config = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-rollout"]
    breaks(ir["deploymentSpec"]["executors"]["exec-rollout"], config)
    assert list(platform_faults([ir, platform])) == [complaint]


def test_the_checker_refuses_a_key_that_is_not_in_kfps_schema() -> None:
    ir, platform = documents("iteration")
    assert list(schema_faults([ir, platform])) == []
    ir["root"]["dagg"] = {}
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors["exec-rollout"]["nodeSelectors"] = {}
    ir["deploymentSpec"]["executors"]["exec-rollout"]["container"]["imge"] = "x"
    found = list(schema_faults([ir, platform]))
    assert [fault.split(" is not of")[0] for fault in found] == [
        "the pipeline document",
        "exec-rollout",
        "exec-rollout: its Kubernetes settings",
    ]


def test_settings_of_a_container_that_does_not_exist_are_refused() -> None:
    ir, platform = documents("iteration")
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors["exec-gone"] = executors["exec-rollout"]
    assert list(platform_faults([ir, platform])) == [
        "exec-gone: Kubernetes settings of a container that does not exist"
    ]


def test_an_image_without_a_digest_is_refused_where_it_has_to_be_pinned() -> None:
    text = text_of("score_only")
    with pytest.raises(BrokenPipelineError, match=r"scorers:0\.1\.0 is not named by its digest"):
        check(text, pinned=True)
    check(text.replace("scorers:0.1.0", "scorers:0.1.0@sha256:" + "0" * 64), pinned=True)


def test_the_size_of_a_run_grows_with_its_shards_and_says_where_retry_ends() -> None:
    sizes = [size_of(documents("block"), {"shards": shards}) for shards in (2, 4, 8)]
    assert sizes[1].pods - sizes[0].pods == (sizes[2].pods - sizes[1].pods) / 2 == 5 * 2 * (2 * 2 + 1)
    assert sizes[1].retryable < MAX_RETRYABLE < sizes[2].retryable
    assert len({size.spec for size in sizes}) == 1
    assert size_of(documents("loop"), {"iterations": 500}).spec == size_of(documents("loop")).spec


def test_a_run_that_is_too_large_is_refused_with_the_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def answer(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["check", str(COMPILED / "block.yaml"), *arguments])
        code = main()
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    assert answer()[0] == 0
    code, text = answer("--shards", "8")
    assert code == 2
    assert "more than etcd's 1,572,864: use at most 4 shards, or fewer iterations per run" in text
    assert answer("--shards", "8", "--without-retry")[0] == 0
    code, text = answer("--shards", "2000", "--without-retry")
    assert code == 2
    assert "more than Argo's 1,048,576" in text
    assert "a task would receive 2,000 digests, about 148,000 bytes in one argument" in text
    assert "use at most 1,764 shards" in text


def test_the_estimate_of_the_argo_object_is_near_that_of_a_known_one() -> None:
    """Files of 26, 118 and 233 KB of such blocks gave about 52, 176 and 331 KB: near a line."""
    for name in ("block", "loop", "iteration"):
        bytes_of_file = len(text_of(name).encode())
        assert size_of(documents(name)).spec == pytest.approx(17_000 + 1.35 * bytes_of_file, rel=0.35), name
