"""The black boxes of a run, opened once and asked many times."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from multiprocessing import get_context

from tdm_r1.config import RewardConfig
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.protocol import Score, Scorer
from tdm_r1.rewards.registry import open_scorer


class Judges:
    """Every scorer that a configuration names, in its order. The first one is the one that is measured."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self._ready: set[str] = set()

    @cached_property
    def scorers(self) -> dict[str, Scorer]:
        """By the key of the configuration; opened, not loaded."""
        return {
            name: open_scorer(section.use or name, section.options) for name, section in self.config.scorers.items()
        }

    @property
    def first(self) -> str:
        return next(iter(self.config.scorers))

    def score(self, name: str, questions: Sequence[Question]) -> list[Score]:
        """What one scorer says, in the order of the questions, the same for any number of workers.

        Raises:
            ScorerError: when the scorer is not fit to serve.
        """
        scorer = self.scorers[name]
        if name not in self._ready:
            make_ready(scorer)
            self._ready.add(name)
        if self.config.workers == 0:
            return ask(scorer, questions)
        size = max(1, -(-len(questions) // (4 * self.config.workers)))
        parts = [questions[start : start + size] for start in range(0, len(questions), size)]
        with ProcessPoolExecutor(self.config.workers, mp_context=get_context("spawn")) as pool:
            return [score for part in pool.map(partial(ask, scorer), parts) for score in part]
