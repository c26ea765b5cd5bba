"""The four public benchmarks: where their rows and videos lie, and what a row says.

The prompt, the score and the aggregation are lmms-eval's own; here stands only what its code leaves open. What is
fetched from the hub stands in :mod:`stsimdiff.data.fetch`, which files are sound in :mod:`stsimdiff.data.videos`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stsimdiff.data import cache_folder
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.evaluate.parsing import LETTERS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """One public benchmark.

    Attributes:
        name: as in ``configs/benchmark``.
        stock: lmms-eval's YAML, below ``lmms_eval/tasks``.
        hub: data set on the hub.
        split: the split with the questions; their file's name begins with it.
        columns: those that prompt, score and video need; a parquet file that has them all holds the questions.
        families: the table's columns, in this order; the only one is no column of its own.
        video: a row's video, relative to some folder of the data; without a suffix any video file fits.
        family: the column that a row counts for.
        options: how many options a row has.
        target: the right option's letter.
        id: the row's own id; ``None`` numbers the questions of each video.
        prediction: key of the task's record that holds what it read.
        truth: key of the task's record that holds the right answer.
        wrong: what the record says of an answer that could not be read.
    """

    name: str
    stock: str
    hub: str
    split: str
    columns: tuple[str, ...]
    families: tuple[str, ...]
    video: Callable[[Row], str]
    family: Callable[[Row], str]
    options: Callable[[Row], int]
    target: Callable[[Row], str]
    id: str | None
    prediction: str
    truth: str
    wrong: Mapping[str, Any]

    @property
    def task(self) -> str:
        """Name of the lmms-eval task: a task of ours with a built-in name would silently not be used."""
        return f"stsimdiff_{self.name}"

    @property
    def stock_file(self) -> Path:
        """lmms-eval's YAML of this benchmark, wherever it is installed; found without importing it."""
        package = importlib.util.find_spec("lmms_eval")
        if package is None or not package.submodule_search_locations:
            raise DataError("lmms_eval is not installed; install the project again (make install)")
        return Path(package.submodule_search_locations[0]) / "tasks" / self.stock

    def prompts(self) -> dict[str, Any]:
        """The prompts that the stock YAML offers, by name."""
        import yaml

        class Loader(yaml.SafeLoader):
            """Reads past ``!function``."""

        Loader.add_constructor("!function", lambda loader, node: None)
        config = yaml.load(self.stock_file.read_text(encoding="utf-8"), Loader)
        return config["lmms_eval_specific_kwargs"]

    def root(self, data: str | Path | None) -> Path:
        """Folder of the data: the one given, or the one that ``make data`` fills.

        Raises:
            DataError: when it does not exist; the message says how to get it.
        """
        root = Path(data).expanduser() if data else default_root(self.name)
        if not root.is_dir():
            said = f"benchmark.data={data} is no folder" if data else f"no data of {self.name} at {root}"
            raise DataError(
                f"{said}; `make data BENCHMARK={self.name}` fetches it, benchmark.data=/path names a folder with its "
                "parquet file and videos"
            )
        return root.resolve()

    def question_files(self, root: Path) -> list[Path]:
        """The parquet files with the questions, wherever they lie below ``root``.

        Raises:
            DataError: when there is none, or only one without answers.
        """
        import pyarrow
        import pyarrow.parquet

        fitting, seen = [], []
        for file in visible_files(root, (".parquet",)):
            try:
                schema = pyarrow.parquet.read_schema(file)
            except (OSError, pyarrow.ArrowException) as error:
                raise DataError(f"{file} is no readable parquet file: {error}") from error
            seen.append(f"{file.relative_to(root)} ({', '.join(schema.names)})")
            if set(self.columns) <= set(schema.names) and self._answered(file):
                fitting.append(file)
        chosen = [file for file in fitting if file.name.startswith(self.split)] or fitting
        if chosen:
            return chosen
        what = "its public subset" if self.name == "egoschema" else f"split {self.split}"
        raise DataError(
            f"{root} has no parquet file with the questions of {self.name} ({what}) and their answers; needed columns: "
            f"{', '.join(self.columns)}; found: {'; '.join(seen) or 'no parquet file at all'}"
        )

    def _answered(self, file: Path) -> bool:
        # EgoSchema's full set has the subset's columns but no answers (it is scored by a server on the network), and
        # so have test splits: their rows would all be wrong.
        import pyarrow.parquet

        answers = pyarrow.parquet.read_table(file, columns=[self.columns[-1]]).column(0)
        return len(answers) > 0 and all(value not in (None, "", -1) for value in answers.to_pylist())

    def revision(self, root: Path) -> str:
        """12 hex digits of the question files' contents: they name the data that an answer belongs to."""
        digest = hashlib.sha256()
        for file in self.question_files(root):
            digest.update(file.read_bytes())
        return digest.hexdigest()[:12]


def default_root(name: str) -> Path:
    """Where ``make data`` puts a benchmark."""
    return cache_folder() / "benchmarks" / name


def visible_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below ``root`` with one of these suffixes, in any case, sorted; hidden ones are left out.

    Linked folders are looked into: videos often lie on another disk.
    """
    found, seen = [], set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = [] if real in seen else [name for name in inner if not name.startswith(".")]
        if real not in seen:
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        seen.add(real)
    return sorted(path for path in found if path.suffix.lower() in suffixes)


def _longvideobench_options(row: Row) -> int:
    options = [row[f"option{i}"] for i in range(5)]
    return options.index("N/A") if "N/A" in options else len(options)


VIDEOMME = Benchmark(
    name="videomme",
    stock="videomme/videomme.yaml",
    hub="lmms-eval/Video-MME",
    split="test",
    columns=(
        "videoID", "duration", "domain", "sub_category", "question_id", "task_type", "question", "options", "answer",
    ),
    families=("short", "medium", "long"),
    video=lambda row: row["videoID"],
    family=lambda row: row["duration"],
    options=lambda row: len(row["options"]),
    target=lambda row: row["answer"],
    id="question_id",
    prediction="pred_answer",
    truth="answer",
    wrong={"pred_answer": "", "score": 0.0},
)  # fmt: skip

MLVU = Benchmark(
    name="mlvu",
    stock="mlvu/mlvu_dev.yaml",
    hub="sy1998/MLVU_dev",
    split="test",
    columns=("video_name", "question", "candidates", "task_type", "answer"),
    families=("topic_reasoning", "anomaly_reco", "needle", "ego", "plotQA", "order", "count"),
    video=lambda row: row["video_name"],
    family=lambda row: row["task_type"],
    options=lambda row: len(row["candidates"]),
    target=lambda row: row["answer"],
    id=None,
    prediction="pred_answer",
    truth="answer",
    wrong={"pred_answer": ""},
)

LONGVIDEOBENCH = Benchmark(
    name="longvideobench",
    stock="longvideobench/longvideobench_val_v.yaml",
    hub="longvideobench/LongVideoBench",
    split="validation",
    columns=(
        "id", "video_path", "question", *(f"option{i}" for i in range(5)), "level", "question_category",
        "duration_group", "correct_choice",
    ),
    families=("relation", "perception"),
    video=lambda row: row["video_path"],
    family=lambda row: row["level"].rpartition("-")[2].lower(),
    options=_longvideobench_options,
    target=lambda row: LETTERS[row["correct_choice"]],
    id="id",
    prediction="parsed_pred",
    truth="answer",
    wrong={"parsed_pred": ""},
)  # fmt: skip

EGOSCHEMA = Benchmark(
    name="egoschema",
    stock="egoschema/egoschema_subset.yaml",
    hub="lmms-eval/egoschema",
    split="test",
    columns=("video_idx", "question", "option", "answer"),
    families=("all",),
    video=lambda row: row["video_idx"],
    family=lambda row: "all",
    options=lambda row: len(row["option"]),
    target=lambda row: LETTERS[int(row["answer"])],
    id=None,
    prediction="pred",
    truth="ground_truth",
    wrong={"pred": -1},
)

BENCHMARKS = {item.name: item for item in (VIDEOMME, MLVU, LONGVIDEOBENCH, EGOSCHEMA)}


def by_task(task: str) -> Benchmark | None:
    """The benchmark whose task has this name, or ``None``."""
    return next((item for item in BENCHMARKS.values() if item.task == task), None)


def by_name(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        ConfigError: when it is none of the four.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"benchmark {name!r} is unknown; allowed: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
