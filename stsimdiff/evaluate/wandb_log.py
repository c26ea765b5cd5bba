"""A finished run shown in Weights & Biases: one W&B run an arm, made from the stored rows alone.

The numbers are those of the table. No result needs this: it can be done later, again, or never.
"""

from __future__ import annotations

import hashlib
import json
import math
import netrc
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd

from stsimdiff.errors import ConfigError
from stsimdiff.report.comparison import Row
from stsimdiff.report.rows import Arm, read
from stsimdiff.report.table import build

MODES = ("offline", "online")
MARKER = "wandb.json"
"""In an arm's folder: what was logged last, so that a second call logs only what has changed."""

SAMPLES = (
    "id",
    "video",
    "family",
    "answer",
    "parsed",
    "target",
    "correct",
    "retention_tokens",
    "retention_compute",
)
SUMMARY = (
    *("overall", "ci_low", "ci_high", "retention_tokens", "retention_compute", "llm_flops_ratio"),
    *("prefill_ms", "n", "n_failed", "n_missing", "n_unparsed", "macro"),
)


@dataclass(frozen=True)
class _Page:
    """What one W&B run will show."""

    arm: Arm
    name: str
    summary: Mapping[str, float | int]
    samples: pd.DataFrame

    def content(self) -> str:
        """A hash of everything that is logged."""
        samples = self.samples.to_csv(index=False)
        text = json.dumps([self.arm.record, self.name, self.summary, samples], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def log_run(run_dir: Path | str, project: str, mode: str | None = None) -> list[str]:
    """Logs every arm of a run that has stored something and whose content changed since it was logged.

    W&B's files go to ``<run_dir>/wandb``. Nothing is asked and nothing of W&B's own is printed; after logging
    offline the command that uploads is.

    Args:
        run_dir: ``results/<run>``; its name is the group in W&B.
        project: W&B's project.
        mode: ``online``, ``offline``, or None: online where W&B has a key and ``WANDB_MODE`` does not
            say otherwise, else offline.

    Returns:
        For each arm where it is: the folder of its offline run, or its address.

    Raises:
        ConfigError: an unknown mode, ``online`` without a key, or a service that does not answer.
        DataError: as ``report.rows.load`` does.
    """
    run_dir = Path(run_dir)
    mode = _mode(mode)
    pages = _pages(run_dir)
    places = {page.arm.id: _logged(page, run_dir, project, mode) for page in pages}
    changed = [page for page in pages if places[page.arm.id] is None]
    if changed:
        with _service(run_dir):
            written = {page.arm.id: _write(page, run_dir, project, mode) for page in changed}
        for page in changed:
            _mark(page, run_dir, written[page.arm.id], {"project": project, "mode": mode})
        places |= written
    if mode == "online":
        return list(places.values())
    folder = run_dir / "wandb"
    if places:
        upload = f"wandb sync {shlex.quote(str(folder))}/offline-run-*"
        print(
            f"W&B: {len(places)} {'arm' if len(places) == 1 else 'arms'} logged offline; to upload: {upload}"
        )
    return [str(folder / name) for name in places.values()]


def _mode(mode: str | None) -> str:
    if mode not in (None, *MODES):
        raise ConfigError(
            f"W&B mode {mode!r} is unknown; allowed: {', '.join(MODES)}, or none to choose by key"
        )
    has_key = _has_key()
    if mode == "online" and not has_key:
        raise ConfigError(
            "W&B mode online needs a key: run `wandb login`, set WANDB_API_KEY, or use mode offline"
        )
    allowed = os.environ.get("WANDB_MODE", "online") == "online"
    return mode or ("online" if has_key and allowed else "offline")


def _has_key() -> bool:
    """Whether W&B would find a key without asking for one; the key itself is not kept."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            return netrc.netrc(str(path)).authenticators(host) is not None
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _pages(run_dir: Path) -> list[_Page]:
    stored = read(run_dir)
    samples = dict(list(stored.samples.groupby("arm", sort=False)))
    rows = {row.arm: row for section in build(stored).sections for row in section.rows}
    return [
        _Page(arm, _name(rows[arm.id]), _summary(rows[arm.id]), _samples(samples[arm.id]))
        for arm in stored.arms
        if arm.id in samples
    ]


def _name(row: Row) -> str:
    return row.label if row.reference else f"{row.label} {100 * row.retention:.4g} % {row.budget}"


def _summary(row: Row) -> dict[str, float | int]:
    """The row's numbers as in ``table.csv``; what could not be averaged is absent."""
    numbers = {name: getattr(row, name) for name in SUMMARY}
    numbers |= {f"acc_{family}": value for family, value in row.families.items()}
    return {name: value for name, value in numbers.items() if not math.isnan(value)}


def _samples(rows: pd.DataFrame) -> pd.DataFrame:
    """The sample table, times in milliseconds, None where there is nothing."""
    shown = rows[list(SAMPLES)].assign(prefill_ms=1000 * rows["prefill_s"], error=rows["error_message"])
    shown = shown.astype(object)
    return shown.where(shown.notna(), None)


def _logged(page: _Page, run_dir: Path, project: str, mode: str) -> str | None:
    """The place that the arm's marker names, if this very content is there; else None."""
    try:
        told = json.loads((page.arm.folder / MARKER).read_text(encoding="utf-8"))
        place = told.pop("place")
    except (OSError, ValueError, KeyError):
        return None  # never logged, or cut off while the marker was written
    if told != {"content": page.content(), "project": project, "mode": mode}:
        return None
    return place if mode == "online" or (run_dir / "wandb" / place).is_dir() else None


def _mark(page: _Page, run_dir: Path, place: str, target: Mapping[str, str]) -> None:
    """Notes what is logged now, and removes offline folders of the arm that it supersedes.

    All of them would be uploaded under one id, and only the newest is true.
    """
    for folder in (run_dir / "wandb").glob(f"offline-run-*-{_run_id(page, run_dir)}*"):
        if folder.name != place:
            shutil.rmtree(folder, ignore_errors=True)
    told = {"content": page.content(), **target, "place": place}
    (page.arm.folder / MARKER).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _service(run_dir: Path) -> Iterator[None]:
    """W&B's service for the time of the logging, with all its files in the run's folder.

    Its files are complete only when it has ended: a run's ``finish`` returns before its file is closed.
    """
    import wandb

    # The sample tables wait here for their upload; W&B would put them into the home directory.
    name, folder = "WANDB_DATA_DIR", run_dir.resolve() / "wandb"
    earlier = os.environ.get(name)
    folder.mkdir(exist_ok=True)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        if earlier is None:
            del os.environ[name]
        else:
            os.environ[name] = earlier
        if wandb.run is None:  # else the caller is logging something of its own
            wandb.teardown()


def _run_id(page: _Page, run_dir: Path) -> str:
    return hashlib.sha256(f"{run_dir.resolve().name}/{page.arm.id}".encode()).hexdigest()[:16]


def _write(page: _Page, run_dir: Path, project: str, mode: str) -> str:
    """One W&B run from start to finish; the name of its offline folder, or its address."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    try:
        run = wandb.init(
            project=project,
            dir=str(run_dir),
            id=_run_id(page, run_dir),
            resume="allow" if mode == "online" else None,  # offline there is nothing to resume, and it warns
            group=run_dir.resolve().name,
            name=page.name,
            config=dict(page.arm.record),
            mode=mode,
            reinit="create_new",
            settings=settings,
        )
        samples = wandb.Table(columns=list(page.samples.columns), data=page.samples.values.tolist())
        run.log({"samples": samples})
        run.summary.update(page.summary)
        run.finish(exit_code=0)
    except wandb.Error as error:
        raise ConfigError(
            f"W&B did not take {page.name!r}: {error}; mode offline needs no service"
        ) from error
    return run.url if mode == "online" else Path(run.dir).parent.name
