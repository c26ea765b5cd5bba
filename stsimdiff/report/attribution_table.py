"""The attribution as files: ``attribution.md`` to read, ``attribution.csv`` to count again. What it means is said in
``attribution``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from urllib.parse import quote

import pandas as pd

from stsimdiff.report import text
from stsimdiff.report.attribution import GAINED, LOST, NO_SINGLE, PARTS, Attribution, ParsedAnswer
from stsimdiff.report.render import PAIR_HEADINGS, pair_line
from stsimdiff.report.text import EMPTY, Cell, Cells, csv, escaped, number

NAME = "attribution"
PAGE = "report.html"
PLACE = ("model", "benchmark", "budget", "retention", "method")
_place_of = attrgetter("model", "benchmark", "budget", "retention", "label")
MEANING = f"""\
*Lost*: right with all tokens, wrong with the method; *gained*: the reverse. An arm without a part has the same other
parameters and budget; without pruning all that stage one leaves stays, so that arm keeps more than its budget; without
similarity the layers up to the pruning see every token, so at a budget of tokens that arm computes more. A part did it
where its arm answers as all tokens do; several did it together where each of their arms does; *{NO_SINGLE}*
where none does. *Unchanged, but ...* says how often an answer turns without the part where the method had changed
nothing: a part that undoes no more than that explains nothing."""


def files(
    attributions: Sequence[Attribution], anchors: Mapping[tuple[str, str], str]
) -> dict[str, str | None]:
    """Both files by name; None where there is nothing to attribute.

    Args:
        attributions: of the run.
        anchors: places on the page of the questions whose overlay is stored, by benchmark and question.
    """
    if not attributions:
        return {f"{NAME}.md": None, f"{NAME}.csv": None}
    return {
        f"{NAME}.md": markdown(attributions, anchors),
        f"{NAME}.csv": csv(frame(attributions, anchors)),
    }


def frame(attributions: Iterable[Attribution], anchors: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """A line for every question that turned; for each arm what was read from its answer, and whether it is right."""
    lines = []
    for attribution in attributions:
        place = dict(zip(PLACE, _place_of(attribution), strict=True))
        for change in attribution.changes:
            about = {name: getattr(change, name) for name in ("id", "video", "category", "target", "change")}
            arms = {"all_tokens": change.all_tokens, "compressed": change.compressed}
            arms |= {f"without_{part}": change.without[part] for part in PARTS}
            answers = {name: answer.parsed for name, answer in arms.items()}
            right = {f"{name}_right": answer.right for name, answer in arms.items()}
            link = _link(anchors.get((attribution.benchmark, change.id)))
            lines.append(place | about | answers | right | {"cause": change.cause, "overlay": link})
    names = ("all_tokens", "compressed", *(f"without_{part}" for part in PARTS))
    columns = [
        *PLACE,
        "id",
        "video",
        "category",
        "target",
        "change",
        *names,
        *(f"{name}_right" for name in names),
    ]
    return pd.DataFrame(lines, columns=[*columns, "cause", "overlay"])


def markdown(attributions: Iterable[Attribution], anchors: Mapping[tuple[str, str], str]) -> str:
    """Counts first, then every question that turned."""
    parts = ["# What turned the answers", MEANING]
    for attribution in attributions:
        budget = f"{100 * attribution.retention:.4g} % ({attribution.budget})"
        parts += [
            f"## {escaped(f'{attribution.label} at {budget}, {attribution.model} on {attribution.benchmark}')}",
            escaped(attribution.sentence()),
            *([_differences(attribution)] if attribution.differences else []),
            _counts(attribution),
        ]
        if attribution.changes:
            parts.append(_questions(attribution, anchors))
    return "\n\n".join(parts) + "\n"


def _differences(attribution: Attribution) -> str:
    """What each part is worth: the whole method minus the arm without it."""
    shown = [PAIR_HEADINGS.index(heading) for heading in ("points", "95 % interval", "Holm p", "verdict")]
    lines = [
        [Cell(f"{part} off"), *(pair_line(pair)[i] for i in shown)]
        for part, pair in attribution.differences.items()
    ]
    return _grid(["whole minus part off", *(PAIR_HEADINGS[i] for i in shown)], lines)


def _counts(attribution: Attribution) -> str:
    headings = ["part", "lost, undone", "by it alone", "gained, undone", "by it alone"]
    headings += ["unchanged, but right turns wrong", "unchanged, but wrong turns right"]
    lines = []
    for part in PARTS:
        counts = [
            f(change)
            for change in (LOST, GAINED)
            for f in (partial(attribution.undone, part), partial(attribution.alone, part))
        ]
        lines.append(
            [
                Cell(part),
                *(
                    number(n, ".0f")
                    for n in (*counts, attribution.newly_wrong[part], attribution.newly_right[part])
                ),
            ]
        )
    for name, causes in (
        ("several together", attribution.several),
        (NO_SINGLE, partial(attribution.alone, NO_SINGLE)),
    ):
        lost, gained = (number(causes(change), ".0f") for change in (LOST, GAINED))
        lines.append([Cell(name), Cell(""), lost, Cell(""), gained, Cell(""), Cell("")])
    return _grid(headings, lines)


def _questions(attribution: Attribution, anchors: Mapping[tuple[str, str], str]) -> str:
    headings = ["question", "video", "category", "right", "change", "all tokens", "method"]
    lines = []
    for change in attribution.changes:
        about = [change.video, change.category, change.target or EMPTY, change.change]
        answers = [change.all_tokens, change.compressed, *(change.without[part] for part in PARTS)]
        link = _link(anchors.get((attribution.benchmark, change.id))) or ""
        lines.append(
            [Cell(change.id, link=link), *map(Cell, [*about, *map(_answer_text, answers), change.cause])]
        )
    return _grid([*headings, *(f"without {part}" for part in PARTS), "what did it"], lines)


def _grid(headings: Sequence[str], lines: Sequence[Sequence[Cell]]) -> str:
    return text.markdown(Cells(headings, [("", lines)], text_columns=len(headings)))


def _answer_text(answer: ParsedAnswer) -> str:
    return f"{'unparsed' if answer.parsed is None else answer.parsed} {'✓' if answer.right else '✗'}"


def _link(anchor: str | None) -> str | None:
    return f"{PAGE}#{quote(anchor, safe='')}" if anchor else None
