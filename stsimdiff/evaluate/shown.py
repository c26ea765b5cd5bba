"""How a run's arms are shown: the method that the run proposes, what arms are called, and which were asked for last.

It changes no answer, so it is no part of an arm: it lies beside the arms, in ``shown.json`` of the run's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stsimdiff import lock
from stsimdiff.errors import DataError
from stsimdiff.files import write_whole

FILE = "shown.json"


@dataclass(frozen=True)
class ShownRecord:
    """What ``shown.json`` says.

    Attributes:
        proposed: the name or dotted path of the method that the run proposes; empty where it names none.
        arms: label by arm id, empty for one that has its own; the arm that a command asked for last stands last.
    """

    proposed: str = ""
    arms: Mapping[str, str] = field(default_factory=dict)


def read_shown(run_dir: Path) -> ShownRecord:
    """What is stored of a run; nothing for one of an earlier version.

    Raises:
        DataError: for a file that cannot be read, or that holds something else.
    """
    path = run_dir / FILE
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
        texts = [record["proposed"], *record["arms"], *record["arms"].values()]
    except FileNotFoundError:
        return ShownRecord()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error!r}; remove it to continue without labels") from None
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path} holds values that are not text; remove it to continue without labels")
    return ShownRecord(record["proposed"], record["arms"])


def note_shown(run_dir: Path, proposed: str | None, labels: Mapping[str, str | None]) -> None:
    """Store what a command says of its arms; what it does not say (``None``) stays as it is.

    Args:
        run_dir: ``results/<run>``, which is there.
        proposed: as in :class:`ShownRecord`.
        labels: of the command's arms by id; they become those that were asked for last.

    Raises:
        DataError: as :func:`read_shown` does, and when the file cannot be written.
    """
    try:
        with lock.alone(run_dir, lock.SHOWN):
            known = read_shown(run_dir)
            arms = {arm: label for arm, label in known.arms.items() if arm not in labels}
            arms |= {
                arm: known.arms.get(arm, "") if label is None else label for arm, label in labels.items()
            }
            record = {"proposed": known.proposed if proposed is None else proposed, "arms": arms}
            # The order counts too.
            if json.dumps(record) != json.dumps(vars(known)):
                write_whole(run_dir / FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"cannot write {run_dir / FILE}: {error.strerror or error}") from error
