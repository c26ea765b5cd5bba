"""Why tokens stayed: reasons of a method's own in traces, overlays, films and tables, and the counts of all reasons."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.embedded_runs import expanded
from helpers.written import csv_rows
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Places, Run, ScoreCompressor
from stsimdiff.compressors.chain import Chain
from stsimdiff.errors import ConfigError
from stsimdiff.evaluate import run
from stsimdiff.kit.running import GRID, CompressorCase, layout_for, video
from stsimdiff.launchers.in_process import make_report
from stsimdiff.plan import dry_run
from stsimdiff.report import film
from stsimdiff.report.overlays import read_overlays
from stsimdiff.report.rows import read
from stsimdiff.report.table import build
from stsimdiff.tokens import OWN, Reason, Selection

BLUE, GREY = "#1F77B4", "#7F7F7F"


@dataclass(frozen=True)
class Objects(ScoreCompressor):
    """Keeps the first half of the budget as objects, the rest as background."""

    reasons: ClassVar = {"object": BLUE, "background": GREY}

    def score(self, tokens, layout):
        return -tokens.index.float()

    def start(self, layout, budget):
        return _Objects(self, budget.keep(layout.grid.tokens, layout.layers))


class _Objects(Run):
    places = Places(input=True)

    def __init__(self, method, count) -> None:
        self.method, self.count = method, count

    def at_input(self, tokens):
        places = torch.arange(len(tokens))
        codes = torch.where(
            places < self.count // 2, self.method.code("object"), self.method.code("background")
        )
        return Selection.from_mask(places < self.count, codes)


def test_a_trace_names_them() -> None:
    trace = CompressorCase(Objects()).drive(video("mixed", GRID), layout_for(GRID), Budget("tokens", 0.5))
    half = GRID.tokens // 4
    assert trace.reasons() == {"dropped": GRID.tokens - 2 * half, "object": half, "background": half}
    assert Objects().code("background") == OWN + 1


@pytest.mark.parametrize("code", [len(Reason), OWN + 2])
def test_a_code_that_is_no_reason_is_refused_with_those_there_are(code: int) -> None:
    @dataclass(frozen=True)
    class Wrong(Objects):
        def start(self, layout, budget):
            begun = super().start(layout, budget)
            begun.method = type("Other", (), {"code": lambda self, name: code})()
            return begun

    with pytest.raises(
        ValueError, match=rf"reason holds {code}, which is no Reason; .*32 object, 33 background"
    ):
        dry_run.dry_run(Wrong(), Budget("tokens", 0.5), GRID, 20, 4)


@pytest.mark.parametrize(
    "reasons", [{"event": BLUE}, {"Object": BLUE}, {"object": "blue"}, {"object": "#12345"}]
)
def test_names_and_colours_are_checked(reasons: dict) -> None:
    kind = type("Named", (Objects,), {"reasons": reasons})
    with pytest.raises(ConfigError, match="Named.reasons has .*'#1F77B4'"):
        kind()


def test_a_chain_has_those_of_one_method() -> None:
    one = f"{__name__}.Objects"
    assert Chain(methods=(one, "fastv")).reasons == Objects.reasons
    with pytest.raises(ConfigError, match="Objects and Objects have reasons of their own"):
        Chain(methods=(one, one))


@pytest.fixture(scope="module")
def answered(tmp_path_factory, data: Path) -> Path:
    lines = (f"compressor={name} budget.retention=0.5" for name in (f"{__name__}.Objects", "fastv"))
    settings, arms = expanded(tmp_path_factory.mktemp("reasons"), data, 3, *lines, overlays=1)
    run.run_arms(settings, arms, report=make_report)
    return settings.folder


def test_overlays_have_their_names_and_colours(answered: Path) -> None:
    stored = read(answered)
    (overlay,) = read_overlays(stored, build(stored).sections)
    own, other = sorted(overlay.taken, key=lambda taken: taken.name.lower(), reverse=True)
    assert (
        own.codes == {"0": "dropped", "32": "object", "33": "background"} and own.colours == Objects.reasons
    )
    assert not other.colours
    page = (answered / "report.html").read_text(encoding="utf-8")
    assert '"colours":{"object":"#1F77B4"' in page


def test_a_film_is_painted_in_them() -> None:
    from stsimdiff.report.overlays import OverlayArm

    taken = OverlayArm(
        "a", "a", "m", "A", True, "", "", {"frames": 1, "height": 1, "width": 2},
        {"frames": 1, "height": 1, "width": 2, "stride": 2}, {"32": "object", "3": "event"},
        {"object": BLUE}, bytes([32, 3]),
    )  # fmt: skip
    seen = np.asarray(film.painted(Image.new("RGB", (40, 20)), taken, 0))
    assert tuple(seen[0, 0]) == (0x1F, 0x77, 0xB4) and tuple(seen[0, 39]) == (0xD5, 0x5E, 0x00)


def test_a_table_has_the_share_of_each_reason(answered: Path) -> None:
    lines = {line["method"]: line for line in csv_rows(answered / "reasons.csv")}
    for arm in answered.glob("*/answers.jsonl"):
        counts: Counter[str] = Counter()
        for line in arm.read_text().splitlines():
            counts.update(json.loads(line)["reasons"])
        (label,) = [name for name in lines if name.lower() == arm.parent.name.partition("_")[0].lower()]
        shares = {
            name: float(lines[label][name])
            for name in lines[label]
            if name in counts or name in ("object", "important")
        }
        assert shares == pytest.approx(
            {name: 100 * counts[name] / counts.total() for name in shares}, abs=1e-4
        )
    text = (answered / "reasons.md").read_text()
    assert "| method | background | dropped | object |" in text and "50.0" in text


def test_lines_without_reasons_have_no_table(answered: Path, tmp_path: Path) -> None:
    table = build(read(answered))
    from stsimdiff.report.publish import files

    assert files(table)["reasons.csv"]
    assert files(replace(table, reasons=[]))["reasons.csv"] is None
