"""check_table.py TABLE.CSV N: whether the embedded table has every arm, every column, N answers each and no failure."""

import csv
import sys
from pathlib import Path

from stsimdiff.compressors import BUILTIN
from stsimdiff.launchers.base import configurations

COLUMNS = {
    "method",
    "retention",
    "budget",
    "overall",
    "ci_low",
    "ci_high",
    "retention_tokens",
    "n",
    "n_failed",
}
NAMES = {target: name for name, target in BUILTIN.items()}
ARMS = {
    (NAMES[arm.compressor._target_], arm.budget.retention)
    for arm in configurations(["experiment=embedded_table"])
}


def problems(path: Path, questions: int) -> list[str]:
    """What is wrong with a table; empty if nothing is."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not rows[0].keys() >= COLUMNS:
        return [f"columns are missing: {sorted(COLUMNS - (rows[0].keys() if rows else set()))}"]
    found = [(row["method"].split()[0], round(float(row["retention"]), 3)) for row in rows]
    wrong = [f"arms are missing: {sorted(ARMS - set(found))}"] if ARMS - set(found) else []
    wrong += [f"arms are too many: {sorted(set(found) - ARMS)}"] if set(found) - ARMS else []
    wrong += ["an arm is there twice"] if len(set(found)) < len(found) else []
    for row, arm in zip(rows, found, strict=True):
        if (int(row["n"]), int(row["n_failed"])) != (questions, 0):
            wrong.append(f"{arm}: n={row['n']}, n_failed={row['n_failed']}; expected {questions} and 0")
        if not 0 <= float(row["overall"]) <= 100:
            wrong.append(f"{arm}: overall={row['overall']} is no percentage")
    return wrong


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]), int(sys.argv[2]))
    print("\n".join(found) or f"{sys.argv[1]}: {len(ARMS)} arms, {sys.argv[2]} answers each, none failed")
    sys.exit(bool(found))
