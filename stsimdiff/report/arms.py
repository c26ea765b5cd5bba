"""The arms of a run, and which of them are of an older version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stsimdiff.errors import DataError
from stsimdiff.evaluate import store
from stsimdiff.evaluate.shown import read_shown
from stsimdiff.report.arm import StoredArm
from stsimdiff.report.labels import all_but_code


def arms(run_dir: Path | str) -> list[StoredArm]:
    """The arms of a run, sorted by folder name, also those that have not answered anything yet.

    Raises:
        DataError: no such folder, no arm in it, or a damaged ``arm.json``.
    """
    run_dir = Path(run_dir)
    folders, shown = arm_folders(run_dir), read_shown(run_dir)
    arms_by_id: dict[str, StoredArm] = {}
    for folder in folders:
        arm = StoredArm(folder, store.checked_record(folder), shown)
        if other := arms_by_id.get(arm.id):
            raise DataError(f"arm {arm.id} is stored twice: {other.folder} and {folder}; remove one")
        arms_by_id[arm.id] = arm
    return list(arms_by_id.values())


def arm_folders(run_dir: Path) -> list[Path]:
    """The folders of a run's arms, sorted by name.

    Raises:
        DataError: no such folder, no arm in it, or answers without an ``arm.json``.
    """
    if not run_dir.is_dir():
        raise DataError(f"{run_dir}: no such folder; give the folder of a run, for example results/<run>")
    for folder in sorted(path for path in run_dir.iterdir() if path.is_dir()):
        if store.shards(folder) and not (folder / store.RECORD).is_file():
            raise DataError(f"{folder}: holds answers but no arm.json, so nobody knows whose they are")
    folders = store.arm_folders(run_dir)
    if not folders:
        raise DataError(f"{run_dir}: holds no arm (a folder with an arm.json); is it the folder of a run?")
    return folders


def older_arms(stored: Sequence[StoredArm]) -> list[StoredArm]:
    """The arms of which the run was asked for another version since: all the same but the code.

    Which one was asked for last, the run says; of arms of which it says nothing, none is older.
    """
    same: dict[tuple[Any, ...], list[StoredArm]] = {}
    for arm in stored:
        same.setdefault(all_but_code(arm), []).append(arm)
    older: list[StoredArm] = []
    for versions in same.values():
        ids = list(versions[0].shown.arms)
        latest = max(versions, key=lambda arm: ids.index(arm.id) if arm.id in ids else -1)
        if latest.id in ids:
            older += [arm for arm in versions if arm.version != latest.version]
    return older
