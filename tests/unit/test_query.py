"""Claims about SQL over a run: what is visible, that it is right, and what the SQL may not do."""

from __future__ import annotations

import csv
import io
import json
import shutil
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tdm_r1.artifacts.manifest import Manifest
from tdm_r1.artifacts.records import Evaluation, GeneratorState, PromptSet, Rewards, Rollout
from tdm_r1.artifacts.store import LocalStore
from tdm_r1.console import printable
from tdm_r1.errors import ConfigError, CorruptArtifactError
from tdm_r1.rewards.aggregate import aggregate
from tdm_r1.rewards.scored import score
from tdm_r1.runtime.inspection import answer_table
from tdm_r1.runtime.layout import Task, shard_tasks
from tdm_r1.runtime.prune import Retention, plan_prune, prune
from tdm_r1.runtime.query import VIEWS, query, view_columns
from tdm_r1.runtime.run import Run, open_run
from tests.support import plane_run, tdm_r1, tree


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("three") / "run"
    assert tdm_r1(*plane_run(root, iterations=3)) == 0
    return root


@pytest.fixture(scope="module")
def run(three: Path) -> Run:
    return open_run(str(three))


@pytest.fixture
def root(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "run"))


def test_the_rewards_are_those_of_every_shard_with_their_iteration_and_shard(run: Run) -> None:
    answer = query(run, "SELECT * FROM rewards ORDER BY iteration, shard, sample_id")
    expected = [
        (iteration, task.shard, *row.values())
        for iteration in (1, 2, 3)
        for task in shard_tasks("reward_scoring", iteration, run.config)
        for row in aggregate(run.load(task, Rewards)[0], run.config.reward).to_pylist()
    ]
    assert list(answer.rows) == expected
    assert answer.columns[:3] == ("iteration", "shard", "sample_id")


def test_the_advantages_are_those_the_surrogate_trained_on(run: Run) -> None:
    answer = query(run, "SELECT sample_id, advantage, valid FROM advantages WHERE iteration = 2 ORDER BY ALL")
    both = [
        (run.load(task, Rollout)[0], run.load(Task("reward_scoring", 2, task.shard), Rewards)[0])
        for task in shard_tasks("rollout", 2, run.config)
    ]
    trained, _ = score(both, 2, run.config.surrogate, run.config.reward)
    expected = zip(trained.sample_ids, trained.advantages.tolist(), trained.valid.tolist(), strict=True)
    assert list(answer.rows) == sorted(expected)
    assert any(advantage for _, advantage, _ in answer.rows)


def test_an_iteration_with_an_unscored_shard_has_no_advantages_yet(root: Path) -> None:
    (root / "iter-00002/reward_scoring/shard-0001/manifest.json").unlink()
    found = query(open_run(str(root)), "SELECT DISTINCT iteration FROM advantages ORDER BY 1").rows
    assert found == ((1,), (3,))


def test_the_metrics_are_those_of_all_training_stages(run: Run) -> None:
    answer = query(run, "SELECT DISTINCT stage, iteration FROM metrics ORDER BY ALL")
    stages = ("generator_update", "surrogate_update")
    assert list(answer.rows) == [("distill_base", 0), *((stage, n) for stage in stages for n in (1, 2, 3))]
    own = query(run, "SELECT step, name, value FROM metrics WHERE iteration = 3 AND stage = 'generator_update'").rows
    loaded, _ = run.load(Task("generator_update", 3), GeneratorState)
    assert list(own) == [tuple(row.values()) for row in loaded.metrics.to_pylist()]


def test_prompts_evaluations_and_samples_are_those_of_their_records(run: Run) -> None:
    prompts = run.load(Task("encode_prompts"), PromptSet)[0].prompts.num_rows
    assert query(run, "SELECT count(*) FROM prompts").rows == ((prompts,),)
    record, _ = run.load(Task("evaluation", 3), Evaluation)
    for name, table in (("evaluation", record.metrics), ("samples", record.samples)):
        rows = query(run, f"SELECT * EXCLUDE (iteration) FROM {name} WHERE iteration = 3").rows
        assert list(rows) == [tuple(row.values()) for row in table.to_pylist()]


def test_rollouts_carry_no_images_or_states(run: Run) -> None:
    answer = query(run, "SELECT * FROM rollouts")
    assert answer.columns == ("iteration", "shard", "sample_id", "prompt_id", "group")
    assert len(answer.rows) == 3 * run.config.rollout.groups * run.config.rollout.group_size


def test_the_views_that_are_listed_are_those_that_are_bound(run: Run) -> None:
    assert (
        {row[0] for row in query(run, "SHOW TABLES").rows} == view_columns().keys() == {*VIEWS, "rewards", "advantages"}
    )
    for name, columns in view_columns().items():
        assert query(run, f"SELECT * FROM {name} LIMIT 0").columns == tuple(columns)


def test_a_record_without_a_manifest_is_not_visible(root: Path) -> None:
    (root / "iter-00002/reward_scoring/shard-0000/manifest.json").unlink()
    rows = query(open_run(str(root)), "SELECT DISTINCT iteration, shard FROM rewards ORDER BY ALL").rows
    assert rows == ((1, 0), (1, 1), (2, 1), (3, 0), (3, 1))


@pytest.mark.parametrize("fault", ["size", "bits", "columns", "format"])
def test_a_file_that_is_not_what_its_manifest_and_record_say_is_refused(fault: str, root: Path) -> None:
    part = root / "iter-00002/reward_scoring/shard-0000/part.parquet"
    whole = part.read_bytes()
    table = pq.read_table(part)
    part.unlink()
    if fault in ("format", "bits"):
        part.write_bytes(whole[:-1] + b"\0")
    else:
        pq.write_table(table if fault == "size" else table.drop_columns(["value"]), part, compression="none")
    if fault in ("columns", "format"):  # the manifest is of these bytes: whoever wrote it broke the contract
        vouch(root / "iter-00002/reward_scoring/shard-0000", part.read_bytes())
    message = {"size": r"bytes but \d+ are expected", "bits": "has sha256"}
    message |= {"columns": "has no column value", "format": "is no Parquet file"}
    with pytest.raises(CorruptArtifactError, match=message[fault]):
        query(open_run(str(root)), "SELECT count(*) FROM rewards")


def vouch(folder: Path, data: bytes) -> None:
    """Let the manifest say that these are the bytes of the table."""
    found = Manifest.from_bytes((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").unlink()
    entry = found.files["part.parquet"].model_copy(update={"size": len(data), "sha256": sha256(data).hexdigest()})
    files = {**found.files, "part.parquet": entry}
    (folder / "manifest.json").write_bytes(found.model_copy(update={"files": files}).to_bytes())


def test_a_pruned_rollout_is_left_out_and_named(root: Path) -> None:
    run = open_run(str(root))
    prune(run, plan_prune(run, Retention(1, 0)))
    answer = query(run, "SELECT DISTINCT iteration FROM rollouts ORDER BY 1")
    assert answer.rows == ((3,),)
    assert answer.pruned == tuple(f"iter-{n:05d}/rollout/shard-{shard:04d}" for n in (1, 2) for shard in (0, 1))
    assert query(run, "SELECT DISTINCT iteration FROM rewards ORDER BY 1").rows == ((1,), (2,), (3,))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT content FROM read_text('{root}/run.json')",
        "SELECT * FROM '{root}/prompts/prompts.parquet'",
        "SELECT * FROM read_parquet('{root}/prompts/prompts.parquet')",
        "SELECT * FROM glob('{root}/*')",
        "SELECT * FROM sniff_csv('{root}/run.json')",
        "COPY (SELECT 1) TO '{root}/stolen.csv'",
        "ATTACH '{root}/new.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "CREATE TABLE t AS SELECT 1",
        "SELECT * FROM rewards; SELECT 1",
        "DELETE FROM rewards",
        "EXPORT DATABASE '{root}/all'",
        "",
        "-- nothing",
    ],
)
def test_the_sql_reaches_no_file_and_changes_nothing(sql: str, run: Run, three: Path) -> None:
    before = tree(three)
    with pytest.raises(ConfigError):
        query(run, sql.format(root=three))
    assert tree(three) == before


def test_wrong_sql_is_refused_with_duckdbs_message_and_the_views(
    three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sql, message in (("SELEC 1", "syntax error"), ("SELECT nothing FROM rewards", '"nothing" not found')):
        assert tdm_r1("query", "--root", str(three), sql) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert "hint: the views are" in shown
        assert all(f"{name}({', '.join(columns)})" in shown for name, columns in view_columns().items())


def test_json_csv_and_the_table_say_the_same(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = 'SELECT iteration, "group", avg(reward) AS mean FROM rewards GROUP BY ALL ORDER BY ALL'
    asked = ["query", "--root", str(three), sql]
    assert tdm_r1(*asked, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert tdm_r1(*asked, "--csv") == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 12
    assert [{key: str(value) for key, value in row.items()} for row in rows] == table
    assert tdm_r1(*asked) == 0
    shown = capsys.readouterr().out
    assert all(str(row["mean"]) in shown for row in rows)


def test_json_has_no_nan(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tdm_r1("query", "--root", str(three), "SELECT 'nan'::DOUBLE AS a, [1.5, 'inf'::DOUBLE] AS b", "--json") == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == [{"a": None, "b": [1.5, None]}]


def test_no_control_character_of_a_prompt_reaches_the_terminal(run: Run) -> None:
    answer = query(run, "SELECT chr(27) || '[2J red [bold]' AS text")
    cell = next(iter(answer_table(answer).columns[0].cells))
    assert str(cell) == printable("\x1b[2J red [bold]") == "\\x1b[2J red [bold]"


class Elsewhere(LocalStore):
    """A store whose objects have no path here until they are fetched, as one in object storage."""

    def fetch(self, key: str, local: Path) -> None:
        local.write_bytes(self.read_bytes(key))


def test_a_store_without_local_paths_gives_the_same_answer(three: Path, run: Run) -> None:
    sql = "SELECT name, count(*), max(value) FROM metrics GROUP BY ALL ORDER BY ALL"
    assert query(Run(Elsewhere(str(three)), run.config), sql) == query(run, sql)
