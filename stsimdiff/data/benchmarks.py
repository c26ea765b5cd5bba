"""The public benchmarks: where their rows and videos lie, and what a row says.

The prompt, the score and the aggregation are lmms-eval's own; here stands only what its code leaves open. How rows are
read and checked stands in :mod:`stsimdiff.data.rows`, what is fetched from the hub in :mod:`stsimdiff.data.hub`, and
which files are sound in :mod:`stsimdiff.data.videos`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stsimdiff.data import cache_folder
from stsimdiff.data.parsing import LETTERS
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.stand_ins import stand_in

Row = Mapping[str, Any]
PAD = "N/A"
"""Stands in LongVideoBench's columns for an option that a question does not have."""


@dataclass(frozen=True)
class Benchmark:
    """One public benchmark.

    Attributes:
        name: as in ``configs/benchmark``.
        stock: lmms-eval's YAML, below ``lmms_eval/tasks``.
        hub: data set on the hub.
        split: the split with the questions; their file's name begins with it.
        columns: those that prompt, score and video need; a parquet file that has them all holds the questions. The
            last one is the answer, unless a ``server`` holds the answers.
        families: the table's columns, in this order; the only one is no column of its own.
        video: a row's video, relative to some folder of the data; without a suffix any video file fits.
        family: the column that a row counts for.
        options: the texts of a row's options, in their order.
        answer: what the answer's column holds for the option at a place: a letter, or the place itself.
        id: column of the row's own id; ``None`` numbers the questions of each video.
        prediction: key of the task's record that holds what it read.
        truth: key of the task's record that holds the right answer.
        wrong: what the record says of an answer that could not be read.
        reads: letters that the stock parser knows; for any other one the record gets the letter itself.
        lettered: who writes the letters before the options of a prompt: the ``row``'s options, its ``question``, or the
            ``task``'s own function.
        prompts_of: the YAML that offers the prompts, where the stock one asks for no letter.
        ours: prompts that model authors ask instead of lmms-eval's, by name: they make a row's question.
        configs: folders of the hub's repository that hold these rows, the best first, where other folders hold rows
            that are not offered; empty where there is no such choice.
        part: whether the questions are about few of the repository's videos, of which only these are fetched.
        server: address that scores predictions, of a benchmark without public answers; ``None`` where a row says its
            answer. Nothing is ever sent there.
    """

    name: str
    stock: str
    hub: str
    split: str
    columns: tuple[str, ...]
    families: tuple[str, ...]
    video: Callable[[Row], str]
    family: Callable[[Row], str]
    options: Callable[[Row], list[str]]
    answer: Callable[[int], str | int]
    id: str | None
    prediction: str
    truth: str
    wrong: Mapping[str, Any]
    reads: str = LETTERS
    lettered: str = "row"
    prompts_of: str | None = None
    ours: Mapping[str, Callable[[Row], str]] = dataclasses.field(default_factory=dict)
    configs: tuple[str, ...] = ()
    part: bool = False
    server: str | None = None

    @property
    def answered(self) -> str | None:
        """The column with the right answers; ``None`` where they are not public."""
        return None if self.server else self.columns[-1]

    @property
    def task(self) -> str:
        """Name of the lmms-eval task: a task of ours with a built-in name would silently not be used."""
        return f"stsimdiff_{self.name}"

    @property
    def counted(self) -> bool:
        """Whether the answer's column holds a number from 0, and no letter."""
        return str(self.answer(0)) == "0"

    @property
    def stock_file(self) -> Path:
        """lmms-eval's YAML of this benchmark, wherever it is installed; found without importing it."""
        return self._stock_file(self.stock)

    def _stock_file(self, name: str) -> Path:
        package = importlib.util.find_spec("lmms_eval")
        if package is None or not package.submodule_search_locations:
            raise DataError("lmms_eval is not installed; install the project again (make install)")
        return Path(package.submodule_search_locations[0]) / "tasks" / name

    def prompts(self) -> dict[str, Any]:
        """The prompts that the stock YAML offers and ours, by name; where another's are used, its own is ``stock``."""
        import yaml

        class Loader(yaml.SafeLoader):
            """Reads past ``!function``."""

        Loader.add_constructor("!function", lambda loader, node: None)
        file = self._stock_file(self.prompts_of or self.stock)
        config = yaml.load(file.read_text(encoding="utf-8"), Loader)
        prompts = config.get("lmms_eval_specific_kwargs") or {"default": {}}
        own: dict[str, Any] = {"stock": {}} if self.prompts_of else {}
        return {**prompts, **own, **dict.fromkeys(self.ours, {})}

    def root(self, data: str | Path | None) -> Path:
        """Folder of the data: the one given, or the one that ``make data`` fills.

        Raises:
            DataError: when it does not exist; the message says how to get it.
        """
        root = Path(data).expanduser() if data else default_root(self.name)
        if not root.is_dir():
            said = (
                f"{self.name}: benchmark.data={data} is no folder"
                if data
                else f"no data of {self.name} at {root}"
            )
            raise DataError(
                f"{said}; `make data BENCHMARK={self.name}` fetches it, benchmark.data=/path names a folder with its "
                f"parquet file and videos, data=/path one that holds a folder {self.name} for it"
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
                said = stand_in(file) or f"no readable parquet file: {error}"
                raise DataError(f"{file} is {said}") from error
            seen.append(f"{file.relative_to(root)} ({', '.join(schema.names)})")
            if set(self.columns) <= set(schema.names) and self._offered(file, root):
                fitting.append(file)
        fitting = [file for file in fitting if file.name.startswith(self.split)] or fitting
        own = ([file for file in fitting if config in _folders(file, root)] for config in self.configs)
        fitting = next(filter(None, own), fitting)
        # MLVU's two splits have the same columns; below one folder, their kinds of questions tell them apart.
        chosen = _once([file for file in fitting if self._kinds(file) <= set(self.families)] or fitting)
        if chosen:
            _refuse_lost_shards(chosen, fitting)
            return chosen
        what = SETS.get(self.name, f"split {self.split}")
        raise DataError(
            f"{root} has no parquet file with the questions of {self.name} ({what})"
            f"{' and their answers' if self.answered else ''}; needed columns: {', '.join(self.columns)}; found: "
            f"{'; '.join(seen) or 'no parquet file at all'}"
        )

    def _offered(self, file: Path, root: Path) -> bool:
        # EgoSchema's full set has the subset's columns but no answers (it is scored by a server on the network), and
        # so have test splits: their rows would all be wrong. Its folders tell the two apart, else the answers do.
        inside = _folders(file, root)
        if self.server and inside & CONFIGS:
            return not inside.isdisjoint(self.configs)
        known = _answers(file, self.columns[-1] if self.answered else "answer")
        if self.server:
            return not known
        return known and (not self.configs or not inside.isdisjoint(self.configs) or not inside & CONFIGS)

    def _kinds(self, file: Path) -> set[str]:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(file, columns=list(self.columns)).to_pylist()
        return {self.family(row) for row in rows}

    def revision(self, root: Path) -> str:
        """12 hex digits of the question files' contents: they name the data that an answer belongs to."""
        digest = hashlib.sha256()
        for file in self.question_files(root):
            digest.update(file.read_bytes())
        return digest.hexdigest()[:12]


CONFIGS = {"subset", "generation", "mc", "mc_ppl"}
"""EgoSchema's folders; all but the first hold the full set."""
SETS = {"egoschema": "its public subset", "egoschema_full": "the full set"}


def _folders(file: Path, root: Path) -> set[str]:
    return {part.lower() for part in file.relative_to(root).parts[:-1]}


def _answers(file: Path, column: str) -> bool:
    """Whether a file holds an answer to each of its questions."""
    import pyarrow.parquet

    if column not in pyarrow.parquet.read_schema(file).names:
        return False
    values = pyarrow.parquet.read_table(file, columns=[column]).column(0).to_pylist()
    return bool(values) and not any(value in (None, "", -1) for value in values)


def _refuse_lost_shards(chosen: list[Path], fitting: list[Path]) -> None:
    """Raise :class:`DataError` where a file's name says that there are others, and one of them holds no questions."""
    for file in chosen:
        shard = re.fullmatch(r"(.*-)(\d+)-of-(\d+)(\.\w+)", file.name)
        if shard is None:
            continue
        names = [f"{shard[1]}{n:0{len(shard[2])}}-of-{shard[3]}{shard[4]}" for n in range(int(shard[3]))]
        lost = [name for name in names if file.with_name(name) not in fitting]
        if lost:
            there = [name for name in lost if file.with_name(name).exists()]
            what = "holds no such questions" if there else "is missing"
            raise DataError(
                f"{file} is one of {int(shard[3])} files with the questions, and {', '.join(there or lost)} beside it "
                f"{what}: fetch it again, or give a file that is whole another name"
            )


def _once(files: list[Path]) -> list[Path]:
    """The files without copies of each other: a second one would ask every question twice."""
    known = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in reversed(files)}
    return [file for file in files if file in known.values()]


def default_root(name: str) -> Path:
    """Where ``make data`` puts a benchmark."""
    return cache_folder() / "benchmarks" / name


def folder_in(data: Path, name: str) -> Path:
    """The folder of a benchmark in the folder of all of them; ``Video-MME`` is as good a name as ``videomme``.

    EgoSchema's full set lies in one repository with its subset, so a folder ``egoschema`` is looked into for both.
    """
    if not (data / name).is_dir() and data.is_dir():
        for known in dict.fromkeys((name, name.removesuffix("_full"))):
            for folder in sorted(data.iterdir()):
                if folder.is_dir() and re.sub("[^a-z0-9]", "", folder.name.lower()) == known.replace("_", ""):
                    return folder
    return data / name


def visible_files(root: Path, suffixes: tuple[str, ...] | None = None) -> list[Path]:
    """Files below ``root`` with one of these suffixes, in any case, or any; sorted, and hidden ones are left out.

    Linked folders are looked into: videos often lie on another disk.
    """
    found, seen = [], set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = [] if real in seen else [name for name in inner if not name.startswith(".")]
        if real not in seen:
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        seen.add(real)
    return sorted(path for path in found if suffixes is None or path.suffix.lower() in suffixes)


def _longvideobench_options(row: Row) -> list[str]:
    options = [row[f"option{i}"] for i in range(5)]
    while options and options[-1] == PAD:
        options.pop()
    return options


def _mlvu_options(row: Row) -> list[str]:
    # The candidates, or where the split has no such column, what the question's lines say: "(A) red".
    if row.get("candidates"):
        return row["candidates"]
    lines = re.findall(r"^[^\S\n]*[(\[]?([A-J])[).:\]]+[^\S\n]*(\S.*?)\s*$", row["question"], re.MULTILINE)
    in_order = "".join(letter for letter, _ in lines) == LETTERS[: len(lines)]
    return [text for _, text in lines] if in_order else []


def _vila_prompt(row: Row) -> str:
    """VideoMME as VILA's authors ask it (``llava/eval/lmms/tasks/videomme.py``): it speaks of no subtitles."""
    return "\n".join(
        [
            "Select the best answer to the following multiple-choice question based on the video. Respond with only "
            "the letter (A, B, C, or D) of the correct option.",
            row["question"],
            *row["options"],
            "The best answer is:",
        ]
    )


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
    options=lambda row: row["options"],
    answer=LETTERS.__getitem__,
    id="question_id",
    prediction="pred_answer",
    truth="answer",
    wrong={"pred_answer": "", "score": 0.0},
    ours={"vila": _vila_prompt},
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
    options=_mlvu_options,
    answer=LETTERS.__getitem__,
    id=None,
    prediction="pred_answer",
    truth="answer",
    wrong={"pred_answer": ""},
    lettered="question",
)

MLVU_TEST = dataclasses.replace(
    MLVU,
    name="mlvu_test",
    stock="mlvu/mlvu_test.yaml",
    hub="sy1998/MLVU_Test",
    # Its questions say their options themselves; a column of candidates is used where there is one.
    columns=("video_name", "question", "task_type", "answer"),
    families=(
        "topic_reasoning", "anomaly_reco", "needleQA", "ego", "plotQA", "sportsQA", "order", "count", "tutorialQA",
    ),
    # It has six options.
    reads="ABCD",
    # Its own YAML has no prompt at all: a model is asked a question, and for no letter.
    prompts_of=MLVU.stock,
)  # fmt: skip

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
    answer=int,
    id="id",
    prediction="parsed_pred",
    truth="answer",
    wrong={"parsed_pred": ""},
    lettered="task",
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
    options=lambda row: row["option"],
    answer=str,
    id=None,
    prediction="pred",
    truth="ground_truth",
    wrong={"pred": -1},
    configs=("subset",),
    part=True,
)

EGOSCHEMA_FULL = dataclasses.replace(
    EGOSCHEMA,
    name="egoschema_full",
    stock="egoschema/egoschema.yaml",
    columns=("video_idx", "question", "option"),
    # lmms-eval asks the first; they hold the same questions.
    configs=("generation", "mc", "mc_ppl"),
    part=False,
    server="https://validation-server.onrender.com/api/upload/",
)

BENCHMARKS = {
    item.name: item for item in (VIDEOMME, MLVU, MLVU_TEST, LONGVIDEOBENCH, EGOSCHEMA, EGOSCHEMA_FULL)
}


def by_task(task: str | None) -> Benchmark | None:
    """The benchmark whose task has this name, or ``None``."""
    return next((item for item in BENCHMARKS.values() if item.task == task), None)


def by_name(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        ConfigError: when it is none of these.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"benchmark {name!r} is unknown; allowed: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
