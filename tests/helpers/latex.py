"""What a paper's table must be: balanced, escaped and, where LaTeX is installed, compiled."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path


def structure(text: str) -> str:
    """A file of tables without its comments, after a check of its form."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.isascii()
    plain = re.sub(r"\$\\(tau(_\\mathrm{[A-Za-z]+})?|times)\$|\\\^", "", body)
    assert not re.search(r"(?<!\\)[%#_$^~]", plain)
    depth = 0
    for character in re.sub(r"\\[{}\\]", "", body):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    tables = body.count(r"\begin{threeparttable}")
    assert re.findall(r"\\begin{(\w+)}", body) == ["threeparttable", "tabular", "tablenotes"] * tables
    assert re.findall(r"\\end{(\w+)}", body) == ["tabular", "tablenotes", "threeparttable"] * tables
    grids = re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", body, re.DOTALL)
    assert len(grids) == tables > 0
    for columns, grid in grids:
        cells = [line for line in grid.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert cells and {len(re.split(r"(?<!\\)&", line)) for line in cells} == {len(columns)}
    letters = re.findall(r"\\item\[(\w)\]", body)
    assert set(",".join(re.findall(r"\\tnote{([^}]*)}", body)).split(",")) - {""} == set(letters)
    return body


def compiled(table: Path, folder: Path) -> Path | None:
    """The table as a page of a paper of two columns; None where pdflatex is not installed."""
    if not shutil.which("pdflatex"):
        return None
    (folder / "paper.tex").write_text(
        r"\documentclass[10pt,twocolumn]{article}\usepackage[margin=2cm]{geometry}"
        r"\usepackage{booktabs,threeparttable}\begin{document}"
        rf"\begin{{table*}}\centering\caption{{What was measured.}}\input{{{table.stem}}}\end{{table*}}"
        "\nText.\n"
        r"\end{document}"
    )
    shutil.copy(table, folder / table.name) if table.parent != folder else None
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=folder, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return folder / "paper.pdf"
