"""``python -m scripts.methods_page``: write docs/methods.md, and the table of methods in the README, from the methods'
classes, NOTICE, the recorded cases and what `python -m benchmarks.selection --frames 64` measured.

With ``--check`` nothing is written; the exit code is 1 where one is not what would be written.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from stsimdiff import compressors
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places
from stsimdiff.files import write_whole
from stsimdiff.report.text import Cell, Cells, markdown
from stsimdiff.tokens import Grid, Layout, VisionSignals

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
README = ROOT / "README.md"
MEASURED = ROOT / "results" / "selection.json"
MARKS = ("<!-- made by python -m scripts.methods_page -->\n", "<!-- until here -->\n")
NO_PRODUCT = 0.01
"""Below this share of the product of frames, a method's own products are not what its time is measured by."""
LAYERS = 28
"""Depth of the model that the places are shown for: Qwen2-7B's."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What NOTICE says of a method: repository of the authors' code, venue or arXiv number, licence."""

    repository: str
    title: str
    venue: str
    licence: str


def sources(notice: str) -> dict[str, Source]:
    """By the plain name of a method; see :func:`plain`."""
    found = {}
    for name, repository, said in re.findall(r"^(\S+): (\S+/\S+)\n((?:    .*\n)+)", notice, re.MULTILINE):
        text = " ".join(said.split())
        paper, _, licence = text.partition(" Licence: ")
        published = re.match(r".*?\. (.+)\. ((?:\w+ \d{4}[\w ]*, )?arXiv \d+\.\d+)", paper)
        if published is None:
            raise ValueError(f"NOTICE names no paper of {name}: {paper}")
        found[plain(name)] = Source(repository, published[1], published[2], licence)
    return found


def plain(name: str) -> str:
    """A name in small letters and digits alone; LLaVA's prefix, which few methods have, left out."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("llava")


def cases(folder: Path) -> dict[str, int]:
    """Recorded cases by the plain first word of their files; PruMerge+ counts as PruMerge, and so on."""
    found: dict[str, int] = {}
    names = {plain(cls.rpartition(".")[2]) for cls in compressors.BUILTIN.values()}
    for file in folder.glob("*.npz"):
        word = plain(file.stem.partition("_")[0])
        owner = max((name for name in names if word.startswith(name)), key=len, default=word)
        found[owner] = found.get(owner, 0) + 1
    return found


def places_of(method: Compressor) -> Places:
    """Where a method acts in a model of :data:`LAYERS` layers, on 8 frames of 6 x 7 tokens at half of them."""
    grid = Grid(8, 6, 7)
    keys = torch.zeros(grid.tokens, 2, 4)
    vision = VisionSignals(torch.zeros(grid.tokens), keys) if method.needs_vision else None
    layout = Layout(grid, torch.arange(grid.tokens) + 5, grid.tokens + 12, LAYERS, "page", vision)
    return method.start(layout, Budget("tokens", 0.5)).places


def acts(places: Places) -> str:
    """Its places in words."""
    words = ["at the input"] if places.input else []
    for name, layers in (
        ("before", places.before),
        ("inside", places.between),
        ("decoding, from", places.decoding),
    ):
        if layers:
            some = sorted(layers)
            many = (
                f"layers {some[0]} to {some[-1]}" if len(some) > 4 else "layer " + ", ".join(map(str, some))
            )
            words.append(f"{name} {many}")
    return "; ".join(words) or "nowhere"


def reads(method: Compressor, places: Places) -> str:
    """What it reads besides the tokens' features."""
    words = ["vision tower"] if method.needs_vision else []
    words += ["attention"] if places.attention or places.watched else []
    words += ["queries, keys or values"] if places.reads else []
    return ", ".join(words) or "features"


HEADINGS = ("method", "published", "acts", "reads", "fidelity", "recorded cases")
COSTS = ("ms", "copies", "frame products", "own products", "own / frame")
"""Heads of what a selection takes; see :func:`measured`."""


def costs(report: dict[str, Any]) -> dict[str, list[str]]:
    """What :data:`COSTS` names of each method in a report of benchmarks/selection.py, on its scene ``mixed``."""
    found = {name: ["?"] * len(COSTS) for name in compressors.BUILTIN}
    found |= {"none": ["-"] * len(COSTS), "no_video": ["-"] * len(COSTS)}
    for row in report["rows"]:
        if row["scene"] != "mixed":
            continue
        own = row["time_over_own_products"]
        found[row["method"]] = [
            f"{row['selection_seconds'] * 1e3:.0f}",
            f"{row['time_over_copy']:.1f}",
            f"{row['time_over_frame_product']:.2f}",
            "-" if own is None or row["own_over_frame_product"] < NO_PRODUCT else f"{own:.2f}",
            f"{row['own_over_frame_product']:.2f}",
        ]
    return found


def measured(report: dict[str, Any]) -> str:
    """What the cost of a selection means, and when and on what it was measured, from the report itself."""
    one, machine, settings = report["rows"][0], report["machine"], report["settings"]
    settings_of = f"""The last five columns are what a selection takes on a CPU: {one["frames"]} frames of
    {settings["height"]} x {settings["width"]} x {settings["dim"]:,} values in {settings["dtype"]},
    {settings["retention"]:.0%} of the tokens left, {settings["threads"]} thread(s). Times on a GPU are others:
    [gpu-check.md](gpu-check.md)."""
    columns = [
        "*ms*: milliseconds of the selection.",
        f"*copies*: that time over the time of one copy of the tokens ({one['copy_seconds'] * 1e3:.0f} ms).",
        "*frame products*: over the time of multiplying each frame's tokens with each other "
        f"({one['frame_product_seconds'] * 1e3:.0f} ms).",
        "*own products*: over the time of the products of matrices that the method makes itself.",
        "*own / frame*: arithmetic of these products over that of the frames'. DivPrune compares all tokens of the "
        "video, and Scissor the means of all components at each step of its bisection: many products by what they are.",
    ]
    measured_on = f"""Measured on {machine["day"]} on {machine["cores"]} cores ({machine["machine"]}, torch
    {machine["torch"]}, load {machine["load"]:.1f}; medians of {settings["repeats"]}) by
    `python -m benchmarks.selection --frames 64`, after which `python -m scripts.methods_page` writes them here; a
    question mark: not measured there."""
    listed = "\n".join(f"* {column}" for column in columns)
    return "\n\n".join((" ".join(settings_of.split()), listed, " ".join(measured_on.split())))


def rows() -> dict[str, list[str]]:
    """What :data:`HEADINGS` names of each method, by its name."""
    known = sources((ROOT / "NOTICE").read_text(encoding="utf-8"))
    recorded = cases(ROOT / "tests" / "golden")
    found = {}
    for name in compressors.BUILTIN:
        cls = compressors.resolve(name)
        source = known.get(plain(cls.__name__))
        method = None if name == "chain" else cls()
        places = places_of(method) if method else None
        found[name] = [
            source.venue.replace(" by its README", "") if source else "-",
            acts(places) if places else "where its methods do",
            reads(method, places) if method and places else "what they read",
            (compressors.fidelity_of(cls) or {"word": "-"})["word"],
            str(recorded.get(plain(cls.__name__), 0) or "-"),
        ]
    return found


def readme() -> str:
    """The README with its table of published methods made again."""
    text = README.read_text(encoding="utf-8")
    begin, end = (text.index(mark) for mark in MARKS)
    lines = [
        [Cell(name, link=f"docs/methods.md#{name}"), *map(Cell, row)]
        for name, row in rows().items()
        if row[0] != "-"
    ]
    table = markdown(Cells(HEADINGS, [("", lines)], text_columns=len(HEADINGS)))
    return f"{text[:begin]}{MARKS[0]}{table}\n{text[end:]}"


def page() -> str:
    """The whole page."""
    known = sources((ROOT / "NOTICE").read_text(encoding="utf-8"))
    recorded = cases(ROOT / "tests" / "golden")
    report = json.loads(MEASURED.read_text(encoding="utf-8"))
    taken = costs(report)
    lines, sections = [], []
    for name, row in rows().items():
        cls = compressors.resolve(name)
        source = known.get(plain(cls.__name__))
        fidelity = compressors.fidelity_of(cls) or {"word": "-", "reason": ""}
        lines.append([Cell(name, link=f"#{name}"), *map(Cell, row + taken[name])])
        sections.append(section(name, cls, source, fidelity, recorded.get(plain(cls.__name__), 0)))
    table = markdown(Cells(HEADINGS + COSTS, [("", lines)], text_columns=len(HEADINGS)))
    agree = sum(recorded.values())
    return f"""# The methods

This page is made from the classes, NOTICE and the recorded cases by `python -m scripts.methods_page`.
`python -m stsimdiff conformance tests/golden tests/golden_e2e` replays the recordings: all {agree} cases of single
selections agree with the authors' code, besides whole runs. Layers are those of a model with {LAYERS} layers, at half
of the tokens. What the words of fidelity mean: [the list](../stsimdiff/compressors/README.md).

{table}

{measured(report)}

{chr(10).join(sections)}"""


def section(name: str, cls: type, source: Source | None, fidelity: dict[str, str], count: int) -> str:
    """One method."""
    summary = (cls.__doc__ or "").strip().split("\n\n")[0]
    lines = [f"## {name}", "", " ".join(summary.split()), ""]
    if source:
        lines += [f"* Paper: {source.title} ({source.venue})"]
        lines += [f"* Authors' code: {source.repository}. Licence: {source.licence}"]
    if count:
        lines += [f"* Recorded cases that agree: {count}."]
    if fidelity["reason"]:
        lines += [f"* Fidelity, *{fidelity['word']}*: {' '.join(fidelity['reason'].split())}"]
    said = described(cls)
    for field in dataclasses.fields(cls):
        default = "" if field.default is dataclasses.MISSING else f" (default `{field.default}`)"
        lines += [f"* `{field.name}`{default}: {said.get(field.name, '')}".rstrip(": ")]
    return "\n".join(lines) + "\n"


def described(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of its parameters."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        text = (one.__doc__ or "").partition("Attributes:\n")[2]
        for name, said in re.findall(r"^        (\w+): ((?:.|\n(?!        \w+:|\n))*)", text, re.MULTILINE):
            found[name] = " ".join(said.split())
    return found


def main(arguments: list[str]) -> int:
    """Write or check the page and the README; returns the exit code."""
    made = {PAGE: page(), README: readme()}
    if "--check" in arguments:
        return int(
            any(not path.is_file() or path.read_text(encoding="utf-8") != text for path, text in made.items())
        )
    for path, text in made.items():
        write_whole(path, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
