"""The evaluation set: 128 clips and 896 questions, 112 of each category, written as H.264 files and JSON lines.

Clips come in blocks of four that are asked exactly the same texts, and each of a text's four options is
right for one clip of the block. Whoever reads only the text therefore scores 25 %, whatever the strategy.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from stsimdiff.files import complete, write_whole

from .questions import (
    CATEGORIES,
    OPTION_POOLS,
    ClipQuestion,
    attr_stem,
    change_stem,
    count_stem,
    flash_stem,
    mark_stem,
    motion_stem,
    order_stem,
    scene_stem,
)
from .rendering import render
from .vocabulary import COLOR_NAMES, FLASH_SHAPES, PLACES, STATIC_SHAPES
from .world import FPS, TRAINED, Plan, World, lay_out
from .worlds import VIDEOS as WORLD_VIDEOS
from .worlds import WORLDS

GENERATOR_VERSION = "2"  # raise whenever the same seed no longer gives the same frames or questions
VIDEOS = 128
BLOCK = 4  # clips that share their questions: as many as there are options
LONG_VIDEOS = 4  # videos of joined clips, for measuring
EVALUATION_SEED = 20_000_000  # one seed a block from here on; training uses no seed above TRAINING_SEEDS
TRAINING_SEEDS = 10_000_000


def _options(pool: tuple[str, ...], rng: random.Random, include: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Four distinct words of a pool in random order, among them those of `include`."""
    rest = [word for word in pool if word not in include]
    options = [*include, *rng.sample(rest, 4 - len(include))]
    rng.shuffle(options)
    return tuple(options)


@dataclass(frozen=True)
class _Texts:
    """What the four clips of a block have in common: stems and options by category, and what they speak of.

    first: whether `order` asks for the first flash; after: whether `change` asks for the new color;
    brief: whether `scene` asks for the insert shot.
    """

    shapes: tuple[str, ...]
    counted: str
    colored: str
    first: bool
    after: bool
    brief: bool
    stems: dict[str, str]
    options: dict[str, tuple[str, ...]]


def _texts(rng: random.Random) -> _Texts:
    shapes = rng.sample(STATIC_SHAPES, 3)
    counted = rng.choice(FLASH_SHAPES)
    colored = counted if rng.random() < 0.5 else rng.choice([s for s in FLASH_SHAPES if s != counted])
    first, after, brief = rng.random() < 0.5, rng.random() < 0.6, rng.random() < 0.75
    attr_colors = rng.sample(COLOR_NAMES, 4)
    options = {
        "attr": _options(COLOR_NAMES, rng, tuple(attr_colors)),
        "change": _options(COLOR_NAMES, rng, tuple(c for c in COLOR_NAMES if c not in attr_colors)),
        "flash": _options(COLOR_NAMES, rng),
        "order": _options(FLASH_SHAPES, rng, tuple(dict.fromkeys((counted, colored)))),
        "scene": _options(PLACES, rng),
    }
    for category in ("count", "motion", "mark"):
        options[category] = _options(OPTION_POOLS[category], rng)
    stems = {
        "attr": attr_stem(shapes[0]),
        "flash": flash_stem(colored),
        "order": order_stem(first),
        "count": count_stem(counted),
        "motion": motion_stem(),
        "scene": scene_stem(brief),
        "change": change_stem(shapes[2], after),
        "mark": mark_stem(),
    }
    return _Texts(tuple(shapes), counted, colored, first, after, brief, stems, options)


def _flashes(
    texts: _Texts,
    answer: dict[str, str],
    rival: dict[str, str],
    rng: random.Random,
    categories: tuple[str, ...] = CATEGORIES,
) -> tuple:
    """Flashes in the order of time that give the answers of `count`, `flash` and `order`; none if none is asked."""
    if not {"count", "flash", "order"} & {*categories}:
        return ()
    counts = {texts.counted: int(answer["count"])} if "count" in categories else {}
    for shape in (texts.colored, answer["order"]):
        counts.setdefault(shape, 1)
    if len(counts) == 1:
        counts[rival["order"]] = 1
    others = [color for color in texts.options["flash"] if color != answer["flash"]]
    rng.shuffle(others)
    colors = {shape: answer["flash"] if shape == texts.colored else others.pop() for shape in counts}
    rest = [shape for shape, count in counts.items() for _ in range(count - (shape == answer["order"]))]
    rng.shuffle(rest)
    shapes = [answer["order"], *rest] if texts.first else [*rest, answer["order"]]
    return tuple((shape, colors[shape]) for shape in shapes)


def _plan(
    texts: _Texts,
    answer: dict[str, str],
    rival: dict[str, str],
    rng: random.Random,
    categories: tuple[str, ...] = CATEGORIES,
) -> Plan:
    """A plan in which every text has the given answer, and the rival appears elsewhere where it can."""
    flashes = _flashes(texts, answer, rival, rng, categories)
    colors = [rival["change"], answer["change"]]  # before, after
    places = [rival["scene"], answer["scene"]]  # main, insert
    if not texts.after:
        colors.reverse()
    if not texts.brief:
        places.reverse()
    return Plan(
        static=((texts.shapes[0], answer["attr"]), (texts.shapes[1], rival["attr"])),
        changing=(texts.shapes[2], colors[0], colors[1]),
        flashes=flashes,
        counted=texts.counted,
        direction=answer["motion"],
        corner=answer["mark"],
        place=places[0],
        insert_place=places[1],
    )


def block(index: int, world: str | None = None) -> list[tuple[World, list[ClipQuestion]]]:
    """The four clips of a block with their questions: seven of the eight categories each, or those of a named world.

    Texts are drawn first. Then clip i is planned such that the answer to each text is the option that the
    category's own permutation gives it, while other options appear elsewhere in the same clip.
    """
    kind = WORLDS[world] if world else None
    rng = random.Random(EVALUATION_SEED + index + (kind.first_block if kind else 0))
    texts = _texts(rng)
    turns = {category: rng.sample(range(BLOCK), BLOCK) for category in CATEGORIES}
    # A rival is another option of the same text, the same distance on for every clip of the block.
    shift = {category: rng.randint(1, BLOCK - 1) for category in CATEGORIES}
    left_out = CATEGORIES[index % len(CATEGORIES)]
    categories = kind.categories if kind else tuple(name for name in CATEGORIES if name != left_out)
    clips = []
    for clip in range(BLOCK):
        answer = {name: texts.options[name][turns[name][clip]] for name in CATEGORIES}
        rival = {name: texts.options[name][(turns[name][clip] + shift[name]) % BLOCK] for name in CATEGORIES}
        plan = _plan(texts, answer, rival, rng, kind.categories if kind else CATEGORIES)
        laid_out = lay_out(plan, rng, kind.style if kind else TRAINED)
        block_questions = [
            ClipQuestion(name, texts.stems[name], texts.options[name], answer[name]) for name in categories
        ]
        clips.append((laid_out, block_questions))
    return clips


def clips(videos: int | None = None, world: str | None = None) -> list[tuple[str, World, list[ClipQuestion]]]:
    """(video id, world, questions) of the first `videos` clips, by default of all 128, or all 40 of a named world."""
    most = WORLD_VIDEOS if world else VIDEOS
    videos = most if videos is None else videos
    if not 0 < videos <= most:
        raise ValueError(f"videos must be between 1 and {most}, got {videos}")
    listed = []
    for index in range(-(-videos // BLOCK)):
        for offset, (laid_out, clip_questions) in enumerate(block(index, world)):
            listed.append((f"{world or 'clip'}{index * BLOCK + offset:03d}", laid_out, clip_questions))
    return listed[:videos]


def row(video: str, question: ClipQuestion) -> dict:
    """A question as a line of `questions.jsonl` holds it."""
    return {
        "id": f"{video}-{question.category}",
        "video": f"{video}.mp4",
        "family": question.category,  # as `rows` says
        "question": question.stem,
        "options": list(question.options),
        "answer": question.letter,
    }


def questions(videos: int | None = None, world: str | None = None) -> list[dict]:
    """The rows of `questions.jsonl`, without drawing anything.

    Answer positions and text-only chance are exactly balanced when `videos` is a multiple of four, and
    categories when it is a multiple of 32.
    """
    return [
        row(video, question)
        for video, _, clip_questions in clips(videos, world)
        for question in clip_questions
    ]


def build(root: Path, *, videos: int | None = None, world: str | None = None) -> Path:
    """Write `videos/<id>.mp4` and `questions.jsonl` under `root`, and return `root`.

    Files that exist are kept: each is written under a temporary name and renamed when complete, so
    that a broken run leaves nothing behind that counts and two processes may build at the same time. Put
    `GENERATOR_VERSION` and a number of videos other than the default into the path of `root`: files of
    another version are not recognised, and `questions.jsonl` lists the videos of the last call.
    """
    root = Path(root)
    folder = root / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for video, laid_out, clip_questions in clips(videos, world):
        path = folder / f"{video}.mp4"
        if not path.exists():
            with complete(path) as temporary:
                write_video(temporary, render(laid_out))
        rows += [row(video, question) for question in clip_questions]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = root / "questions.jsonl"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)
    return root


def build_long(root: Path, *, joined: int, videos: int = LONG_VIDEOS) -> Path:
    """As `build`, but each video is `joined` clips one after another, and the questions are those about the first.

    For measuring what frames cost: the embedded model was trained on single clips, so its answers mean nothing here.
    """
    root = Path(root)
    folder = root / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    listed, rows = clips(videos * joined), []
    for number in range(videos):
        parts = listed[number * joined : (number + 1) * joined]
        name = f"long{number:03d}"
        path = folder / f"{name}.mp4"
        if not path.exists():
            with complete(path) as temporary:
                write_video(temporary, np.concatenate([render(world) for _, world, _ in parts]))
        rows += [row(name, question) for question in parts[0][2]]
    write_whole(root / "questions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return root


def write_video(path: Path, frames: np.ndarray) -> None:
    """Encode uint8 RGB frames [frames, height, width, 3] as H.264, yuv420p, `FPS` frames a second, on one thread."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        # x264's macroblock tree gives other bytes for the same frames now and then, even on one thread.
        stream.options = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
