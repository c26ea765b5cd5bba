"""The embedded benchmark for lmms-eval: rows and videos from the generator, and how an answer is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from lmms_eval.api.task import ConfigurableMessagesTask

from stsimdiff.commands import lmms_command
from stsimdiff.data import clips
from stsimdiff.data.clips import rows
from stsimdiff.data.clips.questions import prompt
from stsimdiff.data.parsing import parse_letter
from stsimdiff.data.videos import VideoFolder

METRIC = "clips_accuracy"


class ClipsTask(ConfigurableMessagesTask):
    """A task whose data set is generated, once, into a folder of the user's cache.

    ``dataset_kwargs.root`` names another folder with ``questions.jsonl`` and ``videos/``; ``dataset_kwargs.joined``
    asks for videos of so many clips one after another, ``dataset_kwargs.world`` for another kind of clips.
    """

    def __init__(self, config: dict[str, Any], model_name: str | None = None) -> None:
        # The key that brought lmms-eval here is none of a task's own.
        super().__init__(config={k: v for k, v in config.items() if k != "class"}, model_name=model_name)

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        with lmms_command.ending_here():
            self._read(dataset_kwargs or {})

    def _read(self, given: dict[str, Any]) -> None:
        world = given.get("world")
        if own := given.get("root") or lmms_command.root(None):
            root = Path(own).expanduser()
        elif given.get("joined"):
            joined = int(given["joined"])
            root = clips.build_long(Path(f"{clips.folder()}-joined-{joined}"), joined=joined)
        else:
            root = clips.build(clips.folder(world), world=world)
        found = rows.read(root)
        videos = VideoFolder(root / "videos")
        for row in found:
            # A user's row may leave out the suffix, or name another one than the file has.
            path = root / "videos" / row["video"]
            path = path if path.exists() else videos.path(row["video"])
            row["path"] = str(path.resolve())
            row["named"] = path.relative_to(root / "videos").as_posix()
        self.dataset = datasets.DatasetDict({self.config.test_split: datasets.Dataset.from_list(found)})
        self.dataset_no_image = self.dataset


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    """Path of the video."""
    return [doc["path"]]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """Question, options and instruction, as the embedded model was trained to read them."""
    return prompt(doc["question"], doc["options"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, dict[str, Any]]:
    """Score one answer; what cannot be parsed is wrong, never a guess."""
    parsed = parse_letter(results[0], doc["options"])
    return {
        METRIC: {
            "question_id": doc["id"],
            "category": doc["family"],
            "parsed": parsed,
            "target": doc["answer"],
            "correct": parsed == doc["answer"],
        }
    }


def aggregate(results: list[dict[str, Any]]) -> float:
    """Accuracy in percent over all questions."""
    return 100.0 * sum(result["correct"] for result in results) / len(results)
