"""Claims about the lease, with clocks that a test turns by hand and a real directory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tdm_r1.artifacts.store import LocalStore, Store
from tdm_r1.drive.lease import Lease, LeaseHeldError, LeaseLostError
from tdm_r1.errors import TemporaryStorageError

TTL = 60.0


@dataclass
class World:
    """True time, and clocks that show it shifted and at another rate."""

    now: float = 0.0
    each_second: list[Callable[[], None]] = field(default_factory=list)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 1, end)
            for call in self.each_second:
                call()

    def lease(self, store: Store, *, offset: float = 0.0, rate: float = 1.0) -> Lease:
        return Lease(
            store, ttl=TTL, clock=lambda: offset + rate * self.now, sleep=lambda seconds: self.advance(seconds / rate)
        )


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def test_every_driver_has_a_larger_number_than_all_before(store: LocalStore) -> None:
    world, fences = World(), []
    for _ in range(3):
        lease = world.lease(store)
        fences.append(lease.acquire(0))
        lease.release("done")
    assert fences == [1, 2, 3]
    assert world.now == 0, "nobody had to wait for a driver that let go"


def test_a_driver_that_died_is_replaced_after_its_silence_and_not_before(store: LocalStore) -> None:
    world = World()
    world.lease(store).acquire(0)
    assert world.lease(store, offset=-1e9).acquire(0) == 2
    assert TTL <= world.now < 1.5 * TTL


def test_a_driver_that_beats_is_not_replaced_and_is_named(store: LocalStore) -> None:
    world = World()
    holder = world.lease(store)
    holder.acquire(0)
    world.each_second.append(holder.renew)
    with pytest.raises(LeaseHeldError, match="number 1, process"):
        world.lease(store).acquire(5 * TTL)
    assert world.now >= 5 * TTL
    holder.require()


def test_who_waits_takes_over_when_the_holder_dies_meanwhile(store: LocalStore) -> None:
    world = World()
    holder = world.lease(store)
    holder.acquire(0)
    world.each_second.append(lambda: holder.renew() if world.now < 100 else None)
    assert world.lease(store).acquire(10 * TTL) == 2
    assert 100 + TTL <= world.now < 100 + 2 * TTL


def test_a_replaced_driver_may_neither_act_nor_beat(store: LocalStore) -> None:
    world = World()
    first, second = world.lease(store), world.lease(store)
    first.acquire(0)
    first.require()
    second.acquire(0)
    for forbidden in (first.require, first.renew):
        with pytest.raises(LeaseLostError):
            forbidden()
    second.require()


def test_a_driver_that_was_stopped_and_went_on_sees_its_successor_although_its_clock_stood_still(
    store: LocalStore,
) -> None:
    world = World()
    frozen = Lease(store, ttl=TTL, clock=lambda: 0.0, sleep=world.advance)
    frozen.acquire(0)
    assert world.lease(store).acquire(0) == 2
    with pytest.raises(LeaseLostError, match="replaced by number 2"):
        frozen.require()


def test_a_driver_whose_beats_do_not_arrive_stops_by_itself(store: LocalStore) -> None:
    world = World()
    lease = world.lease(store)
    lease.acquire(0)
    world.advance(TTL * 2 / 3 - 1)
    lease.require()
    world.advance(2)
    with pytest.raises(LeaseLostError, match="no beat of driver 1 reached"):
        lease.require()


@pytest.mark.parametrize(("holder_rate", "other_rate"), [(1.0, 1.0), (0.8, 1.19), (1.2, 0.8), (0.7, 1.04)])
def test_two_drivers_never_trust_their_lease_at_once_while_rates_differ_by_less_than_half(
    store: LocalStore, holder_rate: float, other_rate: float
) -> None:
    world = World()
    holder = world.lease(store, offset=7e8, rate=holder_rate)
    other = world.lease(store, offset=-7e8, rate=other_rate)
    holder.acquire(0)
    trusted: list[float] = []
    world.each_second.append(
        lambda: trusted.append(world.now) if holder.clock() < holder._trusted_until and other.fence == 0 else None
    )
    other.acquire(0)
    assert trusted, "the holder trusted its lease for a while"
    assert holder.clock() >= holder._trusted_until, "and no longer when the other had its own"


@pytest.mark.parametrize("rates", [(0.5, 1.0)])
def test_the_bound_on_rates_is_needed(store: LocalStore, rates: tuple[float, float]) -> None:
    """The control of the test above: beyond the bound only the look at the successor saves the holder."""
    world = World()
    holder, other = (world.lease(store, rate=rate) for rate in rates)
    holder.acquire(0)
    other.acquire(0)
    assert holder.clock() < holder._trusted_until
    with pytest.raises(LeaseLostError):
        holder.require()


def test_a_beat_that_arrives_after_the_takeover_makes_the_new_driver_wait_until_trust_has_ended(
    store: LocalStore,
) -> None:
    world = World()
    holder, other = world.lease(store), world.lease(store)
    holder.acquire(0)
    claim = store.write_bytes_if_absent

    def claim_then_late_beat(key: str, data: bytes) -> bool:
        written = claim(key, data)
        if "00000002/claim" in key:
            store.overwrite("drive/lease/00000001/beat.json", b'{"beat": 99}')
        return written

    store.write_bytes_if_absent = claim_then_late_beat  # type: ignore[method-assign]
    assert other.acquire(0) == 2
    assert world.now >= 2 * TTL


def test_of_many_drivers_at_once_one_gets_the_lease(tmp_path: Path) -> None:
    leases = [Lease(LocalStore(str(tmp_path)), ttl=2.0) for _ in range(8)]
    got: list[int] = []
    held: list[str] = []
    start = threading.Barrier(len(leases))

    def run(lease: Lease) -> None:
        start.wait()
        try:
            with_lease = lease.acquire(0)
        except LeaseHeldError as error:
            held.append(str(error))
            return
        got.append(with_lease)
        with lease.kept(held.append):
            done.wait(20)

    done = threading.Event()
    threads = [threading.Thread(target=run, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    while len(held) + len(got) < len(leases):
        threading.Event().wait(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert got == [1]
    assert len(held) == len(leases) - 1


def test_a_beat_that_fails_once_is_said_and_repeated(store: LocalStore) -> None:
    """The lease's own clock is set by hand: trust ends at .133 without a beat, and at .233 with one at .1."""
    now, beats, renewed = [0.0], list[bool](), threading.Event()
    lease = Lease(store, ttl=0.2, clock=lambda: now[0])
    said: list[str] = []
    lease.acquire(0)
    real = store.overwrite

    def overwrite(key: str, data: bytes) -> None:
        beats.append(bool(beats))
        if not beats[-1]:
            raise TemporaryStorageError("the storage is away")
        if len(beats) > 2:  # so the one before was taken in
            renewed.set()
        real(key, data)

    store.overwrite = overwrite  # type: ignore[method-assign]
    now[0] = 0.1
    with lease.kept(said.append):
        assert renewed.wait(20)
        now[0] = 0.2
        lease.require()
    assert said == ["the lease was not renewed: the storage is away"]
