"""Settings: what all arms of one pass share, checked without loading anything, not even torch."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stsimdiff.budget import Budget
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.resources import embedded_checkpoint, folder

ATTENTION = ("sdpa", "eager", "flash_attention_2")
DTYPES = ("auto", "float32", "float16", "bfloat16")
LOGGERS = {"none": ("name",), "wandb": ("name", "project", "mode")}
LOGGER_MODES = ("offline", "online")
MODEL = ("name", "family", "path", "frames", "device", "dtype", "attn_implementation", "threads")
BENCHMARK = ("name", "task", "families", "chance", "note", "data")
HASHED_WHOLE = 64 * 2**20
"""Checkpoint files up to this size are hashed whole, larger ones by size, first and last mebibyte."""


@dataclass(frozen=True)
class Settings:
    """What all arms of one pass share.

    Attributes:
        model: ``name, family, path, frames, device, dtype, attn_implementation, threads``; ``path`` is always
            set (the packaged one if none was given). Added: ``checkpoint``, the fingerprint of the files there,
            and ``layers``, the decoder layers that its ``config.json`` names (``None`` if it does not).
        benchmark: ``name, task, families, chance, note, data``. Added: ``revision`` of the data, and ``code``, the
            version of the task that makes the prompt.
        logger: ``name`` and the logger's own keys.
        run: name of the run.
        folder: ``<results>/<run>``; every arm has a folder in it.
        limit: only the first so many questions, or ``None``.
        seed: of everything random.
        retry_failed: whether failed answers are asked again.
        max_failures: failed samples after which the run gives up.
    """

    model: dict[str, Any]
    benchmark: dict[str, Any]
    logger: dict[str, Any]
    run: str
    folder: Path
    limit: int | None = None
    seed: int = 0
    retry_failed: bool = False
    max_failures: int = 10


def settings_from_config(cfg: DictConfig) -> Settings:
    """The checked settings of a composed configuration.

    Raises:
        ConfigError: for a value out of range; the message says the range.
        DataError: for a checkpoint folder that is missing.
    """
    run = cfg.run
    if not isinstance(run, str) or not re.fullmatch(r"\w[\w.+-]*", run):
        raise ConfigError(f"run={run!r} is no name for a run; allowed: letters, digits, and . _ + - within")
    limit = _whole(cfg, "limit", least=1, nullable=True)
    seed = _whole(cfg, "seed", least=0)
    most = _whole(cfg, "max_failures", least=0)
    if not isinstance(cfg.retry_failed, bool):
        raise ConfigError(f"retry_failed={cfg.retry_failed!r} is out of range; allowed: true, false")
    logger = plain(cfg.logger)
    _one_of("logger.name", logger.get("name"), LOGGERS)
    _only("logger", logger, LOGGERS[logger["name"]])
    _one_of("logger.mode", logger.get("mode", LOGGER_MODES[0]), LOGGER_MODES)
    return Settings(
        model=_model(plain(cfg.model)),
        benchmark=_benchmark(plain(cfg.benchmark)),
        logger=logger,
        run=run,
        folder=Path(str(cfg.results)) / run,
        limit=limit,
        seed=seed,
        retry_failed=cfg.retry_failed,
        max_failures=most,
    )


def budget_from_config(cfg: DictConfig) -> Budget:
    """The checked budget of a composed configuration.

    Raises:
        ConfigError: for an unknown kind or key, or a retention out of range.
    """
    given = plain(cfg.budget)
    _only("budget", given, [field.name for field in dataclasses.fields(Budget)])
    budget = Budget(**given)
    return dataclasses.replace(budget, retention=float(budget.retention))


def plain(node: Any) -> dict[str, Any]:
    """A node of the configuration as plain values.

    Raises:
        omegaconf.errors.OmegaConfBaseException: for a value that is missing or refers to one that is.
    """
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)


def suggestion(wrong: str, right: Iterable[str]) -> str:
    """``"; did you mean x?"`` for the closest of the right names, or an empty string."""
    close = difflib.get_close_matches(wrong, list(right), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _model(model: dict[str, Any]) -> dict[str, Any]:
    from stsimdiff.models import FAMILIES

    _only("model", model, MODEL)
    _one_of("model.family", model["family"], sorted(FAMILIES))
    _one_of("model.attn_implementation", model["attn_implementation"], ATTENTION)
    _one_of("model.dtype", model["dtype"], DTYPES)
    if not re.fullmatch(r"auto|[a-z]+(:\d+)?", str(model["device"])):
        raise ConfigError(
            f"model.device={model['device']!r} is out of range; allowed: auto, cpu, cuda, cuda:1 ..."
        )
    frames = model["frames"]
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise ConfigError(f"model.frames={frames!r} is out of range; allowed: a whole number from 1")
    threads = model["threads"]
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ConfigError(
            f"model.threads={threads!r} is out of range; allowed: a whole number from 1, or null"
        )
    path = Path(model["path"]).expanduser() if model["path"] else embedded_checkpoint()
    if not (path / "config.json").is_file():
        hint = (
            "name a folder with config.json and weights" if model["path"] else "make train-embedded makes it"
        )
        raise DataError(f"no checkpoint at model.path={path}; {hint}")
    return {**model, "path": str(path.resolve()), "checkpoint": fingerprint(path), "layers": _layers(path)}


def _layers(checkpoint: Path) -> int | None:
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{checkpoint / 'config.json'} is broken: {error}") from error
    return config.get("text_config", config).get("num_hidden_layers")


def fingerprint(directory: Path) -> str:
    """12 hex digits that change with the files of a folder (hidden files and notes aside)."""
    digest = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if not file.is_file() or file.name.startswith(".") or file.suffix == ".md":
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            if size <= HASHED_WHOLE:
                digest.update(stream.read())
            else:
                digest.update(stream.read(2**20))
                stream.seek(-(2**20), 2)
                digest.update(stream.read())
    return digest.hexdigest()[:12]


def _benchmark(benchmark: dict[str, Any]) -> dict[str, Any]:
    _only("benchmark", benchmark, BENCHMARK)
    revision = None
    if benchmark["task"] == "clips":
        from stsimdiff.data import clips

        revision = clips.GENERATOR_VERSION
        for family in benchmark["families"] or ():
            _one_of("benchmark.families", family, clips.FAMILIES)
    if benchmark["data"] and not Path(benchmark["data"]).expanduser().is_dir():
        raise DataError(f"benchmark.data={benchmark['data']} is no folder")
    # The task's own files make the prompt; a task that is not ours comes with lmms-eval.
    own = folder("tasks") / str(benchmark["task"])
    code = fingerprint(own) if own.is_dir() else f"lmms_eval {version('lmms_eval')}"
    return {**benchmark, "revision": revision, "code": code}


def _only(group: str, given: dict[str, Any], allowed: Iterable[str]) -> None:
    """Check that a group has these keys, all of them and no others."""
    allowed = list(allowed)
    for key in given:
        if key not in allowed:
            raise ConfigError(
                f"{group}.{key} is unknown: it has {', '.join(allowed)}{suggestion(key, allowed)}"
            )
    for key in allowed:
        if key not in given:
            raise ConfigError(f"{group}.{key} is missing; leave out ~{group}.{key}")


def _one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(
            f"{name}={value} is unknown; allowed: {', '.join(allowed)}{suggestion(str(value), allowed)}"
        )


def _whole(cfg: DictConfig, key: str, least: int, nullable: bool = False) -> Any:
    value = cfg[key]
    if value is None and nullable:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        also = " or null" if nullable else ""
        raise ConfigError(f"{key}={value!r} is out of range; allowed: a whole number from {least}{also}")
    return value
