"""Configurations, all checked, grouped into passes: what is answered together by one loaded model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from stsimdiff.config.checks import Folder, obstacle
from stsimdiff.config.settings import Settings, budget_from_config, settings_from_config
from stsimdiff.data import cache_folder
from stsimdiff.errors import MissingParts
from stsimdiff.models.presence import absent, unready
from stsimdiff.schema import check

if TYPE_CHECKING:
    from stsimdiff.config.arms import Arm


@dataclass
class Pass:
    """What is answered together: the settings, their arms by id, and the number of the first configuration of them."""

    settings: Settings
    arms: dict[str, Arm]
    first: int


def passes_of(configurations: Sequence[DictConfig]) -> list[Pass]:
    """Configurations, all of them checked, grouped by what they share; of equal arms one is kept.

    Raises:
        UserError: for the first wrong configuration.
    """
    shared = _settings(configurations)

    from stsimdiff.config.arms import arm_from_config, proposed_method  # imports torch

    passes: list[Pass] = []
    for number, (cfg, settings) in enumerate(zip(configurations, shared, strict=True)):
        if settings.proposed:
            settings = replace(settings, proposed=proposed_method(settings.proposed))
        group = next((known for known in passes if known.settings == settings), None)
        if group is None:
            group = Pass(settings, {}, number)
            passes.append(group)
        arm = arm_from_config(cfg, settings)
        group.arms.setdefault(arm.id, arm)
    return passes


def _settings(configurations: Sequence[DictConfig]) -> list[Settings]:
    """Settings of each configuration; all of these and the budgets are checked before torch is imported."""
    known: dict[str, Settings | None] = {}
    settings_list, missing = [], []
    for cfg in configurations:
        budget_from_config(cfg)
        # The jobs of a sweep mostly share their settings; the checkpoint is hashed once for all of them.
        shared = OmegaConf.masked_copy(
            cfg, [str(key) for key in cfg if key not in ("compressor", "budget", "arms", "label")]
        )
        key = OmegaConf.to_yaml(shared)
        if key not in known:
            try:
                known[key] = settings_from_config(cfg)
            except MissingParts as error:
                known[key] = None
                missing += error.parts
        settings_list.append(known[key])
    if missing:
        raise MissingParts(
            missing + absent_weights(configurations) + _unwritable(filter(None, settings_list))
        )
    return [settings for settings in settings_list if settings is not None]


def last_of_folders(passes: Sequence[Pass]) -> list[Pass]:
    """The last pass of each run's folder: it makes the table of all of them, once."""
    return list({run_pass.settings.folder: run_pass for run_pass in passes}.values())


def check_presence(configurations: Sequence[DictConfig], passes: Sequence[Pass]) -> None:
    """Raise :class:`MissingParts`, naming everything, if weights or the videos of a later pass lack, or a
    folder cannot be made."""
    if problems := absent_weights(configurations) + _unwritable(run_pass.settings for run_pass in passes):
        raise MissingParts(problems)
    if len(passes) > 1:
        from stsimdiff.evaluate.preflight import check_data  # imports lmms-eval

        check_data(run_pass.settings for run_pass in passes)


def absent_weights(configurations: Sequence[DictConfig]) -> list[str]:
    """What the checkpoint folders lack, a sentence each."""
    checkpoints = dict.fromkeys(
        (cfg.model.family, check("model.path", cfg.model.path, Folder | None))
        for cfg in configurations
        if cfg.plan is not True
    )
    return [
        problem
        for family, place in checkpoints
        for problem in (*absent(family, place), *unready(family, place))
    ]


def _unwritable(settings_list: Iterable[Settings]) -> list[str]:
    """The folders that a run could not write, a sentence each; nothing is made."""
    problems: dict[str, None] = {}
    for settings in settings_list:
        if settings.plan:
            continue
        place, cache, user_cache = settings.folder, settings.cache.folder, cache_folder()
        # The packaged benchmarks are drawn into it.
        drawn = not settings.benchmark.root and not settings.benchmark.data and not user_cache.is_dir()
        if drawn and (why := obstacle(user_cache)):
            problems[
                f"the cache folder {user_cache} cannot be made: {why}; set XDG_CACHE_HOME to one that can"
            ] = None
        if why := obstacle(place):
            problems[
                f"results={place.parent} cannot hold the run {place.name}: {why}; name another results=FOLDER"
            ] = None
        if cache and (why := obstacle(Path(cache))):
            problems[
                f"cache.folder={cache} cannot be used: {why}; name a folder that can be written, or null"
            ] = None
    return list(problems)
