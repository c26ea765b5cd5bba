"""Processes of their own: a fresh Python, and whether a process has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.paths import ROOT


def python(
    *words: str, cwd: Path = ROOT, check: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python WORDS`` to its end, with our environment and what is given; any folder finds the package."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"} | environment
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=check
    )


def gone(pid: int, within: float = 20) -> bool:
    """Whether a process that is not ours to wait for ends within so many seconds; if not, it is killed."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False
