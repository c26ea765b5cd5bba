"""Where a benchmark leaves its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def save_report(report: Any, path: Path) -> None:
    """Write a benchmark's numbers as JSON, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {path}")
