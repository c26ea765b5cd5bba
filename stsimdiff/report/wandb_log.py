"""A finished run shown in Weights & Biases: one W&B run an arm and one with the report's files, from stored rows alone.

The numbers are those of the table, with the medians of the stored times; all shares are in percent. No result needs
this: it can be done later, again, or never.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import secrets
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from stsimdiff import lock
from stsimdiff.config.wandb_mode import wandb_mode
from stsimdiff.errors import RunFailed
from stsimdiff.files import fingerprint, sha256, write_whole
from stsimdiff.report import columns
from stsimdiff.report.arm import StoredArm
from stsimdiff.report.rows import TIMES, StoredRun, read
from stsimdiff.report.section import Section, TableRow
from stsimdiff.report.table import Table, build
from stsimdiff.report.text import one_line
from stsimdiff.terminal import say

MARKER = "wandb.json"
"""In an arm's folder: what was logged last, so that a second call logs only what has changed."""

UID = ".run.json"
"""In a run's folder: what tells it from other folders of the same name."""

DATA_FOLDER = "WANDB_DATA_DIR"
"""Names where sample tables wait for their upload; W&B would put them into the home directory."""
INIT_SECONDS = 60
RETRIES = 4
"""Of each request, with growing pauses: some seconds. W&B's own numbers would hold a finished run for hours."""
COPIES, OVERHEAD = 4, 200_000
"""Room that an arm needs: copies of its samples as text, and bytes of everything else, W&B's logs included."""

MOST_CHARACTERS = 128
"""Of a W&B run's name."""

SAMPLES = (
    "id",
    "video",
    "category",
    "answer",
    "parsed",
    "target",
    "correct",
    "stock_parsed",
    "stock_correct",
    "stock_error",
    "retention_tokens",
    "retention_compute",
)


KEYS = {
    "overall": "accuracy/overall",
    "ci_low": "accuracy/overall_low",
    "ci_high": "accuracy/overall_high",
    **{
        name: f"accuracy/{name}"
        for name in ("macro", "relative", "relative_low", "relative_high", "equal_compute", "hard", "hard_low",
                     "hard_high", "paper", "minus_paper")
    },
    "retention": "retention/budget",
    "retention_tokens": "retention/tokens",
    "retention_compute": "retention/compute",
    "kv_kept": "retention/kv",
    "llm_flops_ratio": "cost/llm_flops",
    "llm_tflops": "cost/llm_tflops",
}  # fmt: skip
"""W&B's names of the table's columns, by those in ``table.csv``; a name up to the slash is a section of its charts."""
FRACTIONS = ("retention", "retention_tokens", "retention_compute")
"""Columns that are printed in percent by code of their own."""

REPORT = "report"
FILES = ("table.csv", "table.md", "table.tex", "pairs.csv", "report.html", "figures/*")
MOST_TAG = 64
"""Characters of a tag that W&B takes."""


@dataclass(frozen=True)
class _Page:
    """What one W&B run will show: an arm, or the files of the report.

    Attributes:
        id: of the arm, or ``report``.
        folder: where the marker lies.
        kind: W&B's job type.
        numbers: history and summary, by their names there.
    """

    id: str
    folder: Path
    kind: str
    name: str
    config: Mapping[str, Any]
    tags: Sequence[str]
    notes: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    samples: pd.DataFrame | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    def content(self) -> str:
        """A hash of everything that is logged."""
        samples = None if self.samples is None else self.samples.to_csv(index=False)
        files = {name: sha256(path) for name, path in self.files.items()}
        logged = [
            self.config,
            self.name,
            self.kind,
            self.tags,
            self.notes,
            self.numbers,
            self.texts,
            samples,
            files,
        ]
        return fingerprint(logged, digits=64)

    def size(self) -> int:
        """Bytes that it may take on the disk."""
        samples = 0 if self.samples is None else COPIES * len(self.samples.to_csv(index=False))
        return OVERHEAD + samples + COPIES * sum(path.stat().st_size for path in self.files.values())


def log_run(
    run_dir: Path | str, project: str, mode: str | None = None, made: tuple[StoredRun, Table] | None = None
) -> list[str]:
    """Logs every arm of a run that has stored something and whose content changed since it was logged, and the report.

    W&B's files go to ``<run_dir>/wandb``. Nothing is asked and nothing of W&B's own is printed; after logging
    offline the command that uploads is.

    Args:
        run_dir: ``results/<run>``; its name is the group in W&B.
        project: W&B's project.
        mode: ``online``, ``offline``, or None, see :func:`~stsimdiff.config.wandb_mode.wandb_mode`.
        made: the run's rows and its table, where they have just been made; read and built if not given.

    Returns:
        For each arm, and last for the files of the report, where it is: the folder of its offline run, or its address.

    Raises:
        ConfigError: an unknown mode, or ``online`` without a key.
        DataError: as ``report.rows.read_samples`` does.
        RunFailed: when the service or the disk does not take what is logged; the next call logs it again.
    """
    run_dir = Path(run_dir)
    mode = wandb_mode(mode)
    if mode is None:
        say("W&B: off, as WANDB_MODE=disabled says")
        return []
    with lock.alone(run_dir, lock.WANDB):
        places = _log_pages(run_dir, project, mode, made)
    if mode == "online":
        return list(places.values())
    folder = run_dir / "wandb"
    if places:
        count = len(places) - (REPORT in places)
        upload = f"wandb sync {shlex.quote(str(folder))}/offline-run-*"
        say(f"W&B: {count} {'arm' if count == 1 else 'arms'} logged offline; to upload: {upload}")
    return [str(folder / name) for name in places.values()]


def _log_pages(
    run_dir: Path, project: str, mode: str, made: tuple[StoredRun, Table] | None
) -> dict[str, str]:
    """Log what has changed; the place of every arm, by its id. Two commands at once would write into one W&B run."""
    pages = _pages(run_dir, made)
    places = {page.id: _logged(page, run_dir, project, mode) for page in pages}
    changed = [page for page in pages if places[page.id] is None]
    if changed:
        with _failures_as_messages(run_dir):
            _check_room(run_dir, changed)
            with _service(run_dir):
                written = {page.id: _write(page, run_dir, project, mode) for page in changed}
            for page in changed:
                if mode == "offline":
                    _check_file(run_dir / "wandb" / written[page.id])
                _mark(page, run_dir, written[page.id], {"project": project, "mode": mode})
        places |= written
    return {name: place for name, place in places.items() if place is not None}


def _pages(run_dir: Path, made: tuple[StoredRun, Table] | None = None) -> list[_Page]:
    if made is None:
        stored = read(run_dir)
        made = stored, build(stored)
    stored, table = made
    samples = dict(list(stored.samples.groupby("arm", sort=False)))
    rows = {row.arm: (section, row) for section in table.sections for row in section.rows}
    pages = [_arm_page(arm, *rows[arm.id], samples[arm.id]) for arm in stored.arms if arm.id in samples]
    files_made = sorted(path for pattern in FILES for path in run_dir.glob(pattern))
    if pages and files_made:
        files = {str(path.relative_to(run_dir)): path for path in files_made}
        about = sorted({tag for page in pages for tag in page.tags[:2]})
        notes = "Table, figures and page of all arms of this group."
        config = {"run": stored.run, "arms": [page.id for page in pages]}
        folder = run_dir / "wandb"
        pages.append(_Page(REPORT, folder, REPORT, f"{stored.run} report", config, about, notes, files=files))
    return pages


def _arm_page(arm: StoredArm, section: Section, row: TableRow, samples: pd.DataFrame) -> _Page:
    budget = () if row.reference else (f"{100 * row.retention:.4g} % {row.budget}",)
    tags = (section.model, section.benchmark, row.method, *budget, *([row.fault] if row.fault else []))
    return _Page(
        arm.id,
        arm.folder,
        "arm",
        _name(row),
        arm.record,
        [tag[:MOST_TAG] for tag in dict.fromkeys(tags)],
        "\n".join(part for part in (columns.marks(row), *section.about[:1]) if part),
        _numbers(row, samples),
        columns.texts(row),
        _samples(samples),
    )


def _name(row: TableRow) -> str:
    """A name that W&B takes: it allows 128 characters, and the end tells variants apart."""
    place = "" if row.reference else f" {100 * row.retention:.4g} % {row.budget}"
    room = MOST_CHARACTERS - len(place)
    label = row.label if len(row.label) <= room else f"{row.label[: room // 2 - 1]}…{row.label[-room // 2 :]}"
    return label + place


def _numbers(row: TableRow, samples: pd.DataFrame) -> dict[str, float]:
    """The row's numbers, its mean TFLOPs and median times; shares in percent, and none that cannot be averaged."""
    averaged = [column for column in columns.COLUMNS if not column.is_text and column.name != "budget"]
    numbers = {
        key(column.name): (100 if column.name in FRACTIONS else column.scale) * column.value(row)
        for column in averaged
    }
    for name, accuracy in row.categories.items():
        numbers[_category(one_line(name), numbers)] = accuracy
    answered = samples[~samples["failed"]]
    numbers[key("llm_tflops")] = float(answered["llm_flops"].mean()) / 1e12
    for time in TIMES:
        numbers.setdefault(key(f"{time}_ms"), 1000 * float(answered[f"{time}_s"].median()))
    return {name: value for name, value in numbers.items() if not math.isnan(value)}


def _category(name: str, used: Mapping[str, float]) -> str:
    """W&B's name of a category, whatever its benchmark calls it: nothing, as another one, or as a column here."""
    names = [f"accuracy/{name}"] if name else []
    further = (f"accuracy/category_{name}{'_' * n}" for n in itertools.count())
    return next(candidate for candidate in itertools.chain(names, further) if candidate not in used)


def key(name: str) -> str:
    """W&B's name of a column, by that in ``table.csv``."""
    if name in KEYS:
        return KEYS[name]
    if name.endswith("_ms"):
        return f"latency/{name}"
    return f"count/{name}" if name.partition("_")[0] == "n" else f"other/{name}"


def _samples(rows: pd.DataFrame) -> pd.DataFrame:
    """The sample table, shares in percent, times in milliseconds, None where there is nothing."""
    shown = rows[list(SAMPLES)].assign(prefill_ms=1000 * rows["prefill_s"], error=rows["error_message"])
    shares = ["retention_tokens", "retention_compute"]
    shown[shares] = 100 * shown[shares]
    shown = shown.astype(object)
    return shown.where(shown.notna(), None)


def _logged(page: _Page, run_dir: Path, project: str, mode: str) -> str | None:
    """The place that the arm's marker names, if this very content is there; else None."""
    try:
        marker = json.loads((page.folder / MARKER).read_text(encoding="utf-8"))
        place = marker.pop("place")
    except (OSError, ValueError, KeyError):
        return None  # never logged, or cut off while the marker was written
    if marker != {"content": page.content(), "project": project, "mode": mode}:
        return None
    return place if mode == "online" or (run_dir / "wandb" / place).is_dir() else None


def _mark(page: _Page, run_dir: Path, place: str, target: Mapping[str, str]) -> None:
    """Notes what is logged now, and removes offline folders of the arm that it supersedes.

    All of them would be uploaded under one id, and only the newest is true.
    """
    for folder in (run_dir / "wandb").glob(f"offline-run-*-{_run_id(page, run_dir)}*"):
        if folder.name != place:
            shutil.rmtree(folder, ignore_errors=True)
    marker = {"content": page.content(), **target, "place": place}
    write_whole(page.folder / MARKER, json.dumps(marker, indent=1) + "\n")


@contextmanager
def _service(run_dir: Path) -> Iterator[None]:
    """W&B's service for the time of the logging, with all its files in the run's folder.

    Its files are complete only when it has ended: a run's ``finish`` returns before its file is closed.
    """
    import wandb

    earlier = os.environ.get(DATA_FOLDER)
    (run_dir / "wandb").mkdir(exist_ok=True)
    try:
        yield
    finally:
        os.environ.pop(DATA_FOLDER, None)
        if earlier is not None:
            os.environ[DATA_FOLDER] = earlier
        if wandb.run is None:  # else the caller is logging something of its own
            wandb.teardown()


@contextmanager
def _failures_as_messages(run_dir: Path) -> Iterator[None]:
    import wandb

    try:
        yield
    except (wandb.Error, OSError) as error:
        raise RunFailed(
            f"W&B did not take the arms of {run_dir}: {str(error).strip().rstrip('.') or type(error).__name__}; the "
            "same command logs them again, logger.mode=offline needs no service, logger=none leaves W&B out"
        ) from error


def _check_room(run_dir: Path, pages: list[_Page]) -> None:
    """Raise :class:`OSError` where the disk has no room: W&B's service would not say that its file is torn."""
    needed = sum(page.size() for page in pages)
    free = shutil.disk_usage(run_dir).free
    if free < needed:
        raise OSError(
            f"no space left on the disk: {free // 1000} kB are free, {needed // 1000} kB are needed"
        )


def _check_file(folder: Path) -> None:
    """Raise :class:`OSError` unless W&B has written an offline run there; where it may not, it writes elsewhere."""
    files = list(folder.glob("run-*.wandb"))
    if not files or not files[0].stat().st_size:
        raise OSError(f"{folder} was not written")


def _run_id(page: _Page, run_dir: Path) -> str:
    return fingerprint(f"{_uid(run_dir)}/{page.id}", digits=16)


def _uid(run_dir: Path) -> str:
    """What tells this run's folder from every other, made once: it goes with the folder, and a copy gets its own.

    Raises:
        OSError: when it cannot be written.
    """
    file, here = run_dir / UID, str(run_dir.resolve())
    known = _identity(file)
    if known is not None and known["folder"] == here:
        return known["uid"]
    origin = Path(known["folder"]) / UID if known else None
    moved = origin is not None and _identity(origin) != known
    identity = {"uid": known["uid"] if known and moved else secrets.token_hex(16), "folder": here}
    write_whole(file, json.dumps(identity) + "\n")
    # Of several processes the last one decides for all.
    return (_identity(file) or identity)["uid"]


def _identity(file: Path) -> dict[str, str] | None:
    """What a folder's file says of it; ``None`` where it is absent or broken."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {"uid": str(content["uid"]), "folder": str(content["folder"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(page: _Page, run_dir: Path, project: str, mode: str) -> str:
    """One W&B run from start to finish; the name of its offline folder, or its address."""
    import wandb

    run_id = _run_id(page, run_dir)
    staged = run_dir.resolve() / "wandb" / "tables" / run_id
    shutil.rmtree(
        staged, ignore_errors=True
    )  # of an earlier time; nothing refers to it once that is superseded
    staged.mkdir(parents=True)
    os.environ[DATA_FOLDER] = str(staged)
    settings = wandb.Settings(
        silent=True,
        init_timeout=INIT_SECONDS,
        x_graphql_retry_max=RETRIES,
        x_file_stream_retry_max=RETRIES,
        x_file_transfer_retry_max=RETRIES,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    run = wandb.init(
        project=project,
        dir=str(run_dir),
        id=run_id,
        resume="allow" if mode == "online" else None,  # offline there is nothing to resume, and it warns
        group=run_dir.resolve().name,
        name=page.name,
        config=dict(page.config),
        tags=page.tags,
        notes=page.notes,
        job_type=page.kind,
        mode=mode,
        reinit="create_new",
        settings=settings,
    )
    logged: dict[str, Any] = dict(page.numbers)
    if page.samples is not None:
        logged["samples"] = wandb.Table(columns=list(page.samples.columns), data=page.samples.values.tolist())
    if logged:
        run.log(logged)
    run.summary.update({**page.numbers, **page.texts})
    if page.files:
        artifact = wandb.Artifact(f"report-{run_id}", type=REPORT, description=page.notes)
        for name, path in page.files.items():
            artifact.add_file(str(path), name)
        run.log_artifact(artifact)
    run.finish(exit_code=0)
    return run.url if mode == "online" else Path(run.dir).parent.name
