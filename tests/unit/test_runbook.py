"""The runbook knows every exit code, every error that a stage can end with, and every command it names exists."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import typer

import tdm_r1
from tdm_r1.cli import app
from tdm_r1.errors import TdmR1Error

PAGE = (Path(__file__).parents[2] / "docs/operations/runbook.md").read_text(encoding="utf-8")


def every_error() -> set[type[TdmR1Error]]:
    """All errors of this project, wherever they are declared."""
    for layer in ("runtime.loop", *(f"drive.{found.name}" for found in pkgutil.iter_modules(tdm_r1.drive.__path__))):
        importlib.import_module(f"tdm_r1.{layer}")
    found, new = set[type[TdmR1Error]](), {TdmR1Error}
    while new:
        found |= new
        new = {child for parent in new for child in parent.__subclasses__()} - found
    return found


def test_the_runbook_names_every_error_and_its_exit_code() -> None:
    internal = {"TdmR1Error", "NotThereError", "TakenError"}
    errors = {error for error in every_error() if error.__module__.startswith("tdm_r1.")}
    assert len(errors) > 15
    assert [
        error.__name__ for error in errors if error.__name__ not in internal and f"`{error.__name__}`" not in PAGE
    ] == []
    assert [
        code for code in {0, 1, 130} | {e.exit_code for e in errors} if not re.search(rf"^\| {code} \|", PAGE, re.M)
    ] == []


@pytest.mark.parametrize("words", sorted(set(re.findall(r"tdm-r1 ([a-z-]+(?: [a-z_]+)?(?: --[a-z-]+)*)", PAGE))))
def test_a_command_in_the_runbook_exists_with_its_options(words: str) -> None:
    name, *rest = words.split(" ")
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    assert {word for word in rest if word.startswith("--")} <= known


def test_every_link_inside_the_runbook_has_a_title() -> None:
    titles = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\(#([a-z0-9-]+)\)", PAGE)) <= titles
