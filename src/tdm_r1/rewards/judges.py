"""The black boxes of a run, opened once and asked many times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tdm_r1.config import RewardConfig
from tdm_r1.models.progress import Progress, silent
from tdm_r1.rewards.ask import Question, ask, make_ready
from tdm_r1.rewards.batches import calls
from tdm_r1.rewards.cache import ScoreCache, key_of, open_cache
from tdm_r1.rewards.pool import Done, Pool
from tdm_r1.rewards.protocol import NOT_ASKED, Score, Scorer, failed, is_failure
from tdm_r1.rewards.registry import open_scorer
from tdm_r1.rewards.worker import Order
from tdm_r1.worlds.mix import WORLD


@dataclass(frozen=True)
class Tally:
    """What one call of `Judges.score` cost."""

    scorer: str
    images: int
    cached: int
    failed: int
    seconds: float
    workers: int
    """Processes; 0 is the caller's own."""
    died: int
    recycled: int
    fault: str | None
    """What is wrong with the cache."""

    def __str__(self) -> str:
        rate = (self.images - self.cached) / max(self.seconds, 1e-9)
        extra = [f"{count} {what}" for what, count in self.__dict__.items() if what in _COUNTED and count]
        places = f"{self.workers} processes" if self.workers else "the stage's own process"
        line = f"{self.scorer}: {self.images} images in {self.seconds:.1f} s, {rate:.1f}/s in {places}"
        return "; ".join([line, *extra, *([self.fault] if self.fault else [])])


_COUNTED = ("cached", "failed", "died", "recycled")


class Judges:
    """Every scorer that a configuration names, in its order. The first one is the one that is measured."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self.tallies: list[Tally] = []
        """One per call of `score`."""
        self._ready: set[str] = set()
        self._pools: dict[str, Pool] = {}

    @cached_property
    def scorers(self) -> dict[str, Scorer]:
        """By the key of the configuration; opened, not loaded."""
        sections = self.config.scorers.items()
        return {name: open_scorer(section.use or name, section.options) for name, section in sections}

    def require(self) -> None:
        """Refuse what is not installed or not understood before anything is computed.

        Raises:
            ScorerError: for a scorer that no installed package declares.
            ConfigError: for an option that a scorer refuses.
        """
        _ = self.scorers

    @cached_property
    def cache(self) -> ScoreCache | None:
        return open_cache()

    @property
    def first(self) -> str:
        return next(iter(self.config.scorers))

    def score(self, name: str, questions: Sequence[Question], *, progress: Progress = silent) -> list[Score]:
        """What one scorer says, in the order of the questions, the same for any number of workers.

        Raises:
            ScorerError: when the scorer is not fit to serve.
        """
        started, info = time.monotonic(), self.scorers[name].info
        keys = [key_of(question, info) for question in questions] if self.cache else []
        known = self.cache.get(keys) if self.cache else [None] * len(questions)
        found = dict(enumerate(known))
        rows = [row for row, score in found.items() if score is None]
        steps = iter(progress(range(len(rows)), f"{name}: {len(rows)} images"))

        def done(batch: Sequence[int], scores: Sequence[Score]) -> None:
            found.update(zip(batch, scores, strict=True))
            if self.cache:
                self.cache.put((keys[row], score) for row, score in zip(batch, scores, strict=True))
            for _ in batch:
                next(steps, None)

        if rows:
            self._ask(name, questions, rows, done)
        next(steps, None)
        scores = [score for _, score in sorted(found.items()) if score is not None]
        self._count(name, scores, len(questions) - len(rows), time.monotonic() - started)
        return scores

    def asks(self, name: str, question: Question) -> bool:
        """Whether a scorer is asked about the image of this prompt: in a mix of worlds, it may be none of its own."""
        worlds, own = self.config.scorers[name].worlds, question.metadata.get(WORLD)
        return not worlds or own is None or own in worlds

    def score_asked(self, name: str, questions: Sequence[Question], *, progress: Progress = silent) -> list[Score]:
        """As `score`; a row about which this scorer is not asked has the error `NOT_ASKED`."""
        rows = [row for row, question in enumerate(questions) if self.asks(name, question)]
        scores = [failed(NOT_ASKED)] * len(questions)
        if rows:
            for row, score in zip(rows, self.score(name, [questions[r] for r in rows], progress=progress), strict=True):
                scores[row] = score
        return scores

    def first_asked(self, questions: Sequence[Question]) -> dict[str, list[int]]:
        """Rows by the first scorer that is asked about each: the one that is measured."""
        found: dict[str, list[int]] = {}
        for row, question in enumerate(questions):
            found.setdefault(next(n for n in self.config.scorers if self.asks(n, question)), []).append(row)
        return found

    def _ask(self, name: str, questions: Sequence[Question], rows: Sequence[int], done: Done) -> None:
        scorer, section = self.scorers[name], self.config.scorers[name]
        if self.config.workers != 0:
            if name not in self._pools:
                order = Order(section.use or name, section.options, scorer.info)
                self._pools[name] = Pool(order, self.config)
            self._pools[name].score(questions, rows, done)
            return
        if name not in self._ready:
            make_ready(scorer)
            self._ready.add(name)
        for batch in calls(rows, scorer.info.batch):
            done(batch, ask(scorer, [_own(questions[row]) for row in batch]))

    def _count(self, name: str, scores: Sequence[Score], cached: int, seconds: float) -> None:
        pool = self._pools.get(name)
        upkeep = (pool.size, pool.upkeep.died, pool.upkeep.recycled) if pool else (0, 0, 0)
        errors = sum(is_failure(score.error) for score in scores)
        fault = self.cache.fault if self.cache else None
        self.tallies.append(Tally(name, len(scores), cached, errors, seconds, *upkeep, fault))

    def close(self) -> None:
        """End every scoring process."""
        for pool in self._pools.values():
            pool.close()


def _own(question: Question) -> Question:
    """With a copy of the pixels, as a process of the pool has: a scorer may write into what it is given."""
    picture = question.picture
    return replace(question, picture=picture.copy()) if isinstance(picture, np.ndarray) else question
