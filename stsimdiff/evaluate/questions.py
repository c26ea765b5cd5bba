"""Questions of a benchmark as its lmms-eval task asks them, and how that task scores an answer.

Everything about a task goes through its own functions: the prompt, the video's path, the score.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stsimdiff.config.benchmark import BenchmarkSettings
from stsimdiff.config.task_files import read_task, task_file
from stsimdiff.data.benchmarks import by_task
from stsimdiff.data.moments import Moments
from stsimdiff.errors import ConfigError, DataError, UserError
from stsimdiff.files import fingerprint

LOCAL = ("arrow", "csv", "json", "parquet", "text")
"""What ``dataset_path`` says where the data is files of the user's own."""


@dataclass(frozen=True)
class Question:
    """One question about one video.

    Attributes:
        id: unique within the benchmark.
        video: path of the video file.
        category: the question's kind, a column of the table.
        text: what the user's message says after the video.
        max_new_tokens: as the benchmark or else the task's generation settings say.
        document: the task's row, for scoring.
        named: the video as its row names it, in the folders that the row says; its file's name if not given.
        content: what of the row decides what is asked and what is right; nothing if not given.
        columns: what of the row tells kinds of questions apart, for a breakdown; nothing if not given.
        moments: of the video, those that it is about; nothing where none are known.
        events: all moments of the video that are known.
    """

    id: str
    video: str
    category: str
    text: str
    max_new_tokens: int
    document: Mapping[str, Any]
    named: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    moments: Moments = ()
    events: Moments = ()

    @property
    def video_name(self) -> str:
        """The video as stored lines name it: the same wherever the data lies, and another for another video."""
        return self.named or Path(self.video).name

    @cached_property
    def digest(self) -> str:
        """12 hex digits of the question as it is put to a model, and of its right answer."""
        parts = [self.text, self.category, self.content]
        text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=True)
        return fingerprint(text)


@dataclass(frozen=True)
class Judgement:
    """How one answer was scored.

    Attributes:
        parsed: the letter that was read, ``None`` where the answer could not be read.
        target: the right letter, ``None`` where it is not public.
        correct: whether they are the same, ``None`` where that is not known.
        stock_parsed: the letter that lmms-eval's own function reads from the same text; ours where the task has none.
        stock_correct: whether that function counts it as right; ``None`` where it drew lots or raised.
        stock_error: which of both, ``None`` elsewhere.
    """

    parsed: str | None
    target: str | None
    correct: bool | None
    stock_parsed: str | None
    stock_correct: bool | None
    stock_error: str | None = None


def load_task(benchmark: BenchmarkSettings) -> Any:
    """The lmms-eval task of a benchmark, built from its own file alone (4 s faster than with the built-in ones).

    Raises:
        ConfigError: when there is no such task, or a user's own cannot be built.
        DataError: for data that is not there.
    """
    file = task_file(benchmark.task, benchmark.tasks)
    try:
        task = _built(file, benchmark)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if benchmark.tasks is None:
            raise
        # lmms-eval tries five times, and says only that it did.
        last = getattr(error, "last_attempt", None)
        first = (last.exception() if last else None) or error
        raise ConfigError(
            f"benchmark.tasks={benchmark.tasks}: lmms-eval cannot build the task {benchmark.task}: "
            f"{type(first).__name__}: {first}"
        ) from first
    if benchmark.max_new_tokens is not None:
        generation = task.config.generation_kwargs or {}
        task.config.generation_kwargs = {**generation, "max_new_tokens": benchmark.max_new_tokens}
    return task


def _built(file: Path, benchmark: BenchmarkSettings) -> Any:
    from lmms_eval.api.task import ConfigurableMessagesTask
    from lmms_eval.utils import load_yaml_config

    config = load_yaml_config(str(file), mode="full")
    make = config.pop("class", ConfigurableMessagesTask)
    if by_task(benchmark.task):
        config["prompt"] = benchmark.prompt
    root = Path(benchmark.data or file.parent).resolve()
    plain = make is ConfigurableMessagesTask
    if plain:
        from loguru import logger

        logger.disable("lmms_eval.caching")
        import lmms_eval.api.metrics  # noqa: F401  brings the aggregations that have names

        if config.get("dataset_path") in LOCAL:
            # As the file says them: lmms-eval has made those whole that lie beside it.
            config["dataset_kwargs"] = _below(root, read_task(file)[0].get("dataset_kwargs") or {})
    elif benchmark.data:
        config["dataset_kwargs"] = {"root": str(benchmark.data)}
    elif benchmark.world:
        config["dataset_kwargs"] = {"world": benchmark.world}
    task = make(config=config)
    if plain or benchmark.tasks:
        task.root = root
    return task


def _below(root: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What loads a user's own files, those without a whole path from ``root``."""
    files = options.get("data_files") or []
    for names in files.values() if isinstance(files, dict) else [files]:
        for name in [names] if isinstance(names, str) else names:
            if "://" not in name and not Path(name).is_absolute() and not any(root.glob(name)):
                raise DataError(
                    f"{root / name} is not there; benchmark.data=DIR names the folder of the data"
                )
    return {**options, "data_dir": str(root)}


def question_from(
    task: Any, document: Mapping[str, Any], number: int, settings: Mapping[str, Any]
) -> Question:
    """The question of one row, from the message that the task itself builds.

    Args:
        task: the lmms-eval task.
        document: its row.
        number: the row's number, the id of last resort.
        settings: the task's generation settings.
    """
    content = task.doc_to_messages(document)[0]["content"]
    videos = [part["url"] for part in content if part["type"] == "video"]
    text = "".join(part["text"] for part in content if part["type"] == "text")
    if len(videos) != 1:
        raise DataError(f"question {number} of {task.config.task} has {len(videos)} videos; one is needed")
    root: Path | None = getattr(task, "root", None)
    video = root / videos[0] if root else Path(videos[0])
    named = document.get("named") or (
        root and video.is_relative_to(root) and video.relative_to(root).as_posix()
    )
    return Question(
        id=str(
            next((document[key] for key in ("id", "question_id") if document.get(key) is not None), number)
        ),
        video=str(video),
        category=category_of(document),
        text=text,
        max_new_tokens=int(settings.get("max_new_tokens", 16)),
        document=document,
        named=str(named or ""),
        content=_content(task, document),
        columns=_columns(task, document),
    )


def category_of(row: Mapping[str, Any]) -> str:
    """The kind of question that a row says, a column of the table; ``all`` where it says none.

    Its key is ``category``. Its former name, ``family``, is read too: older data has it, and so have the rows of the
    built-in benchmarks, as the code that makes them is part of an arm's identity.
    """
    values = (row[key] for key in ("family", "category") if row.get(key) is not None)
    return str(next(values, "all"))


def _content(task: Any, document: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row decides what is asked and what is right: nothing that depends on where its files lie."""
    public = by_task(task.config.task)
    if public:
        names = (*public.columns, *public.cut)
        return {name: document[name] for name in names if name in document}
    return {name: value for name, value in document.items() if name != "path" and _plain(value)}


TOLD = (
    "id", "path", "named", "category", "family", "video", "url", "question", "options", "candidates", "answer",
)  # fmt: skip
"""Columns that a stored line holds already, or that say nothing of a question's kind."""
MOST_VALUES = 10
SHORT = 64
"""Characters of a value that a stored line keeps."""


def _columns(task: Any, document: Mapping[str, Any]) -> dict[str, Any]:
    """The short columns of a row, but for its id, its options and its answer."""
    public = by_task(task.config.task)
    left_out = {*TOLD, *((public.id, public.columns[-1]) if public else ())}
    columns = {name: value for name, value in document.items() if name not in left_out and _short(value)}
    return {
        name: v for name, v in columns.items() if not (public and re.fullmatch(rf"{public.put_in}\d+", name))
    }


def _short(value: Any) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= MOST_VALUES and all(isinstance(item, str) and _short(item) for item in value)
    if isinstance(value, str):
        return 0 < len(value) <= SHORT
    return isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def all_questions(task: Any, limit: int | None, categories: Iterable[str] | None) -> list[Question]:
    """The questions of a task in its own order, of the given categories only, at most ``limit``.

    Raises:
        DataError: when two questions share an id, or none is left.
    """
    wanted = set(categories) if categories else None
    questions = []
    for number, document in enumerate(task.eval_docs):
        question = question_from(task, document, number, task.config.generation_kwargs or {})
        if wanted is None or question.category in wanted:
            questions.append(question)
        if limit is not None and len(questions) >= limit:
            break
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"{task.config.task}: two questions have the id {question.id!r}")
        seen.add(question.id)
    if not questions:
        raise DataError(f"{task.config.task}: no question is left; categories: {sorted(wanted or ())}")
    return questions


def judge(task: Any, question: Question, answer: str) -> Judgement:
    """Score one answer by the task's ``process_results``.

    Its first metric counts: a record with ``parsed``, ``target`` and ``correct``, or, of a task that keeps no such
    record, 1 or 0; then the whole answer stands for what was read.

    Raises:
        DataError: when the task's result says neither.
    """
    result = next(iter(task.process_results(question.document, [answer]).values()))
    if getattr(task, "root", None) and isinstance(result, (bool, int, float)) and result in (0, 1):
        text = answer.strip() or None
        right = bool(result) and text is not None
        return Judgement(text, str(task.doc_to_target(question.document)), right, text, right)
    if not isinstance(result, Mapping) or not {"parsed", "target", "correct"} <= set(result):
        raise DataError(
            f"task {task.config.task} gives no parsed, target and correct for an answer, but {result!r}"
            + (", nor 1 or 0" if getattr(task, "root", None) else "")
        )
    parsed, target, correct = result["parsed"], result["target"], result["correct"]
    public = by_task(task.config.task)
    correct = None if public and public.server else bool(correct)
    stock = [result.get(f"stock_{key}", ours) for key, ours in (("parsed", parsed), ("correct", correct))]
    return Judgement(parsed, target, correct, stock[0], stock[1], result.get("stock_error"))


def replay(task: Any, answers: Iterable[tuple[Question, str]]) -> dict[str, float]:
    """The task's own metrics over stored answers, as lmms-eval's evaluator would compute them."""
    from loguru import logger

    # The stock aggregations print a line for each of their categories.
    logger.disable("utils")
    collected: dict[str, list[Any]] = {}
    for question, answer in answers:
        for metric, value in task.process_results(question.document, [answer]).items():
            collected.setdefault(metric, []).append(value)
    scores = {}
    for metric, values in collected.items():
        aggregate = task.aggregation()[metric]
        # Some of lmms-eval's take the command's arguments too, and use them for the names of files at most.
        takes_arguments = "args" in inspect.signature(aggregate).parameters
        scores[metric] = float(aggregate(values, None) if takes_arguments else aggregate(values))
    # One that scores groups of questions says nothing where no group was answered whole.
    return {metric: score for metric, score in scores.items() if not math.isnan(score)}
