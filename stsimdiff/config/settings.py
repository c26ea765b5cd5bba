"""Settings: what all arms of one pass share, checked without loading anything, not even torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig
from pydantic import AfterValidator, BeforeValidator, Field

from stsimdiff.budget import Budget
from stsimdiff.config.benchmark import BenchmarkSettings, benchmark_settings, with_data
from stsimdiff.config.checks import Folder, failure_limit, group, told
from stsimdiff.config.model import ModelSettings, model_settings, with_checkpoint
from stsimdiff.config.protocol import ProtocolSettings, check_protocol, protocol_settings
from stsimdiff.config.wandb_mode import wandb_mode
from stsimdiff.data.digests import unwritten
from stsimdiff.errors import ConfigError, DataError, MissingParts
from stsimdiff.schema import FOUND, build, check, checked, one_of, only, settable
from stsimdiff.terminal import clean

MOST_RUN = 128
"""W&B takes no longer name of a group."""
PARTS = ("compressor", "budget", "results", "data", "arms", "label")
"""Keys of a configuration that are no settings of a pass."""


@dataclass(frozen=True)
class NoLogger:
    """Nothing besides the run's own folder."""

    name: Literal["none"]


@dataclass(frozen=True)
class WandbLogger:
    """The group ``logger`` for W&B; ``mode`` ``None`` is offline, unless WANDB_MODE switches it off."""

    name: Literal["wandb"]
    project: Annotated[
        str,
        # What W&B takes.
        Field(pattern=r"^[^/\\#?%:\x00-\x1f]*[^/\\#?%:\x00-\x1f\s][^/\\#?%:\x00-\x1f]*$", max_length=128),
        Field(description="1 to 128 letters, none of / \\ # ? % :"),
    ]
    mode: Literal["offline", "online"] | None


LOGGERS: dict[str, type[NoLogger] | type[WandbLogger]] = {"none": NoLogger, "wandb": WandbLogger}


def _resolved(folder: str) -> str:
    return str(Path(folder).resolve())


@dataclass(frozen=True)
class CacheSettings:
    """The group ``cache``: ``max_gb`` of vision features in memory, ``disk_gb`` in a ``folder``."""

    max_gb: Annotated[float, Field(ge=0)]
    folder: Annotated[Folder, AfterValidator(_resolved)] | None
    disk_gb: Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class VideoSettings:
    """The group ``video``: how videos are read. Frames are the same with any values, and so are arms."""

    workers: Annotated[int, Field(ge=0, le=1024)] | None
    ahead: Annotated[int, Field(ge=1, le=1024)]
    ahead_gb: Annotated[float, Field(gt=0)]


def _run(value: Any) -> str:
    # A run named by a date reads as a number.
    run = str(value) if type(value) is int else value
    if not isinstance(run, str) or not re.fullmatch(r"\w[\w.+-]*", run):
        raise ConfigError(f"run={run!r} is no name for a run; allowed: letters, digits, and . _ + - within")
    if len(run.encode()) > MOST_RUN:
        raise ConfigError(f"run={run} is too long for a name; allowed: {MOST_RUN} letters")
    return run


@dataclass(frozen=True)
class Settings:
    """What all arms of one pass share.

    Attributes:
        run: name of the run.
        folder: ``<results>/<run>``; every arm has a folder in it.
        limit: only the first so many questions, or ``None``.
        seed: of everything random.
        retry_failed: whether failed answers are asked again.
        max_failures: how many failures the run goes on with, or which share of the videos, as ``2%``; a video that
            cannot be read counts once. See :func:`stsimdiff.data.videos.failures_allowed`.
        sample_seconds: longest time for one answer, or ``None``.
        reuse_prefix: whether an arm that reads nothing of the question prefills a video once for all its questions.
        overlays: for how many questions each token's fate is stored. Each adds the frames of a video to the page; a
            larger one would not open on a phone.
        breakdown: column of the benchmark's rows that the report breaks accuracies down by, or ``None``.
        jobs: how many share the videos of a model and benchmark, where a launcher starts jobs.
        verbose: whether all of the report is printed at the end, instead of one screen.
        plan: only say what the run would cost.
        plan_tflops: TFLOP/s of the device, or ``None``.
        proposed: name or dotted path of the method that the run is about, or ``None`` where it names none.
    """

    model: ModelSettings
    benchmark: BenchmarkSettings
    protocol: ProtocolSettings
    logger: NoLogger | WandbLogger
    cache: CacheSettings
    video: VideoSettings
    run: Annotated[
        str, BeforeValidator(_run), Field(description="a name of letters, digits, and . _ + - within")
    ]
    limit: Annotated[int, Field(ge=1)] | None
    seed: Annotated[int, Field(ge=0)]
    retry_failed: bool
    max_failures: Annotated[
        int | str,
        BeforeValidator(failure_limit),
        Field(description="a whole number from 0, or a share of the videos, such as 2%"),
    ]
    sample_seconds: Annotated[float, Field(gt=0)] | None
    reuse_prefix: bool
    overlays: Annotated[int, Field(ge=0, le=100)]
    breakdown: Annotated[str, Field(pattern=r"\S", description="the name of a column")] | None
    jobs: Annotated[int, Field(ge=1, le=10_000)]
    verbose: bool
    plan: bool
    plan_tflops: Annotated[float, Field(gt=0)] | None
    proposed: str | None
    folder: Path = field(metadata=FOUND)


GROUPS = ("model", "benchmark", "protocol", "logger", "cache", "video")


def settings_from_config(cfg: DictConfig) -> Settings:
    """The checked settings of a composed configuration.

    Raises:
        ConfigError: for a value out of range; the message says the range.
        MissingParts: for weights or data that are not there: everything at once.
    """
    only("", [str(key) for key in cfg if key != "hydra"], (*settable(Settings), *PARTS))
    values = checked(Settings, {key: cfg[key] for key in settable(Settings) if key not in GROUPS})
    results, data = check("results", cfg.results, Folder), check("data", cfg.data, Folder | None)
    logger = group(cfg, "logger")
    one_of("logger.name", logger.get("name"), LOGGERS)
    values["logger"] = build(LOGGERS[logger["name"]], logger, "logger")
    if isinstance(values["logger"], WandbLogger):
        wandb_mode(values["logger"].mode)
    values["cache"] = build(CacheSettings, group(cfg, "cache"), "cache")
    values["video"] = build(VideoSettings, group(cfg, "video"), "video")
    model_node, benchmark_node = group(cfg, "model"), group(cfg, "benchmark")
    check_protocol(cfg)
    model = model_settings(model_node)
    benchmark = benchmark_settings(benchmark_node, model.prompts or {}, data)
    # Free text that is stored and shown.
    model = replace(model, name=told(cfg, "model")["name"])
    safe = told(cfg, "benchmark")
    benchmark = replace(benchmark, name=safe["name"], note=safe["note"])
    with unwritten() if values["plan"] else nullcontext():
        model, benchmark = _together(
            lambda: with_checkpoint(model, needs_weights=not values["plan"]),
            lambda: with_data(benchmark, needs_data=not values["plan"]),
        )
    return Settings(
        model=model,
        benchmark=benchmark,
        protocol=protocol_settings(cfg, benchmark),
        folder=Path(results) / values["run"],
        **values,
    )


def label_from_config(cfg: DictConfig) -> str | None:
    """What the arm of a composed configuration is called in tables; ``None`` where nothing is said.

    Raises:
        ConfigError: for what is no text of at most 200 characters.
    """
    label = cfg.label if cfg.label is None else " ".join(clean(str(cfg.label)).split())
    return check("label", label, Annotated[str, Field(max_length=200)] | None)


def budget_from_config(cfg: DictConfig) -> Budget:
    """The checked budget of a composed configuration.

    Raises:
        ConfigError: for an unknown kind or key, or a retention out of range.
    """
    node = group(cfg, "budget")
    only("budget", node, settable(Budget))
    return Budget(**node)


def _together(*parts: Callable[[], Any]) -> list[Any]:
    """What each part gives, or all that is missing: a user should not have to fetch things one by one."""
    results, missing = [], []
    for part in parts:
        try:
            results.append(part())
        except MissingParts as error:
            missing += error.parts
        except DataError as error:
            missing.append(str(error))
    if missing:
        raise MissingParts(missing)
    return results
