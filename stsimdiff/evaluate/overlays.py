"""What the token overlays of the report are made from: for a few questions, why each token stayed, and the frames.

The reasons go into the stored line of each arm, the frames once into the run's folder, so that the page can be made
again wherever that folder lies. Reading them back is the report's.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stsimdiff.config.settings import Settings
from stsimdiff.errors import DataError
from stsimdiff.evaluate.questions import Question
from stsimdiff.files import fingerprint
from stsimdiff.tokens import Grid, Picture
from stsimdiff.trace import Trace
from stsimdiff.video import Frames

FOLDER = "frames"
"""Folder of the frames within a run's folder."""
ABOUT = "frames.json"
SIDE = 320
"""Pixels of the longer side of a stored frame: enough to see what a token covers, about 10 kB each."""
QUALITY = 75


def chosen(questions: Sequence[Question], count: int) -> set[str]:
    """Ids of the questions whose overlays are stored: the categories in turn, each on another video where it can.

    It depends on the questions alone, so that all processes of a run agree, and takes the earliest ones, so that a
    run whose limit is raised keeps most of them.
    """
    categories: dict[str, list[Question]] = {}
    for question in questions:
        categories.setdefault(question.category, []).append(question)
    ids: set[str] = set()
    videos: set[str] = set()
    while len(ids) < min(count, len(questions)):
        for category in categories.values():
            left = [question for question in category if question.id not in ids]
            if left and len(ids) < count:
                choice = next((question for question in left if question.video not in videos), left[0])
                ids.add(choice.id)
                videos.add(choice.video)
    return ids


class Overlays:
    """The overlays that one process stores.

    Args:
        settings: of the run; ``overlays`` says for how many questions.
        questions: all questions of the run, also those of other processes.
    """

    def __init__(self, settings: Settings, questions: Sequence[Question]) -> None:
        self._settings = settings
        self._chosen = chosen(questions, settings.overlays)
        self._videos = {q.video: q.video_name for q in questions if q.id in self._chosen}

    def lack_frames(self, path: str) -> bool:
        """Whether a question needs the frames of this video and they are not stored yet."""
        return path in self._videos and not (self._settings.folder / FOLDER / self._name(path)).is_dir()

    def keep_frames(self, path: str, frames: Frames) -> None:
        """Store the frames that the model was given of a video, unless they are there or no question needs them.

        Raises:
            DataError: when they cannot be written.
        """
        if not self.lack_frames(path):
            return
        folder = self._settings.folder / FOLDER / self._name(path)
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            for number, jpeg in enumerate(jpegs(frames.pixels)):
                (unfinished / f"{number:03d}.jpg").write_bytes(jpeg)
            about = {"video": self._videos[path], "indices": frames.indices, "fps": frames.fps}
            (unfinished / ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")
            # Another process may have been faster: its folder holds the same.
            with contextlib.suppress(FileExistsError):
                _move(unfinished, folder)
        except OSError as error:
            raise DataError(f"cannot write the frames of overlays to {folder}: {error.strerror}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def entry(self, question: Question, trace: Trace, grid: Grid, picture: Picture) -> dict[str, Any]:
        """The part ``overlay`` of a stored line, as keys to add to it; none for a question that was not chosen."""
        if question.id not in self._chosen:
            return {}
        entry = {"frames": self._name(question.video), **overlay(question.text, trace, grid, picture)}
        # Where the benchmark's own module knows what its videos show, and when.
        moment = getattr(self._settings.benchmark.module(), "moment", None)
        if evidence := moment(question.document) if moment else None:
            entry["evidence"] = evidence
        return {"overlay": entry}

    def _name(self, path: str) -> str:
        """Folder of a video's frames; models that are given other frames of it have another one."""
        settings = self._settings
        shown = [settings.benchmark.name, settings.benchmark.revision, settings.benchmark.decoder]
        shown += filter(None, [settings.benchmark.decoder_code])
        model = settings.model
        sampled = [model.frames, model.sampling, model.fps]
        stem = re.sub(r"[^\w-]", "_", Path(path).stem)
        return f"{stem}-{fingerprint([self._videos[path], *sampled, *shown], digits=8)}"


def overlay(question: str, trace: Trace, grid: Grid, picture: Picture) -> dict[str, Any]:
    """The question as the model read it, and :func:`reasons` with ``reason`` as base64 of zlib."""
    stored = reasons(trace, grid, picture)
    packed = base64.b64encode(zlib.compress(stored["reason"], 9)).decode()
    return {"question": question, **stored, "reason": packed}


def reasons(trace: Trace, grid: Grid, picture: Picture) -> dict[str, Any]:
    """Each token's reason, and where it lies.

    ``reason`` holds ``(N,)`` codes, a byte each in raster order; ``codes`` names those that occur, and ``colours`` are
    those of the method's own.
    """
    assert trace.reason is not None, "the prefill has ended"
    reason = trace.reason.numpy()
    return {
        "grid": asdict(grid),
        "picture": asdict(picture),
        "codes": {str(code): trace.reason_name(code) for code in np.unique(reason).tolist()},
        **({"colours": dict(trace.own)} if trace.own else {}),
        "reason": reason.tobytes(),
    }


def jpegs(pixels: np.ndarray, side: int = SIDE) -> list[bytes]:
    """Frames ``(T, height, width, 3)`` uint8 as JPEG files whose longer side has at most ``side`` pixels."""
    files = []
    for frame in pixels:
        image = Image.fromarray(frame)
        image.thumbnail((side, side))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=QUALITY, optimize=True)
        files.append(stream.getvalue())
    return files


def _move(unfinished: Path, folder: Path) -> None:
    try:
        os.rename(unfinished, folder)
    except OSError as error:
        if folder.is_dir():
            raise FileExistsError(str(folder)) from error
        raise
