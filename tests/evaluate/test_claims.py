"""Claims: at most one process works on a video, in whatever order processes look, take, die and stand still."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from helpers.embedded_runs import ARMS, prepared
from stsimdiff import lock
from stsimdiff.errors import DataError
from stsimdiff.evaluate import claims as module
from stsimdiff.evaluate import run
from stsimdiff.evaluate.claims import Claim, Claims

WORKERS, VIDEOS, LEASE = range(3), ("a", "b"), 300.0


class Simulated(Claims):
    """Claims of a process of a machine of its own, of which nothing is known but its signs of life."""

    def __init__(self, folder: Path, host: str, clock: list[float]) -> None:
        super().__init__(folder, lease=LEASE)
        self.host, self.time = host, clock

    def _now(self) -> float:
        return self.time[0]

    def make(self, name: str, generation: int) -> Claim | None:
        claim = super().make(name, generation)
        if claim:
            claim.file.write_text(json.dumps(lock.identity(None) | {"host": self.host}))
            self.beat(claim)
        return claim

    def beat(self, claim: Claim) -> None:
        if claim.file.exists():
            os.utime(claim.file, (self.time[0], self.time[0]))


class Protocol(RuleBasedStateMachine):
    """Workers that look at a video, later take what they saw free, work, beat, give back, die, or stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.folder, self.clock = Path(tempfile.mkdtemp()), [1e9]
        self.claims = {worker: self.worker(worker, 0) for worker in WORKERS}
        self.seen: dict[tuple[int, str], int] = {}
        self.held: dict[tuple[int, str], tuple[Claim, float]] = {}
        self.lapsed: set[Claim] = set()
        self.births = len(WORKERS)

    def worker(self, worker: int, birth: int) -> Simulated:
        made = Simulated(self.folder, f"host{worker}.{birth}", self.clock)
        made.folder.mkdir(exist_ok=True)
        return made

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(worker=st.sampled_from(WORKERS), video=st.sampled_from(VIDEOS))
    def look(self, worker: int, video: str) -> None:
        """The first half of taking: another worker may act before the second."""
        claims = self.claims[worker]
        last = claims.last(video)
        if (worker, video) not in self.held and (last < 0 or not claims.alive(video, last)):
            self.seen[worker, video] = last + 1

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def take(self, data) -> None:
        worker, video = data.draw(st.sampled_from(sorted(self.seen)))
        claim = self.claims[worker].make(video, self.seen.pop((worker, video)))
        if claim:
            self.held[worker, video] = claim, self.clock[0]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def beat(self, data) -> None:
        worker, video = data.draw(st.sampled_from(sorted(self.held)))
        claim, _ = self.held[worker, video]
        self.claims[worker].beat(claim)
        self.held[worker, video] = claim, self.clock[0]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data) -> None:
        worker, video = data.draw(st.sampled_from(sorted(self.held)))
        self.claims[worker].give_back(self.held.pop((worker, video))[0])

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker: int) -> None:
        """What it held lapses; another process of the same machine name comes in its place."""
        self.births += 1
        self.claims[worker] = self.worker(worker, self.births)
        for kept in (self.seen, self.held):
            for key in [key for key in kept if key[0] == worker]:
                del kept[key]

    @rule(seconds=st.sampled_from([1.0, 100.0, LEASE + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock[0] += seconds
        self.lapsed |= {claim for claim, beaten in self.held.values() if self.clock[0] - beaten > LEASE}

    @invariant()
    def one_holder(self) -> None:
        """Of those who hold a video and have not lost it there is one; a sign of life within the lease keeps it."""
        for video in VIDEOS:
            holders = [key for key, (claim, _) in self.held.items() if key[1] == video and not claim.lost]
            assert len(holders) <= 1, holders
        assert not [key for key, (claim, _) in self.held.items() if claim.lost and claim not in self.lapsed]

    @invariant()
    def nothing_is_stuck(self) -> None:
        """A video that nobody holds can be taken at the latest when the lease is over."""
        for video in VIDEOS:
            if not any(key[1] == video for key in self.held):
                later = Simulated(self.folder, "later", [self.clock[0] + LEASE + 1])
                last = later.last(video)
                assert last < 0 or not later.alive(video, last)


Protocol.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
TestProtocol = Protocol.TestCase


def test_a_claim_is_taken_once_and_again_when_it_is_given_back(tmp_path: Path) -> None:
    with Claims(tmp_path) as mine, Claims(tmp_path) as other:
        claim = mine.take("a")
        assert claim and other.take("a") is None and other.take("b")
        mine.give_back(claim)
        again = other.take("a")
        assert again and again.generation == 1 and mine.take("a") is None
    with Claims(tmp_path) as later:
        assert later.take("a") and later.take("b"), "the end of a process gives back what it held"


HOLDER = """
import sys, time
from pathlib import Path
from stsimdiff.evaluate.claims import Claims
with Claims(Path(sys.argv[1])) as claims:
    print("held" if claims.take("a") else "refused", flush=True)
    time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=-1, text=True)
    assert child.stdout.readline() == "held\n"
    return child


def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    child = holder(tmp_path)
    with Claims(tmp_path) as claims:
        assert claims.take("a") is None
        child.kill()
        child.communicate()
        assert claims.take("a")


def test_a_process_that_stands_still_loses_its_claim_and_notices(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)
    with Claims(tmp_path, lease=0.5) as claims, Claims(tmp_path, lease=0.5) as other:
        kept = claims.take("a")
        assert not other._over.wait(1.5), "signs of life keep a claim longer than its lease"
        assert other.take("a") is None and not kept.lost
    child = holder(tmp_path)
    os.kill(child.pid, signal.SIGSTOP)
    (file,) = (tmp_path / module.FOLDER).glob("a.1")
    os.utime(file, (1, 1))
    with Claims(tmp_path) as claims:
        taken = claims.take("a")
        assert taken and Claim(taken.path, 1).lost and not taken.lost
    child.kill()
    child.communicate()


@pytest.mark.parametrize(
    ("owner", "launch", "free"),
    [
        ({"host": "elsewhere"}, None, False),
        ({"host": "elsewhere", "launch": "one.0.0"}, "one.0.0", False),
        ({"boot": "another"}, None, False),
        ({"boot": "another", "launch": "one.0.0"}, "one.0.0", False),
        ({"launch": "one.0.0", "pid": 1}, "one.0.0", True),
        ({"host": "elsewhere", "launch": "one.1.0"}, "one.0.0", False),
        ({"free": True}, None, True),
        ("", None, False),
        ("[]", None, False),
    ],
)
def test_whose_claim_can_be_taken(tmp_path: Path, owner, launch, free) -> None:
    with Claims(tmp_path, launch) as claims:
        known = owner if isinstance(owner, str) else json.dumps(lock.identity(None) | owner)
        (claims.folder / "a.0").write_text(known)
        assert bool(claims.take("a")) is free
        os.utime(claims.folder / "a.0", (1, 1))
        assert free or claims.take("a"), "nothing is held for ever"


def test_an_earlier_attempt_elsewhere_keeps_its_claim_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    owner = lock.identity("one.0.0") | {"host": "elsewhere", "boot": "another"}
    with Claims(tmp_path, "one.0.0") as claims:
        file = claims.folder / "a.0"
        file.write_text(json.dumps(owner))
        assert claims.take("a") is None
        moment = file.stat().st_mtime - 2 * module.BEAT
        os.utime(file, (moment, moment))
        assert claims.take("a"), "a requeued job waits no longer than that"


def test_a_sign_of_life_that_fails_ends_no_other(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(module, "BEAT", 0.02)
    utime, failed = os.utime, []

    def stale(path, *times):
        if path == claim.file and not failed:
            failed.append(path)
            raise OSError(errno.ESTALE, "Stale file handle")
        utime(path, *times)

    with Claims(tmp_path, lease=60) as claims:
        claim = claims.take("a")
        os.utime(claim.file, (1, 1))
        monkeypatch.setattr(os, "utime", stale)
        until = time.monotonic() + 10
        while claim.file.stat().st_mtime == 1 and time.monotonic() < until:
            time.sleep(0.02)
        assert failed and claim.file.stat().st_mtime > 1
    assert "Stale file handle" in caplog.text


def test_where_a_process_answers_makes_no_other_claim(tmp_path: Path, data: Path, monkeypatch) -> None:
    names: dict[str, list[str]] = {}
    take = Claims.take
    monkeypatch.setattr(
        Claims, "take", lambda self, name: names[self.folder.parts[-3]].append(name) or take(self, name)
    )
    elsewhere = shutil.copytree(data, tmp_path / "elsewhere")
    for place, folder, threads in (("here", data, 1), ("there", elsewhere, 2)):
        names[place] = []
        settings, arms = prepared(tmp_path / place, folder, ARMS[0], **{"model.threads": threads})
        run.run_arms(settings, arms)
    assert names["here"] == names["there"] and len(set(names["here"])) > 1


def test_processes_are_counted_that_work_now(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        assert claims.workers() == 1
        child = holder(tmp_path)
        assert claims.workers() == 2
        child.kill()
        child.communicate()
        for clock in claims.folder.glob(".clock.*"):
            os.utime(clock, (1, 1))
        assert claims.workers() == 1


def test_a_claim_whose_maker_died_before_it_said_who_it_is_is_free_in_seconds(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        made = claims.folder / "a.0"
        made.write_text("")
        assert claims.take("a") is None
        moment = made.stat().st_mtime - lock.UNREADABLE_FOR
        os.utime(made, (moment, moment))
        assert claims.take("a")


def test_a_claim_that_is_given_back_says_something_at_every_moment(tmp_path: Path, monkeypatch) -> None:
    with Claims(tmp_path) as claims:
        claim = claims.take("a")
        before, write, seen = claim.file.read_text(), os.write, []

        def watched(descriptor: int, content: bytes) -> int:
            seen.append(claim.file.read_text())
            return write(descriptor, content)

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", watched)
            claims.give_back(claim)
        assert seen == [before] and json.loads(claim.file.read_text()) == {"free": True}


def test_one_waits_until_the_other_is_done(tmp_path: Path, caplog) -> None:
    order = []
    with Claims(tmp_path) as first, Claims(tmp_path) as second:

        def late() -> None:
            with second.alone("report", "makes the table"):
                order.append("second")

        with first.alone("report", "makes the table"):
            waiting = threading.Thread(target=late)
            waiting.start()
            assert not first._over.wait(0.3)
            first.clear()
            order.append("first")
        waiting.join()
    assert order == ["first", "second"]
    with Claims(tmp_path) as claims:
        claims.clear()
        assert not claims.folder.exists()


def test_claims_stay_while_another_process_works(tmp_path: Path) -> None:
    child = holder(tmp_path)
    with Claims(tmp_path) as claims:
        claims.clear()
        assert (claims.folder / "a.0").exists()
    child.kill()
    child.communicate()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / module.FOLDER).write_text("")
    with pytest.raises(DataError, match=r"cannot make the folder .*\.claims"):
        Claims(tmp_path).__enter__()
