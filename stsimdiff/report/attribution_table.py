"""The attribution as files: ``attribution.md`` to read, ``attribution.csv`` to count again. What it means is said in
``attribution``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

import pandas as pd

from stsimdiff.report.attribution import GAINED, LOST, NO_SINGLE, PARTS, Answered, Attribution
from stsimdiff.report.render import EMPTY, escaped, grid_line, pair_line
from stsimdiff.report.text import csv

NAME = "attribution"
PAGE = "report.html"
PLACE = ("model", "benchmark", "budget", "retention", "method")
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
    for one in attributions:
        place = dict(
            zip(PLACE, (one.model, one.benchmark, one.budget, one.retention, one.label), strict=True)
        )
        for change in one.changes:
            about = {name: getattr(change, name) for name in ("id", "video", "family", "target", "change")}
            arms = {"all_tokens": change.all_tokens, "compressed": change.compressed}
            arms |= {f"without_{part}": change.without[part] for part in PARTS}
            answers = {name: answer.parsed for name, answer in arms.items()}
            right = {f"{name}_right": answer.right for name, answer in arms.items()}
            link = _link(anchors.get((one.benchmark, change.id)))
            lines.append(place | about | answers | right | {"cause": change.cause, "overlay": link})
    names = ("all_tokens", "compressed", *(f"without_{part}" for part in PARTS))
    columns = [
        *PLACE,
        "id",
        "video",
        "family",
        "target",
        "change",
        *names,
        *(f"{name}_right" for name in names),
    ]
    return pd.DataFrame(lines, columns=[*columns, "cause", "overlay"])


def markdown(attributions: Iterable[Attribution], anchors: Mapping[tuple[str, str], str]) -> str:
    """Counts first, then every question that turned."""
    parts = ["# What turned the answers", MEANING]
    for one in attributions:
        budget = f"{100 * one.retention:.4g} % ({one.budget})"
        parts += [
            f"## {escaped(f'{one.label} at {budget}, {one.model} on {one.benchmark}')}",
            escaped(one.sentence()),
            *([_differences(one)] if one.differences else []),
            _counts(one),
        ]
        if one.changes:
            parts.append(_questions(one, anchors))
    return "\n\n".join(parts) + "\n"


def _differences(one: Attribution) -> str:
    """What each part is worth: the whole method minus the arm without it."""
    heads = ["whole minus part off", "points", "95 % interval", "Holm p", "verdict"]
    lines = [_head(heads)]
    for part, pair in one.differences.items():
        line = pair_line(pair)
        lines.append(grid_line([f"{part} off", *map(escaped, [*line[2:4], *line[6:8]])]))
    return "\n".join(lines)


def _counts(one: Attribution) -> str:
    heads = ["part", "lost, undone", "by it alone", "gained, undone", "by it alone"]
    lines = [_head([*heads, "unchanged, but right turns wrong", "unchanged, but wrong turns right"])]
    for part in PARTS:
        counts = []
        for change in (LOST, GAINED):
            counts += [one.undone(part, change), one.causes(change)[part]]
        lines.append(grid_line([part, *map(str, [*counts, one.spoiled[part], one.mended[part]])]))
    several = [
        sum(count for cause, count in one.causes(change).items() if " and " in cause)
        for change in (LOST, GAINED)
    ]
    lines.append(grid_line(["several together", "", str(several[0]), "", str(several[1]), "", ""]))
    none = [str(one.causes(change)[NO_SINGLE]) for change in (LOST, GAINED)]
    lines.append(grid_line([NO_SINGLE, "", none[0], "", none[1], "", ""]))
    return "\n".join(lines)


def _questions(one: Attribution, anchors: Mapping[tuple[str, str], str]) -> str:
    heads = ["question", "video", "family", "right", "change", "all tokens", "method"]
    lines = [_head([*heads, *(f"without {part}" for part in PARTS), "what did it"])]
    for change in one.changes:
        link = _link(anchors.get((one.benchmark, change.id)))
        name = f"[{escaped(change.id)}]({link})" if link else escaped(change.id)
        about = [change.video, change.family, change.target or EMPTY, change.change]
        answers = [change.all_tokens, change.compressed, *(change.without[part] for part in PARTS)]
        lines.append(grid_line([name, *map(escaped, [*about, *map(_said, answers), change.cause])]))
    return "\n".join(lines)


def _said(answer: Answered) -> str:
    return f"{'unparsed' if answer.parsed is None else answer.parsed} {'✓' if answer.right else '✗'}"


def _link(anchor: str | None) -> str | None:
    return f"{PAGE}#{quote(anchor, safe='')}" if anchor else None


def _head(heads: Sequence[str]) -> str:
    return f"{grid_line(heads)}\n{grid_line([':---'] * len(heads))}"
