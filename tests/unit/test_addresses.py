"""Claims about credentials in addresses: they are refused where they are given, and shown nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tdm_r1.errors import ConfigError
from tdm_r1.presets import resolve
from tdm_r1.rewards.registry import open_scorer
from tests.support import tdm_r1

SECRET = "hunter2nobody"
ADDRESSES = (
    f"http://user:{SECRET}@judge:8000/v1",
    f"https://{SECRET}@judge/v1",
    f"https://judge/v1?api_key={SECRET}",
    f"https://judge/v1?version=1&access_token={SECRET}",
    f"https://store/x?X-Amz-Signature={SECRET}",
    f"https://judge/v1#token={SECRET}",
)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("place", [lambda a: {"url": a}, lambda a: {"body": {"callbacks": [f"see {a} for more"]}}])
def test_an_address_with_credentials_is_refused_and_not_shown(address: str, place: Any) -> None:
    for refuse in (
        lambda: resolve("plane", {"reward.scorers": {"vlm": {"options": place(address)}}}),
        lambda: open_scorer("vlm", place(address)),
    ):
        with pytest.raises(ConfigError, match="TDM_R1_JUDGE_KEY") as caught:
            refuse()
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://judge:8000/v1", "https://judge/v1?api-version=2024-06-01", "http://[::1]/"]
)
def test_an_address_without_any_is_taken(address: str) -> None:
    options = {"url": address}
    assert resolve("plane", {"reward.scorers": {"vlm": {"options": options}}}).reward.scorers["vlm"].options == options
    open_scorer("vlm", options)


def test_no_run_begins_and_no_output_shows_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scorers = json.dumps({"vlm": {"options": {"url": ADDRESSES[0]}}})
    root = tmp_path / "run"
    assert tdm_r1("init", "--root", str(root), "--preset", "plane", "--set", f"reward.scorers={scorers}") == 2
    assert not root.exists()
    assert tdm_r1("init", "--root", str(root), "--preset", "plane") == 0
    body = json.loads((root / "run.json").read_text())
    del body["seal"]
    body["reward"]["scorers"] = json.loads(scorers)
    (root / "run.json").write_text(json.dumps(body))
    assert tdm_r1("inspect", "--root", str(root)) == 2
    said = "".join(capfd.readouterr())
    assert "key_variable" in said
    assert SECRET not in said
