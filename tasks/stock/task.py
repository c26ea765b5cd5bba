"""A benchmark of lmms-eval under a name of ours: its own prompt, score and aggregation, on files that lie anywhere."""

from __future__ import annotations

from collections import Counter
from typing import Any

import datasets
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.utils import load_yaml_config
from pyarrow.parquet import read_table

from stsimdiff.data.benchmarks import by_task
from stsimdiff.data.videos import VideoFolder
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.evaluate.parsing import LETTERS, parse_letter


class StockTask(ConfigurableMessagesTask):
    """The stock task, with three changes.

    Rows come from the parquet file below ``dataset_kwargs.root`` and videos from wherever they lie there: the stock
    functions build both from ``HF_HOME``. The prompt is the one that ``prompt`` names, never one chosen by the
    model's name. And an answer that gives no letter is wrong: the stock functions of two benchmarks draw lots then,
    and those of the other two read "A man walks" as A.
    """

    def __init__(self, config: dict[str, Any], model_name: str | None = None) -> None:
        self.benchmark = by_task(config["task"])
        try:
            stock = load_yaml_config(str(self.benchmark.stock_file), mode="full")
        except ImportError as error:
            raise ConfigError(
                f"lmms-eval's task {self.benchmark.stock} cannot be imported here: {error}"
            ) from error
        for key in ("dataset_path", "dataset_name", "dataset_kwargs"):
            stock.pop(key, None)
        given = {key: value for key, value in config.items() if key not in ("class", "prompt")}
        stock |= given | {"doc_to_visual": doc_to_visual}
        # lmms-eval takes a model's name for a prompt's.
        super().__init__(config=stock, model_name=config.get("prompt", "default"))

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        root = self.benchmark.root((dataset_kwargs or {}).get("root"))
        # The files are small: read as they are, they need no copy in a cache.
        rows = datasets.concatenate_datasets(
            [datasets.Dataset(read_table(file)) for file in self.benchmark.question_files(root)]
        )
        videos, families, ids = VideoFolder(root), [], []
        paths, asked = [], Counter()
        for row in rows:
            name = self.benchmark.video(row)
            paths.append(str(videos.path(name)))
            families.append(self.benchmark.family(row))
            asked[name] += 1
            ids.append(row[self.benchmark.id] if self.benchmark.id else f"{name}-{asked[name]}")
        if not set(families) <= set(self.benchmark.families):
            other = ", ".join(sorted(set(families) - set(self.benchmark.families)))
            raise DataError(
                f"{root} has questions of the kinds {other}, which are not in {self.benchmark.name}'s split"
            )
        added = {"id": ids, "family": families, "path": paths}
        rows = rows.remove_columns([name for name in added if name in rows.column_names])
        for name, column in added.items():
            rows = rows.add_column(name, column)
        self.dataset = datasets.DatasetDict({self.config.test_split: rows})
        self.dataset_no_image = self.dataset

    def process_results(
        self, doc: dict[str, Any], results: list[str], full_docs: Any = None
    ) -> dict[str, Any]:
        """The stock record of one answer, with ``parsed``, ``target`` and ``correct`` beside its own keys."""
        letter = parse_letter(results[0], self.benchmark.options(doc))
        # Of an answer without a letter the stock function never sees a word. It fills in what its aggregation
        # needs, such as the category; what it read is then overwritten by a prediction that equals no option.
        records = self.config.process_results(doc, [letter or LETTERS[0]])
        scored = {}
        for metric, record in records.items():
            if metric in self.aggregation():
                record = record if letter else {**record, **self.benchmark.wrong}
                correct = str(record[self.benchmark.prediction]) == str(record[self.benchmark.truth])
                scored[metric] = {
                    **record,
                    "parsed": letter,
                    "target": self.benchmark.target(doc),
                    "correct": correct,
                }
        return scored


def doc_to_visual(doc: dict[str, Any]) -> list[dict[str, str]]:
    """The video, as a dictionary: by its suffix alone lmms-eval would take a webm file for sound."""
    return [{"type": "video", "url": doc["path"]}]
