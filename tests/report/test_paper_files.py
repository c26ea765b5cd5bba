"""What goes into a paper: ``table.tex`` with columns of one's choice, and figures for a venue's column."""

import re
import struct
from pathlib import Path

import pytest

from helpers.latex import compiled, structure
from helpers.synthetic_run import answers, write_arm
from stsimdiff.commands.report import main
from stsimdiff.report import figures
from stsimdiff.report.venue import VENUES


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "paper"
    for name in ("clips", "others"):
        about = {"name": name, "families": ["attr", "order", "event_count"], "note": "toy", "chance": 25.0}
        write_arm(folder, "none", 1.0, answers(0.9, 1.0), benchmark=about)
        for similar in (0.7, 0.8):
            settings = {"_target_": "x.STSimDiff", "tau_sim": similar, "tau_diff": 0.2}
            rows = answers(similar, 0.3, 0.5)
            label = f"st_simdiff tau_sim={similar}"
            write_arm(folder, "st_simdiff", 0.3, rows, label=label, compressor=settings, benchmark=about)
        write_arm(folder, "fastv", 0.3, answers(0.5, 0.4), benchmark=about)
    return folder


def test_columns_are_chosen_and_stand_in_their_order(run: Path, tmp_path: Path) -> None:
    chosen = "columns=llm_flops_ratio,overall,ci_low,retention_tokens"
    assert main([str(run), chosen, "--output", str(tmp_path)]) == 0
    body = structure((tmp_path / "table.tex").read_text())
    heads = next(line for line in body.splitlines() if line.startswith("method"))
    one = r" & LLM FLOPs \% & overall & 95 \% interval & tokens kept \%"
    assert heads == f"method{2 * one} " + r"\\"
    (line,) = (line for line in body.splitlines() if line.startswith("fastv"))
    assert len(re.findall(r"\d+\.\d--\d+\.\d", line)) == 2 and line.count(r"\tnote{a}") == 2
    # Only accuracies have a best one.
    assert all(r"\textbf" not in line.split("&")[1] for line in body.splitlines() if "&" in line)
    assert body.count(r"\textbf{") == 2
    assert compiled(tmp_path / "table.tex", tmp_path) is None or (tmp_path / "paper.pdf").stat().st_size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["columns=overal"],
            "columns=overal is unknown; allowed: with commas between them: categories, acc_attr",
        ),
        (["columns=overal"], "; did you mean overall?"),
        (["style=nips"], "style=nips is unknown; allowed: plain, neurips, cvpr"),
        (["colums=overall"], "report colums=overall: allowed: columns=A,B and style=plain|neurips|cvpr"),
    ],
)
def test_wrong_choices_are_told_before_anything_is_written(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture, words: list[str], said: str
) -> None:
    assert main([str(run), *words, "--output", str(tmp_path)]) == 2
    assert said.replace("allowed: with", "allowed, with") in capfd.readouterr().err
    assert not list(tmp_path.glob("table*"))


@pytest.mark.parametrize(
    ("style", "inches", "points"), [("cvpr", 3.25, 9), ("neurips", 5.5, 9), ("plain", 6.5, 10)]
)
def test_figures_are_as_wide_as_a_column(
    run: Path, tmp_path: Path, style: str, inches: float, points: float
) -> None:
    assert main([str(run), f"style={style}", "--output", str(tmp_path)]) == 0
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert len(drawn) == 3 * 2 * (len(figures.NAMES) - 2)
    for name, content in drawn.items():
        if name.endswith(".png"):
            assert struct.unpack(">I", content[16:20])[0] == pytest.approx(inches * figures.DPI, abs=1), name
        elif name.endswith(".pdf"):
            width = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", content)[1]
            assert float(width) == pytest.approx(72 * inches), name
            assert b"/Type3" not in content and (b"embedded on clips" in content or b"others" in content)
        else:
            assert f'width="{72 * inches:.6g}pt"' in content.decode(), name
            said = re.findall("<!-- (.*) -->", content.decode())
            if name.startswith("thresholds"):
                assert {"τ_sim", "τ_diff"} <= set(said)
            assert not any("tau" in text or "embedded on" in text for text in said), name
    assert VENUES[style].text == points
