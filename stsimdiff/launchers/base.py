"""Launchers as Hydra knows them: registered, checked, and given the whole batch of a multirun at once.

:class:`ArmsLauncher` runs the batch in this process. Launchers that hand the passes to other processes and machines
stand beside this module.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import logging
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from stsimdiff import compressors
from stsimdiff.config.checks import expanded
from stsimdiff.config.sweep import combinations, composed, expand, without_hydra
from stsimdiff.config.words import groups, offer_benchmarks, options, settled
from stsimdiff.errors import ConfigError
from stsimdiff.extras import is_installed
from stsimdiff.launchers import CLUSTERS
from stsimdiff.launchers.in_process import run_configurations
from stsimdiff.resources import folder
from stsimdiff.schema import suggestion

log = logging.getLogger(__name__)

NAMESPACE = "hydra_plugins.stsimdiff"
"""Where Hydra looks for our launchers; it accepts none from elsewhere."""


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

    expanded = []
    parsed = OverridesParser.create().parse_overrides(settled(words, sweep=""))
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder("configs"))):
        jobs = [list(combination) for combination in combinations(parsed)]
        for job, cfg in zip(jobs, composed(jobs, compose), strict=True):
            expanded += expand(cfg, job, compose)
    return expanded


class BatchLauncher(Launcher):
    """A Hydra launcher that sees the whole batch of ``-m`` at once; subclasses say where it runs."""

    hydra_context: HydraContext
    config: DictConfig

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; each one's return only says that it came to its end, since errors are raised."""
        setup_globals()
        batch: list[DictConfig] = []
        written: list[Sequence[str]] = []
        for overrides, cfg in zip(job_overrides, composed(job_overrides, self.compose), strict=True):
            expanded = expand(cfg, list(overrides), self.compose)
            batch += expanded
            written += [overrides] * len(expanded)
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


def register() -> None:
    """Make the launchers known to Hydra, and compressors of other packages known as options of ``compressor=``."""
    # For Hydra's own folder of a sweep, which it makes from the words as they are.
    OmegaConf.register_new_resolver("expanded", lambda given: expanded("results", str(given)), replace=True)
    OmegaConf.register_new_resolver("choices", _choices, replace=True)
    _register_launcher(ArmsLauncher)
    for name, (plugin, module, cls) in CLUSTERS.items():
        if is_installed(plugin):
            _register_launcher(getattr(importlib.import_module(module), cls))
            _move_stock_options(name)
    _register_entry_points()
    _register_benchmarks()


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


def _choices() -> str:
    return "\n".join(f"{group}: {', '.join(options(group))}" for group in groups())


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
    for name in compressors.REGISTRY.registered():
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


def _register_benchmarks() -> None:
    for point in entry_points(group="stsimdiff.benchmarks"):
        try:
            package = importlib.util.find_spec(point.value)
            if package is None or not package.submodule_search_locations:
                raise ConfigError(f"{point.value} is no package")
            offer_benchmarks(package.submodule_search_locations[0], [point.name])
        except Exception as error:
            log.warning("benchmark %s of an installed package is left out: %s", point.name, error)
