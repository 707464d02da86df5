"""A package of another team: scorers that the pool must bear, found through entry points."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "team-scorers"
version = "1.2.3"
[project.entry-points."tdm_r1.scorers"]
darkness = "team_scorers:Darkness"
nasty = "team_scorers:Nasty"
missing = "team_scorers:Missing"
"""

CODE = """
import json, os, signal, time
import numpy as np
from tdm_r1.config import Section
from tdm_r1.rewards.protocol import PerImage, Score, ScorerInfo, golden

class Darkness(PerImage):
    about = ScorerInfo(name="darkness", version="1", licence="MIT", low=0.0, high=255.0)

    def score_one(self, image, prompt, metadata):
        return Score(255.0 - float(image.mean()))

    def selftest(self):
        golden(self, np.zeros((8, 8, 3), np.uint8), 255.0)

class NastyOptions(Section):
    start: str = ""
    tell: bool = False

class Nasty(Darkness):
    about = ScorerInfo(name="nasty", version="1", licence="MIT", needs=("image", "prompt"), batch=4)
    Options = NastyOptions

    def load(self, threads):
        self.kept, self.threads = [], threads
        if self.options.start == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.options.start == "raise":
            raise OSError("no weights here")

    def selftest(self):
        golden(self, np.zeros((8, 8, 3), np.uint8), 7.0 if self.options.start == "wrong" else 255.0)

    def score_one(self, image, prompt, metadata):
        if prompt == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if prompt == "hang":
            time.sleep(600)
        if prompt == "leak":
            self.kept.append(np.ones(2**22))
        if prompt == "raise":
            raise ValueError("it was asked to")
        print("a library that prints")
        who = {"pid": os.getpid(), "threads": self.threads, "omp": os.environ["OMP_NUM_THREADS"]}
        return Score(255.0 - float(image.mean()), detail=json.dumps(who) if self.options.tell else None)
"""


def install(target: Path) -> None:
    """Build the package and install it into a folder, with pip and without a network."""
    source = target.with_suffix(".source")
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "team_scorers.py").write_text(CODE)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, source], check=True)
