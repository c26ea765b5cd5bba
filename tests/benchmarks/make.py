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
from PIL import Image

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


def write_pictures(folder: Path, color: str, frames: int = 16, size: int = 112) -> None:
    """The same as pictures, numbered from 1."""
    for number in range(frames):
        picture = np.full((size, size, 3), 60, np.uint8)
        left = number * (size - 32) // frames
        picture[40:72, left : left + 32] = COLORS[color]
        Image.fromarray(picture).save(made(folder / f"{number + 1:05}.jpg"))


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


def lvbench() -> tuple[Rows, Videos]:
    """Eight questions of one to two types about two videos; the options stand in the question."""
    rows, kinds = [], ("entity recognition", "event understanding", "key information retrieval", "reasoning")
    for number in range(8):
        texts, right = options(number // 2 * 4 + number % 2)
        lettered = "\n".join(f"({'ABCD'[place]}) {text}" for place, text in enumerate(texts))
        rows.append(
            {
                "key": f"mini{number % 2}",
                "uid": str(100 + number),
                "video_path": f"mini{number % 2}.mp4",
                "type": ("sport", "cartoon")[number % 2],
                "question": f"What color is the square?\n{lettered}",
                "question_type": [kinds[number % 4], *kinds[3 : 3 + number % 2]],
                "answer": "ABCD"[right],
                "time_reference": "00:01-00:03",
            }
        )
    return rows, {f"all_videos/mini{number}.mp4": color for number, color in enumerate(list(COLORS)[:2])}


def nextqa() -> tuple[Rows, Videos]:
    """Eight questions with five options, of the eight types; the videos lie under their numbers."""
    rows, kinds = [], ("CW", "CH", "TN", "TC", "TP", "DC", "DL", "DO")
    for number, kind in enumerate(kinds):
        texts, right = options(number)
        rows.append(
            {
                "video": 4010069380 + number % 4,
                "frame_count": 16,
                "width": 112,
                "height": 112,
                "question": "what color is the square",
                "answer": right,
                "qid": number // 4,
                "type": kind,
                **{f"a{place}": text for place, text in enumerate([*texts, "black"])},
            }
        )
    return rows, {f"NExTVideo/{4010069380 + number}.mp4": color for number, color in enumerate(COLORS)}


def tempcompass() -> tuple[Rows, Videos]:
    """Ten questions in the five aspects of time, with two to four options in the question's text."""
    rows, kinds = [], ("action", "direction", "speed", "order", "attribute_change")
    for number in range(10):
        texts, right = options(number % 4)
        texts = texts[: max(2 + number % 3, right + 1)]
        lines = [f"{'ABCD'[place]}. {text}" for place, text in enumerate(texts)]
        rows.append(
            {
                "video_id": str(1021488277 + number % 4),
                "question": "\n".join(["What color is the square in the video?", *lines]),
                "answer": lines[right],
                "dim": kinds[number % 5],
            }
        )
    return rows, {f"videos/{1021488277 + number}.mp4": color for number, color in enumerate(COLORS)}


def motionbench() -> tuple[Rows, Videos]:
    """Eight videos, a line each, with a question or two; every third question has no public answer."""
    rows = []
    kinds = ("Motion Recognition", "Location-related Motion", "Camera Motion")
    kinds += ("Motion-related Objects", "Action Order", "Repetition Count")
    for number in range(8):
        asked = []
        for place in range(2):
            texts, right = options(number + 4 * place)
            lines = "\n".join(f"{'ABCD'[at]}. {text}" for at, text in enumerate(texts))
            answer = "NA" if (2 * number + place) % 3 == 2 else "ABCD"[right]
            text = f"What color  is the square?\n{lines}"
            asked.append({"uid": f"uid-{number}-{place}", "answer": answer, "question": text})
        rows.append(
            {
                "question_type": kinds[number % 6],
                "key": f"mini{number}",
                "qa": asked,
                "video_path": f"mini{number}.mp4",
                "video_type": ("public-dataset", "self-collected")[number % 2],
                "video_info": {"duration": 4.0, "fps": 4.0, "resolution": {"width": 112, "height": 112}},
            }
        )
    places = ("public-dataset", "self-collected")
    return rows, {f"MotionBench/{places[i % 2]}/mini{i}.mp4": list(COLORS)[i % 4] for i in range(8)}


def videomme_v2() -> tuple[Rows, Videos]:
    """Three videos with four questions of eight options each, in both kinds of groups."""
    rows, others = [], ["black", "yellow", "grey", "brown"]
    structures = ("[1, 2, 3, 4]", "[1, [2, 3], 4]", "[[1, 2], 3, 4]")
    for number in range(12):
        video, (texts, right) = number // 4, options(number // 4 + number % 4 * 4)
        texts, right = ([*texts, *others], right) if number % 2 else ([*others, *texts], right + 4)
        rows.append(
            {
                "video_id": f"{video + 1:03}",
                "url": f"https://example.org/watch?v=mini{video}",
                "group_type": "logic" if video else "relevance",
                "group_structure": structures[video],
                "question_id": f"{video + 1:03}-{number % 4 + 1}",
                "question": "What color is the square?",
                "options": "\n".join(f"{'ABCDEFGH'[place]}. {text}" for place, text in enumerate(texts)),
                "answer": "ABCDEFGH"[right],
                "level": str(video + 1),
                "second_head": ("Frames & Audio", "Order", "Change")[video],
                "third_head": ("Visual Recognition", "Action & Motion", "Causal Reasoning")[number % 3],
            }
        )
    return rows, {f"videos/{video + 1:03}.mp4": color for video, color in enumerate(list(COLORS)[:3])}


def mvbench() -> tuple[Rows, Videos]:
    """A question of each of the twenty tasks, laid out as the authors have it: two sources with whole videos of which a
    part is meant, and one with folders of pictures."""
    rows, places, videos = [], {}, {}
    for task, folder in MVBENCH.items():
        number = places.setdefault(folder, len(places))
        texts, right = options(number % 4)
        row = {"video": f"mini{number}.mp4", "question": "What color is the square?", "candidates": texts}
        row |= {"answer": texts[right], "sub_task": task}
        if folder.startswith("star"):
            row |= {"start": 0.5, "end": 3.0, "question_id": f"T-{number}"}
        if folder.startswith("tvqa"):
            row |= {"video": f"mini{number}", "start": 1.0, "end": 4.0, "fps": 3, "subtitle": ""}
        rows.append(row)
        videos[f"video/{folder}/{row['video']}"] = list(COLORS)[number % 4]
    return rows, videos


MVBENCH = {
    **dict.fromkeys(("action_sequence", "action_prediction", "object_interaction"), "star/Charades_v1_480"),
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    **dict.fromkeys(
        ("object_shuffle", "action_count", "state_change", "character_order"), "perception/videos"
    ),
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "fine_grained_pose": "nturgbd",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    **dict.fromkeys(("object_existence", "moving_direction", "moving_count"), "clevrer/video_validation"),
    **dict.fromkeys(("moving_attribute", "counterfactual_inference"), "clevrer/video_validation"),
}
"""The folder of each task's videos in the authors' own layout."""


def write(name: str, root: Path) -> None:
    """One miniature: the parquet file where the hub has it, the videos, and what else the real folder holds."""
    rows, videos = MINIATURES[name]()
    if name == "mvbench":
        for row in rows:
            task = row.pop("sub_task")
            made(root / PARQUET[name] / f"{task}.json").write_text(json.dumps([row], indent=1) + "\n")
    elif PARQUET[name].endswith(".jsonl"):
        made(root / PARQUET[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), made(root / PARQUET[name]))
    for path, color in videos.items():
        if path.endswith(".mp4"):
            write_video(made(root / path), color)
        else:
            write_pictures(root / path, color)
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
    "mvbench": mvbench,
    "lvbench": lvbench,
    "nextqa": nextqa,
    "tempcompass": tempcompass,
    "motionbench": motionbench,
    "videomme_v2": videomme_v2,
}
PARQUET = {
    "videomme": "videomme/test-00000-of-00001.parquet",
    "mlvu": "data/test-00000-of-00001.parquet",
    "mlvu_test": "data/test-00000-of-00001.parquet",
    "longvideobench": "validation-00000-of-00001.parquet",
    "egoschema": "Subset/test-00000-of-00001.parquet",
    "mvbench": "json",
    "lvbench": "data/train-00000-of-00001.parquet",
    "nextqa": "MC/test-00000-of-00001.parquet",
    "tempcompass": "multi-choice/test-00000-of-00001.parquet",
    "motionbench": "MotionBench/video_info.meta.jsonl",
    "videomme_v2": "test.parquet",
}

if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name in MINIATURES:
        write(name, target / name)
