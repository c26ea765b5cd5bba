"""Runs with next to nothing in them, and with text that is markup somewhere, have a table, a page and no traceback."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from helpers.latex import compiled, structure
from helpers.synthetic_run import QUESTIONS, answers, failed, make, write_arm
from helpers.written import csv_rows
from stsimdiff.report import figures
from stsimdiff.report.publish import publish, show
from stsimdiff.report.wandb_log import log_run
from stsimdiff.terminal import Console, clean

EMPTY = dict.fromkeys(
    ("video_tokens", "text_tokens", "retention_tokens", "retention_compute", "llm_flops", "llm_flops_all")
)


def one_video(rows: list[dict]) -> list[dict]:
    return [row | {"video": "v"} for row in rows]


def all_are(right: bool, rows: list[dict]) -> list[dict]:
    return [row | {"correct": right, "parsed": "B"} for row in rows]


def without_numbers(rows: list[dict]) -> list[dict]:
    return [
        row | EMPTY | {"times": None, "tokens_per_layer": None, "target": None, "answer": None}
        for row in rows
    ]


BARE = {"name": "clips", "families": None}
ARMS = {
    "only over budget": [("fastv", 0.1, answers(0.6, 0.3)), ("visionzip", 0.1, answers(0.5, 0.2))],
    "one over budget": [("fastv", 0.1, answers(0.6, 0.3))],
    "only references": [("none", 1.0, answers(0.9, 1.0)), ("no_video", 1.0, answers(0.3, 0.0))],
    "only the question": [("no_video", 1.0, answers(0.3, 0.0))],
    "only failed": [(name, 0.3, [failed(q) for q in QUESTIONS]) for name in ("fastv", "random")],
    "nothing stored": [("fastv", 0.3, None), ("none", 1.0, None)],
    "one answer": [("fastv", 0.3, answers(0.6, 0.3)[:1])],
    "one question": [("fastv", 0.3, answers(0.6, 0.3)[:1]), ("none", 1.0, answers(0.9, 1.0)[:1])],
    "one video": [("fastv", 0.3, one_video(answers(0.6, 0.3))), ("none", 1.0, one_video(answers(0.9, 1.0)))],
    "all right": [(name, 0.3, all_are(True, answers(0.6, 0.3))) for name in ("fastv", "random")],
    "all wrong": [(name, 0.3, all_are(False, answers(0.6, 0.3))) for name in ("fastv", "random")],
    "no common question": [("fastv", 0.3, answers(0.6, 0.3)[:5]), ("random", 0.3, answers(0.6, 0.3)[5:9])],
    "no numbers": [
        (name, kept, without_numbers(answers(0.6, 0.3))) for name, kept in (("fastv", 0.3), ("none", 1.0))
    ],
    "no categories": [("fastv", 0.3, [row | {"category": None} for row in answers(0.6, 0.3)])],
    "nothing computed": [("fastv", 0.3, [row | dict.fromkeys(EMPTY, 0) for row in answers(0.6, 0.3)])],
    "a proposed method over budget": [
        ("st_simdiff", 0.1, answers(0.6, 0.3)),
        ("fastv", 0.1, answers(0.5, 0.3)),
    ],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ARMS)
def test_degenerate_runs_have_every_output(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method, retention, stored in ARMS[name]:
        write_arm(tmp_path, method, retention, stored, benchmark=BARE)
    monkeypatch.setattr(figures, "FORMATS", ("svg",))
    published = publish(tmp_path, None)
    assert published.unmade == []
    for width in (40, 200):
        console = Console(file=io.StringIO(), width=width)
        show(published.table, console)
        assert "None" not in console.file.getvalue().replace("None of the", "")
    (section,) = published.table.sections
    assert len(section.rows) == len(ARMS[name])
    for file in ("table.md", "table.tex", "table.csv", "pairs.csv", "report.html"):
        text = (tmp_path / file).read_text()
        assert text and not re.search(r"\bnan\b", text if file != "report.html" else ""), file
        assert "inf," not in text or file != "table.csv"
    if name == "only over budget":
        assert "no method that keeps to its budget has answers" in section.verdicts[0]
        assert "None of the 1 differences in pairs is shown" in (tmp_path / "table.md").read_text()


WORDS = (
    *(
        "$",
        "$x",
        "$x$ $\\frac{",
        "   ",
        "a\nb",
        "_",
        "50 %",
        "a&b",
        "a|b|c",
        "<b>",
        "#",
        "🙂",
        "שלום",
        "\\",
        "{",
    ),
    *(
        "x" * 300,
        "=1+1",
        "-2",
        "@cmd",
        "[red]",
        "\x1b[31m",
        "\u202e",
        "a\tb",
        "^~",
        "%d",
        "{{ 7 }}",
        "\ud800",
        "</script><script>window.hacked=1</script>",
        "<img src=x onerror=alert(1)>\"'&amp;",
        "[a](javascript:alert(1))",
        "<!--",
    ),
)


COLUMNS = [f"accuracy/{name}" for name in ("overall", "overall_low", "overall_high", "equal_compute")]
"""What W&B is told of the accuracy of every arm."""


class Read(HTMLParser):
    """What a browser makes of a page: its elements, the labels of its rows, and the data of its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.labels: set[str] = set()
        self.handlers: list[str] = []
        self.data = ""
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements[tag] += 1
        self.handlers += [name for name in given if name.startswith("on")]
        self._inside = given.get("id") == "data"
        if tag == "th" and given.get("scope") == "row" and "data-text" in given:
            self.labels.add(str(given["data-text"]))

    def handle_data(self, data: str) -> None:
        self.data += data if self._inside else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_text_is_shown_as_it_is_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FORMATS", ("svg",))
    run = tmp_path / "results $ _ # [b]"
    every = " ".join(WORDS)
    about = {"name": f"clips {every}", "families": list(WORDS), "note": every}
    for word in WORDS:
        rows = [row | {"category": word, "id": f"{word}{i}"} for i, row in enumerate(answers(0.6, 0.3)[:4])]
        rows[0] = failed((word, rows[0]["id"], word))
        rows[0]["error"]["message"] = word
        model = {"name": f"m {every}", "frames": 8}
        write_arm(run, "mine", 0.3, rows, label=word, benchmark=about, model=model)
    console = Console(file=io.StringIO(), width=100)
    published = publish(run, console)
    assert published.unmade == []
    (section,) = published.table.sections
    assert len(section.rows) == len(WORDS)
    text = console.file.getvalue()
    assert "[red]" in text and "\x1b" not in text and "\u202e" not in text
    lines = csv_rows(run / "table.csv")
    assert len(lines) == len(WORDS)
    for cell in itertools.chain.from_iterable(line.values() for line in lines):
        assert not re.match(r"[=@\t\r\n]|[+-](?!\d)", cell or ""), cell
    assert {line["method"] for line in lines} >= {
        "$x",
        "mine",
        "'=1+1",
        "'-2",
        "\\u001b[31m",
        "\\ud800",
    }
    page = Read()
    page.feed((run / "report.html").read_text())
    labels = {row.label for row in section.rows}
    assert page.labels == labels
    assert page.elements["script"] == 6 and page.elements["img"] == 0 and not page.handlers
    assert {row["label"] for row in json.loads(page.data)["plots"][0]["rows"]} == labels
    table = (run / "table.md").read_text().partition("\n| ")[2].partition("\n\n")[0].splitlines()
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table[1:]}) == 1
    assert not re.search(r"(?<!\\)<(?!/?ins>|\d)", "\n".join(table))
    structure((run / "table.tex").read_text())
    compiled((run / "table.tex"), tmp_path)


def test_any_text_is_shown_as_it_is_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from helpers.wandb_files import header, history, records, summary

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = tmp_path / "results $ _ # [b]"
    every, empty = " ".join(WORDS), ""
    named = [*WORDS, empty, "overall", "a b"]
    about = {"name": f"clips {every}", "families": named, "note": every}
    stored = itertools.cycle(answers(0.6, 0.3))
    rows = [next(stored) | {"category": word, "id": f"{word}#{i}"} for i, word in enumerate(named)]
    rows = [row | {"video": word, "answer": word} for word, row in zip(named, rows, strict=True)]
    right = [100.0 * row["correct"] for row in rows]
    for label in (every, "   ", "\x1b[31m\ud800"):
        write_arm(run, "mine", 0.3, rows, label=label, benchmark=about, model={"name": every, "frames": 8})
    places = log_run(run, "p", "offline")
    assert len(places) == 3
    for place, label in zip(places, (" ".join(every.split()), "mine", "\\u001b[31m\\ud800"), strict=True):
        found = records(place)
        begun, numbers = header(found), summary(found)
        assert begun.display_name.startswith(label[:20]) and len(begun.display_name) <= 128
        assert len(set(begun.tags)) == len(begun.tags) and {
            len(tag) in range(1, 65) for tag in begun.tags
        } == {True}
        for text in (begun.display_name, *begun.tags, *numbers, begun.notes.replace("\n", " ")):
            assert text.isprintable() and text == text.strip()
        for held in (numbers, history(found)):
            got = {key: value for key, value in held.items() if key.startswith("accuracy/")}
            for word, value in zip(named, right, strict=True):
                if word.isprintable() and word.strip() and word not in ("overall", "a b"):
                    assert got[f"accuracy/{word}"] == value
            # Two that are nothing, two that are one on one line, and one that is called as a column is.
            assert len(got) == len(named) + sum(one in got for one in COLUMNS)
            assert got["accuracy/category_overall"] == right[named.index("overall")]
        (table,) = Path(place).glob("files/media/table/*.json")
        cells = json.loads(table.read_text())
        told = [dict(zip(cells["columns"], line, strict=True)) for line in cells["data"]]
        assert [one["id"] for one in told] == [clean(row["id"]) for row in rows]
        assert [one["answer"] for one in told] == [clean(word) for word in named]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", ["$a$", "$\\frac{1", " "])
def test_labels_break_neither_table_nor_figure(tmp_path: Path, label: str) -> None:
    for name in (label, f"{label} 2"):
        write_arm(tmp_path, "mine", 0.3, answers(0.6, 0.3), label=name)
    assert publish(tmp_path, None).unmade == []
    shown = " ".join(label.split()) or "mine"
    assert f"| {shown} |".replace("\\", "\\\\") in (tmp_path / "table.md").read_text().replace("**", "")


def test_any_text_is_shown_as_it_is_in_the_attribution(tmp_path: Path) -> None:
    every = " ".join(WORDS)
    settings = {"_target_": "x.STSimDiff", "similarity": True, "difference": True, "pruning": True}
    about = {"name": f"clips {every}", "families": list(WORDS)}
    packed = {"question": every, "frames": "none", "grid": {"frames": 1, "height": 1, "width": 1}}
    packed |= {"picture": {"frames": 1, "height": 1, "width": 1, "stride": 1}, "codes": {"1": "all"}}
    packed |= {"reason": base64.b64encode(zlib.compress(b"\1")).decode()}

    def write(method: str, label: str, right: bool, **more) -> None:
        rows = all_are(right, [next(stored) | {"category": word, "target": word} for word in WORDS])
        rows = [
            row | {"id": word, "video": word, "parsed": word} for word, row in zip(WORDS, rows, strict=True)
        ]
        rows = [row | {"overlay": packed} for row in rows]
        kept = 1.0 if method == "none" else 0.3
        write_arm(tmp_path, method, kept, rows, label=label, benchmark=about, model={"name": every}, **more)

    stored = itertools.cycle(answers(0.6, 0.3))
    write("none", "none", True)
    write("st_simdiff", every, False, compressor=settings)
    for part in ("similarity", "difference", "pruning"):
        write("st_simdiff", f"{every} {part}=False", True, compressor=settings | {part: False})
    console = Console(file=io.StringIO(), width=100)
    table = make(tmp_path, console)
    assert "\x1b" not in console.file.getvalue() and "\u202e" not in console.file.getvalue()
    lines = csv_rows(tmp_path / "attribution.csv")
    assert len(lines) == len(WORDS)
    for text in itertools.chain.from_iterable(line.values() for line in lines):
        assert not re.match(r"[=@\t\r\n]|[+-](?!\d)", text or ""), text
        assert (text or "").isprintable()
    assert {line["id"] for line in lines} >= {"$x", "'=1+1", "'-2", "'@cmd", "a b", "\\u001b[31m", "\\ud800"}
    shown = (tmp_path / "attribution.md").read_text()
    (questions,) = [part.splitlines() for part in shown.split("\n\n") if part.startswith("| question |")]
    assert len(questions) == 2 + len(WORDS)
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in questions}) == 1
    assert not re.search(r"(?<!\\)[<`]", shown)
    links = re.findall(r"\]\(report\.html#(.*?)\)", "\n".join(questions))
    assert sorted(map(unquote, links)) == sorted(table.anchors.values()) and len(links) == len(WORDS)


def test_ids_are_no_formulas_and_no_lines_in_the_attribution(tmp_path: Path) -> None:
    rename = {0: "=HYPERLINK(1)", 1: "a\nb", 2: "@x", 3: "+1", 4: "-1", 5: "\tx", 6: "|x|", 7: "plain"}
    settings = {"_target_": "x.STSimDiff", "similarity": True, "difference": True, "pruning": True}

    def rows(right: bool) -> list[dict]:
        stored = all_are(right, answers(0.6, 0.3)[:8])
        return [row | {"id": rename[i], "video": rename[i], "category": "f"} for i, row in enumerate(stored)]

    write_arm(tmp_path, "none", 1.0, rows(True))
    write_arm(tmp_path, "st_simdiff", 0.3, rows(False), compressor=settings)
    for part in ("similarity", "difference", "pruning"):
        label = f"st_simdiff {part}=False"
        write_arm(tmp_path, "st_simdiff", 0.3, rows(True), label=label, compressor=settings | {part: False})
    make(tmp_path, None)
    lines = csv_rows(tmp_path / "attribution.csv")
    assert {line["id"] for line in lines} == {
        *("'=HYPERLINK(1)", "a b", "'@x", "'+1", "'-1", "'x", "|x|", "plain"),
    }
    assert len((tmp_path / "attribution.csv").read_text().splitlines()) == 1 + len(rename)
