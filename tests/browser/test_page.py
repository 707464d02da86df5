"""Claims about the page, in headless Chromium, with the keyboard alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tdm_r1.label.server import opened
from tdm_r1.runtime.ballots import Box
from tests.ballot_run import HOSTILE, ballot_run, name
from tests.chromium import Browser, chromium

WAIT = 60.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert shutil.which("chromium"), "chromium is not installed: run `make browser-tools` as root on Debian"
    with chromium() as running:
        yield running


def script(browser: Browser, text: str) -> Any:
    return browser.execute_script(f"return {text}")


def until(browser: Browser, condition: str) -> None:
    WebDriverWait(browser, WAIT).until(lambda driver: driver.execute_script(f"return {condition}"), condition)


def press(browser: Browser, *keys: str) -> None:
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def visit(browser: Browser, address: str) -> None:
    browser.get(address)
    until(browser, "document.body.dataset.ready === 'true'")


def test_a_rater_judges_a_thousand_images_by_keyboard_and_goes_on_where_they_stopped(
    browser: Browser, tmp_path: Path
) -> None:
    election = ballot_run(tmp_path / "run", groups=64, size=16, side=64)
    with opened(election, ["ann"]) as server:
        visit(browser, server.addresses()["ann"])
        assert script(browser, "document.querySelectorAll('figure').length") == 1024
        loaded = script(browser, "[...document.querySelectorAll('figure img')].filter(i => i.naturalWidth).length")
        assert loaded < 512, f"{loaded} of 1024 images were loaded before anybody scrolled"
        press(browser, "l", "d", Keys.ARROW_RIGHT, "l")
        until(browser, "Object.keys(state.likes).length === 3")
        labels = "[...document.querySelectorAll('figure')].slice(0, 4).map(f => f.getAttribute('aria-label'))"
        ends = [text.rpartition(", ")[2] for text in script(browser, labels)]
        assert ends == ["liked", "disliked", "not judged", "liked"]
        press(browser, "u")
        until(browser, "Object.keys(state.likes).length === 2")
        press(browser, "n")
        assert script(browser, "document.activeElement.dataset.sample") == name(1, 0)
        browser.refresh()
        until(browser, "document.body.dataset.ready === 'true'")
        assert script(browser, "document.activeElement.dataset.sample") == name(0, 2)
    ballots = Box(election.run.store, election.folder, "ann").ballots
    assert [(b.kind, b.sample_id, b.verdict) for b in ballots] == [
        ("like", name(0, 0), True),
        ("like", name(0, 1), False),
        ("like", name(0, 3), True),
        ("undo", name(0, 3), True),
    ]


def test_pairs_are_compared_by_arrows_and_markup_in_a_prompt_stays_text(browser: Browser, tmp_path: Path) -> None:
    election = ballot_run(tmp_path / "run")
    with opened(election, ["bob"]) as server:
        visit(browser, server.addresses()["bob"])
        assert script(browser, "document.querySelector('h2').textContent") == f"1. {HOSTILE}"
        assert browser.title == "Which images are good?"
        first = script(browser, "state.duels.slice(0, 3)")
        press(browser, "c", Keys.ARROW_LEFT)
        until(browser, "Object.keys(state.pairs).length === 1")
        press(browser, Keys.ARROW_RIGHT)
        until(browser, "Object.keys(state.pairs).length === 2")
        press(browser, "s")
        third = "/".join(sorted((first[2]["a"], first[2]["b"])))
        assert script(browser, "document.getElementById('duel').dataset.pair") != third
    ballots = Box(election.run.store, election.folder, "bob").ballots
    assert [(b.sample_id, b.other_id) for b in ballots] == [
        (first[0]["a"], first[0]["b"]),
        (first[1]["b"], first[1]["a"]),
    ]
    log: list[dict[str, Any]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert not [entry for entry in log if entry["level"] == "SEVERE"]


def test_every_control_has_a_name_every_picture_a_text_and_every_key_is_told(browser: Browser, tmp_path: Path) -> None:
    with opened(ballot_run(tmp_path / "run"), ["ann"]) as server:
        visit(browser, server.addresses()["ann"])
        assert script(browser, "document.documentElement.lang") == "en"
        assert script(browser, "[...document.querySelectorAll('button')].every(b => b.textContent.trim())")
        assert script(browser, "[...document.querySelectorAll('figure img')].every(i => i.alt)")
        assert script(browser, "document.querySelectorAll('[tabindex=\"0\"]').length") == 3
        bound = script(browser, "[...Object.keys(keys.grid), ...Object.keys(common)]")
        told = script(browser, "[...document.querySelectorAll('kbd')].map(k => k.textContent.toLowerCase())")
        assert {key for key in bound if len(key) == 1} <= set(told)
        assert script(browser, "document.getElementById('status').getAttribute('aria-live')") == "polite"
