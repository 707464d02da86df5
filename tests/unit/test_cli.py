"""The program itself, before any command."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from tests.support import tdm_r1


def test_the_program_tells_its_version_and_does_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert tdm_r1("--version") == 0
    assert capsys.readouterr().out == f"tdm-r1 {version('tdm-r1')}\n"
