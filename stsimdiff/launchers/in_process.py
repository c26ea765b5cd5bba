"""Passes are planned or run in this process, one after the other; each ends with its run's report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from stsimdiff.config.settings import Settings
from stsimdiff.errors import ConfigError, DataError, RunFailed, Stopped, UserError
from stsimdiff.evaluate.passes import Pass, check_presence, last_of_folders, passes_of
from stsimdiff.extras import undrawn
from stsimdiff.launchers import CLUSTERS
from stsimdiff.ranks import ranks

if TYPE_CHECKING:
    from stsimdiff.evaluate.processes import Processes


log = logging.getLogger(__name__)


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
    for run_pass in passes:
        if run_pass.settings.jobs > 1:
            raise ConfigError(
                f"jobs={run_pass.settings.jobs} needs a launcher that starts jobs: -m hydra/launcher=NAME with one of "
                f"{', '.join(CLUSTERS)}. Several processes on this machine: python -m torch.distributed.run "
                "--standalone --nproc_per_node N -m stsimdiff ..."
            )
    check_presence(configurations, passes)
    if ranks().rank == 0 and (reasons := undrawn()):
        log.warning(reasons)

    from stsimdiff.evaluate.run import run_arms  # these import torch, transformers and lmms-eval
    from stsimdiff.evaluate.shared import SharedModel
    from stsimdiff.kit.rehearsal import rehearse

    rehearse(passes)

    shared, failures = SharedModel(), []
    last = last_of_folders(passes)
    for number, run_pass in enumerate(passes, start=1):
        if len(passes) > 1:
            log.info("pass %d of %d: %d arms", number, len(passes), len(run_pass.arms))
        try:
            report = make_report if run_pass in last else None
            run_arms(
                run_pass.settings, list(run_pass.arms.values()), shared, report=report, processes=processes
            )
        except RunFailed as failure:
            failures.append(str(failure))
            if isinstance(failure, Stopped):
                break
        except UserError:
            if number > 1:
                log.info(
                    "what was answered is stored: python -m stsimdiff report %s", run_pass.settings.folder
                )
            raise
    if failures:
        raise RunFailed("\n".join(failures))


def planned(passes: Sequence[Pass]) -> bool:
    """Show what the passes would cost, if that is all that was asked for (``plan=true``)."""
    if not any(run_pass.settings.plan for run_pass in passes):
        return False
    from stsimdiff.plan.show import show

    show([(run_pass.settings, list(run_pass.arms.values())) for run_pass in passes])
    return True


def make_report(settings: Settings) -> list[str]:
    """Table, figures and page, and what W&B shows; returns what of it could not be made.

    Raises:
        DataError: when the disk refuses a file.
    """
    from stsimdiff.report.publish import publish, tell
    from stsimdiff.terminal import Console

    published = publish(settings.folder, None, column=settings.breakdown)
    if published.refused:
        text = "\n".join(published.refused)
        raise DataError(
            f"{text}\nall answers are stored in {settings.folder}: free or repair the disk and start the same command "
            "again"
        )
    tell(published, Console(), full=settings.verbose)
    if settings.logger.name == "wandb":
        from stsimdiff.report.wandb_log import log_run

        try:
            made = published.stored, published.table
            log_run(settings.folder, settings.logger.project, settings.logger.mode, made)
        except RunFailed as failure:
            return [*published.unmade, str(failure)]
    return published.unmade
