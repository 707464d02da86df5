"""Claims about files of votes: what is read, what is refused, and which votes count."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdm_r1.errors import ConfigError, SchemaError, TdmR1Error
from tdm_r1.rewards.counted import FATES, fates
from tdm_r1.rewards.votes import VOTES, read_votes
from tdm_r1.runtime.feedback_votes import import_votes, summary
from tests.ballot_run import ballot_run, name

MORNING = datetime(2026, 11, 22, 8, tzinfo=UTC)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The same rows as whatever the suffix says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join("" if value is None else str(value) for value in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
    return path


LIKES: list[dict[str, Any]] = [
    {"sample_id": "007", "like": True, "rater": "ann", "time": "2026-11-22T08:00:00Z"},
    {"sample_id": "2026-01-01", "like": None, "rater": "ann", "time": None},
    {"sample_id": "1e5", "like": False, "rater": None, "time": "2026-11-22T10:00:00+02:00"},
]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_the_same_votes_are_read_from_every_format_and_identifiers_stay_as_they_are(
    tmp_path: Path, suffix: str
) -> None:
    found = read_votes(write(tmp_path / f"likes{suffix}", LIKES))
    assert (found.kind, found.blank) == ("like", 1)
    assert found.votes.schema.equals(VOTES)
    rows = [{key: row[key] for key in ("sample_id", "verdict", "rater", "time")} for row in found.votes.to_pylist()]
    assert rows == [
        {"sample_id": "007", "verdict": True, "rater": "ann", "time": MORNING},
        {"sample_id": "1e5", "verdict": False, "rater": None, "time": MORNING},
    ]


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("a.csv", "", "is empty"),
        ("a.jsonl", "", "is empty"),
        ("a.parquet", "", "is no Parquet"),
        ("a.csv", "sample_id,like\n", "holds no row"),
        ("a.csv", "sample_id,stars\na,5\n", "has the columns"),
        ("a.csv", "sample_id,like,like\na,1,0\n", "`a.csv` has the column `like` more than once"),
        ("a.csv", "winner,loser,why\na,b,c\n", "has a column `why`"),
        ("a.csv", "sample_id,like\na,maybe\n", "row 1 of `a.csv` has like='maybe'"),
        ("a.csv", "sample_id,like\na,true,1\n", "is no CSV"),
        ("a.csv", "sample_id,like,time\na,1,yesterday\n", "column `time`"),
        ("a.csv", "sample_id,like,time\na,1,2026-11-22T08:00:00\n", "column `time`"),
        ("a.csv", "winner,loser\na,b\na,\n", "vote 2 of `a.csv` has no `loser`"),
        ("a.jsonl", '{"winner": "a", "loser": 3}\n', "a.jsonl"),
        ("a.jsonl", '{"winner": "a", "loser": "b"}\n{"winner": "a", "loser": "b", "x": 1}\n', "a.jsonl"),
        ("a.jsonl", "[1]\n", "does not begin with an object"),
        ("a.jsonl", "<html>\n", "line 1 of `a.jsonl` is not JSON"),
        ("a.xlsx", "PK", "is none of .parquet, .csv, .jsonl"),
    ],
)
def test_a_file_that_is_not_as_declared_is_refused(tmp_path: Path, file: str, content: str, complaint: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(TdmR1Error) as caught:
        read_votes(tmp_path / file)
    assert complaint in caught.value.message


def test_a_column_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sample_id": [1, 2], "like": [True, False]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match=r"column `sample_id` of `a\.parquet` is int64, expected string"):
        read_votes(tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="is no file"):
        read_votes(tmp_path / "b.parquet")


Vote = tuple[str, str, str | None, bool, str | None, int | None]


def votes(*rows: Vote) -> pa.Table:
    """Kind, sample, other, verdict, rater, minutes after eight."""
    names = ("kind", "sample_id", "other_id", "verdict", "rater", "time")
    found: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) | {"source": "test"} for row in rows]
    for row in found:
        minutes = row["time"]
        row["time"] = MORNING + timedelta(minutes=minutes) if isinstance(minutes, int) else None
    return pa.Table.from_pylist(found, schema=VOTES)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("like", "a", None, True, "ann", None)] * 3, "counted repeated repeated"),
        ([("like", "a", None, True, None, None)] * 2, "counted counted"),
        (
            [("like", "a", None, True, "ann", None), ("like", "a", None, False, "ann", None)],
            "contradicted contradicted",
        ),
        ([("like", "a", None, True, "ann", None), ("like", "a", None, False, "bob", None)], "counted counted"),
        ([("like", "a", None, True, "ann", 5), ("like", "a", None, False, "ann", 1)], "counted revised"),
        (
            [("like", "a", None, v, "ann", t) for v, t in ((True, 1), (False, 2), (True, 3), (True, 3))],
            "repeated revised counted repeated",
        ),
        ([("like", "a", None, True, "ann", 1), ("like", "a", None, False, "ann", None)], "contradicted contradicted"),
        ([("like", "a", None, True, "ann", 1), ("like", "a", None, False, "ann", 1)], "contradicted contradicted"),
        ([("pair", "a", "b", True, "ann", None), ("pair", "b", "a", True, "ann", None)], "contradicted contradicted"),
        ([("pair", "a", "b", True, "ann", 1), ("pair", "b", "a", True, "ann", 2)], "revised counted"),
        ([("pair", "a", "b", True, "ann", None), ("like", "a", None, False, "ann", None)], "counted counted"),
        (
            [("pair", x, y, True, "ann", None) for x, y in (("a", "b"), ("b", "c"), ("c", "a"), ("a", "b"))],
            "counted counted counted repeated",
        ),
    ],
)
def test_one_rater_counts_once_and_what_is_said_and_unsaid_does_not_count(rows: list[Vote], expected: str) -> None:
    assert [FATES[number] for number in fates(votes(*rows))] == expected.split()


def slow_fates(table: pa.Table) -> list[str]:
    """The rules one opinion at a time, in plain Python."""
    found: dict[int, str] = {}
    opinions: dict[Any, list[tuple[int, Any, Any]]] = {}
    for number, row in enumerate(table.to_pylist()):
        if row["rater"] is None:
            found[number] = "counted"
            continue
        ends = tuple(sorted((row["sample_id"], row["other_id"]))) if row["other_id"] else (row["sample_id"],)
        said = row["sample_id"] if row["other_id"] else row["verdict"]
        opinions.setdefault((row["kind"], row["rater"], ends), []).append((number, said, row["time"]))
    for own in opinions.values():
        values, times = {said for _, said, _ in own}, [when for *_, when in own]
        last = {said for _, said, when in own if None not in times and when == max(times)}
        if len(values) > 1 and len(last) != 1:
            found |= dict.fromkeys((number for number, *_ in own), "contradicted")
            continue
        (stands,) = last if len(values) > 1 else values
        counted = False
        for number, said, when in sorted(own, key=lambda vote: (vote[2] or MORNING, vote[0])):
            final = len(values) == 1 or when == max(times)
            found[number] = "revised" if said != stands else "repeated" if counted or not final else "counted"
            counted = counted or found[number] == "counted"
    return [found[number] for number in range(table.num_rows)]


LIKE = st.tuples(st.just("like"), st.sampled_from("ab"), st.none(), st.booleans())
PAIR = st.tuples(st.just("pair"), st.just("a"), st.sampled_from("bc"), st.just(value=True)) | st.tuples(
    st.just("pair"), st.sampled_from("bc"), st.just("a"), st.just(value=True)
)
WHO = st.tuples(st.sampled_from(["ann", "bob", None]), st.sampled_from([None, 1, 2]))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.builds(lambda what, who: (*what, *who), LIKE | PAIR, WHO), max_size=8))
def test_the_fates_are_those_of_the_rules_one_by_one(rows: list[Vote]) -> None:
    table = votes(*rows)
    assert [FATES[number] for number in fates(table)] == slow_fates(table)


def test_unknown_samples_are_refused_with_their_number_or_left_out_and_counted(tmp_path: Path) -> None:
    election = ballot_run(tmp_path / "run")
    rows = [{"sample_id": sample, "like": 1} for sample in (name(0, 0), "<b>elsewhere</b>", name(0, 1), "nowhere")]
    file = write(tmp_path / "likes.csv", rows)
    with pytest.raises(SchemaError, match=r"2 of 4 votes of `likes\.csv` name an unknown sample; the first, vote 2"):
        import_votes(election, file)
    assert "2 votes (like), 0 blank, 2 on unknown samples" in import_votes(election, file, skip_unknown=True)
    assert "nothing was added" in import_votes(election, file, skip_unknown=True)
    assert summary(election)["votes"] == 2


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"winner": name(0, 0), "loser": name(0, 0)}, "against itself"),
        ({"winner": name(0, 0), "loser": name(1, 0)}, "of two groups"),
        ({"sample_id": name(0, 0), "like": True, "picture": "0" * 64}, "on other pixels"),
    ],
)
def test_a_vote_that_cannot_be_on_these_samples_is_refused(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    election = ballot_run(tmp_path / "run")
    with pytest.raises(SchemaError, match=complaint):
        import_votes(election, write(tmp_path / "votes.jsonl", [row]), skip_unknown=True)


def test_a_million_votes_are_counted_in_seconds(tmp_path: Path) -> None:
    election = ballot_run(tmp_path / "run", groups=64, size=16, side=8)
    draw = np.random.default_rng(0)
    group, left, step = draw.integers(0, 64, 10**6), draw.integers(0, 16, 10**6), draw.integers(1, 16, 10**6)
    names = np.array([[name(g, m) for m in range(16)] for g in range(64)])
    table = {"winner": names[group, left], "loser": names[group, (left + step) % 16]}
    rater = np.array([f"r{n}" for n in range(500)])[draw.integers(0, 500, 10**6)]
    pq.write_table(pa.table({**table, "rater": rater}), tmp_path / "pairs.parquet")
    clock = time.process_time()
    import_votes(election, tmp_path / "pairs.parquet")
    found = summary(election)
    seconds = time.process_time() - clock
    assert found["votes"] == 10**6
    assert found["counted"] + found["repeated"] + found["contradicted"] == 10**6
    assert found["groups with a cycle"] == 64
    assert seconds < 30, seconds
