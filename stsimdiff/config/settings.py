"""Settings: what all arms of one pass share, checked without loading anything, not even torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from stsimdiff.budget import Budget
from stsimdiff.config.benchmark import benchmark_settings, choose_data, choose_prompt
from stsimdiff.config.checks import failure_limit, group, number_above, one_of, only, path, text, told, whole
from stsimdiff.config.model import model_settings
from stsimdiff.config.protocol import check_protocol, protocol_settings
from stsimdiff.config.wandb_mode import MODES, wandb_mode
from stsimdiff.data.digests import unwritten
from stsimdiff.errors import ConfigError, DataError, Missing

LOGGERS = {"none": ("name",), "wandb": ("name", "project", "mode")}
CACHE = ("max_gb", "folder", "disk_gb")
TOP = (
    "model", "benchmark", "protocol", "compressor", "budget", "logger", "run", "results", "data", "limit",
    "seed", "retry_failed", "max_failures", "sample_seconds", "cache", "overlays", "plan", "plan_tflops",
    "shards", "arms",
)  # fmt: skip
MOST_RUN = 128
"""W&B takes no longer name of a group."""
MOST_PROJECT = 128
PROJECT = rf"(?=.*\S)[^/\\#?%:\x00-\x1f\ud800-\udfff]{{1,{MOST_PROJECT}}}"
"""What W&B takes for a project's name."""
MOST_SEED = 2**63 - 1
MOST_SHARDS = 10_000
MOST_OVERLAYS = 100
"""Each adds the frames of a video to the page; a larger one would not open on a phone."""


@dataclass(frozen=True)
class Settings:
    """What all arms of one pass share.

    Attributes:
        model: the keys of ``configs/model/*.yaml``, those of its family included; ``path`` is always
            set (the packaged one if none was given). Added: ``checkpoint``, the fingerprint of the files there,
            ``layers``, the decoder layers that its ``config.json`` names (``None`` if it does not), ``generation``,
            what it says of generation that changes greedy answers, and ``code``, the version of the family's source.
        benchmark: ``name, task, families, chance, macro, note, data, prompt, decoder, video_seconds, allow_missing,
            max_new_tokens``; ``prompt`` is always set. Added: ``revision`` of the data by its content, ``root``, the
            folder of a public benchmark, ``code``, the version of the task that makes the prompt and scores, and
            ``generation``: ``max_new_tokens`` of an answer and ``until``, texts that end it.
        protocol: what :func:`stsimdiff.config.protocol.protocol_settings` returns.
        logger: ``name`` and the logger's own keys.
        run: name of the run.
        folder: ``<results>/<run>``; every arm has a folder in it.
        limit: only the first so many questions, or ``None``.
        seed: of everything random.
        retry_failed: whether failed answers are asked again.
        max_failures: how many failures the run goes on with, or which share of the videos, as ``2%``; a video that
            cannot be read counts once. See :func:`stsimdiff.data.videos.failures_allowed`.
        sample_seconds: longest time for one answer, or ``None``.
        cache: ``max_gb`` of vision features in memory, ``folder`` and ``disk_gb`` of those on disk.
        overlays: for how many questions each token's fate is stored.
        shards: jobs that share the videos, where a launcher starts jobs.
        plan: only say what the run would cost. Without weights at ``path``, ``path`` is what was given or ``None``,
            ``checkpoint`` and ``layers`` are ``None``; without the data, ``root`` and ``revision`` are.
        plan_tflops: TFLOP/s of the device, or ``None``.
    """

    model: dict[str, Any]
    benchmark: dict[str, Any]
    logger: dict[str, Any]
    run: str
    folder: Path
    protocol: dict[str, Any] = dataclasses.field(default_factory=dict)
    limit: int | None = None
    seed: int = 0
    retry_failed: bool = False
    max_failures: int | str = "2%"
    sample_seconds: float | None = None
    cache: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"max_gb": 0.0, "folder": None, "disk_gb": 20.0}
    )
    overlays: int = 0
    shards: int = 1
    plan: bool = False
    plan_tflops: float | None = None


def settings_from_config(cfg: DictConfig) -> Settings:
    """The checked settings of a composed configuration.

    Raises:
        ConfigError: for a value out of range; the message says the range.
        Missing: for weights or data that are not there: everything at once.
    """
    only("", {str(key): cfg[key] for key in cfg if key != "hydra"}, TOP)
    # A run named by a date reads as a number.
    run = str(cfg.run) if type(cfg.run) is int else cfg.run
    results = path("results", cfg.results)
    if not isinstance(run, str) or not re.fullmatch(r"\w[\w.+-]*", run):
        raise ConfigError(f"run={run!r} is no name for a run; allowed: letters, digits, and . _ + - within")
    if len(run.encode()) > MOST_RUN:
        raise ConfigError(f"run={run} is too long for a name; allowed: {MOST_RUN} letters")
    limit = whole(cfg, "limit", least=1, nullable=True)
    seed = whole(cfg, "seed", least=0, most=MOST_SEED)
    most = failure_limit(cfg.max_failures)
    overlays = whole(cfg, "overlays", least=0, most=MOST_OVERLAYS)
    shards = whole(cfg, "shards", least=1, most=MOST_SHARDS)
    for name in ("retry_failed", "plan"):
        if not isinstance(cfg[name], bool):
            raise ConfigError(f"{name}={cfg[name]!r} is out of range; allowed: true, false")
    logger = group(cfg, "logger")
    one_of("logger.name", logger.get("name"), LOGGERS)
    only("logger", logger, LOGGERS[logger["name"]])
    if logger.get("mode") is not None:
        one_of("logger.mode", logger["mode"], MODES)
    if logger["name"] == "wandb":
        text(
            "logger.project", logger["project"], PROJECT, f"1 to {MOST_PROJECT} letters, none of / \\ # ? % :"
        )
        wandb_mode(logger["mode"])
    given, asked = group(cfg, "model"), group(cfg, "benchmark")
    for key, form in (("name", r"(?s).*\S.*"), ("family", r"[\w.]+")):
        if key in given:
            text(f"model.{key}", given[key], form, "a name")
    given |= {"path": path("model.path", given["path"], nullable=True)} if "path" in given else {}
    asked |= {"data": path("benchmark.data", asked["data"], nullable=True)} if "data" in asked else {}
    _check_benchmark(asked)
    check_protocol(cfg)
    choose_prompt(given.pop("prompts", None), asked)
    choose_data(path("data", cfg.data, nullable=True), asked)
    for node, names in ((given, ("name",)), (asked, ("name", "note"))):
        # Free text that is stored and shown.
        safe = told(cfg, "model" if node is given else "benchmark")
        node |= {name: safe[name] for name in names if name in node}
    with unwritten() if cfg.plan is True else nullcontext():
        model, benchmark = _together(
            lambda: model_settings(given, needs_weights=not cfg.plan),
            lambda: benchmark_settings(asked, needs_data=not cfg.plan),
        )
    return Settings(
        model=model,
        benchmark=benchmark,
        logger=logger,
        run=run,
        protocol=protocol_settings(cfg, benchmark),
        folder=Path(results) / run,
        limit=limit,
        seed=seed,
        retry_failed=cfg.retry_failed,
        max_failures=most,
        sample_seconds=None
        if cfg.sample_seconds is None
        else number_above("sample_seconds", cfg.sample_seconds),
        cache=_cache(group(cfg, "cache")),
        overlays=overlays,
        shards=shards,
        plan=cfg.plan,
        plan_tflops=None if cfg.plan_tflops is None else number_above("plan_tflops", cfg.plan_tflops),
    )


def budget_from_config(cfg: DictConfig) -> Budget:
    """The checked budget of a composed configuration.

    Raises:
        ConfigError: for an unknown kind or key, or a retention out of range.
    """
    given = group(cfg, "budget")
    only("budget", given, [field.name for field in dataclasses.fields(Budget)])
    budget = Budget(**given)
    return dataclasses.replace(budget, retention=float(budget.retention))


def _check_benchmark(benchmark: dict[str, Any]) -> None:
    """Check what is said of the questions; what the rest means is checked where it is used."""
    for key in ("name", "task"):
        if key in benchmark:
            text(
                f"benchmark.{key}",
                benchmark[key],
                r"\w[\w.-]{0,127}",
                "a name of letters, digits, and . _ - within",
            )
    if benchmark.get("note") is not None:
        text("benchmark.note", benchmark["note"], r"(?s).*", "text, or null")
    chance, families = benchmark.get("chance"), benchmark.get("families")
    if chance is not None and number_above("benchmark.chance", chance, zero=True) > 100:
        raise ConfigError(
            f"benchmark.chance={chance} is out of range; allowed: a number from 0 to 100, or null"
        )
    if families is None:
        return
    listed = isinstance(families, list) and all(isinstance(family, str) for family in families)
    if not listed or not families or len(set(families)) < len(families):
        hint = f"; one family is written benchmark.families=[{families}]" if isinstance(families, str) else ""
        raise ConfigError(
            f"benchmark.families={families!r} is out of range; allowed: a list of families, each once, or null for all"
            + hint
        )


def _together(*parts: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """What each part gives, or all that is missing: a user should not have to fetch things one by one."""
    found, missing = [], []
    for part in parts:
        try:
            found.append(part())
        except Missing as error:
            missing += error.parts
        except DataError as error:
            missing.append(str(error))
    if missing:
        raise Missing(missing)
    return found


def _cache(cache: dict[str, Any]) -> dict[str, Any]:
    only("cache", cache, CACHE)
    folder = path("cache.folder", cache["folder"], nullable=True)
    return {
        "max_gb": number_above("cache.max_gb", cache["max_gb"], zero=True),
        "folder": folder and str(Path(folder).resolve()),
        "disk_gb": number_above("cache.disk_gb", cache["disk_gb"]),
    }
