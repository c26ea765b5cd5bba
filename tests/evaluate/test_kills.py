"""Processes of a run that are killed at random: the others, and those that come in their place, answer the rest."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

from benchmarks import store as stub
from stsimdiff.evaluate.claims import Claims
from stsimdiff.evaluate.run import answer_missing
from stsimdiff.evaluate.store import ArmStore, read_answers, shards
from stsimdiff.evaluate.stored import strict_json
from stsimdiff.files import lines

ANSWER_SECONDS, WORKERS, KILLS = 0.02, 3, 10


def test_answers_are_flushed_for_other_machines_before_their_video_is_free(
    tmp_path: Path, monkeypatch
) -> None:
    settings, arms, questions = stub.stub_settings(tmp_path), stub.stub_arms(2), stub.questions(6)
    calls, flush, give_back = [], ArmStore.flush, Claims.give_back
    monkeypatch.setattr(ArmStore, "flush", lambda store: calls.append(len(store.states)) or flush(store))
    monkeypatch.setattr(
        Claims, "give_back", lambda claims, claim: calls.append("free") or give_back(claims, claim)
    )
    answer_missing(settings, stub.StubTask(), arms, questions, open_session=stub.StubSession)
    assert calls == [3, 3, "free", 6, 6, "free"]


def test_ten_random_kills_lose_and_double_no_answer(tmp_path: Path) -> None:
    settings, arms, questions = stub.stub_settings(tmp_path), stub.stub_arms(2), stub.questions(120)
    total = len(arms) * len(questions)

    class Slow(stub.StubSession):
        def row(self, *asked):
            time.sleep(ANSWER_SECONDS)
            return super().row(*asked)

    def work() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        answer_missing(settings, stub.StubTask(), arms, questions, open_session=Slow)

    def stored() -> list[tuple[str, str]]:
        """Arm and question of each whole line, in whichever process's file."""
        return [
            (arm.id, strict_json(line)["id"])
            for arm in arms
            for shard in shards(settings.folder / arm.folder)
            for line in lines(shard)[0]
        ]

    def started():
        process = fork.Process(target=work)
        process.start()
        return process

    fork, dice = multiprocessing.get_context("fork"), random.Random(0)
    running, seen = [started() for _ in range(WORKERS)], []
    try:
        for kill in range(KILLS):
            # Spread over the run, however fast it is.
            while len(stored()) < (kill + 1) * total // (KILLS + 4):
                assert any(process.is_alive() for process in running)
                time.sleep(dice.uniform(0, 0.02))
            victim = running.pop(dice.randrange(WORKERS))
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            seen.append(victim.exitcode)
            running.append(started())
        for process in running:
            process.join()
    finally:
        for process in running:
            process.kill()
    assert seen == [-signal.SIGKILL] * KILLS and {process.exitcode for process in running} == {0}
    assert Counter(stored()) == {(arm.id, question.id): 1 for arm in arms for question in questions}
    for arm in arms:
        assert all(row["error"] is None for row in read_answers(settings.folder / arm.folder))
