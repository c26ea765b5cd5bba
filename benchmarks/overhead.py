"""What the harness costs beside the answers: the pass of one arm that keeps all tokens, over a bare loop of `generate`.

python -m benchmarks.overhead [--quick] [model.path=... and other settings]

Both read, encode and ask the same videos and questions with the same loaded model in one process, in turn. The bare
loop knows no arms, no engine and no store; the pass hooks the decoder, scores, and stores each answer before the next
is asked for. What a disk takes to sync, once a second, is shown apart, as it is the same for a model of any size.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.output import save_report
from stsimdiff import video
from stsimdiff.config.arms import Arm, arm_from_config, arm_record
from stsimdiff.config.settings import settings_from_config
from stsimdiff.data import clips
from stsimdiff.evaluate import session as sessions
from stsimdiff.evaluate import store
from stsimdiff.evaluate.answering import Work, answer_all
from stsimdiff.evaluate.claims import Claims
from stsimdiff.evaluate.processes import Processes
from stsimdiff.evaluate.questions import Question, all_questions, load_task
from stsimdiff.evaluate.store import ArmStore
from stsimdiff.launchers.base import configurations


def bare(session: sessions.Session, questions: list[Question]) -> tuple[float, list[str]]:
    """Seconds and answers of a loop that does nothing but answer."""
    settings, family, answers, encoded, path = session.settings, session.family, [], None, None
    started = time.perf_counter()
    for question in questions:
        if question.video != path:
            path = question.video
            frames = video.read(path, settings.model.frames, settings.benchmark.decoder)
            encoded = family.encode(frames)
        prompt = family.prompt(encoded, question.text)
        answers.append(family.answer(prompt, question.max_new_tokens))
    return time.perf_counter() - started, answers


def harness(
    session: sessions.Session, task: Any, arm: Arm, questions: list[Question], folder: Path
) -> tuple[float, list[str], float]:
    """Seconds and answers of the pass as the command line runs it, and the seconds spent in syncs."""
    synced, sync = [0.0], store.sync

    def timed(descriptor: int) -> None:
        began = time.perf_counter()
        sync(descriptor)
        synced[0] += time.perf_counter() - began

    with (
        ArmStore(folder / arm.folder, arm_record(arm, session.settings, {})) as opened,
        Claims(folder) as claims,
    ):
        store.sync = timed
        try:
            started = time.perf_counter()
            work = Work({arm.id: opened}, [arm], questions, False)
            answer_all(session, task, work, Processes(), claims)
            spent = time.perf_counter() - started
        finally:
            store.sync = sync
    rows = store.read_answers(folder / arm.folder)
    return spent, [row["answer"] for row in rows], synced[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two videos and three repeats")
    parser.add_argument("--videos", type=int, default=6, help="clips of seven questions each")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where the answers are stored; its disk is measured")
    parser.add_argument("--out", type=Path, default=Path("results/overhead.json"))
    parser.add_argument("settings", nargs="*", help="key=value, as on the command line of stsimdiff")
    options = parser.parse_args()
    videos, repeats = (2, 3) if options.quick else (options.videos, options.repeats)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        words = [
            "compressor=none",
            "logger=none",
            "reuse_prefix=false",
            f"results={folder}",
            *options.settings,
        ]
        if not any(word.startswith("benchmark") for word in options.settings):
            words.append(f"benchmark.data={clips.build(folder / 'data', videos=videos)}")
        (config,) = configurations(words)
        settings = settings_from_config(config)
        arm = arm_from_config(config, settings)
        task = load_task(settings.benchmark)
        questions = sorted(all_questions(task, settings.limit, None), key=lambda q: q.video)
        session = sessions.Session(settings)
        bare(session, questions)  # warm-up
        pairs = []
        settings.folder.mkdir(parents=True)
        for number in range(repeats):
            plain, expected = bare(session, questions)
            full, answers, synced = harness(session, task, arm, questions, folder / str(number))
            if answers != expected:
                raise SystemExit("the harness answered otherwise than the bare loop")
            pairs.append((plain, full, synced))
    plain, full, synced = (statistics.median(column) / len(questions) for column in zip(*pairs, strict=True))
    ratio = statistics.median(full / plain for plain, full, _ in pairs)
    without = statistics.median((full - synced) / plain for plain, full, synced in pairs)
    print(f"{len(questions)} questions, {repeats} repeats, medians a question")
    print(
        f"bare loop {1000 * plain:.2f} ms, harness {1000 * full:.2f} ms, of which sync {1000 * synced:.2f} ms"
    )
    print(f"harness / bare loop: {ratio:.3f}; without the syncs {without:.3f}")
    report = {
        "bare_s": plain,
        "harness_s": full,
        "sync_s": synced,
        "ratio": ratio,
        "ratio_without_sync": without,
    }
    save_report(report | {"questions": len(questions)}, options.out)


if __name__ == "__main__":
    main()
