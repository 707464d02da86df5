"""The lease and the journal on a real S3 server: what a directory promises, object storage must promise too."""

from __future__ import annotations

import threading

import pytest

from tdm_r1.artifacts.store import open_store
from tdm_r1.drive.journal import Journal, Submission
from tdm_r1.drive.lease import Lease, LeaseHeldError, LeaseLostError


def test_of_drivers_that_race_on_s3_one_gets_the_lease_and_the_next_one_a_larger_number(s3_root: str) -> None:
    leases = [Lease(open_store(s3_root), ttl=10.0) for _ in range(4)]
    got: list[Lease] = []
    refused: list[str] = []
    start = threading.Barrier(len(leases))

    def claim(lease: Lease) -> None:
        start.wait()
        try:
            lease.acquire(0)
        except LeaseHeldError as error:
            refused.append(error.message)
            return
        got.append(lease)
        with lease.kept(refused.append):
            ended.wait(60)

    ended = threading.Event()
    threads = [threading.Thread(target=claim, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    while len(got) + len(refused) < len(leases):
        threading.Event().wait(0.05)
    ended.set()
    for thread in threads:
        thread.join()
    assert [lease.fence for lease in got] == [1]
    got[0].require()
    got[0].release("done")
    after = Lease(open_store(s3_root), ttl=10.0)
    assert after.acquire(0) == 2
    with pytest.raises(LeaseLostError, match="replaced by number 2"):
        got[0].require()


def test_a_submission_number_is_reserved_once_on_s3_and_read_back(s3_root: str) -> None:
    journal = Journal(open_store(s3_root))
    mine = Submission(number=1, name="a-b00001", start=1, records=0, fence=1)
    assert journal.last() is None
    assert journal.begin(mine)
    assert not journal.begin(Submission(number=1, name="a-b00001-other", start=1, records=0, fence=2))
    assert journal.last() == mine
    journal.placed(1, "run")
    journal.end(1, "succeeded")
    journal.end(1, "the second word does not stand")
    found = journal.last()
    assert found is not None
    assert (found.run_id, found.ended) == ("run", "succeeded")
