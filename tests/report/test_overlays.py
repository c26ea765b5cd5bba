"""What is stored for the overlays, by real runs; and what becomes of it when it is lacking or damaged."""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from helpers.embedded_runs import prepared
from helpers.written import json_lines
from stsimdiff import video
from stsimdiff.commands import cli, inspect
from stsimdiff.commands.report import main as report
from stsimdiff.data import clips
from stsimdiff.errors import ConfigError, DataError, RunFailed
from stsimdiff.evaluate.overlays import Overlays, chosen, jpegs
from stsimdiff.evaluate.processes import Processes
from stsimdiff.evaluate.questions import Question, all_questions, load_task
from stsimdiff.evaluate.run import answer_missing, run_arms
from stsimdiff.launchers.in_process import make_report
from stsimdiff.models import resolve
from stsimdiff.models.base import LoadOptions
from stsimdiff.models.kit.running import synthetic_frames
from stsimdiff.report import figures, film
from stsimdiff.report.overlays import LEAST_SIDE, Film, fitted, notes_on, read_films, read_overlays
from stsimdiff.report.publish import publish
from stsimdiff.report.rows import read
from stsimdiff.report.table import build

LINES = ("compressor=none", "compressor=st_simdiff budget.retention=0.3", "compressor=no_video")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data: Path) -> Path:
    """Ten questions on two videos, the tokens of three of them stored; one arm came when none were."""
    results = tmp_path_factory.mktemp("results")
    settings, arms = prepared(results, data, *LINES, overlays=0)
    run_arms(settings, arms[:1])
    settings, arms = prepared(results, data, *LINES, overlays=3)
    run_arms(settings, arms, report=make_report)
    return settings.folder


def rows(run: Path, method: str) -> list[dict]:
    (path,) = run.glob(f"{method}_*/answers.jsonl")
    return json_lines(path)


def without_its_end(packed: str) -> str:
    """Everything but the checksum."""
    return base64.b64encode(base64.b64decode(packed)[:-4]).decode()


def questions(*categories: str, videos: int = 3) -> list[Question]:
    return [
        Question(f"{video}-{category}-{i}", f"/v/{video}.mp4", category, "?", 4, {})
        for video in range(videos)
        for i, category in enumerate(categories)
    ]


class TestChoice:
    def test_categories_in_turn_and_other_videos_where_there_are(self) -> None:
        asked = questions("a", "b", "c")
        assert chosen(asked, 3) == {"0-a-0", "1-b-1", "2-c-2"}
        taken = [q for q in asked if q.id in chosen(asked, 7)]
        assert sorted(sum(q.category == name for q in taken) for name in "abc") == [2, 2, 3]
        assert chosen(asked, 0) == set() and len(chosen(asked, 99)) == 9

    def test_a_raised_limit_keeps_them(self) -> None:
        few, many = questions("a", "b", videos=4), questions("a", "b", videos=40)
        assert chosen(few, 4) == chosen(many, 4)

    @pytest.mark.parametrize("wrong", ["-1", "101", "all", "true"])
    def test_how_many_is_checked(self, data: Path, tmp_path: Path, wrong: str) -> None:
        with pytest.raises(ConfigError, match=r"overlays=.* is out of range; allowed: .* from 0 to 100"):
            prepared(tmp_path, data, *LINES, overlays=wrong)


class TestStored:
    def test_the_chosen_questions_alone_have_their_tokens(self, run: Path) -> None:
        stored = rows(run, "st_simdiff")
        having = [row for row in stored if "overlay" in row]
        assert len(stored) == 10 and len({row["category"] for row in having}) == len(having) == 3
        assert {row["video"] for row in having} == {"clip000.mp4", "clip001.mp4"}
        assert not any("overlay" in row for row in rows(run, "none"))
        for row in having:
            packed = row["overlay"]
            codes = list(zlib.decompress(base64.b64decode(packed["reason"])))
            counted = {packed["codes"][str(code)]: codes.count(code) for code in set(codes)}
            assert counted == row["reasons"] and len(codes) == row["video_tokens"]
            assert packed["grid"] == {"frames": 8, "height": 8, "width": 8}
            assert packed["picture"] == {"frames": 2, "height": 8, "width": 8, "stride": 8}
            assert packed["question"].count("\n") == 5

    def test_the_evidence_is_stored_where_the_generator_knows_it(
        self, run: Path, tmp_path: Path, own_data: Path
    ) -> None:
        known = {row["id"]: clips.moment(row) for row in clips.questions(2)}
        having = [row for row in rows(run, "st_simdiff") if "overlay" in row]
        for row in having:
            assert {int(n): tuple(box) for n, box in row["overlay"]["evidence"].items()} == known[row["id"]]
        stored = read(run)
        overlays = read_overlays(stored, build(stored).sections)
        for overlay in overlays:
            taken = next(taken for taken in overlay.taken if not taken.lacking)
            assert {n: tuple(box) for n, box in taken.evidence.items()} == known[overlay.id]
        films, _ = read_films(run, overlays)
        assert all(film.numbers == list(range(16)) for film in films.values())
        # Questions of one's own about the same videos.
        file = own_data / "questions.jsonl"
        file.write_text(file.read_text().replace('"id": "', '"id": "own-'))
        settings, arms = prepared(tmp_path, own_data, *LINES, limit=2, overlays=2)
        run_arms(settings, arms[1:2])
        kept = [row["overlay"] for row in rows(settings.folder, "st_simdiff")]
        assert len(kept) == 2 and not any("evidence" in overlay for overlay in kept)

    def test_frames_are_those_that_the_model_saw_once_each(self, run: Path, data: Path) -> None:
        named = {row["overlay"]["frames"] for row in rows(run, "st_simdiff") if "overlay" in row}
        assert {path.name for path in (run / "frames").iterdir()} == named and len(named) == 2
        for name in named:
            about = json.loads((run / "frames" / name / "frames.json").read_text())
            read_again = video.read(data / "videos" / about["video"], 16)
            assert tuple(about["indices"]) == read_again.indices
            images = sorted((run / "frames" / name).glob("*.jpg"))
            assert len(images) == 16
            shown = np.stack([np.asarray(Image.open(path), float) for path in images])
            assert np.abs(shown - read_again.pixels).mean() < 8

    def test_processes_choose_the_same(self, tmp_path: Path, data: Path, run: Path) -> None:
        """Two processes, one after the other: together they store what a single one does."""
        settings, arms = prepared(tmp_path, data, *LINES, overlays=3)
        task = load_task(settings.benchmark)
        asked = all_questions(task, settings.limit, None)
        videos = sorted({question.video for question in asked})
        for rank in (0, 1):
            mine = [question for question in asked if question.video in videos[rank::2]]
            overlays = Overlays(settings, asked)
            answer_missing(settings, task, arms[1:2], mine, Processes(rank, 2), overlays=overlays)
        found = {}
        for path in (settings.folder / arms[1].folder).glob("answers*.jsonl"):
            found |= {row["id"]: row.get("overlay") for row in json_lines(path)}
        assert found == {row["id"]: row.get("overlay") for row in rows(run, "st_simdiff")}
        stored = [
            sorted(path.name for path in (where / "frames").iterdir()) for where in (settings.folder, run)
        ]
        assert stored[0] == stored[1]

    def test_large_frames_are_made_small(self) -> None:
        (made,) = jpegs(np.zeros((1, 900, 1600, 3), np.uint8))
        assert max(Image.open(BytesIO(made)).size) == 320


class TestPictures:
    """The cells of a frame hold features of that frame; what is in no cell does not depend on the video."""

    @pytest.mark.parametrize(("name", "rows"), [("llava_video", 3), ("nvila", 2)])
    def test_what_lies_in_no_frame_is_the_same_for_every_video(self, miniature, name: str, rows: int) -> None:
        family = resolve(name).load(str(miniature(name)), LoadOptions("cpu", "float32"))
        one, other = synthetic_frames(3), synthetic_frames(3)
        other.pixels[:] = 255 - other.pixels
        encoded = [family.encode(each) for each in (one, other)]
        grid, picture = encoded[0].grid, family.picture(encoded[0].grid)
        assert grid.frames == rows == -(-3 // picture.frames)
        same = (encoded[0].features == encoded[1].features).all(dim=1).reshape(rows, -1)
        cells = [y * picture.stride + x for y in range(picture.height) for x in range(picture.width)]
        outside = [place for place in range(grid.per_frame) if place not in cells]
        assert outside and bool(same[:, outside].all()) and not bool(same[:, cells].any())


class TestReadBack:
    def test_what_is_lacking_is_said(self, run: Path) -> None:
        stored = read(run)
        overlays = read_overlays(stored, build(stored).sections)
        assert len(overlays) == 3
        for overlay in overlays:
            lacking = {taken.name: taken.lacking for taken in overlay.taken}
            assert lacking.pop("none") == "answered without storing its tokens"
            assert set(lacking.values()) == {""}
            assert overlay.target in "ABCD" and "\nB. " in overlay.question
        assert "lack the tokens" in notes_on(overlays)[0] and "overlays=0" in notes_on([])[0]
        films, notes = read_films(run, overlays)
        assert len(films) == 2 and notes == []

    @pytest.mark.parametrize(
        "damage",
        [
            lambda packed: packed.pop("grid"),
            lambda packed: packed.update(reason="AAAA"),
            lambda packed: packed.update(codes={"1": "all"}),
            lambda packed: packed.update(reason=without_its_end(packed["reason"])),
            lambda packed: packed.update(
                reason=base64.b64encode(base64.b64decode(packed["reason"]) + b"x").decode()
            ),
            lambda packed: packed["grid"].update(frames=9),
            lambda packed: packed["picture"].update(stride=80),
            lambda packed: packed.update(evidence={"3": [0.5, 0.0, 0.2, 1.0]}),
            lambda packed: packed.update(evidence={"3": [0.0, 0.0, 1.0]}),
        ],
    )
    def test_damage_is_found(self, run: Path, damage) -> None:
        stored = read(run)
        damage(next(packed for packed in stored.samples["overlay"] if isinstance(packed, dict)))
        with pytest.raises(DataError, match="the overlay of question 'clip.*' is damaged"):
            read_overlays(stored, [])

    def test_damage_takes_the_page_and_not_the_table(
        self, run: Path, tmp_path: Path, capsys, monkeypatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "1000")  # a long temporary path must not break a word in two
        copy = Path(shutil.copytree(run, tmp_path / "r"))
        (path,) = copy.glob("st_simdiff_*/answers.jsonl")
        path.write_text(path.read_text().replace('"reason": "e', '"reason": "f'))
        (copy / "table.md").unlink()
        assert report([str(copy)]) == 1
        said = " ".join(capsys.readouterr().out.split())
        assert "NOT WRITTEN" in said and "is damaged" in said
        assert (copy / "table.md").is_file() and not (copy / "report.html").exists()

    def test_frames_that_are_gone_are_said(self, run: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "r"))
        shutil.rmtree(copy / "frames")
        published = publish(copy, None)
        assert published.unmade == []
        assert "The frames of clip000.mp4 are not in frames/clip000-" in published.page.read_text()


class TestFitted:
    FILMS = {
        name: Film(
            "v.mp4", jpegs(np.random.default_rng(0).integers(0, 255, (2, 180, 320, 3), np.uint8)), [0, 1]
        )
        for name in "ab"
    } | {"lost": Film("w.mp4", [], [])}
    BYTES = sum(len(jpeg) for film in FILMS.values() for jpeg in film.jpegs)

    def test_frames_that_fit_are_those_that_are_stored(self) -> None:
        assert fitted(self.FILMS, self.BYTES) == (self.FILMS, [])
        assert fitted({}, 1) == ({}, [])

    @pytest.mark.parametrize(("share", "fits"), [(0.6, True), (0.25, True), (0.01, False)])
    def test_more_are_made_smaller_and_said(self, share: float, fits: bool) -> None:
        films, (note,) = fitted(self.FILMS, int(share * self.BYTES))
        left = [jpeg for film in films.values() for jpeg in film.jpegs]
        assert len(left) == 4 and films["a"].seconds == [0, 1] and films["lost"].jpegs == []
        sides = {Image.open(BytesIO(jpeg)).size for jpeg in left}
        assert len(sides) == 1 and (sum(map(len, left)) <= share * self.BYTES) == fits
        ((width, height),) = sides
        assert abs(width / height - 16 / 9) < 0.05 and (width == LEAST_SIDE) == (not fits)
        assert f"at most {width} pixels a side here" in note and note.endswith("have up to 320.")


class TestFigures:
    def test_every_figure_is_drawn_and_equal_rows_give_equal_files(self, run: Path, tmp_path: Path) -> None:
        first = {path.name: path.read_bytes() for path in (run / "figures").iterdir()}
        drawn = {f"{name}.{kind}" for name in (*figures.NAMES[:4], "moments") for kind in figures.FORMATS}
        assert set(first) == drawn
        for name, content in first.items():
            begun = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
            assert content.startswith(begun[name.rpartition(".")[2]])
        copy = Path(shutil.copytree(run, tmp_path / "r"))
        (copy / "figures" / "thresholds_old.svg").write_text("of arms that are no more")
        (copy / "figures" / "mine.svg").write_text("of the user")
        assert publish(copy, None).unmade == []
        again = {path.name: path.read_bytes() for path in (copy / "figures").iterdir()}
        assert again.pop("mine.svg") == b"of the user"
        assert again == first

    def test_one_that_cannot_be_drawn_fails_the_command_and_spares_the_rest(
        self, run: Path, tmp_path: Path, monkeypatch, capsys
    ) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "r"))

        def broken(*rest):
            raise ValueError("no such font")

        monkeypatch.setattr(figures, "retention_by_layer", broken)
        monkeypatch.setenv("COLUMNS", "1000")  # a long temporary path must not break a word in two
        assert report([str(copy)]) == 1
        said = " ".join(capsys.readouterr().out.split())
        assert "NOT DRAWN" in said and "retention_by_layer: ValueError: no such font" in said
        assert not (copy / "figures" / "retention_by_layer.svg").exists()
        assert (copy / "figures" / "accuracy_flops.png").is_file() and (copy / "report.html").is_file()

    def test_a_run_whose_figures_fail_ends_with_exit_code_1(self, run: Path, data: Path) -> None:
        settings, arms = prepared(run.parent, data, *LINES, overlays=3)
        with pytest.raises(RunFailed, match="NOT DRAWN: x\nAll answers are stored"):
            run_arms(settings, arms, report=lambda settings: ["NOT DRAWN: x"])


class TestInspect:
    def test_page_film_and_printed_counts_agree(
        self, data: Path, tmp_path: Path, capsys, monkeypatch
    ) -> None:
        file = data / "videos" / "clip001.mp4"
        words = ["compressor=st_simdiff,random", "budget.retention=0.2", "question=What color is the ring?"]
        assert inspect.main([str(file), *words, f"output={tmp_path / 'out'}"]) == 0
        said = capsys.readouterr().out
        text = (tmp_path / "out" / "inspect.html").read_text()
        shown = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
        (overlay,) = shown["overlays"]
        assert overlay["question"] == "What color is the ring?" and len(shown["films"]["0"]["jpegs"]) == 16
        assert f"Page: {tmp_path / 'out' / 'inspect.html'}" in said
        for taken in overlay["taken"]:
            codes = zlib.decompress(base64.b64decode(taken["reason"]))
            assert taken["counts"] == {str(code): codes.count(code) for code in {*codes}}
            kept = len(codes) - codes.count(0)
            assert f"{taken['name']}: {kept} of 512 tokens left" in said
            assert kept == pytest.approx(0.2 * 512, abs=1)
        made = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert [name.rpartition(".")[2] for name in made] == ["html", "gif", "mp4", "gif", "mp4"]
        for path in (tmp_path / "out").glob("*.mp4"):
            assert video.probe(path).frames == 16 and video.probe(path).seconds == pytest.approx(8)
            assert Image.open(path.with_suffix(".gif")).n_frames == 16

    @pytest.mark.parametrize(
        ("words", "error", "message"),
        [
            (["nowhere.mp4"], DataError, "video nowhere.mp4 does not exist"),
            (["{empty}"], DataError, r"is empty \(0 bytes\)"),
            (["{text}"], DataError, "cannot be decoded"),
            ([], ConfigError, "was given no video; write: python -m stsimdiff inspect VIDEO"),
            (["{clip}", "{clip}"], ConfigError, "was given 2 videos"),
            (["{clip}", "--fast"], ConfigError, "--fast is no flag of inspect"),
            (["{clip}", "question= "], ConfigError, "question=' ' is empty"),
            (["{clip}", "budget.retention=2"], ConfigError, "budget.retention=2 is out of range"),
            (
                ["{clip}", "compressor=st_simdiff", "compressor.layer=6"],
                ConfigError,
                "layer=6 does not exist",
            ),
            (["{clip}", "output={text}"], ConfigError, "cannot make this folder"),
        ],
    )
    def test_wrong_input_is_said_before_a_model_is_loaded(
        self, data: Path, tmp_path: Path, no_model, words, error, message
    ) -> None:
        places = {
            "clip": data / "videos" / "clip000.mp4",
            "empty": tmp_path / "e.mp4",
            "text": tmp_path / "t.mp4",
        }
        places["empty"].touch()
        places["text"].write_text("no video\n" * 99)
        with pytest.raises(error, match=message):
            inspect.main([word.format(**places) for word in words])

    def test_the_command_is_known_and_explains_itself(self, capsys) -> None:
        assert cli.COMMANDS["inspect"] == inspect.__name__
        assert inspect.main(["--help"]) == 0
        assert "usage: python -m stsimdiff inspect VIDEO" in capsys.readouterr().out

    def test_a_film_shows_each_token_in_its_cell(self, run: Path) -> None:
        stored = read(run)
        overlay = read_overlays(stored, [])[0]
        taken = next(taken for taken in overlay.taken if taken.name.startswith("st_simdiff"))
        white = np.full((16, 80, 80, 3), 255, np.uint8)
        codes = np.frombuffer(taken.reason, np.uint8).reshape(8, 8, 8)
        image = np.asarray(film.painted(Image.fromarray(white[5]), taken, 5), int)
        for (y, x), code in np.ndenumerate(codes[2]):
            assert (image[10 * y + 5, 10 * x + 5].max() < 90) == (code == 0)
        made = film.stills(white, taken, [0.5 * number for number in range(16)])
        assert {still.size for still in made} == {made[0].size} and not any(side % 2 for side in made[0].size)


def test_nothing_is_printed_without_a_console_and_the_path_with_one(run: Path) -> None:
    console = Console(record=True, width=60, file=StringIO())
    published = publish(run, console)
    assert console.export_text().rstrip().endswith(f"Page: {published.page}")
