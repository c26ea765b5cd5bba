"""Settings: what all arms of one pass share, checked without loading anything, not even torch."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stsimdiff.budget import Budget
from stsimdiff.compressors import code_version
from stsimdiff.errors import ConfigError, DataError, Missing
from stsimdiff.evaluate.wandb_mode import MODES, wandb_mode
from stsimdiff.resources import embedded_checkpoint, folder

ATTENTION = ("sdpa", "eager", "flash_attention_2")
DTYPES = ("auto", "float32", "float16", "bfloat16")
LOGGERS = {"none": ("name",), "wandb": ("name", "project", "mode")}
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
MODEL = (
    *("name", "family", "path", "frames", "device", "device_map", "dtype", "attn_implementation", "threads"),
    "trust_remote_code",
)
CACHE = ("max_gb", "folder", "disk_gb")
BENCHMARK = (
    *("name", "task", "families", "chance", "macro", "note"),
    *("data", "prompt", "decoder", "video_seconds", "allow_missing"),
)
TOP = (
    *("model", "benchmark", "compressor", "budget", "logger"),
    *("run", "results", "data", "limit", "seed", "retry_failed", "max_failures"),
    *("sample_seconds", "cache", "overlays", "plan", "plan_tflops", "shards", "arms"),
)
MOST_SEED = 2**63 - 1
MOST_THREADS = 1024
MOST_SHARDS = 10_000
MOST_OVERLAYS = 100
"""Each adds the frames of a video to the page; a larger one would not open on a phone."""
HASHED_WHOLE = 64 * 2**20
"""Checkpoint files up to this size are hashed whole, larger ones by size, first and last mebibyte."""


@dataclass(frozen=True)
class Settings:
    """What all arms of one pass share.

    Attributes:
        model: the keys of ``configs/model/*.yaml``, those of its family included; ``path`` is always
            set (the packaged one if none was given). Added: ``checkpoint``, the fingerprint of the files there,
            and ``layers``, the decoder layers that its ``config.json`` names (``None`` if it does not); for a user's
            own family also ``code``, the version of its source.
        benchmark: ``name, task, families, chance, macro, note, data, prompt, decoder, video_seconds, allow_missing``;
            ``prompt`` is always set. Added: ``revision`` of the data, ``root``, the folder of a public benchmark, and
            ``code``, the version of the task that makes the prompt, with what else the user chose of it.
        logger: ``name`` and the logger's own keys.
        run: name of the run.
        folder: ``<results>/<run>``; every arm has a folder in it.
        limit: only the first so many questions, or ``None``.
        seed: of everything random.
        retry_failed: whether failed answers are asked again.
        max_failures: failures after which the run gives up; a video that cannot be read counts once.
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
    limit: int | None = None
    seed: int = 0
    retry_failed: bool = False
    max_failures: int = 10
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
    _only("", {key: cfg[key] for key in cfg if key != "hydra"}, TOP)
    # A run named by a date reads as a number.
    run = str(cfg.run) if type(cfg.run) is int else cfg.run
    if not isinstance(cfg.results, str) or not cfg.results.strip():
        raise ConfigError(
            f"results={cfg.results!r} is out of range; allowed: the path of a folder, such as results"
        )
    if not isinstance(run, str) or not re.fullmatch(r"\w[\w.+-]*", run):
        raise ConfigError(f"run={run!r} is no name for a run; allowed: letters, digits, and . _ + - within")
    limit = _whole(cfg, "limit", least=1, nullable=True)
    seed = _whole(cfg, "seed", least=0, most=MOST_SEED)
    most = _whole(cfg, "max_failures", least=0)
    overlays = _whole(cfg, "overlays", least=0, most=MOST_OVERLAYS)
    shards = _whole(cfg, "shards", least=1, most=MOST_SHARDS)
    for name in ("retry_failed", "plan"):
        if not isinstance(cfg[name], bool):
            raise ConfigError(f"{name}={cfg[name]!r} is out of range; allowed: true, false")
    logger = plain(cfg.logger)
    _one_of("logger.name", logger.get("name"), LOGGERS)
    _only("logger", logger, LOGGERS[logger["name"]])
    if logger.get("mode") is not None:
        _one_of("logger.mode", logger["mode"], MODES)
    if logger["name"] == "wandb":
        wandb_mode(logger["mode"])
    given, asked = plain(cfg.model), plain(cfg.benchmark)
    _prompt(given.pop("prompts", None), asked)
    _data_folder(cfg.data, asked)
    model, benchmark = _together(
        lambda: _model(given, needs_weights=not cfg.plan), lambda: _benchmark(asked, needs_data=not cfg.plan)
    )
    return Settings(
        model=model,
        benchmark=benchmark,
        logger=logger,
        run=run,
        folder=Path(cfg.results) / run,
        limit=limit,
        seed=seed,
        retry_failed=cfg.retry_failed,
        max_failures=most,
        sample_seconds=None if cfg.sample_seconds is None else _number("sample_seconds", cfg.sample_seconds),
        cache=_cache(plain(cfg.cache)),
        overlays=overlays,
        shards=shards,
        plan=cfg.plan,
        plan_tflops=None if cfg.plan_tflops is None else _number("plan_tflops", cfg.plan_tflops),
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


def _prompt(prompts: Any, benchmark: dict[str, Any]) -> None:
    """Set the benchmark's prompt to the one that the model's file names, unless one is given."""
    from stsimdiff.data.benchmarks import BENCHMARKS, by_task

    if not isinstance(prompts or {}, dict):
        raise ConfigError(f"model.prompts={prompts!r} is out of range; allowed: {{benchmark: prompt, ...}}")
    for name in prompts or {}:
        _one_of("model.prompts", name, BENCHMARKS)
    public = by_task(benchmark.get("task"))
    if "prompt" in benchmark and benchmark["prompt"] is None:
        benchmark["prompt"] = (prompts or {}).get(public.name if public else None, "default")


def _data_folder(data: Any, benchmark: dict[str, Any]) -> None:
    """Set ``benchmark.data`` of a public benchmark to its folder in ``data``, unless one is given."""
    from stsimdiff.data.benchmarks import by_task, folder_in

    if data is None:
        return
    if not isinstance(data, str) or not data.strip():
        raise ConfigError(f"data={data!r} is out of range; allowed: the path of a folder, or null")
    public = by_task(benchmark.get("task"))
    if public and "data" in benchmark and benchmark["data"] is None:
        benchmark["data"] = str(folder_in(Path(data).expanduser(), public.name))


def _model(model: dict[str, Any], needs_weights: bool = True) -> dict[str, Any]:
    from stsimdiff import models
    from stsimdiff.models.presence import fetching

    own = "family" in model and models.is_own(model["family"])
    if own:
        _own_family(model["family"])
    options = models.options_of(model["family"]) if "family" in model else {}
    _only("model", model, (*MODEL, *options))
    for name, values in options.items():
        _one_of(f"model.{name}", _as_written(model[name]), map(_as_written, values))
    _one_of("model.attn_implementation", model["attn_implementation"], ATTENTION)
    _one_of("model.dtype", model["dtype"], DTYPES)
    if not re.fullmatch(r"auto|[a-z]+(:\d+)?", str(model["device"])):
        raise ConfigError(
            f"model.device={model['device']!r} is out of range; allowed: auto, cpu, cuda, cuda:1 ..."
        )
    _device_map(model)
    trusted = model["trust_remote_code"]
    if not isinstance(trusted, bool):
        raise ConfigError(f"model.trust_remote_code={trusted!r} is out of range; allowed: true, false")
    if trusted and model["family"] in models.OWN_READERS:
        raise ConfigError(
            f"model.trust_remote_code=true has no meaning for model.family={model['family']}, which reads the original "
            "checkpoint by code of its own and runs none of the checkpoint's; leave it false"
        )
    frames = model["frames"]
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise ConfigError(f"model.frames={frames!r} is out of range; allowed: a whole number from 1")
    threads = model["threads"]
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (whole and 1 <= threads <= MOST_THREADS):
        raise ConfigError(
            f"model.threads={threads!r} is out of range; allowed: a whole number from 1 to {MOST_THREADS}, or null"
        )
    if not needs_weights and model["name"] != "embedded":
        given = Path(model["path"]).expanduser() if model["path"] else None
        if given is None or not (given / "config.json").is_file():
            return {**model, "checkpoint": None, "layers": None}
    path = _checkpoint(model)
    if not (path / "config.json").is_file():
        get = f"{fetching(model['family'], str(path))} fetches a released one"
        hint = (
            f"name a folder with config.json and weights; {get}"
            if model["path"]
            else "make train-embedded makes it"
        )
        raise DataError(f"no checkpoint at model.path={path}; {hint}")
    found = {**model, "path": str(path.resolve()), "checkpoint": _fingerprint(path), "layers": _layers(path)}
    return {**found, "code": code_version(models.resolve(model["family"]))} if own else found


def _own_family(name: Any) -> None:
    """Check a family that is not built in; the message for a misspelt name shows the closest one."""
    from stsimdiff import models

    if not isinstance(name, str) or "." not in name:
        _one_of("model.family", name, [*models.names(), "my_module.MyFamily"])
    models.resolve(name)


def _device_map(model: dict[str, Any]) -> None:
    given = model["device_map"]
    if given is None:
        return
    if isinstance(given, dict):
        if not given:
            raise ConfigError("model.device_map={} names no module; allowed: null, or devices by module")
        for module, device in given.items():
            whole = isinstance(device, int) and not isinstance(device, bool) and device >= 0
            # What lies on the disk would be read again for every generated token.
            named = isinstance(device, str) and device != "disk" and re.fullmatch(r"[a-z]+(:\d+)?", device)
            if not (isinstance(module, str) and (whole or named)):
                raise ConfigError(
                    f"model.device_map.{module}={device!r} is out of range; allowed: a module's name with the number "
                    "of an accelerator, or cpu, cuda:1 ..."
                )
    elif given not in DEVICE_MAPS:
        raise ConfigError(
            f"model.device_map={given!r} is out of range; allowed: null, {', '.join(DEVICE_MAPS)}, or devices by "
            "module; for the whole model on one device set model.device"
        )
    if model["device"] != "auto":
        raise ConfigError(
            f"model.device={model['device']} and model.device_map={given} say different things; leave one of them out"
        )


def _checkpoint(model: dict[str, Any]) -> Path:
    from stsimdiff.models.presence import fetching

    if model["path"]:
        return Path(model["path"]).expanduser()
    if model["name"] == "embedded":
        return embedded_checkpoint()
    raise DataError(
        f"model.path is not set, and the weights of model={model['name']} do not come with the package: get them "
        f"with {fetching(model['family'])}, then give model.path=DIR"
    )


def _fingerprint(checkpoint: Path) -> str:
    """That of the folder; NVILA's has its weights in folders of their own."""
    inner = sorted(file.parent for file in checkpoint.glob("*/config.json"))
    parts = [fingerprint(directory) for directory in (checkpoint, *inner)]
    return parts[0] if not inner else hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def _as_written(value: Any) -> str:
    """A value as YAML spells it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


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


def _benchmark(benchmark: dict[str, Any], needs_data: bool = True) -> dict[str, Any]:
    from stsimdiff.data import benchmarks, clips
    from stsimdiff.data.published import PUBLISHED
    from stsimdiff.video import BACKENDS

    _only("benchmark", benchmark, BENCHMARK)
    _one_of("benchmark.decoder", benchmark["decoder"], BACKENDS)
    if not isinstance(benchmark["allow_missing"], bool):
        raise ConfigError(
            f"benchmark.allow_missing={benchmark['allow_missing']!r} is out of range; allowed: true, false"
        )
    if not isinstance(benchmark["macro"], bool):
        raise ConfigError(f"benchmark.macro={benchmark['macro']!r} is out of range; allowed: true, false")
    check_video_seconds(benchmark["video_seconds"])
    public = benchmarks.by_task(benchmark["task"])
    revision, root, families = None, None, None
    if public:
        _one_of("benchmark.prompt", benchmark["prompt"], public.prompts())
        families = public.families
        with nullcontext() if needs_data or public.name not in PUBLISHED else suppress(DataError):
            root = public.root(benchmark["data"])
        revision = public.revision(root) if root else None
    else:
        _one_of("benchmark.prompt", benchmark["prompt"], ("default",))
        if benchmark["data"] and not Path(benchmark["data"]).expanduser().is_dir():
            raise DataError(f"benchmark.data={benchmark['data']} is no folder")
    if benchmark["task"] in ("clips", "long_clips"):
        families, revision = clips.FAMILIES, clips.GENERATOR_VERSION
        if benchmark["data"]:
            families, revision = None, _data_revision(Path(benchmark["data"]).expanduser())
    for family in benchmark["families"] or ():
        if families:
            _one_of("benchmark.families", family, families)
    return {
        **benchmark,
        "revision": revision,
        "root": str(root) if root else None,
        "code": _prompt_code(benchmark, public is not None),
    }


def check_video_seconds(seconds: Any) -> None:
    """Raise :class:`ConfigError` unless the time for a video is a number above 0, or ``None``."""
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if seconds is not None and not (number and 0 < seconds < math.inf):
        raise ConfigError(
            f"benchmark.video_seconds={seconds!r} is out of range; allowed: a number above 0, or null"
        )


def _data_revision(root: Path) -> str:
    """12 hex digits that change with the questions and the videos (by name, size and time) of a user's folder."""
    digest = hashlib.sha256()
    questions = root / "questions.jsonl"
    if questions.is_file():
        digest.update(questions.read_bytes())
    for file in sorted((root / "videos").glob("*")):
        status = file.stat()
        digest.update(f"{file.name}:{status.st_size}:{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]


def _prompt_code(benchmark: dict[str, Any], public: bool) -> str:
    # The task's own files make the prompt; a public benchmark's comes with lmms-eval.
    own = folder("tasks") / ("stock" if public else str(benchmark["task"]))
    parts = [fingerprint(own)] if own.is_dir() else []
    if public or not own.is_dir():
        parts.append(f"lmms_eval {version('lmms_eval')}")
    if public:
        parts.append(f"prompt {benchmark['prompt']}")
    if benchmark["decoder"] != "decord":
        parts.append(benchmark["decoder"])
    return ", ".join(parts)


def _cache(cache: dict[str, Any]) -> dict[str, Any]:
    _only("cache", cache, CACHE)
    folder = cache["folder"]
    if folder is not None and not (isinstance(folder, str) and folder.strip()):
        raise ConfigError(f"cache.folder={folder!r} is out of range; allowed: the path of a folder, or null")
    return {
        "max_gb": _number("cache.max_gb", cache["max_gb"], zero=True),
        "folder": folder and str(Path(folder).expanduser().resolve()),
        "disk_gb": _number("cache.disk_gb", cache["disk_gb"]),
    }


def _number(name: str, value: Any, zero: bool = False) -> float:
    """A finite number above 0, or 0 where that is allowed."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise ConfigError(
            f"{name}={value!r} is out of range; allowed: a number {'from' if zero else 'above'} 0"
        )
    return float(value)


def _only(group: str, given: dict[str, Any], allowed: Iterable[str]) -> None:
    """Check that a group has these keys, all of them and no others."""
    allowed = list(allowed)
    prefix = f"{group}." if group else ""
    for key in given:
        if key not in allowed:
            raise ConfigError(
                f"{prefix}{key} is unknown; allowed: {', '.join(allowed)}{suggestion(key, allowed)}"
            )
    for key in allowed:
        if key not in given:
            raise ConfigError(f"{prefix}{key} is missing; leave out ~{prefix}{key}")


def _one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(
            f"{name}={value} is unknown; allowed: {', '.join(allowed)}{suggestion(str(value), allowed)}"
        )


def _whole(cfg: DictConfig, key: str, least: int, nullable: bool = False, most: int | None = None) -> Any:
    value = cfg[key]
    if value is None and nullable:
        return None
    wrong = isinstance(value, bool) or not isinstance(value, int) or value < least
    if wrong or (most is not None and value > most):
        also = (f" to {most}" if most is not None else "") + (" or null" if nullable else "")
        raise ConfigError(f"{key}={value!r} is out of range; allowed: a whole number from {least}{also}")
    return value
