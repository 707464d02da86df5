"""The loop of the driver. All it must remember lies beside the run, so that it may die at any point."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tdm_r1.artifacts.store import Store
from tdm_r1.config import RunConfig
from tdm_r1.drive.http import SchedulerDownError
from tdm_r1.drive.journal import Journal, Submission
from tdm_r1.drive.lease import Lease, LeaseLostError
from tdm_r1.drive.notify import Say, Webhook
from tdm_r1.drive.progress import Progress, read_progress
from tdm_r1.drive.rules import Rules, Signals, fired, read_signals
from tdm_r1.drive.scheduler import Block, Scheduler, Status
from tdm_r1.errors import ConfigError, TdmR1Error, TemporaryError
from tdm_r1.runtime.layout import STOP_FILE

Result = TypeVar("Result")


class BlockFailedError(TdmR1Error):
    """Blocks failed again and again without completing an iteration."""


class InterruptedDriveError(TemporaryError):
    """The driver was told to end; what it submitted goes on."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How patient the driver is; durations in seconds."""

    retries: int = 3
    """Failed blocks in a row, none of which completed an iteration, that are submitted again."""
    poll: float = 15.0
    """Between two looks at a block."""
    outage: float = 1800.0
    """For which the scheduler may be unreachable."""
    stall: float | None = None
    """Without a new record after which a block is terminated and counts as failed; None waits for ever."""
    until: int | None = None
    """Last iteration for which a block is still started."""


@dataclass(kw_only=True)
class Driver:
    """Drives one run while it holds the lease."""

    store: Store
    config: RunConfig
    scheduler: Scheduler
    lease: Lease
    rules: Rules = field(default_factory=Rules)
    limits: Limits = Limits()
    webhook: Webhook
    say: Say
    count: Callable[[str, int], None] = lambda _event, _failures: None
    """Told each event, and how many blocks have failed in a row."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set from outside: let go of everything and raise `InterruptedDriveError`."""
    _history: list[Signals] = field(default_factory=list)
    _seen: int | None = None
    _failures: int = 0
    """Blocks that failed in a row without completing an iteration."""

    def __post_init__(self) -> None:
        self._journal = Journal(self.store)

    def drive(self) -> str:
        """Submit blocks until there is a reason to end, and return it.

        Raises:
            BlockFailedError: after `limits.retries` failures in a row.
            LeaseLostError: when another driver took over.
            SchedulerDownError: when the scheduler was unreachable for `limits.outage`.
            ConfigError: when a block succeeds and nothing of it arrives in the storage.
        """
        while True:
            self._pause(0)
            before = self.observe()
            submission = self._unfinished()
            if submission is None:
                if (reason := self._over(before)) is not None:
                    return reason
                submission = self._submit(before)
            status = self._wait(submission)
            after = self.observe()
            self._journal.end(submission.number, f"{status.state} {status.detail}".strip())
            self._judge(submission, status, after)

    def observe(self) -> Progress:
        """Read the progress; tell of iterations that are new, and set STOP when one of them breaks a rule."""
        progress = read_progress(self.store, self.config)
        first = progress.complete if self._seen is None else self._seen + 1
        if self.rules.any:
            self._look(progress, first)
        if progress.complete > (self._seen or 0):
            self._tell("progress", f"iteration {progress.complete} of {self.config.iterations} is committed")
        self._seen = progress.complete
        return progress

    def _look(self, progress: Progress, first: int) -> None:
        """Judge iterations from `first` on; those before were judged by the drivers before us, and are remembered."""
        for iteration in range(len(self._history) + 1, progress.complete + 1):
            self._history.append(read_signals(self.store, self.config, iteration, self.rules.prices))
            if iteration >= first and (reason := fired(self._history, self.rules)) is not None:
                self._stop(reason)

    def _over(self, progress: Progress) -> str | None:
        if progress.complete >= self.config.iterations:
            return f"complete: {self.config.iterations} iterations are committed"
        if self.store.exists(STOP_FILE):
            said = self.store.read_bytes(STOP_FILE).decode(errors="replace").strip()
            return f"stopped after iteration {progress.complete}" + (f": {said}" if said else f" by {STOP_FILE}")
        if self.limits.until is not None and progress.next > self.limits.until:
            return f"stopped after iteration {progress.complete}, asked to run until {self.limits.until}"
        return None

    def _stop(self, reason: str) -> None:
        if self.store.write_bytes_if_absent(STOP_FILE, reason.encode() + b"\n"):
            self._tell("rule", reason)

    def _unfinished(self) -> Submission | None:
        """The submission of a driver before us that may still run; one that never arrived is closed."""
        last = self._journal.last()
        if last is None or last.ended is not None:
            return None
        run_id = last.run_id or self._patiently(lambda: self.scheduler.find(last.name))
        if run_id is not None:
            self._journal.placed(last.number, run_id)
            if last.fence != self.lease.fence:
                self.say(f"{last.name}: adopted from driver {last.fence}")
            return self._journal.read(last.number)
        self._journal.end(last.number, "lost: it never reached the scheduler")
        late = self._patiently(lambda: self.scheduler.find(last.name))  # submitted while we closed it
        if late is not None:
            self._patiently(lambda: self.scheduler.terminate(late))
        return None

    def _submit(self, progress: Progress) -> Submission:
        """Reserve a number, then ask the scheduler until it is known to have the block."""
        last = self._journal.last()
        number = last.number + 1 if last else 1
        name = run_name(self.store.root, number, progress.next)
        submission = Submission(
            number=number, name=name, start=progress.next, records=progress.records, fence=self.lease.fence
        )
        self.lease.require()
        if not self._journal.begin(submission):
            raise LeaseLostError(f"another driver submits number {number}", hint="nothing to do: that one goes on")
        shards = tuple(range(self.config.rollout.shards))
        block = Block(name=name, root=self.store.root, start=progress.next, shards=shards)
        run_id = self._patiently(lambda: self.scheduler.submit(block), again=lambda: self.scheduler.find(name))
        self._journal.placed(number, run_id)
        if self._journal.has_ended(number):
            self.scheduler.terminate(run_id)
            raise LeaseLostError(f"`{name}` was given up by the next driver", hint="nothing to do: that one goes on")
        self._tell("submitted", f"{name}: from iteration {progress.next}, run {run_id}")
        return self._journal.read(number)

    def _wait(self, submission: Submission) -> Status:
        run_id = submission.run_id or ""
        records, since = -1, self.lease.clock()
        while True:
            self.lease.require()
            status = self._patiently(lambda: self.scheduler.status(run_id))
            if status.state != "running":
                return status
            found, now = self.observe().records, self.lease.clock()
            records, since = (found, now) if found != records else (records, since)
            if self.limits.stall is not None and now - since > self.limits.stall:
                self._patiently(lambda: self.scheduler.terminate(run_id))
                return Status("failed", f"terminated: no new record for {self.limits.stall:g} s")
            self._pause(self.limits.poll)

    def _judge(self, submission: Submission, status: Status, after: Progress) -> None:
        """Tell how a block ended, and count how many have failed in a row."""
        facts = {"name": submission.name, "run_id": submission.run_id, "detail": status.detail}
        if status.state == "succeeded":
            self._failures = 0
            self._tell("succeeded", f"{submission.name}: succeeded, iteration {after.complete} is committed", **facts)
            if after.records == submission.records and after.complete < self.config.iterations:
                self._refuse_nothing(submission)
            return
        self._failures = failures = 1 if after.complete >= submission.start else self._failures + 1
        self._tell("failed", f"{submission.name}: {status.detail}", failures=failures, **facts)
        if failures > self.limits.retries:
            raise BlockFailedError(
                f"{failures} blocks failed in a row after iteration {after.complete}; the last: {status.detail}",
                hint=f"read the log of the failed task of `{submission.name}`, then start the driver again",
            )
        self._pause(min(self.limits.poll * 2 ** (failures - 1), 300))

    def _refuse_nothing(self, submission: Submission) -> None:
        if self.store.exists(STOP_FILE):
            return
        raise ConfigError(
            f"`{submission.name}` succeeded, but nothing new is committed under `{self.store.root}`",
            hint="the pods write elsewhere: they need this root, and the same storage behind it",
        )

    def _patiently(self, call: Callable[[], Result], again: Callable[[], Result | None] | None = None) -> Result:
        """Call until the scheduler answers; before repeating something that is not idempotent, `again` looks for it."""
        since: float | None = None
        attempt = 0
        while True:
            try:
                if attempt and again is not None and (found := again()) is not None:
                    return found
                if attempt:
                    self.lease.require()
                return call()
            except SchedulerDownError as error:
                now = self.lease.clock()
                since = now if since is None else since
                if now - since >= self.limits.outage:
                    raise
                attempt += 1
                self.count("unanswered", self._failures)
                self.say(f"{error.message}; trying again")
                self._pause(min(self.limits.poll, 0.5 * 2**attempt))

    def _pause(self, seconds: float) -> None:
        if self.ended.wait(seconds):
            raise InterruptedDriveError(
                "the driver was told to end; the block goes on", hint="start it again: it adopts what runs"
            )

    def _tell(self, event: str, text: str, **fields: object) -> None:
        self.say(text)
        self.count(event, self._failures)
        self.webhook.send(event, text, root=self.store.root, fence=self.lease.fence, **fields)


def run_name(root: str, number: int, start: int) -> str:
    """A Kubernetes name that says run, submission and first iteration, and that nothing had before.

    `demo-b00003-i00011-1f8a20c4`. The end is random: a root may be deleted and used again, and a server keeps old runs.
    """
    last = re.sub(r"[^a-z0-9]+", "-", root.rstrip("/").rpartition("/")[2].lower()).strip("-")[:30].strip("-")
    return f"{last or 'run'}-b{number:05d}-i{start:05d}-{uuid.uuid4().hex[:8]}"
