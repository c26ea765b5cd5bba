"""The embedded benchmark: determinism, balance, no shortcut through text, and answers that fit the videos."""

import collections
import hashlib
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from helpers.paths import ROOT
from helpers.processes import python
from helpers.true_answers import shown, true_answer
from stsimdiff.data import clips
from stsimdiff.data.clips import dataset
from stsimdiff.data.clips import rows as question_file
from stsimdiff.data.clips.labels import COLOR_CLASSES, SHAPE_CLASSES, token_labels
from stsimdiff.data.clips.questions import INSTRUCTION, ask, prompt
from stsimdiff.data.clips.rendering import render
from stsimdiff.data.clips.vocabulary import COLORS, FLASH_SHAPES
from stsimdiff.data.clips.world import FRAMES, SIZE, World, sample_world
from stsimdiff.data.parsing import LETTERS
from stsimdiff.errors import DataError

SOME_SEEDS = (0, 1, 2, 3, 20_000_001)


def digest(frames: np.ndarray) -> str:
    return hashlib.sha256(frames.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return clips.questions()


@pytest.fixture(scope="module")
def worlds() -> dict[str, World]:
    return {f"{video}.mp4": world for video, world, _ in dataset.clips()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return clips.build(tmp_path_factory.mktemp("clips"), videos=8)


# Determinism


def test_same_seed_gives_the_same_frames_in_a_fresh_process():
    code = (
        "import hashlib; from stsimdiff.data.clips.world import sample_world; "
        "from stsimdiff.data.clips.rendering import render; "
        f"print([hashlib.sha256(render(sample_world(seed)).tobytes()).hexdigest() for seed in {SOME_SEEDS}])"
    )
    here = [digest(render(sample_world(seed))) for seed in SOME_SEEDS]
    for hash_seed in ("0", "1"):
        there = python("-c", code, check=True, PYTHONHASHSEED=hash_seed)
        assert there.stdout.strip() == str(here)


def test_different_seeds_give_different_frames():
    assert len({digest(render(sample_world(seed))) for seed in SOME_SEEDS}) == len(SOME_SEEDS)


def test_a_frame_does_not_depend_on_which_others_are_drawn():
    world = sample_world(7)
    np.testing.assert_array_equal(render(world)[[3, 9]], render(world, [3, 9]))


def test_rows_do_not_depend_on_global_randomness(rows):
    random.seed(123)
    np.random.seed(123)  # noqa: NPY002
    assert clips.questions() == rows


# Balance and shortcuts


def test_size_and_balance(rows):
    assert len(rows) >= 800
    assert len({row["video"] for row in rows}) >= 120
    assert len({row["id"] for row in rows}) == len(rows)
    per_category = collections.Counter(row["family"] for row in rows)
    assert set(per_category) == set(clips.CATEGORIES)
    assert len(set(per_category.values())) == 1
    per_letter = collections.Counter((row["family"], row["answer"]) for row in rows)
    assert len(per_letter) == 4 * len(clips.CATEGORIES)
    assert len(set(per_letter.values())) == 1


def test_options_are_four_different_words(rows):
    assert all(len(row["options"]) == len(set(row["options"])) == 4 for row in rows)


@pytest.mark.parametrize(
    "answerer",
    [
        lambda question, options: "A",
        lambda question, options: LETTERS[options.index(min(options))],
        lambda question, options: LETTERS[options.index(max(options, key=len))],
        lambda question, options: LETTERS[
            int(hashlib.md5((question + options[0]).encode()).hexdigest(), 16) % 4
        ],
    ],
    ids=["constant", "alphabet", "longest", "hash"],
)
def test_text_alone_scores_exactly_chance(rows, answerer):
    for category in clips.CATEGORIES:
        asked = [row for row in rows if row["family"] == category]
        right = sum(answerer(row["question"], row["options"]) == row["answer"] for row in asked)
        assert right * 4 == len(asked)


def test_each_text_has_each_answer_once_in_its_block(rows):
    """This is why no text-only answerer can do better, whatever it does."""
    blocks = collections.defaultdict(list)
    for row in rows:
        number = int(row["video"].removeprefix("clip").removesuffix(".mp4"))
        blocks[number // 4, row["question"], tuple(row["options"])].append(row["answer"])
    assert all(sorted(answers) == list("ABCD") for answers in blocks.values())


def test_training_never_sees_an_evaluation_seed(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from scripts.train_embedded import clips as language
    from scripts.train_embedded import recipe, tower

    full = recipe.FULL
    ends = [
        tower.FIRST_SEED + full.tower.steps * full.tower.videos,
        tower.VALIDATION_SEED + full.tower.validation_videos,
        language.SYMBOLIC_SEED + (full.symbolic.steps + 8) * 8,
        language.POOL_SEED + full.pool_videos,
        language.VALIDATION_SEED + full.symbolic.validation_videos + full.video.validation_videos,
    ]
    assert max(ends) < dataset.TRAINING_SEEDS < dataset.EVALUATION_SEED


# Ground truth, found again in the worlds' objects and not in their plans


def test_answers_are_true(rows, worlds):
    for row in rows:
        truth = true_answer(worlds[row["video"]], row)
        assert row["options"][LETTERS.index(row["answer"])] == truth, row["id"]


def test_changing_objects_end_in_their_second_color_on_screen(worlds):
    for world in list(worlds.values())[:12]:
        (thing,) = shown(world, "changing")
        frames = render(world, [0, FRAMES - 1]).astype(int)
        sparks = {spark.frame for spark in world.sparks}
        for frame, image, name in ((0, frames[0], thing.color), (FRAMES - 1, frames[1], thing.color_after)):
            if frame in sparks:
                continue  # a spark may cover it
            x, y = world.position(thing, frame)
            window = image[y : y + thing.size, x : x + thing.size].reshape(-1, 3)
            near = np.abs(window - COLORS[name]).max(1) <= 12
            assert near.mean() > 0.25


def test_flashes_are_brief_and_alone_in_their_grid(worlds):
    for world in worlds.values():
        flashes = [thing for thing in world.things if thing.kind == "flash"]
        grids = [thing.first // 2 for thing in flashes]
        assert len(set(grids)) == len(grids)
        assert all(thing.last - thing.first == 2 and not world.in_insert(thing.first) for thing in flashes)


def test_token_labels_point_at_the_flash():
    world = sample_world(5)
    labels = token_labels(world)
    for thing in (thing for thing in world.things if thing.kind == "flash"):
        x, y = world.position(thing, thing.first)
        cell = (thing.first // 2, (y + thing.size // 2) // 14, (x + thing.size // 2) // 14)
        assert SHAPE_CLASSES[labels.shape[cell]] == thing.shape
        assert COLOR_CLASSES[labels.color[cell]] == thing.color
    assert set(labels.nth[labels.shape == SHAPE_CLASSES.index(world.plan.counted)]) >= {1}


@pytest.mark.parametrize("category", clips.CATEGORIES)
def test_training_questions_offer_the_true_answer(category):
    rng = random.Random(0)
    for seed in range(40):
        question = ask(sample_world(seed).plan, category, rng)
        assert question.answer in question.options
        assert len(set(question.options)) == 4


def test_unknown_category_is_an_error():
    with pytest.raises(ValueError, match="categories are"):
        ask(sample_world(0).plan, "smell", random.Random(0))


def test_prompt():
    text = prompt("Why?", ["a", "b", "c", "d"])
    assert text.splitlines() == ["Why?", "A. a", "B. b", "C. c", "D. d", INSTRUCTION]


# Files


def test_build_writes_what_questions_lists(built):
    lines = (built / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == clips.questions(videos=8)
    files = {path.name for path in (built / "videos").iterdir()}
    assert files == {row["video"] for row in clips.questions(videos=8)}


def test_videos_are_h264_and_readable(built):
    av = pytest.importorskip("av")
    decord = pytest.importorskip("decord")
    for video, world, _ in dataset.clips(2):
        path = built / "videos" / f"{video}.mp4"
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
        reader = decord.VideoReader(str(path), num_threads=1)
        frames = reader.get_batch(range(len(reader))).asnumpy()
        assert frames.shape == (FRAMES, SIZE, SIZE, 3)
        assert reader.get_avg_fps() == pytest.approx(2.0)
        assert np.abs(frames.astype(int) - render(world)).mean() < 12


def test_build_keeps_complete_files_and_repairs_missing_ones(built):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (built / "videos").iterdir()}
    lost = built / "videos" / "clip003.mp4"
    lost.unlink()
    (built / "videos" / ".half-written.mp4").write_bytes(b"half")
    clips.build(built, videos=8)
    (built / "videos" / ".half-written.mp4").unlink()
    for path, (changed, content) in before.items():
        assert path.read_bytes() == content
        assert path == lost or path.stat().st_mtime_ns == changed


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(path, frames):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(dataset, "write_video", fail)
    with pytest.raises(OSError, match="disk full"):
        clips.build(tmp_path, videos=1)
    assert not list((tmp_path / "videos").iterdir())


def test_two_builds_at_once(tmp_path):
    with ThreadPoolExecutor(2) as two:
        for built in [two.submit(clips.build, tmp_path, videos=4) for _ in range(2)]:
            built.result()
    assert len(list((tmp_path / "videos").iterdir())) == 4
    assert len((tmp_path / "questions.jsonl").read_text(encoding="utf-8").splitlines()) == 28


@pytest.mark.parametrize("videos", [0, -1, dataset.VIDEOS + 1])
def test_impossible_numbers_of_videos(videos):
    with pytest.raises(ValueError, match="videos must be between"):
        clips.questions(videos)


def test_every_flash_shape_is_counted_somewhere(rows):
    counted = {word for row in rows if row["family"] == "count" for word in row["question"].split()}
    assert counted >= set(FLASH_SHAPES)


def row(**changes) -> dict:
    good = {
        "id": "a",
        "video": "a.mp4",
        "family": "f",
        "question": "q?",
        "options": ["x", "y", "z"],
        "answer": "C",
    }
    return good | changes


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([row(answer="Z")], r"line 1: answer='Z'; expected one of A, B, C"),
        ([row(answer=None)], "line 1: answer=None"),
        ([row(), row(id="b", options="abcd")], "line 2: options='abcd'"),
        ([row(options=["x", "x"])], "line 1: options="),
        ([row(question=" ")], "line 1: question=' '"),
        ([row(video=3)], "line 1: video=3"),
        ([row(), row()], "line 2: id='a' is also that of line 1"),
        ([[1, 2]], "line 1: a list where an object"),
        ([], "holds no question"),
    ],
)
def test_wrong_rows_are_named_by_line(tmp_path, lines, message):
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=message):
        question_file.read(tmp_path)


def test_rows_of_a_users_own_file(tmp_path):
    with pytest.raises(DataError, match="does not exist; it must hold a JSON object a line with id"):
        question_file.read(tmp_path)
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(row(extra=1)) + "\n\n" + json.dumps(row(id="b")), encoding="utf-8-sig")
    assert question_file.read(tmp_path) == [row(), row(id="b")]
    file.write_text('{"id": ')
    with pytest.raises(DataError, match="line 1: not JSON"):
        question_file.read(tmp_path)
    file.write_bytes('{"id": "\u00e9"}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        question_file.read(tmp_path)


def test_the_same_frames_give_the_same_file(tmp_path):
    frames = render(sample_world(5))
    written = set()
    for number in range(12):
        dataset.write_video(tmp_path / "clip.mp4", frames)
        written.add((tmp_path / "clip.mp4").read_bytes())
        np.empty(997 * number)  # another memory layout for the next encoder
    assert len(written) == 1
