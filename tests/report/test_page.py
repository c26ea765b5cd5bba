"""The page in a browser: what a reader does with it, and that what it shows is what was stored."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections import Counter
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from helpers.browser import browser, until, visit
from helpers.synthetic_run import QUESTIONS, answers, failed, write_arm
from helpers.written import json_lines
from stsimdiff.evaluate.overlays import jpegs
from stsimdiff.report.page import report_page
from stsimdiff.report.palette import REASONS
from stsimdiff.report.publish import PAGE as NAME
from stsimdiff.report.publish import publish
from stsimdiff.report.rows import read
from stsimdiff.report.table import build

NASTY = "</script><img src=x onerror=window.hacked=1>&amp;\"'%41"
CODES = {0: "dropped", 3: "event", 4: "important"}
GRIDS = {
    "plain": ((4, 3, 5), (2, 3, 5, 5)),
    "newline": ((4, 3, 6), (1, 3, 5, 6)),
    "group": ((2, 1, 11), (4, 3, 3, 3)),
}
"""Grid and picture of a family that joins two frames, of one with a newline column, of one with ends of groups."""
FRAMES = {"plain": 7, "newline": 4, "group": 6}


EVIDENCE = {"5": [0.2, 0.0, 0.6, 1 / 3], "10": [0.4, 0.3, 0.8, 1.0], "11": [0.0, 0.0, 1.0, 1.0]}
"""Of the second question, by the frame's number in the file, of which every fifth is shown: cells of the second frame
and the third, and of one that the model never saw."""


def overlay(kind: str, seed: int, question: str = "What?\nA. red\nB. blue") -> dict:
    (frames, height, width), (joined, rows, columns, stride) = GRIDS[kind]
    codes = np.random.default_rng(seed).choice([0, 3, 4], frames * height * width).astype(np.uint8)
    return {
        "frames": kind,
        "question": question,
        "grid": {"frames": frames, "height": height, "width": width},
        "picture": {"frames": joined, "height": rows, "width": columns, "stride": stride},
        "codes": {str(code): CODES[code] for code in np.unique(codes).tolist()},
        "reason": base64.b64encode(zlib.compress(codes.tobytes())).decode(),
        **({"evidence": EVIDENCE} if kind == "newline" else {}),
    }


def with_overlays(rows: list[dict], seed: int) -> list[dict]:
    """The first three questions of an arm, each with tokens of another family's kind."""
    for number, kind in enumerate(GRIDS):
        text = f"Which {NASTY}?\nA. {NASTY}\nB. blue" if number == 0 else "What?\nA. red\nB. blue"
        rows[number] |= {"overlay": overlay(kind, 10 * seed + number, text)}
    return rows


def frames(folder: Path, kind: str) -> None:
    """White frames: what covers them is seen."""
    (folder / kind).mkdir(parents=True)
    white = np.full((FRAMES[kind], 60, 100, 3), 255, np.uint8)
    for number, jpeg in enumerate(jpegs(white)):
        (folder / kind / f"{number:03d}.jpg").write_bytes(jpeg)
    about = {"video": "v.mp4", "indices": list(range(0, 5 * FRAMES[kind], 5)), "fps": 10.0}
    (folder / kind / "frames.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / f"sweep {NASTY[10:20]}"
    rename = {"id": NASTY}
    for number, (method, retention, chance) in enumerate(
        [("none", 1.0, 0.9), ("random", 0.3, 0.4), ("st_simdiff", 0.3, 0.7), ("st_simdiff", 0.1, 0.6)]
    ):
        rows = with_overlays(answers(chance, retention), number)
        rows[0] |= rename
        if method == "random":
            del rows[1]["overlay"]
            rows[2] = failed(QUESTIONS[2])
        label = f"{method} {NASTY}" if method == "random" else ""
        write_arm(folder, method, retention, rows, label=label)
    broken = [failed(question) for question in QUESTIONS]
    broken[0] |= rename
    broken[1]["error"] |= {"message": NASTY}
    write_arm(folder, "fastv", 0.3, broken)
    for kind in ("plain", "newline"):
        frames(folder / "frames", kind)
    assert publish(folder, None).unmade == []
    return folder


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


def address(run: Path, anchor: str = "") -> str:
    return (run / NAME).as_uri() + (f"#{quote(anchor, safe='')}" if anchor else "")


@pytest.fixture
def page(chromium: Browser, run: Path):
    """The page, which at the end must have asked for nothing and complained of nothing."""
    opened, seen = visit(chromium, address(run))
    yield opened
    assert opened.evaluate("window.hacked") is None
    opened.context.close()
    assert (seen.requests, seen.errors) == ([], [])


def visible(page: Page) -> list[str]:
    return page.eval_on_selector_all(
        ".results tr[data-arm]:not([hidden]) th", "cells => cells.map(c => c.textContent)"
    )


def draw_plots(page: Page) -> None:
    """Scroll to the plots, which draws them."""
    page.locator("#plots").evaluate("part => part.scrollIntoView()")
    until(page, "[...document.querySelectorAll('.plot')].every(plot => plot.data)")


def unpack(page: Page) -> None:
    """Wait until the tokens that are shown are unpacked."""
    until(page, "!document.querySelector('canvas[aria-busy=true]')")


def shown_counts(page: Page, side: str = "") -> dict[str, tuple[int, int]]:
    unpack(page)
    rows = page.locator(f"#overlay-legend{side} tr").all()
    return {
        row.get_attribute("data-reason"): (
            int(row.locator(".frame").inner_text()),
            int(row.locator(".whole").inner_text()),
        )
        for row in rows
    }


def stored_counts(packed: dict, frame: int) -> dict[str, tuple[int, int]]:
    """Counts of a frame and of the video, by other code than the page's."""
    codes = list(zlib.decompress(base64.b64decode(packed["reason"])))
    grid, picture = packed["grid"], packed["picture"]
    per_frame = grid["height"] * grid["width"]
    start = min(frame // picture["frames"], grid["frames"] - 1) * per_frame
    cells = [
        codes[start + y * picture["stride"] + x]
        for y in range(picture["height"])
        for x in range(picture["width"])
    ]
    here, whole = Counter(cells), Counter(codes)
    return {name: (here[int(code)], whole[int(code)]) for code, name in packed["codes"].items()}


def stored(run: Path) -> dict[tuple[str, str], dict]:
    """Stored overlays by arm and question."""
    found = {}
    for path in run.glob("*/answers.jsonl"):
        arm = json.loads((path.parent / "arm.json").read_text())["arm"]
        for row in json_lines(path):
            if "overlay" in row:
                found[arm, row["id"]] = row["overlay"]
    return found


def set_frame(page: Page, number: int) -> None:
    page.locator("#overlay-frame").evaluate(
        "(slider, at) => { slider.value = at; slider.dispatchEvent(new Event('input')) }", number
    )


def test_the_filter_leaves_rows_and_plots_follow(page: Page) -> None:
    everything = visible(page)
    assert len(everything) == 5
    assert page.locator("#filter-count").inner_text() == "5 of 5 rows"
    draw_plots(page)
    lines = "document.querySelector('.plot').data.filter(t => t.name !== 'Pareto front').length"
    # The arm without an answer has no point; both budgets of st_simdiff are one line.
    assert page.evaluate(lines) == 3
    page.fill("#filter-text", "st_ DIFF")
    assert visible(page) == ["st_simdiff", "st_simdiff"]
    assert page.evaluate(lines) == 1
    page.select_option("#filter-retention", label="10 %")
    assert visible(page) == ["st_simdiff"]
    assert page.locator("#filter-count").inner_text() == "1 of 5 rows"
    page.fill("#filter-text", "nothing like it")
    assert visible(page) == [] and page.evaluate(lines) == 0
    page.fill("#filter-text", "")
    page.select_option("#filter-retention", value="")
    assert visible(page) == everything
    page.select_option("#plot-kind", "layers")
    assert page.evaluate(lines) == 4


def test_a_plot_is_drawn_once_it_is_scrolled_to(chromium: Browser, run: Path) -> None:
    opened, seen = visit(chromium, address(run), height=300)
    drawn = "[typeof Plotly, document.querySelector('.plot').childElementCount]"
    assert opened.evaluate(drawn) == ["undefined", 0]
    opened.select_option("#filter-retention", label="10 %")
    assert opened.evaluate(drawn) == ["undefined", 0]
    draw_plots(opened)
    # The filter that was set before counts.
    names = opened.evaluate("document.querySelector('.plot').data.map(line => line.name)")
    assert names == ["st_simdiff", "Pareto front"] and opened.evaluate(drawn)[0] == "object"
    opened.context.close()
    assert (seen.requests, seen.errors) == ([], [])


def test_a_page_of_75_arms_and_8_overlays_of_real_size_stays_under_8_mb(tmp_path: Path) -> None:
    """64 frames of 13 x 13 tokens, with frames of 10 kB as those of a film are."""
    dice = np.random.default_rng(0)
    jpeg = jpegs(dice.normal(128, 18, (1, 180, 320, 3)).clip(0, 255).astype(np.uint8))[0]
    assert len(jpeg) > 10_000
    for number in range(8):
        (tmp_path / "frames" / f"film{number}").mkdir(parents=True)
        for frame in range(64):
            (tmp_path / "frames" / f"film{number}" / f"{frame:03d}.jpg").write_bytes(jpeg)
        about = {"video": "v.mp4", "indices": list(range(64)), "fps": 1.0}
        (tmp_path / "frames" / f"film{number}" / "frames.json").write_text(json.dumps(about))
    for arm in range(75):
        share, rows = 0.1 + 0.8 * arm / 75, answers(0.5, 0.3, seed=arm)[:8]
        codes = dice.choice([0, 3, 4], 64 * 169, p=[1 - share, share / 2, share / 2]).astype(np.uint8)
        for number, row in enumerate(rows):
            row["overlay"] = overlay("plain", 0) | {
                "frames": f"film{number}",
                "grid": {"frames": 64, "height": 13, "width": 13},
                "picture": {"frames": 1, "height": 13, "width": 13, "stride": 13},
                "codes": {str(code): name for code, name in CODES.items()},
                "reason": base64.b64encode(zlib.compress(codes.tobytes(), 9)).decode(),
            }
        write_arm(tmp_path, "random", share, rows, label=f"method {arm}")
    stored = read(tmp_path)
    text = report_page(tmp_path, build(stored), stored, [])
    assert text.count('<tr data-arm="') == 75
    shown = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert [len(one["taken"]) for one in shown["overlays"]] == [75] * 8
    assert [len(film["jpegs"]) for film in shown["films"].values()] == [64] * 8
    assert re.search(r"The frames have at most \d+ pixels a side here, .* have up to 320\.", text)
    assert len(text.encode()) < 8_000_000


def test_sorting_by_a_number_and_by_name(page: Page) -> None:
    column = page.locator(".results thead th").all_inner_texts().index("overall %")
    heading = page.locator(".results thead button").nth(column)

    def column_texts() -> list[str]:
        cells = f"rows => rows.map(row => row.cells[{column}].textContent)"
        return page.eval_on_selector_all(".results tr[data-arm]", cells)

    heading.click()
    falling = column_texts()
    assert falling[-1] == "–"
    assert [float(x) for x in falling[:-1]] == sorted((float(x) for x in falling[:-1]), reverse=True)
    assert page.locator(".results thead th").nth(column).get_attribute("aria-sort") == "descending"
    heading.focus()
    page.keyboard.press("Enter")
    assert column_texts() == [*reversed(falling[:-1]), "–"]
    assert page.locator("[aria-sort]").count() == 1
    page.locator(".results thead button").first.click()
    assert visible(page) == sorted(visible(page))


def groups(page: Page) -> list[str]:
    """Every line of the table: the heading of a budget, or a dot for a row."""
    lines = ".results tbody tr:not([hidden])"
    return page.eval_on_selector_all(
        lines, "rows => rows.map(row => row.dataset.arm === undefined ? row.textContent.trim() : '.')"
    )


def test_budgets_have_headings_as_long_as_their_rows_stand_together(page: Page) -> None:
    assert groups(page) == ["budget 100 %", ".", "budget 30 %", ".", ".", ".", "budget 10 %", "."]
    page.select_option("#filter-retention", label="10 %")
    assert groups(page) == ["budget 10 %", "."]
    page.select_option("#filter-retention", value="")
    heads = page.locator(".results thead button")
    heads.nth(0).click()
    assert groups(page) == ["."] * 5
    heads.nth(1).click()
    heads.nth(1).click()
    assert groups(page) == ["budget 10 %", ".", "budget 30 %", ".", ".", ".", "budget 100 %", "."]


def test_the_top_says_what_was_asked_of_what_and_what_it_does_not_say(page: Page) -> None:
    said = page.locator("header .head").inner_text()
    assert re.match(r"embedded on clips: \d+ questions, answered \d{4}-\d\d-\d\d, protocol unnamed\n", said)
    assert said.endswith("Benchmark clips: toy clips only. Chance is 25.0 %.")


def test_two_arms_stand_side_by_side_with_one_slider(page: Page, run: Path) -> None:
    first = page.locator("#overlay-arms button[aria-pressed=true]").get_attribute("data-arm")
    options = page.locator("#overlay-beside option").all()
    assert page.locator("#overlay-beside").input_value() != first
    kept = stored(run)
    id_ = page.locator("#overlay-title").inner_text().rpartition(" · ")[0]
    for option in options[1:]:
        page.select_option("#overlay-beside", option.get_attribute("value"))
        for frame in (0, 3):
            set_frame(page, frame)
            wanted = stored_counts(kept[option.get_attribute("value"), id_], frame)
            assert shown_counts(page, "-beside") == wanted
            assert shown_counts(page) == stored_counts(kept[first, id_], frame)
        label = page.locator("#overlay-canvas-beside").get_attribute("aria-label")
        assert label.startswith(f"Frame 4 of 7, {option.inner_text()}")
    page.select_option("#overlay-beside", "")
    assert not page.locator("#overlay-right").is_visible() and page.locator("#overlay-canvas").is_visible()


SOUND = "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'best-practice']})"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_nothing_is_cut_and_everybody_can_read_it(
    chromium: Browser, run: Path, width: int, scheme: str
) -> None:
    opened, seen = visit(chromium, address(run), width=width, scheme=scheme)
    opened.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    draw_plots(opened)
    unpack(opened)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider than its place can be scrolled to.
    cut = (
        "[...document.querySelectorAll('main *')].filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth"
        " && getComputedStyle(e).overflowX === 'hidden' && !e.closest('.plot')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert opened.evaluate(cut) == []
    opened.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = opened.evaluate(SOUND)["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found] == []
    opened.context.close()
    assert (seen.requests, seen.errors) == ([], [])


def test_counts_are_those_of_the_stored_reasons_for_every_arm_and_frame(page: Page, run: Path) -> None:
    kept = stored(run)
    assert len(kept) == 4 * 3 - 2
    seen = 0
    for option in page.locator("#overlay-question option").all():
        page.select_option("#overlay-question", option.get_attribute("value"))
        id_ = page.locator("#overlay-title").inner_text().rpartition(" · ")[0]
        for button in page.locator("#overlay-arms button:enabled").all():
            button.click()
            packed = kept[button.get_attribute("data-arm"), id_]
            kind = packed["frames"]
            last = int(page.locator("#overlay-frame").get_attribute("max"))
            # The frames of one video are not stored: the grid says how many there are at most.
            assert last + 1 == (FRAMES[kind] if kind != "group" else 8)
            for frame in (0, 2, last):
                set_frame(page, frame)
                assert shown_counts(page) == stored_counts(packed, frame)
                assert page.locator("#overlay-time").inner_text().startswith(f"{frame + 1} of {last + 1}")
            seen += 1
            outside = {"plain": 0, "newline": 4 * 3, "group": 2 * 2}[kind]
            told = page.locator("#overlay-about").inner_text()
            assert ("lie in no frame" in told) == bool(outside)
            assert not outside or f"{outside} tokens (newlines" in told
            assert ("The frames are not stored" in told) == (kind == "group")
    assert seen == len(kept)


def pixels(page: Page) -> np.ndarray:
    """The canvas as ``(height, width, 3)``."""
    unpack(page)
    shown = page.locator("#overlay-canvas").evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(BytesIO(base64.b64decode(shown.partition(",")[2]))).convert("RGB"))


def test_every_token_covers_its_own_cell(page: Page, run: Path) -> None:
    page.select_option("#overlay-question", "1")  # the grid with a newline column
    page.uncheck("#overlay-evidence")
    button = page.locator("#overlay-arms button:enabled").last
    button.click()
    packed = stored(run)[button.get_attribute("data-arm"), QUESTIONS[1][1]]
    codes = np.frombuffer(zlib.decompress(base64.b64decode(packed["reason"])), np.uint8).reshape(4, 3, 6)
    set_frame(page, 2)
    until(page, "document.getElementById('overlay-canvas').width === 200")
    image = pixels(page)
    assert image.shape == (120, 200, 3)
    for y in range(3):
        for x in range(5):
            name = CODES[codes[2, y, x]]
            share = 0.72 if name == "dropped" else 0.34
            colour = [int(REASONS[name][i : i + 2], 16) for i in (1, 3, 5)]
            expected = [255 + share * (part - 255) for part in colour]
            assert image[40 * y + 20, 40 * x + 20] == pytest.approx(expected, abs=4)
    page.uncheck("#overlay-tint")
    assert pixels(page).min() > 250


def test_evidence_is_outlined_where_the_world_knows_it(page: Page, run: Path) -> None:
    toggle = page.locator("#overlay-evidence")
    assert not toggle.is_visible()  # nothing is known of the first question
    page.select_option("#overlay-question", "1")
    assert toggle.is_visible() and toggle.is_checked()
    button = page.locator("#overlay-arms button:enabled").last
    button.click()
    page.uncheck("#overlay-tint")
    label = page.locator("#overlay-canvas")
    # Rows and columns of 40 pixels a cell, ends excluded: the box from 0.3 of the height down covers a tenth of a row.
    boxes = {1: (0, 1, 1, 3), 2: (1, 2, 3, 4)}
    for frame in (0, 1, 2, 3):
        set_frame(page, frame)
        until(page, "document.getElementById('overlay-canvas').width === 200")
        dark = (pixels(page) < 90).all(-1)
        said = label.get_attribute("aria-label")
        assert page.locator("#overlay-time").inner_text().endswith("evidence") == (frame in boxes)
        assert dark.any() == (frame in boxes) == ("evidence in rows" in said)
        if frame in boxes:
            top, left, bottom, right = boxes[frame]
            rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
            assert [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1] == [
                40 * top, 40 * left, 40 * bottom, 40 * right
            ]  # fmt: skip
            # Black and white together are seen on any frame: contrast 21, of which 3 would do.
            assert pixels(page)[40 * top + 5, 40 * left + 20].min() > 230
            assert pixels(page)[40 * top + 1, 40 * left + 20].max() < 60
            assert said.endswith(f"evidence in rows {top + 1} to {bottom}, columns {left + 1} to {right}")
    packed = stored(run)[button.get_attribute("data-arm"), QUESTIONS[1][1]]
    codes = np.frombuffer(zlib.decompress(base64.b64decode(packed["reason"])), np.uint8).reshape(4, 3, 6)
    kept = np.count_nonzero(np.concatenate([codes[1, 0:1, 1:3].ravel(), codes[2, 1:3, 2:4].ravel()]))
    told = f"The evidence is in frame 2, 3: {kept} of its 6 tokens are left."
    assert told in page.locator("#overlay-about").inner_text()
    set_frame(page, 1)
    toggle.focus()
    page.keyboard.press("Space")
    assert not toggle.is_checked() and not (pixels(page) < 90).all(-1).any()
    assert "evidence" not in label.get_attribute("aria-label")
    assert "evidence" not in page.locator("#overlay-about").inner_text()
    page.keyboard.press("Space")
    assert (pixels(page) < 90).all(-1).any()
    page.select_option("#overlay-question", "2")
    assert not toggle.is_visible()


def test_arms_without_tokens_say_why_and_cannot_be_chosen(page: Page) -> None:
    page.select_option("#overlay-question", "1")
    told = page.locator("#overlay-arms").inner_text()
    assert "answered without storing its tokens" in told
    assert page.locator("#overlay-arms button:disabled").count() == 2
    page.select_option("#overlay-question", "2")
    assert "failed: ValueError: no frames" in page.locator("#overlay-arms").inner_text()
    assert (
        "Some arms lack the tokens of some of these questions"
        in page.locator("#overlays .notes").inner_text()
    )
    assert "The frames of v01 are not in frames/group." in page.locator("#overlays .notes").inner_text()


def test_question_answers_and_labels_are_shown_as_they_are(page: Page) -> None:
    text = page.locator("#overlay-text").inner_text()
    assert f"Which {NASTY}?" in text and f"A. {NASTY}" in text
    assert page.locator("#overlay-text .target").inner_text() == "B. blue  ← right"
    assert f"random {NASTY}" in visible(page)
    assert page.locator("#failures").inner_text().count(NASTY) >= 2
    assert page.locator("img").count() == 0
    marks = page.locator("#overlay-arms .right, #overlay-arms .wrong").all_inner_texts()
    assert len(marks) == 4 and {mark.strip() for mark in marks} <= {"✓ right", "✗ wrong"}


def test_a_deep_link_opens_its_question(chromium: Browser, run: Path) -> None:
    for id_ in (QUESTIONS[2][1], NASTY):
        opened, seen = visit(chromium, address(run, f"overlay-{id_}"))
        assert opened.locator("#overlay-title").inner_text().startswith(id_)
        top = opened.locator("#overlays").evaluate("node => node.getBoundingClientRect().top")
        assert abs(top) < 200
        # The page's own link leads back to the same question.
        link = opened.locator("#overlay-link").get_attribute("href")
        opened.select_option("#overlay-question", "1")
        assert opened.evaluate("decodeURIComponent(location.hash.slice(1))") == f"overlay-{QUESTIONS[1][1]}"
        opened.evaluate("hash => { location.hash = hash }", link)
        until(opened, f"document.getElementById('overlay-title').textContent.startsWith({json.dumps(id_)})")
        opened.context.close()
        assert (seen.requests, seen.errors) == ([], [])
    opened, _ = visit(chromium, address(run, "overlay-nobody"))
    assert opened.locator("#overlay-status").inner_text() == "No overlay is stored for nobody."
    opened.context.close()


def test_the_keyboard_is_enough(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    unpack(page)
    page.locator("#overlay-frame").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#overlay-time").inner_text().startswith("3 of")
    page.keyboard.press("End")
    assert page.locator("#overlay-time").inner_text() == "7 of 7 · 3.0 s"
    assert "Frame 7 of 7" in page.locator("#overlay-canvas").get_attribute("aria-label")
    button = page.locator("#overlay-arms button").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator("#overlay-arms [aria-pressed=true]").count() == 1
    page.locator("#overlay-play").focus()
    page.keyboard.press("Space")
    assert page.locator("#overlay-play").inner_text() == "Pause"
    until(page, "!document.getElementById('overlay-time').textContent.startsWith('7 of')")
    page.keyboard.press("Space")
    assert page.locator("#overlay-play").inner_text() == "Play"
    # Everything that is worked with has a name.
    unnamed = "[...document.querySelectorAll('input, select')].filter(e => !e.labels.length).map(e => e.id)"
    assert page.evaluate(unnamed) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only(chromium: Browser, run: Path, scheme: str) -> None:
    opened, seen = visit(chromium, address(run), width=360, height=740, scheme=scheme)
    draw_plots(opened)
    for kind in ("flops", "layers"):
        opened.select_option("#plot-kind", kind)
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 27)"}[scheme]
    opened.context.close()
    assert (seen.requests, seen.errors) == ([], [])
