"""The training log: one JSON object a line, appended by stages that may run at the same time."""

import json
import os
import time
from pathlib import Path


class Journal:
    """Writes the lines of one stage to `training_log.jsonl` and prints them."""

    def __init__(self, folder: Path, stage: str):
        self.path, self.stage, self.start = folder / "training_log.jsonl", stage, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self.start

    def write(self, step: int, **values: object) -> None:
        """Append one line, and print it."""
        line = json.dumps(
            {"stage": self.stage, "step": step, "seconds": round(self.seconds, 1), **_rounded(values)}
        )
        # One write call for a whole line: lines of two stages do not mix.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (line + "\n").encode())
        finally:
            os.close(descriptor)
        print(line, flush=True)


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 3) if isinstance(value, float) else value
