"""How large the page of a large run is, and how long it takes to open: 75 arms with the tokens of eight questions.

python -m benchmarks.page [--quick]

The run's folder is made as in ``report.py``, with the tokens of a real model (64 frames of 13 x 13) and frames whose
files are as large as those of a film. A headless Chromium opens the page: until the first paint, until it is loaded,
and until it is shown after that; beside it stands the time of the page's thread on a core, which other work on the
machine changes less. Scrolling to the plots unpacks their library, which is measured apart.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from benchmarks.output import save_report
from benchmarks.report import arms_of_table, write_run
from stsimdiff.evaluate import store
from stsimdiff.report.page import report_page
from stsimdiff.report.rows import read
from stsimdiff.report.table import build
from stsimdiff.tokens import Grid, Picture

GRID, PICTURE = Grid(64, 13, 13), Picture(1, 13, 13, 13)
QUESTIONS = 56
"""The page is as large for more: eight of them have tokens."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS, MEGABYTES = 2.0, 8.0
"""The limits."""
SHOWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
PLOTTED = """new Promise(done => {
  document.getElementById("plots").scrollIntoView();
  const check = () => document.querySelector(".plot").data ? done() : requestAnimationFrame(check);
  check();
})"""


def frames(count: int) -> np.ndarray:
    """Drawn pictures ``(count, 180, 320, 3)`` uint8 with large and small forms: about 8 kB each as JPEG files."""
    dice = np.random.default_rng(0)
    found = np.full((count, 180, 320, 3), 128.0)
    for frame in found:
        for side in (4, 16, 64, 320):
            forms = dice.normal(0, 100 / side**0.5, (max(2, side * 9 // 16), side, 3)).astype(np.float32)
            for colour in range(3):
                form = Image.fromarray(forms[:, :, colour]).resize((320, 180), Image.Resampling.BICUBIC)
                frame[:, :, colour] += np.asarray(form)
    return found.clip(0, 255).astype(np.uint8)


def opened(browser: Browser, address: str) -> dict[str, float]:
    """Seconds until the page is painted, loaded and shown, on a core, and until plots scrolled to are there."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    counters = page.context.new_cdp_session(page)
    counters.send("Performance.enable", {"timeDomain": "threadTicks"})
    began = time.perf_counter()
    page.goto(address, wait_until="load")
    loaded = time.perf_counter()
    page.evaluate(SHOWN)
    shown = time.perf_counter()
    counted = {each["name"]: each["value"] for each in counters.send("Performance.getMetrics")["metrics"]}
    before_plots = time.perf_counter()
    page.evaluate(PLOTTED)
    plotted = time.perf_counter()
    painted = page.evaluate(PAINTED)
    page.close()
    return {
        **{"painted_s": painted, "loaded_s": loaded - began, "shown_s": shown - began},
        **{"core_s": counted["TaskDuration"], "plotted_s": plotted - before_plots},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 arms, opened once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/page.json"))
    options = parser.parse_args()
    chromium = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if chromium is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed; install one")
    store.sync = lambda descriptor: None  # the answers are not worth waiting for a disk
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        one = arms_of_table(Path(name))
        arms = list(one.arms.values())[: 10 if options.quick else None]
        folder = one.settings.folder
        write_run(one.settings, arms, QUESTIONS, frames(GRID.frames), GRID, PICTURE)
        stored = read(folder)
        page = folder / "report.html"
        page.write_text(report_page(folder, build(stored), stored, []), encoding="utf-8")
        size = page.stat().st_size / 1e6
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        runs = [opened(browser, page.as_uri()) for _ in range(1 if options.quick else options.repeats)]
        browser.close()
    median = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
    print(f"{len(arms)} arms, 8 overlays of {GRID.tokens} tokens: {size:.1f} MB (at most {MEGABYTES:.0f})")
    print(
        f"open in {median['shown_s']:.2f} s (at most {SECONDS:.0f}; median of {len(runs)}): painted after "
        f"{median['painted_s']:.2f} s, loaded after {median['loaded_s']:.2f} s, {median['core_s']:.2f} s on a core; "
        f"plots {median['plotted_s']:.2f} s after they are scrolled to"
    )
    report = {"arms": len(arms), "megabytes": size, "runs": runs, "median": median}
    save_report(report, options.out)


if __name__ == "__main__":
    main()
