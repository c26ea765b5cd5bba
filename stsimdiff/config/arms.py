"""Arms: the methods that one run answers with, and their identity, made from a composed configuration.

Everything is checked here, before a model is loaded. Nothing here knows Hydra's command line or runs anything.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from stsimdiff import compressors, video
from stsimdiff.budget import Budget
from stsimdiff.compressors import mistakes
from stsimdiff.compressors.base import POSITIONS, Compressor
from stsimdiff.compressors.controls import NoCompression, NoVideo
from stsimdiff.config.checks import group, told
from stsimdiff.config.settings import Settings, budget_from_config, label_from_config, settings_from_config
from stsimdiff.data.benchmarks import by_task
from stsimdiff.data.digests import folder_digest
from stsimdiff.errors import ConfigError, UserError
from stsimdiff.files import fingerprint
from stsimdiff.registry import DOTTED, imported
from stsimdiff.schema import checked, folders, one_of, settable, suggestion
from stsimdiff.source import placeless, version_of

UNBUDGETED = (NoCompression, NoVideo)
"""Both ends ignore the budget; a sweep over retentions must not run them once for each."""
UNASKED = ("path", "device", "device_map", "threads")
"""Settings of the model that are no part of an arm's identity."""
ASKED = ("name", "task", "code", "prompt", "decoder", "generation", "max_new_tokens")
"""Settings of the benchmark that are. The data's revision is, unless the benchmark is a public one: there each stored
answer says which question and video it is of, so that only what has changed is asked again."""
BENEATH = ("engine:Compression", "budget:Budget", *video.CODE)
"""What lies under all methods; the rest of it is reached from these, or from the family."""
FORMAT = 2
"""Of ``arm.json`` and the stored lines. Lines of version 1, which says none, name a video by its file alone."""


@dataclass(frozen=True)
class Arm:
    """A compressor with its parameters and a budget.

    Attributes:
        method: short name, such as ``st_simdiff``; the class name for a user's own class.
        label: the method with the parameters that differ from its defaults.
        compressor: ``_target_`` and every parameter.
        budget: what the method must keep.
        id: 12 hex digits: hash of everything that can change an answer, the code of the method and of what lies
            under it included.
        code: version of the method's code, as ``stsimdiff.compressors.code_version`` gives it.
        told: the parameters as they may be stored and shown, where that differs: see
            :func:`stsimdiff.config.checks.told`.
        fidelity: what the method declares of it, as :func:`stsimdiff.compressors.fidelity_of` gives it.
        shown: what tables call it; ``None`` where nothing is said.
        remembers: whether what it keeps of a video's question counts for the later ones.
    """

    method: str
    label: str
    compressor: dict[str, Any]
    budget: Budget
    id: str
    code: str
    told: dict[str, Any] = dataclasses.field(default_factory=dict)
    fidelity: dict[str, str] | None = None
    shown: str | None = None
    remembers: bool = False

    @property
    def folder(self) -> str:
        """Name of the arm's folder within the run: readable, and unique through the id."""
        method = re.sub(r"[^\w.-]", "_", self.method)
        return f"{method}_{self.budget.kind}{self.budget.retention:g}_{self.id[:8]}"

    def build(self) -> Compressor:
        """The compressor itself."""
        parameters = dict(self.compressor)
        return _instance(_compressor_class(parameters.pop("_target_")), parameters)


def arm_from_config(cfg: DictConfig, settings: Settings | None = None) -> Arm:
    """The arm of a composed configuration, checked; its ``arms`` lines are expanded before.

    Args:
        cfg: the configuration with ``compressor`` and ``budget``.
        settings: what :func:`settings_from_config` made of it; made here when not given.

    Raises:
        ConfigError: for an unknown method or parameter, or a value out of range.
        BudgetError: for a budget that the method can never meet.
    """
    settings = settings or settings_from_config(cfg)
    node = group(cfg, "compressor")
    cls = _compressor_class(node.get("_target_"))
    compressor = _instance(cls, {key: value for key, value in node.items() if key != "_target_"})
    budget = Budget() if cls in UNBUDGETED else budget_from_config(cfg)
    _check_positions(compressor, settings.model.family)
    try:
        compressor.check(budget, settings.model.layers)
    except ValueError as error:
        raise ConfigError(f"compressor {node['_target_']} refuses this budget or model: {error}") from error
    parameters = {field.name: getattr(compressor, field.name) for field in dataclasses.fields(compressor)}
    config = {"_target_": f"{cls.__module__}.{cls.__qualname__}", **_jsonable(parameters)}
    known = config | {name: _contents(name, config[name]) for name in folders(cls)}
    method, code = _method_name(cls), compressors.code_version(cls, *map(type, compressor.parts))
    shown = told(cfg, "compressor")
    safe = {key: shown[key] for key in node if key != "_target_" and shown[key] != node[key]}
    return Arm(
        method=method,
        label=_label(method, compressor, settings.seed, safe),
        compressor=config,
        budget=budget,
        id=_identity(known, budget, code, settings, compressor.remembers),
        code=code,
        told=safe,
        fidelity=compressors.fidelity_of(cls),
        shown=label_from_config(cfg),
        remembers=compressor.remembers,
    )


def proposed_method(name: str) -> str:
    """The method that ``proposed`` names, as reports look for it: a built-in one's name, another's dotted path.

    Raises:
        ConfigError: for what is no method, and for one without a retention of its own.
    """
    if "." not in name:
        one_of("proposed", name, compressors.names())
    cls = _compressor_class(name, "proposed") if "." in name else compressors.resolve(name)
    if cls in UNBUDGETED:
        raise ConfigError(f"proposed={name} has no retention of its own; name a method that has")
    method = _method_name(cls)
    return method if method in compressors.BUILTIN else f"{cls.__module__}.{cls.__qualname__}"


def arm_record(arm: Arm, settings: Settings, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What ``arm.json`` holds: the arm, the model and benchmark it answered with, and where and by what."""
    return {
        "format": FORMAT,
        "arm": arm.id,
        "method": arm.method,
        "label": arm.label,
        "compressor": {**arm.compressor, **arm.told},
        "budget": dataclasses.asdict(arm.budget),
        "model": settings.model.stored(),
        "benchmark": settings.benchmark.stored(),
        "protocol": dataclasses.asdict(settings.protocol),
        "seed": settings.seed,
        "fidelity": arm.fidelity,
        "code": arm.code,
        "beneath": version_of(*BENEATH),
        "provenance": dict(provenance),
    }


def asked_settings(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the model's and of the benchmark's settings those that decide what is asked, wherever that is answered."""
    model = {key: value for key, value in settings.model.stored().items() if key not in UNASKED}
    keys = ASKED if by_task(settings.benchmark.task) else (*ASKED, "revision")
    benchmark = {key: getattr(settings.benchmark, key) for key in keys}
    if settings.benchmark.decoder_code:
        benchmark["decoder_code"] = settings.benchmark.decoder_code
    return model, benchmark


def _contents(name: str, folder: str) -> str:
    try:
        return folder_digest(folder)
    except OSError as error:
        raise ConfigError(f"compressor.{name}={folder} cannot be read: {error.strerror or error}") from error


def _identity(
    config: dict[str, Any], budget: Budget, code: str, settings: Settings, remembers: bool = False
) -> str:
    # The checkpoint's fingerprint stands for its path. The devices are left out: they change rounding, not the
    # question asked. Which questions (categories, limit) and where the answers go are left out too.
    model, benchmark = asked_settings(settings)
    codes = [code, version_of(*BENEATH)]
    # Its values are in the model's settings; its name, too, tells two tables apart.
    protocol = settings.protocol.name
    everything = [
        FORMAT,
        {**config, "_target_": placeless(config["_target_"])},
        dataclasses.asdict(budget),
        codes,
        model,
        benchmark,
        protocol,
        settings.seed,
    ]
    if remembers:
        # Which questions of a video came before decides an answer here.
        everything.append(settings.benchmark.categories)
    return fingerprint(everything)


def _check_positions(compressor: Compressor, family: str) -> None:
    """Refuse positions that no model has, and those that this family's models cannot have."""
    from stsimdiff import models

    positions = compressor.positions
    if positions not in POSITIONS:
        raise ConfigError(f"compressor.positions={positions!r} is unknown; allowed: {', '.join(POSITIONS)}")
    if positions == "renumbered" and models.resolve(family).mrope:
        raise ConfigError(
            f"{type(compressor).__name__} with positions=renumbered cannot run on model={family}: positions of its "
            "tokens are more than one number (M-RoPE); use compressor.positions=kept, or a family such as llava_video"
        )


def _label(method: str, compressor: Compressor, seed: int, safe: Mapping[str, Any]) -> str:
    parts = [method]
    for field in dataclasses.fields(compressor):
        value = getattr(compressor, field.name)
        if field.default is dataclasses.MISSING or value != field.default:
            value = safe.get(field.name, value)
            if field.name in folders(type(compressor)):
                value = Path(value).name
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{field.name}={shown}")
    if seed and not any(part.startswith("seed=") for part in parts):
        parts.append(f"seed={seed}")
    return " ".join(parts)


def _method_name(cls: type[Compressor]) -> str:
    return compressors.REGISTRY.name_of(cls) or cls.__name__


def compressor_from(name: str, parameters: dict[str, Any]) -> Compressor:
    """A method by its name or its dotted path, checked as that of a run is.

    Raises:
        ConfigError: for an unknown method or parameter, or a value out of range.
    """
    cls = _compressor_class(compressors.REGISTRY.path(name))
    return _instance(cls, dict(parameters))


def _compressor_class(target: Any, key: str = "compressor._target_") -> type[Compressor]:
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        raise ConfigError(
            f"{key}={target!r} is no class; write compressor=NAME with one of "
            f"{', '.join(compressors.names())}, or compressor._target_=my_module.MyMethod"
        )
    cls = imported(f"{key}={target}", target, mistakes.of_import)
    if not mistakes.is_compressor(cls):
        raise ConfigError(
            f"{key}={target} is not a compressor; it must be a class derived from "
            "stsimdiff.compressors.base.Compressor or ScoreCompressor, with @dataclass(frozen=True) of its own"
        )
    mistakes.check_class(cls)
    return cls


def _instance(cls: type[Compressor], parameters: dict[str, Any]) -> Compressor:
    name, target, known = _method_name(cls), f"{cls.__module__}.{cls.__qualname__}", settable(cls)
    for key in parameters:
        if key not in known:
            raise ConfigError(
                f"compressor.{key} is unknown: {name} has "
                + (f"the parameters {', '.join(known)}" if known else "no parameters")
                + suggestion(key, known)
                + mistakes.parameters_of(cls)
            )
    try:
        return cls(**checked(cls, parameters, "compressor"))
    except UserError:
        raise
    except Exception as error:
        # A user's class may check what it likes.
        message = str(error) if isinstance(error, TypeError) and "argument" in str(error) else ""
        hint = f"{message}; a parameter without a default is given as +compressor.NAME=VALUE"
        raise ConfigError(
            f"compressor {target}: {hint if message else f'{type(error).__name__}: {error}'}"
        ) from error


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_jsonable(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f"a compressor's parameter must be a plain value, not {type(value).__name__}: {value!r}"
    )
