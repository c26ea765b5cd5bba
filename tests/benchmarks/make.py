"""The miniature benchmarks of this folder: their schemas with a dozen invented questions each, and tiny videos.

``python tests/benchmarks/make.py`` writes them again. No row or video comes from the real data sets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "white": (240, 240, 240)}
TYPES = ("topic_reasoning", "anomaly_reco", "needle", "ego", "plotQA", "order", "count")
TEST_TYPES = (
    *("topic_reasoning", "anomaly_reco", "needleQA", "ego", "plotQA"),
    *("sportsQA", "order", "count", "tutorialQA"),
)
Rows = list[dict[str, Any]]
Videos = dict[str, str]
"""Path of a video, and the colour of the square in it."""


def write_video(path: Path, color: str, frames: int = 16, size: int = 112) -> None:
    """A square of one colour that crosses a grey picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            picture = np.full((size, size, 3), 60, np.uint8)
            left = number * (size - 32) // frames
            picture[40:72, left : left + 32] = COLORS[color]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def options(number: int) -> tuple[list[str], int]:
    """Four colours, and which of them the video of this number shows; the right one's place changes."""
    names, turn = list(COLORS), number // len(COLORS)
    turned = names[turn % 4 :] + names[: turn % 4]
    return turned, turned.index(names[number % 4])


def videomme() -> tuple[Rows, Videos]:
    """Three videos with three questions each: short, medium and long."""
    rows = []
    for number in range(9):
        video, (texts, right) = number // 3, options(number // 3 + number % 3 * 4)
        rows.append(
            {
                "video_id": f"{video + 1:03}",
                "duration": ("short", "medium", "long")[video],
                "domain": ("Knowledge", "Life Record", "Sports Competition")[video],
                "sub_category": ("Astronomy", "Travel", "Basketball")[video],
                "url": f"https://example.org/watch?v=mini{video}",
                "videoID": f"mini{video}",
                "question_id": f"{video + 1:03}-{number % 3 + 1}",
                "task_type": ("Object Recognition", "Attribute Perception", "Counting Problem")[number % 3],
                "question": "What color is the square?",
                "options": [f"{'ABCD'[place]}. {text}." for place, text in enumerate(texts)],
                "answer": "ABCD"[right],
            }
        )
    return rows, {f"data/mini{video}.mp4": color for video, color in enumerate(list(COLORS)[:3])}


def mlvu() -> tuple[Rows, Videos]:
    """Ten questions in the seven types; the videos lie in a folder for each type."""
    rows = []
    for number in range(10):
        kind, (texts, right) = TYPES[number % 7], options(number % 7 + number // 7 * 4)
        lettered = "\n".join(f"({'ABCD'[place]}) {text}" for place, text in enumerate(texts))
        rows.append(
            {
                "video_name": f"{kind}_{number % 7}.mp4",
                "duration": 4.0,
                "question": f"What color is the square?\nOptions:\n{lettered}\n",
                "candidates": texts,
                "answer": "ABCD"[right],
                "task_type": kind,
            }
        )
    colors = list(COLORS) * 2
    return rows, {f"video/{i}_{kind}/{kind}_{i}.mp4": colors[i] for i, kind in enumerate(TYPES)}


def mlvu_test() -> tuple[Rows, Videos]:
    """Nine questions in the test split's nine types: six options, said in the question alone."""
    rows, colors = [], list(COLORS) * 3
    for number, kind in enumerate(TEST_TYPES):
        texts, right = options(number)
        texts = ["black", "yellow", *texts] if number % 2 == 0 else [*texts, "black", "yellow"]
        right = right + 2 if number % 2 == 0 else right
        lettered = "\n".join(f"({'ABCDEF'[place]}) {text}" for place, text in enumerate(texts))
        rows.append(
            {
                "video_name": f"test_{kind}_{number}.mp4",
                "duration": 4.0,
                "question": f"What color is the square?\n{lettered}\n",
                "answer": "ABCDEF"[right],
                "task_type": kind,
                "question_id": f"{kind}_{number}",
            }
        )
    return rows, {f"MLVU_Test/video/test_{kind}_{i}.mp4": colors[i] for i, kind in enumerate(TEST_TYPES)}


def longvideobench() -> tuple[Rows, Videos]:
    """Eight questions with four or five options, of both levels, and subtitles."""
    rows = []
    for number in range(8):
        video, (texts, right) = f"mini{number % 4}", options(number)
        texts = [*texts, "black" if number % 2 else "N/A"]
        rows.append(
            {
                "id": f"{video}_{number // 4}",
                "video_id": video,
                "video_path": f"{video}.mp4",
                "subtitle_path": f"{video}_en.json",
                "question": "What color is the square that crosses the picture?",
                "question_wo_referring_query": "What color is the square?",
                **{f"option{place}": text for place, text in enumerate(texts)},
                "correct_choice": right,
                "question_category": ("S2A", "SSS", "O2E", "TOS")[number % 4],
                "topic_category": "KH-Knowledge-History",
                "level": "L2-Relation" if number % 2 else "L1-Perception",
                "duration_group": (15, 60, 600, 3600)[number % 4],
                "duration": 4.0,
                "starting_timestamp_for_subtitles": 0,
                "view_count": 1000 + number,
            }
        )
    return rows, {f"videos/mini{number}.mp4": color for number, color in enumerate(COLORS)}


def egoschema() -> tuple[Rows, Videos]:
    """Eight videos with a question each; the full set beside the subset has no answers."""
    rows = []
    for number in range(8):
        texts, right = options(number)
        texts = [*texts, "black"]
        rows.append(
            {
                "question_idx": str(number),
                "question": "What color is the square that C moves?",
                "video_idx": f"mini-{number}",
                "option": [f"{'ABCDE'[place]}. {text}" for place, text in enumerate(texts)],
                "answer": str(right),
            }
        )
    return rows, {f"videos/mini-{number}.mp4": list(COLORS)[number % 4] for number in range(8)}


def write(name: str, root: Path) -> None:
    """One miniature: the parquet file where the hub has it, the videos, and what else the real folder holds."""
    rows, videos = MINIATURES[name]()
    pq.write_table(pa.Table.from_pylist(rows), made(root / PARQUET[name]))
    for path, color in videos.items():
        write_video(made(root / path), color)
        stem, said = Path(path).stem, f"A square that is {color}"
        if name == "videomme":
            line = f'<font color="white" size=".72c">{said}</font>'
            timed = f"1\n00:00:00,000 --> 00:00:03,000\n{line}\n\n"
            made(root / "subtitle" / f"{stem}.srt").write_text(timed)
        if name == "longvideobench":
            spoken = [{"start": "00:00:00.000", "end": "00:00:03.000", "line": said}]
            made(root / "subtitles" / f"{stem}_en.json").write_text(json.dumps(spoken) + "\n")
    if name == "egoschema":
        # The full set stands beside the subset, in the same columns, without answers.
        schema = pq.read_schema(root / PARQUET[name])
        whole = pa.Table.from_pylist([row | {"answer": None} for row in rows], schema=schema)
        pq.write_table(whole, made(root / "GENERATION" / "test-00000-of-00001.parquet"))


def made(path: Path) -> Path:
    """The path, in a folder that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


MINIATURES: dict[str, Callable[[], tuple[Rows, Videos]]] = {
    "videomme": videomme,
    "mlvu": mlvu,
    "mlvu_test": mlvu_test,
    "longvideobench": longvideobench,
    "egoschema": egoschema,
}
PARQUET = {
    "videomme": "videomme/test-00000-of-00001.parquet",
    "mlvu": "data/test-00000-of-00001.parquet",
    "mlvu_test": "data/test-00000-of-00001.parquet",
    "longvideobench": "validation-00000-of-00001.parquet",
    "egoschema": "Subset/test-00000-of-00001.parquet",
}

if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name in MINIATURES:
        write(name, target / name)
