"""The public benchmarks: where their rows and videos lie, and what a row says.

The prompt, the score and the aggregation are lmms-eval's own; here stands only what its code leaves open. How rows are
read and checked stands in :mod:`stsimdiff.data.rows`, what is fetched from the hub in :mod:`stsimdiff.data.hub`, and
which files are sound in :mod:`stsimdiff.data.videos`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from stsimdiff.data import cache_folder
from stsimdiff.data.parsing import LETTERS
from stsimdiff.data.question_files import columns_of, read_file, spread
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.files import fingerprint, sha256
from stsimdiff.video.parts import Part

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
        categories: the table's columns, in this order; the only one is no column of its own.
        video: a row's video, relative to some folder of the data; without a suffix any video file fits.
        category: the column that a row counts for.
        options: the texts of a row's options, in their order.
        answer: what the answer's column holds for the option at a place: a letter, or the place itself.
        id: column of the row's own id; ``None`` numbers the questions of each video.
        prediction: key of the task's record that holds the letter that it read; ``None`` where it holds none.
        truth: key of the task's record that holds the right answer.
        score: key of the task's record that says whether the answer is right, where it holds no letter; ``None`` where
            the record itself says so.
        wrong: what the record says of an answer that could not be read.
        reads: letters that the stock parser knows; for any other one the record gets the letter itself.
        lettered: who writes the letters before the options of a prompt: the ``row``'s options, its ``question``, or the
            ``task``'s own function.
        put_in: the column of a row's options, or how the columns of the single options begin.
        prompts_of: the YAML that offers the prompts, where the stock one asks for no letter.
        ours: prompts that model authors ask instead of lmms-eval's, by name: they make a row's question.
        grouped: the column whose questions the stock aggregation scores together; ``None`` where it does not.
        configs: folders of the hub's repository that hold these rows, the best first, where other folders hold rows
            that are not offered; empty where there is no such choice.
        suffixes: of the files that may hold the questions.
        rows: the questions of a file's rows, where they are not the same.
        folders: by the name of a file with questions, which becomes the column ``sub_task``, the folders that its
            videos may lie in; empty where a file says nothing of its questions.
        cut: columns with the second at which the questions' part of a video begins, the one at which it ends, and how
            many pictures a second a folder of them has; absent or empty where the whole video is meant.
        branch: of the hub's repository; ``None`` for its main one.
        part: whether the questions are about few of the repository's videos, of which only these are fetched.
        server: address that scores predictions, of a benchmark without public answers; ``None`` where a row says its
            answer. Nothing is ever sent there.
    """

    name: str
    stock: str
    hub: str
    split: str
    columns: tuple[str, ...]
    categories: tuple[str, ...]
    video: Callable[[Row], str]
    category: Callable[[Row], str]
    options: Callable[[Row], list[str]]
    answer: Callable[[int, list[str]], str | int]
    id: str | None
    prediction: str | None = None
    truth: str | None = None
    score: str | None = None
    wrong: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reads: str = LETTERS
    lettered: str = "row"
    put_in: str = "options"
    prompts_of: str | None = None
    ours: Mapping[str, Callable[[Row], str]] = dataclasses.field(default_factory=dict)
    grouped: str | None = None
    configs: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = (".parquet",)
    rows: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = list
    folders: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    cut: tuple[str, ...] = ()
    branch: str | None = None
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
        return str(self.answer(0, [""])) == "0"

    def is_right(self, record: Any) -> bool:
        """Whether a record of the task says that the answer is right."""
        if not isinstance(record, Mapping):
            return bool(record)
        if self.score:
            return bool(record[self.score])
        return str(record[self.prediction]) == str(record[self.truth])

    def with_options(self, row: Row, options: list[str]) -> dict[str, Any]:
        """A row with other options, in the form that it has them in."""
        if self.put_in not in row:
            return {**row, **{f"{self.put_in}{place}": text for place, text in enumerate(options)}}
        return {
            **row,
            self.put_in: "\n".join(options) if isinstance(row[self.put_in], str) else list(options),
        }

    def read(self, file: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The questions of one file; arguments and errors as of :func:`~stsimdiff.data.question_files.read_file`."""
        # Questions that lie in another column's rows need that column.
        return self.rows(read_file(file, columns if self.rows is list else None))

    def read_kinds(self, files: list[Path]) -> list[dict[str, Any]]:
        """The questions of files that are named by their kinds.

        Raises:
            DataError: where a kind has no file: without it the mean would be another one.
        """
        lacking = [kind for kind in self.folders if kind not in map(self._kind, files)]
        if lacking:
            raise DataError(
                f"{self.name}: no file with the questions of {', '.join(lacking)}; fetch it again"
            )
        rows = [row | {"sub_task": self._kind(file)} for file in files for row in self.read(file)]
        names = dict.fromkeys(name for row in rows for name in row)
        return [dict.fromkeys(names) | row for row in rows]

    def _kind(self, file: Path) -> str | None:
        # action_sequence.json, or action_sequence/train/0000.parquet.
        return next((name for name in (file.stem, *file.parts[::-1]) if name in self.folders), None)

    def place(self, row: Row, find: Callable[..., Path]) -> str:
        """Where a row's video lies, and which part of it is meant: :class:`~stsimdiff.video.parts.Part` as a text.

        Args:
            row: of this benchmark.
            find: gives the file of a name, or where it would be: :meth:`stsimdiff.data.videos.VideoFolder.path`.
        """
        if not self.folders:
            return str(find(self.video(row)))
        start, end, fps = (row.get(name) for name in self.cut)
        bare, suffix = os.path.splitext(row["video"])
        bounds = "" if start is None or end is None else f"_{start}_{end}"
        own = self.folders[row["sub_task"]]
        for name in dict.fromkeys((f"{bare}{bounds}{suffix}", row["video"])):
            for folder in own:
                # Other sources have videos of the same names.
                path = find(f"{folder}/{name}", exact=True)
                if path.exists():
                    done = path.stem.endswith(bounds) or folder.endswith("_segment")
                    rate = float(fps or 3) if path.is_dir() else None
                    part = Part(path, fps=rate)
                    if start is not None and end is not None and not done:
                        part = Part(path, float(start), float(end), rate)
                    return str(part)
        return str(find(f"{own[0]}/{row['video']}", exact=True))

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
        file: Path | None = self._stock_file(self.prompts_of or self.stock)
        config: dict[str, Any] = {}
        while file is not None:
            task = yaml.load(file.read_text(encoding="utf-8"), Loader)
            config = {**task, **config}
            file = file.with_name(task["include"]) if "include" in task else None
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
            fault = (
                f"{self.name}: benchmark.data={data} is no folder"
                if data
                else f"no data of {self.name} at {root}"
            )
            raise DataError(
                f"{fault}; `make data BENCHMARK={self.name}` fetches it, benchmark.data=/path names a folder with its "
                f"parquet file and videos, data=/path one that holds a folder {self.name} for it"
            )
        return root.resolve()

    def question_files(self, root: Path) -> list[Path]:
        """The parquet files with the questions, wherever they lie below ``root``.

        Raises:
            DataError: when there is none, or only one without answers.
        """
        fitting, seen = [], []
        for file in visible_files(root, self.suffixes):
            names = columns_of(file) if self.rows is list else list(dict.fromkeys(chain(*self.read(file))))
            seen.append(f"{file.relative_to(root)} ({', '.join(names)})")
            if set(self.columns) <= set(names) and self._offered(file, root):
                fitting.append(file)
        fitting = [file for file in fitting if file.name.startswith(self.split)] or fitting
        own = ([file for file in fitting if config in _folders(file, root)] for config in self.configs)
        fitting = next(filter(None, own), fitting)
        # MLVU's two splits have the same columns; below one folder, their kinds of questions tell them apart.
        chosen = [file for file in fitting if self._kinds(file) <= set(self.categories)] or fitting
        chosen = _once(chosen, self._kind)
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
        column = self.columns[-1] if self.answered else "answer"
        if self.folders and self._kind(file) is None:
            return False
        values = [row.get(column) for row in self.read(file, [column])]
        known = bool(values) and not any(value in (None, "", -1) for value in values)
        if self.server:
            return not known
        return known and (not self.configs or not inside.isdisjoint(self.configs) or not inside & CONFIGS)

    def _kinds(self, file: Path) -> set[str]:
        return {self.category(row) for row in self.read(file, self.columns)} if not self.folders else set()

    def revision(self, root: Path) -> str:
        """12 hex digits of the question files' contents: they name the data that an answer belongs to."""
        return fingerprint(b"".join(file.read_bytes() for file in self.question_files(root)))


CONFIGS = {
    *("subset", "generation", "mc", "mc_ppl"),
    *("multi-choice", "yes_no", "caption_matching", "captioning"),
}
"""EgoSchema's folders, of which all but the first hold the full set, and TempCompass's."""
SETS = {"egoschema": "its public subset", "egoschema_full": "the full set"}


def _folders(file: Path, root: Path) -> set[str]:
    return {part.lower() for part in file.relative_to(root).parts[:-1]}


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


def _once(files: list[Path], kind: Callable[[Path], str | None]) -> list[Path]:
    """The files without copies of each other: a second one would ask every question twice."""
    known = {(kind(file), sha256(file)): file for file in reversed(files)}
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


def _lettered_lines(row: Row) -> list[str]:
    """The options that a question's text shows, with their letters: ``A. red``."""
    lines = [text.strip() for text in row["question"].splitlines()]
    shown = [text for text in lines if re.match(r"\(?[A-J][).:]", text)]
    return shown if "".join(text.lstrip("(")[0] for text in shown) == LETTERS[: len(shown)] else []


def _labelled(row: Row) -> list[str]:
    """MotionBench's options, unless their labels are not A, B, C and so on."""
    labels = "".join(option["label"] for option in row["options"])
    return [option["text"] for option in row["options"]] if labels == LETTERS[: len(labels)] else []


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
    categories=("short", "medium", "long"),
    video=lambda row: row["videoID"],
    category=lambda row: row["duration"],
    options=lambda row: row["options"],
    answer=lambda place, options: LETTERS[place],
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
    categories=("topic_reasoning", "anomaly_reco", "needle", "ego", "plotQA", "order", "count"),
    video=lambda row: row["video_name"],
    category=lambda row: row["task_type"],
    options=_mlvu_options,
    answer=lambda place, options: LETTERS[place],
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
    categories=(
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
    categories=("relation", "perception"),
    video=lambda row: row["video_path"],
    category=lambda row: row["level"].rpartition("-")[2].lower(),
    options=_longvideobench_options,
    answer=lambda place, options: place,
    id="id",
    prediction="parsed_pred",
    truth="answer",
    wrong={"parsed_pred": ""},
    lettered="task",
    put_in="option",
)  # fmt: skip

EGOSCHEMA = Benchmark(
    name="egoschema",
    stock="egoschema/egoschema_subset.yaml",
    hub="lmms-eval/egoschema",
    split="test",
    columns=("video_idx", "question", "option", "answer"),
    categories=("all",),
    video=lambda row: row["video_idx"],
    category=lambda row: "all",
    options=lambda row: row["option"],
    answer=lambda place, options: str(place),
    id=None,
    prediction="pred",
    truth="ground_truth",
    wrong={"pred": -1},
    put_in="option",
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

LVBENCH = Benchmark(
    name="lvbench",
    stock="lvbench/lvbench.yaml",
    hub="lmms-eval/LVBench",
    split="train",
    columns=("video_path", "question", "question_type", "answer"),
    # A question has one to three types, so none of them is a column of the table.
    categories=("all",),
    video=lambda row: row["video_path"],
    category=lambda row: "all",
    options=lambda row: row.get("options") or _lettered_lines(row),
    answer=lambda place, options: LETTERS[place],
    id="uid",
    reads="ABCD",
    lettered="question",
)

NEXTQA = Benchmark(
    name="nextqa",
    stock="nextqa/nextqa_mc_test.yaml",
    hub="lmms-eval/NExTQA",
    split="test",
    columns=("video", "question", "qid", "type", *(f"a{i}" for i in range(5)), "answer"),
    categories=("causal", "temporal", "descriptive"),
    video=lambda row: str(row["video"]),
    category=lambda row: {"C": "causal", "T": "temporal", "D": "descriptive"}.get(
        row["type"][:1], str(row["type"])
    ),
    options=lambda row: [row[f"a{i}"] for i in range(5)],
    answer=lambda place, options: place,
    id=None,
    reads="ABCDE",
    lettered="task",
    put_in="a",
    # Its own YAML asks for no letter.
    prompts_of=EGOSCHEMA.stock,
)

TEMPCOMPASS = Benchmark(
    name="tempcompass",
    stock="tempcompass/tempcompass_mc.yaml",
    hub="lmms-eval/TempCompass",
    split="test",
    columns=("video_id", "question", "dim", "answer"),
    categories=("action", "direction", "speed", "order", "attribute_change"),
    video=lambda row: row["video_id"],
    category=lambda row: row["dim"],
    options=_lettered_lines,
    answer=lambda place, options: options[place],
    id=None,
    score="rating",
    wrong={"rating": 0, "video-llm-prediction": ""},
    reads="ABCD",
    lettered="question",
    configs=("multi-choice",),
)

MOTIONBENCH = Benchmark(
    name="motionbench",
    stock="motionbench/motionbench_full.yaml",
    hub="zai-org/MotionBench",
    split="video_info",
    columns=("video_path", "question_type", "question", "options", "answer"),
    categories=(
        "Motion Recognition", "Location-related Motion", "Camera Motion", "Motion-related Objects", "Action Order",
        "Repetition Count",
    ),
    video=lambda row: row["video_path"],
    category=lambda row: row["question_type"],
    options=_labelled,
    answer=lambda place, options: LETTERS[place],
    id="id",
    score="score",
    wrong={"score": 0.0, "answered": 0.0},
    reads="ABCDEF",
    lettered="task",
    suffixes=(".jsonl", ".parquet"),
    rows=spread,
)  # fmt: skip

VIDEOMME_V2 = Benchmark(
    name="videomme_v2",
    stock="videomme_v2/videomme_v2.yaml",
    hub="MME-Benchmarks/Video-MME-v2",
    split="test",
    columns=(
        "video_id", "group_type", "group_structure", "question_id", "level", "second_head", "third_head", "question",
        "options", "answer",
    ),
    categories=("relevance", "logic"),
    video=lambda row: row["video_id"],
    category=lambda row: row["group_type"],
    options=lambda row: [text for text in row["options"].split("\n") if text.strip()],
    answer=lambda place, options: LETTERS[place],
    id="question_id",
    prediction="pred_answer",
    truth="answer",
    wrong={"pred_answer": "", "score": 0},
    reads="ABCDEFGH",
    grouped="video_id",
)  # fmt: skip

_CHARADES = ("star/Charades_segment", "star/Charades_v1_480")
_CLEVRER = ("clevrer/video_validation",)
_PERCEPTION = ("perception/videos",)
_MVBENCH = {
    "action_sequence": _CHARADES,
    "action_prediction": _CHARADES,
    "action_antonym": ("ssv2_video_mp4", "ssv2_video"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "unexpected_action": ("FunQA_test/test",),
    "object_existence": _CLEVRER,
    "object_interaction": _CHARADES,
    "object_shuffle": _PERCEPTION,
    "moving_direction": _CLEVRER,
    "action_localization": ("sta/sta_video_segment", "sta/sta_video"),
    "scene_transition": ("scene_qa/video",),
    "action_count": _PERCEPTION,
    "moving_count": _CLEVRER,
    "moving_attribute": _CLEVRER,
    "state_change": _PERCEPTION,
    "fine_grained_pose": ("nturgbd_convert", "nturgbd"),
    "character_order": _PERCEPTION,
    "egocentric_navigation": ("vlnqa",),
    "episodic_reasoning": ("tvqa/video_fps3_hq_segment", "tvqa/frames_fps3_hq"),
    "counterfactual_inference": _CLEVRER,
}
"""Folders of MVBench's videos by task: that of lmms-eval's branch ``video``, with cut files, and the authors' own."""

MVBENCH = Benchmark(
    name="mvbench",
    stock="mvbench/mvbench_action_sequence.yaml",
    hub="OpenGVLab/MVBench",
    split="",
    columns=("video", "question", "candidates", "answer"),
    categories=tuple(_MVBENCH),
    video=lambda row: f"{_MVBENCH[row['sub_task']][0]}/{row['video']}",
    category=lambda row: row["sub_task"],
    options=lambda row: row["candidates"],
    answer=lambda place, options: options[place],
    id=None,
    score="score",
    wrong={"score": 0, "pred_answer": "none"},
    reads="ABCDE",
    lettered="task",
    put_in="candidates",
    suffixes=(".json", ".parquet"),
    folders=_MVBENCH,
    cut=("start", "end", "fps"),
    branch="video",
)

BENCHMARKS = {
    item.name: item
    for item in (
        *(VIDEOMME, MLVU, MLVU_TEST, LONGVIDEOBENCH, EGOSCHEMA, EGOSCHEMA_FULL),
        *(MVBENCH, LVBENCH, NEXTQA, TEMPCOMPASS, MOTIONBENCH, VIDEOMME_V2),
    )
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
