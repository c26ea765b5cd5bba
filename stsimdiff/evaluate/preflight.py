"""The data of all passes, looked at before the first one loads a model.

Otherwise a sweep over four benchmarks would answer one for a day before it says that the next one's videos are gone.
"""

from __future__ import annotations

from collections.abc import Iterable

from stsimdiff.config.settings import Settings
from stsimdiff.data.videos import unusable_videos
from stsimdiff.errors import DataError, MissingParts
from stsimdiff.evaluate.questions import all_questions, load_task
from stsimdiff.ranks import ranks


def check_data(passes: Iterable[Settings]) -> None:
    """Read the questions of every public benchmark and open its videos, each once.

    Of several processes only the first one looks; the others wait for it at their first pass.

    Raises:
        MissingParts: naming what cannot be used, of all benchmarks of which it is more than ``max_failures``.
    """
    if ranks().rank > 0:
        return
    looked_at, missing = set(), []
    for settings in passes:
        benchmark = settings.benchmark
        categories = tuple(benchmark.categories or ())
        key = (
            benchmark.root,
            categories,
            settings.limit,
            benchmark.allow_missing,
            settings.max_failures,
        )
        if not benchmark.root or key in looked_at:
            continue
        looked_at.add(key)
        try:
            questions = all_questions(load_task(benchmark), settings.limit, categories)
            unusable_videos(benchmark, [question.video for question in questions], settings.max_failures)
        except DataError as error:
            missing.append(f"{benchmark.name}: {error}")
    if missing:
        raise MissingParts(missing)
