"""Where the tests find the repository, its recorded outputs and the miniatures of benchmarks."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINIATURES = ROOT / "tests" / "benchmarks"
GOLDEN = ROOT / "tests" / "golden"
GOLDEN_RUNS = ROOT / "tests" / "golden_e2e"
CHECKPOINT = GOLDEN_RUNS / "llava_video_grid9" / "checkpoint"
"""A tiny LLaVA-Video in the layout that its authors released."""
