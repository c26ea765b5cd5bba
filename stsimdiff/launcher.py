"""From composed configurations to passes: sweeps are expanded, all jobs checked first, then grouped and run.

:class:`ArmsLauncher` is the Hydra launcher that sees the whole batch of a multirun and runs it in this process; a
single run comes in through :func:`run_configurations` as a batch of one. Launchers that hand the passes to other
processes and machines live in ``stsimdiff.clusters``.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from stsimdiff import compressors
from stsimdiff.data import cache_folder
from stsimdiff.errors import ConfigError, Missing, RunFailed, Stopped, UserError
from stsimdiff.evaluate.settings import Settings, budget_from_config, settings_from_config
from stsimdiff.evaluate.values import expanded, obstacle, path, suggestion
from stsimdiff.extras import is_installed, undrawn
from stsimdiff.models.presence import absent, unready
from stsimdiff.ranks import ranks
from stsimdiff.resources import folder
from stsimdiff.words import arm_words, settled

if TYPE_CHECKING:
    from stsimdiff.evaluate.arms import Arm
    from stsimdiff.evaluate.processes import Processes

log = logging.getLogger(__name__)

NAMESPACE = "hydra_plugins.stsimdiff"
"""Where Hydra looks for our launchers; it accepts none from elsewhere."""
CLUSTERS = {
    "submitit_local": (
        "hydra_plugins.hydra_submitit_launcher",
        "stsimdiff.clusters.submitit",
        "LocalLauncher",
    ),
    "submitit_slurm": (
        "hydra_plugins.hydra_submitit_launcher",
        "stsimdiff.clusters.submitit",
        "SlurmLauncher",
    ),
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "stsimdiff.clusters.joblib", "JoblibLauncher"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "stsimdiff.clusters.ray", "RayLauncher"),
}
"""Launchers that start jobs: the Hydra plug-in that each stands on, and its module and class here."""

Compose = Callable[[Sequence[str]], DictConfig]


def expand(cfg: DictConfig, overrides: Sequence[str], compose: Compose) -> list[DictConfig]:
    """The configuration itself, or one for each arm of its ``arms`` lines.

    A line is composed as if its words stood on the command line behind ``overrides``, so a sweep written there gives
    the same arms as one written with ``-m``.

    Raises:
        ConfigError: for a line that is no sweep, or that sets what the command line sets too.
    """
    lines = cfg.get("arms")
    if lines is None:
        return [cfg]
    if not OmegaConf.is_list(lines) or not lines or not all(isinstance(line, str) for line in lines):
        raise ConfigError(
            "arms must be a list of command lines, such as ['compressor=random budget.retention=0.3']"
        )
    parser = OverridesParser.create()
    given = {override.key_or_group for override in parser.parse_overrides(list(overrides))}
    found = []
    for line in lines:
        words = parser.parse_overrides(arm_words(line))
        for word in words:
            if word.key_or_group in given:
                raise ConfigError(
                    f"{word.key_or_group} is set by the arms of this experiment ({line}); leave it out, or leave the "
                    "experiment out and sweep with -m"
                )
        found += [compose([*overrides, *combination]) for combination in _combinations(words)]
    return found


def _combinations(words: Sequence[Override]) -> Iterable[tuple[str, ...]]:
    """Every combination of the values that a line of overrides sweeps over."""
    choices: list[list[str]] = []
    for word in words:
        if not word.is_sweep_override():
            choices.append([str(word.input_line)])
            continue
        choices.append([f"{word.get_key_element()}={value}" for value in word.sweep_string_iterator()])
    return itertools.product(*choices)


def configurations(words: Sequence[str]) -> list[DictConfig]:
    """The composed configurations of a command line that Hydra's own entry point does not see, sweeps expanded.

    For the subcommands: ``compressor=none,fastv budget.retention=0.3`` gives two, an experiment one for each arm.

    Raises:
        ConfigError: for a line that cannot be expanded.
        hydra.errors.HydraException: for what does not compose.
    """
    register()

    def compose(overrides: Sequence[str]) -> DictConfig:
        return without_hydra(hydra.compose("config", overrides=list(overrides)))

    found = []
    parsed = OverridesParser.create().parse_overrides(settled(words, sweep=""))
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder("configs"))):
        for combination in _combinations(parsed):
            found += expand(compose(combination), list(combination), compose)
    return found


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

    from stsimdiff.evaluate.arms import arm_from_config  # imports torch

    passes: list[Pass] = []
    for number, (cfg, settings) in enumerate(zip(configurations, shared, strict=True)):
        group = next((one for one in passes if one.settings == settings), None)
        if group is None:
            group = Pass(settings, {}, number)
            passes.append(group)
        arm = arm_from_config(cfg, settings)
        group.arms.setdefault(arm.id, arm)
    return passes


def run_configurations(configurations: Sequence[DictConfig]) -> None:
    """Check every configuration, then run them as arms of one pass for each model, benchmark and setting.

    Raises:
        UserError: for the first wrong configuration, before anything is loaded.
        RunFailed: when samples failed; all passes have come to their end.
    """
    if ranks().world == 1:
        _run(configurations, None)
        return
    from stsimdiff.evaluate.processes import Processes  # imports torch

    # Before any work, which may take the processes very different times.
    with Processes.joined() as processes:
        _run(configurations, processes)


def _run(configurations: Sequence[DictConfig], processes: Processes | None) -> None:
    passes = passes_of(configurations)
    if planned(passes):
        return
    for one in passes:
        if one.settings.shards > 1:
            raise ConfigError(
                f"shards={one.settings.shards} needs a launcher that starts jobs: -m hydra/launcher=NAME with one of "
                f"{', '.join(CLUSTERS)}. Several processes on this machine: python -m torch.distributed.run "
                "--standalone --nproc_per_node N -m stsimdiff ..."
            )
    check_presence(configurations, passes)
    if ranks().rank == 0 and (said := undrawn()):
        log.warning(said)

    from stsimdiff.evaluate.session import run_arms  # these import torch, transformers and lmms-eval
    from stsimdiff.evaluate.shared import Shared

    shared, failures = Shared(), []
    last = last_of_folders(passes)
    for number, one in enumerate(passes, start=1):
        if len(passes) > 1:
            log.info("pass %d of %d: %d arms", number, len(passes), len(one.arms))
        try:
            run_arms(one.settings, list(one.arms.values()), shared, report=one in last, processes=processes)
        except RunFailed as failure:
            failures.append(str(failure))
            if isinstance(failure, Stopped):
                break
        except UserError:
            if number > 1:
                log.info("what was answered is stored: python -m stsimdiff report %s", one.settings.folder)
            raise
    if failures:
        raise RunFailed("\n".join(failures))


def _settings(configurations: Sequence[DictConfig]) -> list[Settings]:
    """Settings of each configuration; all of these and the budgets are checked before torch is imported."""
    known: dict[str, Settings | None] = {}
    found, missing = [], []
    for cfg in configurations:
        budget_from_config(cfg)
        # The jobs of a sweep mostly share their settings; the checkpoint is hashed once for all of them.
        shared = OmegaConf.masked_copy(
            cfg, [str(key) for key in cfg if key not in ("compressor", "budget", "arms")]
        )
        key = OmegaConf.to_yaml(shared)
        if key not in known:
            try:
                known[key] = settings_from_config(cfg)
            except Missing as error:
                known[key] = None
                missing += error.parts
        found.append(known[key])
    if missing:
        raise Missing(missing + absent_weights(configurations) + _unwritable(filter(None, found)))
    return [settings for settings in found if settings is not None]


def last_of_folders(passes: Sequence[Pass]) -> list[Pass]:
    """The last pass of each run's folder: it makes the table of all of them, once."""
    return list({one.settings.folder: one for one in passes}.values())


def planned(passes: Sequence[Pass]) -> bool:
    """Show what the passes would cost, if that is all that was asked for (``plan=true``)."""
    if not any(one.settings.plan for one in passes):
        return False
    from stsimdiff.evaluate.plan import show

    show([(one.settings, list(one.arms.values())) for one in passes])
    return True


def check_presence(configurations: Sequence[DictConfig], passes: Sequence[Pass]) -> None:
    """Raise :class:`~stsimdiff.errors.Missing`, naming everything, if weights or the videos of a later pass lack, or a
    folder cannot be made."""
    if lacking := absent_weights(configurations) + _unwritable(one.settings for one in passes):
        raise Missing(lacking)
    if len(passes) > 1:
        from stsimdiff.evaluate.preflight import check_data  # imports lmms-eval

        check_data(one.settings for one in passes)


def absent_weights(configurations: Sequence[DictConfig]) -> list[str]:
    """What the checkpoint folders lack, a sentence each."""
    asked = dict.fromkeys(
        (cfg.model.family, path("model.path", cfg.model.path, nullable=True))
        for cfg in configurations
        if cfg.plan is not True
    )
    return [said for family, place in asked for said in (*absent(family, place), *unready(family, place))]


def _unwritable(asked: Iterable[Settings]) -> list[str]:
    """The folders that a run could not write, a sentence each; nothing is made."""
    found: dict[str, None] = {}
    for settings in asked:
        if settings.plan:
            continue
        place, cache, own = settings.folder, settings.cache["folder"], cache_folder()
        # The packaged benchmarks are drawn into it.
        drawn = not settings.benchmark["root"] and not settings.benchmark["data"] and not own.is_dir()
        if drawn and (why := obstacle(own)):
            found[f"the cache folder {own} cannot be made: {why}; set XDG_CACHE_HOME to one that can"] = None
        if why := obstacle(place):
            found[
                f"results={place.parent} cannot hold the run {place.name}: {why}; name another results=FOLDER"
            ] = None
        if cache and (why := obstacle(Path(cache))):
            found[
                f"cache.folder={cache} cannot be used: {why}; name a folder that can be written, or null"
            ] = None
    return list(found)


class BatchLauncher(Launcher):
    """A Hydra launcher that sees the whole batch of ``-m`` at once; subclasses say where it runs."""

    hydra_context: HydraContext
    config: DictConfig

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; each one's return only says that it came to its end, since errors are raised."""
        setup_globals()
        batch: list[DictConfig] = []
        written: list[Sequence[str]] = []
        for overrides in job_overrides:
            found = expand(self.compose(overrides), list(overrides), self.compose)
            batch += found
            written += [overrides] * len(found)
        self.run(batch, written, initial_job_idx)
        return [JobReturn(overrides=list(words), status=JobStatus.COMPLETED) for words in job_overrides]

    def run(
        self, configurations: Sequence[DictConfig], overrides: Sequence[Sequence[str]], first: int
    ) -> None:
        """Run the batch: configurations, the words that each was composed from, and Hydra's number of the first."""
        raise NotImplementedError

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of one job, Hydra's own node aside."""
        return without_hydra(self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides)))


class ArmsLauncher(BatchLauncher):
    """Hydra's launcher for ``-m``: the whole batch in this process, one pass for each model and benchmark."""

    @override
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def run(
        self, configurations: Sequence[DictConfig], overrides: Sequence[Sequence[str]], first: int
    ) -> None:
        """See :class:`BatchLauncher`."""
        run_configurations(configurations)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A copy of a composed configuration without the ``hydra`` node."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def register() -> None:
    """Make the launchers known to Hydra, and compressors of other packages known as options of ``compressor=``."""
    # For Hydra's own folder of a sweep, which it makes from the words as they are.
    OmegaConf.register_new_resolver("expanded", lambda given: expanded("results", str(given)), replace=True)
    _register_launcher(ArmsLauncher)
    for name, (plugin, module, cls) in CLUSTERS.items():
        if is_installed(plugin):
            _register_launcher(getattr(importlib.import_module(module), cls))
            _move_stock_options(name)
    _register_entry_points()


def check_launcher(words: Iterable[str]) -> None:
    """Raise :class:`ConfigError` if the command line names a launcher that is none, or not installed."""
    for word in words:
        key, _, name = word.partition("=")
        if key != "hydra/launcher":
            continue
        allowed = ("arms", *CLUSTERS)
        if name not in allowed:
            raise ConfigError(
                f"hydra/launcher={name} is unknown; allowed: {', '.join(allowed)}{suggestion(name, allowed)}"
            )
        if name in CLUSTERS and not is_installed(CLUSTERS[name][0]):
            raise ConfigError(
                f"hydra/launcher={name} needs packages that are not installed: pip install 'stsimdiff[cluster]'"
            )


def check_single_run(name: str) -> None:
    """Raise :class:`ConfigError` if a run without ``-m`` has a launcher, which Hydra would not use then."""
    if name != "arms":
        raise ConfigError(
            f"hydra/launcher={name} starts jobs only with -m; write it, or leave the launcher out"
        )


def _register_launcher(cls: type[Launcher]) -> None:
    # Under its real name a class can be pickled for another process; under this one Hydra finds it.
    Plugins.instance().register(cls)
    Plugins.instance().class_name_to_class[f"{NAMESPACE}.{cls.__name__}"] = cls


def _move_stock_options(name: str) -> None:
    """Give the plug-in's own options the name ``plugin/<name>``, on which our file of its old name builds."""
    group = ConfigStore.instance().repo["hydra"]["launcher"]
    if f"{name}.yaml" in group:
        node = group.pop(f"{name}.yaml")
        ConfigStore.instance().store(
            group="hydra/launcher/plugin", name=name, node=node.node, provider=node.provider
        )


def _register_entry_points() -> None:
    for name in compressors.names():
        if name in compressors.BUILTIN:
            continue
        try:
            cls = compressors.resolve(name)
            node = {"_target_": f"{cls.__module__}.{cls.__qualname__}"}
            for field in dataclasses.fields(cls):
                if field.default is not dataclasses.MISSING:
                    node[field.name] = field.default
                elif field.default_factory is dataclasses.MISSING:
                    node[field.name] = "???"
            ConfigStore.instance().store(group="compressor", name=name, node=node, provider=name)
        except Exception as error:
            # A broken package of somebody else must not stop runs that do not use it.
            log.warning("compressor %s of an installed package is left out: %s", name, error)
