"""Claims about the planner: its simulation against closed forms, its limits against their sources."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import COMPILED
from pipelines.ir import documents
from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.artifacts.store import open_store
from tdm_r1.ceilings import MAX_FILE, MAX_RETRYABLE, MAX_STORED
from tdm_r1.drive.argo_sizes import workflow_size
from tdm_r1.drive.sizes import size_of
from tdm_r1.plan.costs import Costs, StageCost, as_json, costs_from, measured, shipped, units
from tdm_r1.plan.limits import FILE_FIXED, FILE_PER_ITERATION, limits, nodes, pods, stored_bytes
from tdm_r1.plan.planner import Setting, cluster_of, enough_scoring_pods, faster, make_plan
from tdm_r1.plan.simulate import Cluster, ideal, percentiles, simulate
from tdm_r1.presets import resolve
from tdm_r1.profiles import open_profile
from tdm_r1.runtime.layout import Task, all_tasks
from tdm_r1.runtime.run_file import read_config
from tests.support import tdm_r1

SECONDS = {"rollout": 10.0, "reward_scoring": 30.0, "surrogate_update": 5.0, "generator_update": 7.0, "evaluation": 2.0}


def run_config(shards: int, **more: Any) -> Any:
    knobs = {"rollout.groups": shards, "rollout.shards": shards, "rollout.group_size": 2, "evaluation.every": 1}
    return resolve("shapes_cpu", {**knobs, "generator.start": 1, **more})


def costs(config: Any, spread: float = 0.0, **seconds: float) -> Costs:
    """Costs of which each task of `config` takes exactly SECONDS."""
    wanted = {"encode_prompts": 1.0, "distill_base": 1.0, **SECONDS, **seconds}
    stages = {
        stage: StageCost(seconds=value / units(stage, config), spread=spread, bytes=1.0, tasks=1)
        for stage, value in wanted.items()
    }
    return Costs(source="a test", model="embedded:shapes", device="cpu", threads=1, between=0.0, stages=stages)


def cluster(rollout: int, scoring: int, bodies: int | None = None, **more: Any) -> Cluster:
    pods: Any = {"rollout": rollout, "scoring": scoring, "update": 1, "control": 1}
    return Cluster(pods=pods, bodies=bodies or rollout + scoring, **more)


@pytest.mark.parametrize(("shards", "rollout", "scoring"), [(1, 1, 1), (8, 2, 8), (8, 8, 2), (9, 3, 9)])
def test_without_chance_a_block_takes_what_its_slowest_pool_takes(shards: int, rollout: int, scoring: int) -> None:
    config = run_config(shards)
    found = simulate(config, costs(config), cluster(rollout, scoring, start=1.0), range(1, 3), 0).seconds
    by_rollout = math.ceil(shards / rollout) * 11 + 31
    by_scoring = 11 + math.ceil(shards / scoring) * 31
    assert found == pytest.approx(2 * (max(by_rollout, by_scoring) + 6 + 8 + 3))


def test_shards_in_flight_bound_what_runs_at_once() -> None:
    config = run_config(6)
    found = simulate(config, costs(config), cluster(6, 6, bodies=2), range(1, 2), 0).seconds
    assert found == pytest.approx(3 * 40 + 5 + 7 + 2)


def test_so_many_scoring_pods_are_enough_and_half_of_them_are_not() -> None:
    config = run_config(60)
    known, base = costs(config), cluster(4, 60, start=2.0)
    enough = enough_scoring_pods(config, known, base)
    assert enough == math.ceil(4 * 32 / 12)

    def seconds(scoring: int) -> float:
        return simulate(config, known, cluster(4, scoring, bodies=200, start=2.0), range(1, 2), 0).seconds

    assert seconds(enough) == pytest.approx(seconds(60), rel=0.05)
    assert seconds(enough // 2) > 1.5 * seconds(60)


def test_a_pod_that_is_started_again_costs_its_own_time_and_its_probability() -> None:
    config = run_config(200)
    shaky = cluster(200, 200, failures={"scoring": 0.25}, restarts=True)
    outcomes = [simulate(config, costs(config), shaky, range(1, 2), seed) for seed in range(20)]
    assert statistics.fmean(outcome.lost for outcome in outcomes) == pytest.approx(200 * 0.25 / 0.75, rel=0.1)
    assert {outcome.submissions for outcome in outcomes} == {1}
    for outcome in outcomes:
        assert outcome.busy["scoring"] == pytest.approx((200 + outcome.lost) * 30)


def test_a_block_that_is_submitted_again_repeats_no_work_that_is_committed() -> None:
    config = run_config(4)
    shaky = cluster(4, 4, start=1.0, resubmit=100.0, failures={"update": 0.5})
    outcome = next(
        found for seed in range(50) if (found := simulate(config, costs(config), shaky, [1], seed)).submissions == 2
    )
    assert outcome.lost == 1
    assert outcome.busy["rollout"] == pytest.approx(4 * 11 + 4 * 1 + 3), "work once, a start twice, the evaluation once"
    assert outcome.seconds > 100 + ideal(config, costs(config), shaky, [1])


def test_machines_are_taken_back_at_their_rate_and_only_where_they_are_spot() -> None:
    config = run_config(400)
    profile = open_profile("spot")
    setting = Setting(orchestrator="argo", taken_per_hour=60.0, rollout_pods=400, scoring_pods=400)
    found = cluster_of(profile, setting)
    assert found.taken_per_hour == {"rollout": 60.0, "scoring": 60.0, "update": 0.0, "control": 0.0}
    calm = replace(found, start=0.0, opening=0.0, taken_per_hour={"scoring": 60.0})
    lost = statistics.fmean(simulate(config, costs(config), calm, [1], seed).lost for seed in range(10))
    survives = math.exp(-60.0 * 30 / 3600)
    assert lost == pytest.approx(400 * (1 / survives - 1), rel=0.1)


def test_durations_have_the_mean_and_the_spread_that_were_measured() -> None:
    config = run_config(4000)
    outcome = simulate(config, costs(config, spread=0.5), cluster(4000, 4000), [1], 0)
    assert outcome.busy["scoring"] / 4000 == pytest.approx(30, rel=0.03)


def test_ten_thousand_scoring_pods_are_simulated() -> None:
    config = run_config(10_000)
    found = simulate(config, costs(config), cluster(10_000, 10_000, start=5.0), [1], 0)
    assert found.seconds == pytest.approx(15 + 35 + 10 + 12 + 7)
    assert found.busy["scoring"] == pytest.approx(10_000 * 35)


def test_a_percentile_is_a_value_that_occurred() -> None:
    assert percentiles([5, 1, 4, 2, 3], [0.5, 0.9, 0.99]) == [3, 5, 5]
    assert percentiles([7], [0.5]) == [7]


@pytest.mark.parametrize(("shards", "block", "broken"), [(4, 5, False), (8, 5, True), (8, 3, False)])
def test_kfps_retry_bears_five_iterations_with_four_shards_and_three_with_eight(
    shards: int, block: int, broken: bool
) -> None:
    config = run_config(shards)
    found = {limit.name: limit for limit in limits(config, open_profile("smoke"), costs(config), block)}
    assert found["the same at KFP's retry, bytes"].broken is broken


def test_a_fan_in_of_too_many_digests_breaks_the_longest_argument() -> None:
    for shards, broken in ((1764, False), (1766, True)):
        config = run_config(shards)
        found = {limit.name: limit for limit in limits(config, open_profile("smoke"), costs(config), 1)}
        assert found["longest argument, bytes"].broken is broken


def test_the_estimate_of_the_compiled_file_is_close() -> None:
    compiled = (COMPILED / "block.yaml").stat().st_size
    assert pytest.approx(compiled, rel=0.15) == FILE_FIXED + 5 * FILE_PER_ITERATION


@pytest.mark.parametrize("shards", [1, 4, 8, 64])
def test_the_planner_and_the_checker_of_the_pipelines_estimate_the_same_run(shards: int) -> None:
    size = size_of(documents((COMPILED / "block.yaml").read_text(encoding="utf-8")), {"shards": shards})
    config = run_config(shards)
    found = {limit.name: limit for limit in limits(config, open_profile("smoke"), costs(config), 5)}
    assert (pods(shards, 5), nodes(shards, 5)) == (size.pods, size.nodes)
    assert found["workflow object, bytes"].found == pytest.approx(size.stored, rel=0.03)
    assert found["the same at KFP's retry, bytes"].found == pytest.approx(size.retryable, rel=0.03)
    assert found["longest argument, bytes"].found == size.argument
    assert [found[name].limit for name in ("compiled file, bytes", "workflow object, bytes")] == [MAX_FILE, MAX_STORED]
    assert found["the same at KFP's retry, bytes"].limit == MAX_RETRYABLE


def test_costs_are_those_of_the_manifests_and_grow_with_the_work(finished: Path) -> None:
    store = open_store(str(finished))
    config = read_config(store)
    found = measured(store, config)
    tasks = [task for task in all_tasks(config) if task.stage == "rollout"]
    manifests = [manifest for task in tasks if (manifest := read_manifest(store, task.location)) is not None]
    mean = statistics.fmean(manifest.provenance.seconds for manifest in manifests)
    assert found.seconds(tasks[0], config) == pytest.approx(mean)
    assert found.stages["rollout"].tasks == 4
    twice = config.model_copy(update={"rollout": config.rollout.model_copy(update={"groups": 8})})
    assert found.seconds(tasks[0], twice) == pytest.approx(2 * mean)
    size = statistics.fmean(sum(file.size for file in manifest.files.values()) for manifest in manifests)
    assert found.bytes(tasks[0], twice) == pytest.approx(2 * size)
    state = Task("surrogate_update", 1)
    assert found.bytes(state, twice) == found.bytes(state, config), "a network does not grow with the batch"


def test_iterations_before_the_generator_moves_say_nothing_about_its_cost(finished: Path) -> None:
    store = open_store(str(finished))
    config = read_config(store)
    later = config.model_copy(update={"generator": config.generator.model_copy(update={"start": 2})})
    assert measured(store, config).stages["generator_update"].tasks == config.iterations
    assert measured(store, later).stages["generator_update"].tasks == config.iterations - 1
    assert measured(store, later).stages["surrogate_update"].tasks == config.iterations
    assert measured(store, later).seconds(Task("generator_update", 1), later) == 0
    assert measured(store, later).seconds(Task("generator_update", 2), later) > 0


def test_the_shipped_costs_are_read_as_they_were_written() -> None:
    assert costs_from(as_json(shipped())) == shipped()


def test_a_faster_machine_shortens_its_own_stages_only() -> None:
    config = run_config(2)
    found = faster(costs(config), {"rollout": 4.0})
    assert found.seconds(Task("rollout", 1), config) == pytest.approx(2.5)
    assert found.seconds(Task("reward_scoring", 1), config) == pytest.approx(30)


def test_a_plan_adds_up(tmp_path: Path) -> None:
    priced = tmp_path / "priced.toml"
    pools = "".join(f"[pools.{pool}]\nprice_per_hour = 3600\n" for pool in ("rollout", "update", "scoring"))
    priced.write_text(f'extends = "smoke"\n{pools}')
    config = run_config(2, iterations=10)
    setting = Setting(orchestrator="argo", pod_start=0.0, events=20_000)
    plan = make_plan(config, open_profile(str(priced)), costs(config), setting)
    starts = 7 * 3.0
    assert plan.iteration_cost is not None
    assert plan.iteration_cost == pytest.approx(2 * 10 + 2 * 30 + 5 + 7 + 2 + starts)
    assert plan.run_cost == pytest.approx(10 * plan.iteration_cost + 2 + 2 * 3.0)
    assert plan.block_seconds["p50"] == pytest.approx(5 * (40 + 14 + 5 * 3.0))
    assert plan.overhead_share == pytest.approx(15 / 69)
    assert plan.run_bytes == pytest.approx(2 + 10 * plan.iteration_bytes)


def test_a_run_takes_less_while_its_generator_stands_still_and_where_nothing_is_evaluated(tmp_path: Path) -> None:
    priced = tmp_path / "priced.toml"
    prices = {"rollout": 3600, "update": 7200, "scoring": 3600}
    priced.write_text(
        'extends = "smoke"\n' + "".join(f"[pools.{p}]\nprice_per_hour = {c}\n" for p, c in prices.items())
    )
    config = run_config(2, iterations=10, **{"generator.start": 4, "evaluation.every": 5})
    setting = Setting(orchestrator="argo", pod_start=0.0, events=20_000)
    plan = make_plan(config, open_profile(str(priced)), costs(config), setting)
    assert plan.block_seconds["p50"] == pytest.approx(5 * (40 + 2 * 3 + 5 + 7 + 2 * 3) + 2 + 3), "the last block"
    assert plan.run_hours * 3600 == pytest.approx(2 * (1 + 3) + 10 * (46 + 12 + 6) - 3 * 7 + 2 * 5)
    paid = 10 * (2 * 10 + 2 * 30 + 4 * 3) + 2 * 5, 10 * (5 + 7 + 2 * 3) - 3 * 7
    assert plan.iteration_cost == pytest.approx((paid[0] + 2 * paid[1]) / 10)


def test_the_command_prints_json_and_says_by_its_exit_code_that_a_limit_breaks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tdm_r1("plan", "--json") == 0
    assert json.loads(capsys.readouterr().out)["block"] == 5
    assert tdm_r1("plan", "--json", "--set", "rollout.shards=16") == 1
    broken = [limit["name"] for limit in json.loads(capsys.readouterr().out)["limits"] if limit["broken"]]
    assert broken == ["the same at KFP's retry, bytes"]


def test_a_broken_limit_is_said_with_the_numbers_and_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert tdm_r1("plan", "--set", "rollout.shards=8") == 1
    error = capsys.readouterr().err
    assert "KFP's retry, bytes: 2,223,000, more than etcd's 1,572,864\n\nhint: --block 3, and compile with" in error
    assert tdm_r1("plan", "--set", "rollout.shards=8", "--block", "3") == 0
    assert tdm_r1("plan", "--set", "rollout.shards=8", "--orchestrator", "argo") == 0, "KFP's retry is not Argo's"
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize("shards", [1, 8, 64, 800])
def test_the_planner_and_the_driver_give_argo_workflows_the_same_size(shards: int) -> None:
    template = yaml.safe_load((COMPILED / "argo_loop.yaml").read_text(encoding="utf-8"))
    for iterations in (1, 12, 90):
        expected = workflow_size(template, shards).stored(iterations)
        assert stored_bytes(shards, iterations, "argo") == pytest.approx(expected, rel=0.02)


def test_hints_name_what_is_just_within_the_limit() -> None:
    profile = open_profile("smoke")
    small = {limit.name: limit for limit in limits(run_config(64), profile, costs(run_config(64)), 90, "argo")}
    assert small["workflow object, bytes"].hint == "--block 12, -p budget=12"
    huge = {limit.name: limit for limit in limits(run_config(2000), profile, costs(run_config(2000)), 1)}
    assert huge["workflow object, bytes"].hint == "fewer rollout.shards; not even one iteration fits"
    assert huge["longest argument, bytes"].hint == "at most rollout.shards=1764"
    assert huge["rollout, seconds"].hint.startswith("a larger rollout in [timeouts]")
    assert huge["evaluation, scratch bytes"].hint == "a larger scratch in [pools.rollout] of the profile"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--profile", "4xB200"], "there is no profile `4xB200`"),
        (
            ["--profile", "8xH100"],
            "`generator_update` is to run in 8 processes, expected at most 2: 128 trajectories by "
            "generator.microbatch=64 are 2 parts",
        ),
        (["--preset", "gone"], "there is no preset `gone`"),
        (["--set", "rollout.shards=100"], "shards=100 is above groups=64"),
        (["--preset", "plane"], "the costs were measured with `embedded:shapes`"),
        (["--scoring-pods", "10001"], "--scoring-pods is 10001, expected 1..10,000"),
        (["--costs", "/nowhere"], "holds no run.json"),
    ],
)
def test_bad_input_is_refused_with_a_hint(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tdm_r1("plan", *words) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert "\n\nhint: " in error
