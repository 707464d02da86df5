"""Claims about the page's server: who is let in, what is stored, and that a vote is stored once."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tdm_r1.errors import ArtifactError, ConfigError
from tdm_r1.label.server import LabelServer, opened
from tdm_r1.runtime.ballots import Box, raters
from tdm_r1.runtime.feedback_votes import Election
from tests.ballot_run import HOSTILE, ballot_run, name
from tests.support import tdm_r1, tree


@pytest.fixture
def election(tmp_path: Path) -> Election:
    return ballot_run(tmp_path / "run")


@pytest.fixture
def server(election: Election) -> Iterator[LabelServer]:
    with opened(election, ["ann", "bob"], allowed=["label.example"]) as running:
        yield running


def ask(
    server: LabelServer, path: str, *, rater: str = "ann", method: str = "GET", body: Any = None, **headers: str
) -> tuple[int, bytes]:
    """Status and body of one request to a rater's address."""
    address = urlsplit(server.addresses()[rater])
    connection = http.client.HTTPConnection(address.netloc, timeout=60)
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    whole = path if path.startswith("/") else address.path + path
    if method == "POST":
        named.setdefault("Content-Type", "application/json")
    connection.request(method, whole, data, named)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def vote(server: LabelServer, rater: str = "ann", **said: Any) -> tuple[int, dict[str, Any]]:
    status, content = ask(server, "votes", rater=rater, method="POST", body=said)
    return status, json.loads(content)


def test_it_listens_on_this_machine_only_and_answers_whoever_knows_the_secret(server: LabelServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, content = ask(server, "groups.json")
    assert status == 200
    shown = json.loads(content)
    assert (shown["rater"], len(shown["groups"]), shown["groups"][0]["prompt"]) == ("ann", 4, HOSTILE)
    assert ask(server, f"images/{name(0, 0)}")[1].startswith(b"\x89PNG")
    assert ask(server, "/groups.json")[0] == 403
    assert ask(server, f"/{'x' * 32}/groups.json")[0] == 403
    assert ask(server, "images/..%2f..%2frun.json")[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": "localhost:9999"}, 200),
        ({"Host": "label.example"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 200),
    ],
)
def test_other_hosts_and_other_sites_are_refused(server: LabelServer, headers: dict[str, str], status: int) -> None:
    assert ask(server, "groups.json", **headers)[0] == status


def test_another_site_cannot_vote(server: LabelServer, election: Election) -> None:
    said = {"kind": "like", "sample": name(0, 0)}
    for headers in ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}):
        assert ask(server, "votes", method="POST", body=said, **headers)[0] == 403
    assert ask(server, "votes", method="POST", body=said, Content_Type="text/plain")[0] == 415
    assert raters(election.run.store, election.folder) == []


@pytest.mark.parametrize(
    "said",
    [
        {"kind": "like", "sample": "<img src=x onerror=alert(1)>"},
        {"kind": "like", "sample": name(0, 0), "other": name(0, 1)},
        {"kind": "like", "sample": name(0, 0), "verdict": "yes"},
        {"kind": "like", "sample": name(0, 0), "rater": "bob"},
        {"kind": "pair", "sample": name(0, 0)},
        {"kind": "pair", "sample": name(0, 0), "other": name(0, 0)},
        {"kind": "pair", "sample": name(0, 0), "other": name(1, 0)},
        {"kind": "love", "sample": name(0, 0)},
        [],
        b"<html>",
        b"",
    ],
)
def test_what_is_no_vote_is_refused_and_nothing_is_stored(server: LabelServer, election: Election, said: Any) -> None:
    assert ask(server, "votes", method="POST", body=said)[0] == 400
    assert ask(server, "votes", method="POST", body=b" " * 5000)[0] == 413
    assert raters(election.run.store, election.folder) == []


def test_a_request_that_comes_twice_is_one_vote_and_undo_takes_the_last_one_back(
    server: LabelServer, election: Election
) -> None:
    for _ in range(2):
        assert vote(server, kind="like", sample=name(0, 0), verdict=False, key="one")[0] == 200
    assert vote(server, kind="pair", sample=name(1, 0), other=name(1, 1), key="two")[1]["ballots"] == 2
    for _ in range(2):
        _, state = vote(server, kind="undo", key="three")
    assert (state["likes"], state["pairs"], state["ballots"]) == ({name(0, 0): False}, {}, 3)
    _, state = vote(server, kind="undo", key="four")
    assert state["likes"] == {}
    assert vote(server, kind="undo", key="five")[1]["sample"] is None
    kinds = [ballot.kind for ballot in Box(election.run.store, election.folder, "ann").ballots]
    assert kinds == ["like", "pair", "undo", "undo"]


def test_raters_vote_at_once_resume_where_they_stopped_and_change_no_record(
    server: LabelServer, election: Election, tmp_path: Path
) -> None:
    before = tree(tmp_path / "run")
    samples = [name(group, member) for group in range(4) for member in range(4)]
    with ThreadPoolExecutor(4) as pool:
        asked = [(rater, sample) for sample in samples for rater in ("ann", "bob")]
        states = list(pool.map(lambda one: vote(server, one[0], kind="like", sample=one[1], key=one[1])[0], asked))
    assert states == [200] * 32
    after = tree(tmp_path / "run")
    assert {file: digest for file, digest in after.items() if file in before} == before
    assert len(after) == len(before) + 32
    with opened(election, ["ann", "cy"]) as again:
        assert len(json.loads(ask(again, "groups.json")[1])["likes"]) == 16
        assert json.loads(ask(again, "groups.json", rater="cy")[1])["likes"] == {}


def test_votes_are_closed_once_they_are_committed(server: LabelServer, election: Election) -> None:
    assert vote(server, kind="like", sample=name(0, 0))[0] == 200
    assert tdm_r1("stage", "feedback", "--root", election.run.root, "--iteration", "1") == 0
    status, answer = vote(server, kind="like", sample=name(0, 1))
    assert (status, "are committed" in answer["error"]) == (409, True)
    with pytest.raises(ArtifactError, match="are committed"), opened(election, ["ann"]):
        pass


def test_a_rater_has_a_plain_name(election: Election) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a rater"), opened(election, ["<b>ann</b>"]):
        pass
