"""A benchmark of lmms-eval under a name of ours: its own prompt, score and aggregation, on files that lie anywhere."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any
from unittest import mock

import datasets
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.utils import load_yaml_config

from stsimdiff.commands import lmms_command
from stsimdiff.data.benchmarks import by_task
from stsimdiff.data.parsing import LETTERS, parse_letter
from stsimdiff.data.rows import place_of, read_rows
from stsimdiff.data.videos import SUFFIXES, VideoFolder
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.video.parts import Part


class StockTask(ConfigurableMessagesTask):
    """The stock task, with four changes.

    Rows come from the parquet file below ``dataset_kwargs.root`` and videos from wherever they lie there: the stock
    functions build both from ``HF_HOME``. The prompt is the one that ``prompt`` names, never one chosen by the
    model's name. And an answer that gives no letter is wrong: the stock functions of two benchmarks draw lots then,
    and those of the others read "A man walks" as A. A letter that the stock parser does not know is kept as it is.
    What the stock function reads from the whole text stands beside it, as ``stock_parsed`` and ``stock_correct``.
    """

    def __init__(self, config: dict[str, Any], model_name: str | None = None) -> None:
        self.benchmark = by_task(config["task"])
        self.prompt = config.get("prompt", "default")
        try:
            with importable():
                stock = load_yaml_config(str(self.benchmark.stock_file), mode="full")
        except ImportError as error:
            raise ConfigError(
                f"lmms-eval's task {self.benchmark.stock} cannot be imported here: {error}"
            ) from error
        # Rows are read, checked and spread out here; a prompt's message is made of its text and the video.
        for key in ("dataset_path", "dataset_name", "dataset_kwargs", "process_docs", "doc_to_messages"):
            stock.pop(key, None)
        given = {key: value for key, value in config.items() if key not in ("class", "prompt")}
        stock |= given | {"doc_to_visual": doc_to_visual}
        if self.benchmark.prompts_of:
            stock["lmms_eval_specific_kwargs"] = self.benchmark.prompts()
        if self.benchmark.server:
            # The stock aggregation posts every prediction to a server on the network.
            stock["metric_list"] = [{"metric": "score", "aggregation": unscored, "higher_is_better": True}]
        if own := self.benchmark.ours.get(self.prompt):
            stock["doc_to_text"] = lambda row, lmms_eval_specific_kwargs=None: own(row)
        # lmms-eval takes a model's name for a prompt's.
        super().__init__(config=stock, model_name=self.prompt)

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        with lmms_command.ending_here():
            self._read((dataset_kwargs or {}).get("root") or lmms_command.root(self.benchmark.name))

    def _read(self, data: str | None) -> None:
        root = self.benchmark.root(data)
        rows, videos, asked = read_rows(self.benchmark, root), VideoFolder(root), Counter()
        other = {self.benchmark.category(row) for row in rows} - set(self.benchmark.categories)
        if other:
            raise DataError(
                f"{root} has questions of the kinds {', '.join(sorted(map(str, other)))}, which are not in "
                f"{self.benchmark.name}'s split: {', '.join(self.benchmark.categories)}"
            )
        for row in rows:
            name, category = self.benchmark.video(row), self.benchmark.category(row)
            asked[name] += 1
            id_ = row[self.benchmark.id] if self.benchmark.id else f"{name}-{asked[name]}"
            path = self.benchmark.place(row, videos.path)
            file = str(Part.of(path).file)
            named = (
                name
                if PurePosixPath(name).suffix.lower() in SUFFIXES
                else f"{name}{PurePosixPath(file).suffix}"
            )
            # A data set may have a column `category` of its own.
            row |= {"id": str(id_), "family": category, "path": path}
            row["named"] = PurePosixPath(named).as_posix() + path.removeprefix(file)
        # The files are small: read as they are, they need no copy in a cache.
        self.dataset = datasets.DatasetDict({self.config.test_split: datasets.Dataset.from_list(rows)})
        self.dataset_no_image = self.dataset

    def aggregation(self) -> dict[str, Any]:
        """The stock aggregations, over the truth values themselves where the stock function gives no records."""
        stock = super().aggregation()
        if self.benchmark.grouped:
            return {metric: self.over_groups(function) for metric, function in stock.items()}
        if self.benchmark.prediction or self.benchmark.score:
            return stock
        return {metric: over_values(function) for metric, function in stock.items()}

    def over_groups(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """An aggregation that is given groups all of whose questions were answered: it fails on others. NaN of none."""
        column = self.benchmark.grouped

        def aggregate(records: Sequence[Mapping[str, Any]]) -> Any:
            # Counted here: the aggregations are named for every answer, and all rows are read for these numbers.
            sizes = Counter(self.dataset[self.config.test_split][column])
            held = Counter(record[column] for record in records)
            whole = [record for record in records if held[record[column]] == sizes[record[column]]]
            return function(whole) if whole else float("nan")

        return aggregate

    def process_results(
        self, doc: dict[str, Any], results: list[str], full_docs: Any = None
    ) -> dict[str, Any]:
        """The stock record of one answer, with what :class:`~stsimdiff.evaluate.questions.Judgement` holds."""
        options = self.benchmark.options(doc)
        letter = parse_letter(results[0], options)
        column = self.benchmark.answered
        place = (
            place_of(doc[column], options, counted=self.benchmark.counted, texts=False) if column else None
        )
        # Of an answer without a letter the stock function never sees a word. It fills in what its aggregation
        # needs, such as the category; what it read is then overwritten by a prediction that equals no option.
        # MLVU's parser knows four of the test split's six options: of another letter it sees as little.
        readable = letter in self.benchmark.reads if letter else False
        records = self.config.process_results(doc, [letter if readable else LETTERS[0]])
        stock = self.stock_reading(doc, results[0], options)
        scored = {}
        for metric, record in records.items():
            if metric in self.aggregation():
                if not isinstance(record, Mapping):
                    record = {VALUE: record}
                if letter and not readable:
                    record = {**record, self.benchmark.prediction: letter}
                elif not letter:
                    record = {**record, **({VALUE: False} if VALUE in record else self.benchmark.wrong)}
                ours = {"parsed": letter, "target": None, "correct": None}
                if place is not None:
                    correct = self.benchmark.is_right(record.get(VALUE, record))
                    ours |= {"target": LETTERS[place], "correct": correct}
                scored[metric] = {**record, **ours, **stock}
        return scored

    def stock_reading(self, doc: dict[str, Any], text: str, options: list[str]) -> dict[str, Any]:
        """What lmms-eval's own function makes of the whole text; nothing where it draws lots, asks another model or
        raises."""
        try:
            record = self._stock_record(doc, text)
            if self.benchmark.prediction is None:
                letter = self._stock_letter(doc, text, options)
            else:
                said = record[self.benchmark.prediction]
                # A letter, "" or Z for none; or of EgoSchema a place, -1 for none.
                letter = LETTERS[said] if isinstance(said, int) and said >= 0 else said
        except NotAskedError as error:
            return unknown(str(error))
        except Exception as error:
            return unknown(f"{type(error).__name__}: {error}")
        return {
            "stock_parsed": letter if letter and str(letter) in LETTERS else None,
            "stock_correct": None if self.benchmark.server else self.benchmark.is_right(record),
            "stock_error": None,
        }

    def _stock_record(self, doc: dict[str, Any], text: str) -> Any:
        process, lots = self.config.process_results, Lots()
        with mock.patch.dict(process.__globals__, {"random": lots, JUDGE: not_asked}):
            records = process(doc, [text])
        if lots.drawn:
            raise NotAskedError("drew lots")
        return next(record for metric, record in records.items() if metric in self.aggregation())

    def _stock_letter(self, doc: dict[str, Any], text: str, options: list[str]) -> str | None:
        """The letter that it reads where its record does not say: the one whose option would make the answer right."""
        column = self.benchmark.columns[-1]
        for place in range(len(options)):
            right = {column: self.benchmark.answer(place, options)}
            if self.benchmark.is_right(self._stock_record({**doc, **right}, text)):
                return LETTERS[place]
        return None


VALUE = "value"
"""Key of what a stock function gave for an answer, where that is a truth value alone."""
JUDGE = "get_eval_result"
"""Function of TempCompass's stock code that asks a model on the network for its judgement: nothing is sent."""


class NotAskedError(Exception):
    """A stock function went on to what says nothing that would be the same the next time."""


def not_asked(*args: Any, **kwargs: Any) -> None:
    """Stands for a stock task's question to a model on the network."""
    raise NotAskedError("asks a model on the network")


def over_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """An aggregation of truth values that is given the records that hold them."""
    return lambda records: function([record[VALUE] for record in records])


@contextmanager
def importable() -> Iterator[None]:
    """Within it, the code of every stock task can be imported: some ask for HF_HOME, below which they look for their
    videos, and NExT-QA's fetches word lists for its open questions as it is imported."""
    hidden = {name: sys.modules.get(name) for name in ("nltk", "pywsd")}
    sys.modules.update(dict.fromkeys(hidden))
    try:
        with mock.patch.dict(os.environ, {"HF_HOME": os.environ.get("HF_HOME", os.devnull)}):
            yield
    finally:
        for name, module in hidden.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class Lots:
    """Stands for the module ``random`` in a stock task's code, and tells whether it was used."""

    drawn = False

    def choice(self, choices: Sequence[Any]) -> Any:
        """The first; it is thrown away."""
        self.drawn = True
        return choices[0]

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"lmms-eval's task uses random.{name}, which is not watched")


def unscored(records: Sequence[Any]) -> float:
    """The score of answers that only a server can score."""
    return float("nan")


def unknown(why: str) -> dict[str, Any]:
    """The keys of a text of which the stock function says nothing that would be the same the next time."""
    return {"stock_parsed": None, "stock_correct": None, "stock_error": why}


def doc_to_visual(doc: dict[str, Any]) -> list[dict[str, str]]:
    """The video, as a dictionary: by its suffix alone lmms-eval would take a webm file for sound."""
    return [{"type": "video", "url": doc["path"]}]
