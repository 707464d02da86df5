"""The program itself, before any command."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.support import tdm_r1


def test_the_program_tells_its_version_and_does_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert tdm_r1("--version") == 0
    assert capsys.readouterr().out == f"tdm-r1 {version('tdm-r1')}\n"


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["no-such-command"], 2)])
@pytest.mark.parametrize("rank", [True, False])
def test_a_rank_ends_at_once_with_its_own_code_and_any_other_process_takes_its_time(
    words: list[str], code: int, rank: bool
) -> None:
    program = "import atexit; from tdm_r1.cli import main; atexit.register(print, 'the interpreter ends'); main()"
    environment = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    environment |= {"TORCHELASTIC_RUN_ID": "a"} if rank else {}
    command = [sys.executable, "-c", program, *words]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert ended.stdout + ended.stderr not in ("", "the interpreter ends\n")
    assert ("the interpreter ends" in ended.stdout) == (not rank)
