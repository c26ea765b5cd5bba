"""The notebook and the script of ``examples/``: they run, and what the notebook shows is what a run shows."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

from helpers.paths import ROOT
from scripts import notebook

FILE = ROOT / "examples" / "compress_and_ask.ipynb"
SCRIPT = ROOT / "examples" / "compress_and_ask.py"


def texts(outputs: list[dict]) -> list:
    """What a reader sees of a cell's outputs; of a picture that there is one."""
    return [
        {kind: text if kind == "text/plain" else bool(text) for kind, text in output["data"].items()}
        if "data" in output
        else output["text"]
        for output in outputs
    ]


def test_the_notebook_shows_what_a_run_shows() -> None:
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    fresh = notebook.run(stored)
    assert sum(bool(cell["outputs"]) for cell in stored["cells"] if cell["cell_type"] == "code") == 5
    for old, new in zip(stored["cells"], fresh["cells"], strict=True):
        if old["cell_type"] == "code":
            assert texts(new["outputs"]) == texts(old["outputs"]), (
                f"{''.join(old['source'])}\nif this is meant: python -m scripts.notebook {FILE.relative_to(ROOT)}"
            )
            assert new["execution_count"] == old["execution_count"]


def test_an_error_in_a_cell_ends_the_run_and_a_picture_is_one() -> None:
    def of(*sources: str) -> dict:
        return {"cells": [{"cell_type": "code", "source": [source]} for source in sources]}

    with pytest.raises(ZeroDivisionError):
        notebook.run(of("x = 1", "x / 0"))
    picture = "from PIL import Image\nImage.new('L', (1, 1))"
    first, second, third = notebook.run(of("x = 1\nprint(x)\nx + 1", "x", picture))["cells"]
    assert texts(first["outputs"]) == [["1\n"], {"text/plain": ["2"]}]
    assert texts(second["outputs"]) == [{"text/plain": ["1"]}] and second["execution_count"] == 2
    assert texts(third["outputs"]) == [{"image/png": True}]


def test_the_script_is_short_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 30
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "all tokens: C"
    assert lines[1].startswith("STSimDiff, 51 of 512 tokens: ") and "'dropped': 461" in lines[1]
    assert lines[2].startswith("FastV, 51 of 512 tokens: C; ")
    for name in ("STSimDiff", "FastV"):
        with Image.open(tmp_path / f"{name}.gif") as film:
            assert film.n_frames == 16
