"""What the harness costs beside the answers: the pass of one arm that keeps all tokens, over a bare loop of `generate`.

python -m benchmarks.overhead [--quick] [model.path=... and other settings]

Both read, encode and ask the same videos and questions with the same loaded model in one process, in turn; both build
each prompt and its inputs. The bare loop knows no arms, no engine and no store, and reads a video when its turn comes.
The pass reads ahead in a process of its own, which has started while the model was loaded, as in a run; it hooks the
decoder, scores, checks what a method left, and stores each answer before the next is asked for. What a disk takes to
sync, once a second, is shown apart, as it is the same for a model of any size. The processor time of the answering
process alone, reading left out on both sides, is what other work on the machine falsifies least.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
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
from stsimdiff.evaluate.reading import Reader
from stsimdiff.evaluate.store import ArmStore
from stsimdiff.launchers.base import configurations

LOADING = 1.0
"""Seconds for the reader to start: no model is loaded sooner."""


@dataclass
class Spent:
    """What a loop took, in seconds.

    Attributes:
        wall: by the clock.
        processor: of this process, without reading.
        synced: by the clock, in syncs of the disk.
    """

    wall: float
    processor: float
    synced: float = 0.0


def bare(session: sessions.Session, questions: list[Question]) -> tuple[Spent, list[str]]:
    """A loop that does nothing but answer; its time and answers."""
    settings, family, answers, encoded, path = session.settings, session.family, [], None, None
    started, processor = time.perf_counter(), time.process_time()
    for question in questions:
        if question.video != path:
            path, before = question.video, time.process_time()
            frames = video.read(path, settings.model.frames, settings.benchmark.decoder)
            processor += time.process_time() - before
            encoded = family.encode(frames)
        prompt = family.prompt(encoded, question.text)
        answers.append(family.answer(prompt, question.max_new_tokens))
    return Spent(time.perf_counter() - started, time.process_time() - processor), answers


def harness(
    session: sessions.Session, task: Any, arm: Arm, questions: list[Question], folder: Path
) -> tuple[Spent, list[str]]:
    """The pass as the command line runs it once the model is loaded; its time and answers."""
    synced, sync = [0.0], store.sync

    def timed(descriptor: int) -> None:
        began = time.perf_counter()
        sync(descriptor)
        synced[0] += time.perf_counter() - began

    session.reader = Reader(session.settings)
    session.reader.start()
    time.sleep(LOADING)
    with (
        ArmStore(folder / arm.folder, arm_record(arm, session.settings, {})) as opened,
        Claims(folder) as claims,
    ):
        store.sync = timed
        try:
            started, processor = time.perf_counter(), time.process_time()
            work = Work({arm.id: opened}, [arm], questions, False)
            answer_all(session, task, work, Processes(), claims)
            spent = Spent(time.perf_counter() - started, time.process_time() - processor, synced[0])
        finally:
            store.sync = sync
    return spent, [row["answer"] for row in store.read_answers(folder / arm.folder)]


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
            full, answers = harness(session, task, arm, questions, folder / str(number))
            if answers != expected:
                raise SystemExit("the harness answered otherwise than the bare loop")
            pairs.append((plain, full))
    report = {
        "bare_s": statistics.median(plain.wall for plain, _ in pairs) / len(questions),
        "harness_s": statistics.median(full.wall for _, full in pairs) / len(questions),
        "sync_s": statistics.median(full.synced for _, full in pairs) / len(questions),
        "ratio": statistics.median(full.wall / plain.wall for plain, full in pairs),
        "ratio_without_sync": statistics.median(
            (full.wall - full.synced) / plain.wall for plain, full in pairs
        ),
        "processor_more_s": statistics.median(full.processor - plain.processor for plain, full in pairs)
        / len(questions),
        "processor_ratio": statistics.median(full.processor / plain.processor for plain, full in pairs),
    }
    print(f"{len(questions)} questions, {repeats} repeats, medians a question")
    print(
        f"bare loop {1000 * report['bare_s']:.2f} ms, harness {1000 * report['harness_s']:.2f} ms, of which sync "
        f"{1000 * report['sync_s']:.2f} ms"
    )
    print(f"harness / bare loop: {report['ratio']:.3f}; without the syncs {report['ratio_without_sync']:.3f}")
    print(
        f"processor time without reading: {1000 * report['processor_more_s']:.2f} ms more, "
        f"{report['processor_ratio']:.3f} times the bare loop's"
    )
    save_report(report | {"questions": len(questions)}, options.out)


if __name__ == "__main__":
    main()
