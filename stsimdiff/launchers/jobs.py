"""A sweep as jobs: ``jobs`` of them for each model and benchmark, which share its videos; all arms are in each.

The parent checks everything before it starts a job, and scores, tabulates and logs once all jobs have ended. A job does
nothing but answer: it is handed settings and arms that were checked, and opens the store as any other process does. No
scheduler is known here. What imports torch is imported where it is used: Hydra loads this module for every command.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from stsimdiff import terminal
from stsimdiff.config.settings import Settings
from stsimdiff.errors import ConfigError, RunFailed, UserError
from stsimdiff.evaluate.passes import Pass, check_presence, last_of_folders, passes_of
from stsimdiff.evaluate.store import done_ids
from stsimdiff.launchers.base import BatchLauncher
from stsimdiff.launchers.in_process import make_report, planned
from stsimdiff.ranks import world_size

if TYPE_CHECKING:
    from stsimdiff.config.arms import Arm
    from stsimdiff.evaluate.processes import Processes
    from stsimdiff.evaluate.questions import Question

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What one job answers.

    Attributes:
        settings: what the arms share, all paths absolute.
        arms: the arms that answer.
        unusable: videos that cannot be used, and why.
        number: of this job among those of the same model and benchmark.
        jobs: how many they are.
    """

    settings: Settings
    arms: tuple[Arm, ...]
    unusable: Mapping[str, str]
    number: int
    jobs: int

    def __str__(self) -> str:
        part = f", job {self.number + 1} of {self.jobs}" if self.jobs > 1 else ""
        named = f"{self.settings.model.name} on {self.settings.benchmark.name}"
        return f"{named}{part}, {len(self.arms)} {'arm' if len(self.arms) == 1 else 'arms'}"

    def answer(self, processes: Processes) -> int:
        """Answer what is missing and no other process answers; returns how many lines were written."""
        from stsimdiff.evaluate.overlays import Overlays
        from stsimdiff.evaluate.questions import load_task
        from stsimdiff.evaluate.run import answer_missing, asked

        task = load_task(self.settings.benchmark)
        questions = asked(self.settings, task)
        return answer_missing(
            self.settings,
            task,
            self.arms,
            questions,
            processes,
            self.unusable,
            overlays=Overlays(self.settings, questions),
        )


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        answered: lines that it wrote.
        error: why it stopped; ``None`` when it came to its end.
    """

    answered: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Slot:
    """Where a process of a job runs.

    Attributes:
        task: its number among the processes of the job.
        tasks: how many processes the job has.
        device: number of the device that it drives, counted on its machine (modulo the devices it sees).
        show: whether its output is its own, so that it may show its progress.
    """

    task: int = 0
    tasks: int = 1
    device: int = 0
    show: bool = True


class Engine:
    """What only the scheduler knows, asked inside a job. Subclasses stand beside their launchers."""

    def slot(self, number: int) -> Slot:
        """Where this process runs; ``number`` is that of the job within its launch."""
        return Slot(show=number == 0)

    def guard(self) -> AbstractContextManager[None]:
        """What must hold while a job answers, such as that a signal of the scheduler ends it cleanly."""
        return nullcontext()


class Jobs:
    """The function that Hydra's launcher plug-ins run in each job: it finds its own job by Hydra's number.

    Args:
        jobs: all jobs of a launch.
        first: Hydra's number of the first one.
        engine: asks the scheduler.
    """

    def __init__(self, jobs: Sequence[Job], first: int, engine: Engine) -> None:
        self.jobs, self.first, self.engine = tuple(jobs), first, engine
        self.launch = uuid.uuid4().hex[:12]
        self.folder = os.getcwd()

    def __call__(self, cfg: DictConfig) -> JobResult:
        """Run the job; an error that is no signal of the scheduler is returned, never raised.

        Args:
            cfg: what Hydra composed for the job; not used, since the parent has made and checked settings from it.
        """
        from stsimdiff.evaluate.processes import Processes

        terminal.log_to_stderr()
        if self.folder not in sys.path:  # a user's own module lies there, see `stsimdiff.commands.cli.main`
            sys.path.append(self.folder)
        number = HydraConfig.get().job.num - self.first
        job, slot = self.jobs[number], self.engine.slot(number)
        log.info("job %d: %s", number, job)
        rank, world = job.number * slot.tasks + slot.task, job.jobs * slot.tasks
        launch = f"{self.launch}.{number}.{slot.task}"
        try:
            with _driving(slot.device), self.engine.guard():
                return JobResult(job.answer(Processes(rank, world, launch, slot.show)))
        except (UserError, RunFailed) as error:
            reason = str(error)
        except Exception as error:
            reason = "".join(traceback.format_exception(error)).strip()
        log.error("job %d failed: %s", number, reason)
        return JobResult(error=reason)


@contextmanager
def _driving(device: int) -> Iterator[None]:
    """Say which device this process drives for the time of a job: some launchers run a job in the parent itself."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(device)
    try:
        yield
    finally:
        os.environ.pop("LOCAL_RANK")
        if before is not None:
            os.environ["LOCAL_RANK"] = before


class JobLauncher(BatchLauncher):
    """Turns a batch into jobs; subclasses also derive from the plug-in's launcher, which starts them."""

    engine = Engine()

    def start(self, words: Sequence[Sequence[str]], first: int) -> list[list[JobResult]]:
        """Start a job for each list of words and wait for all; gives how each one's processes ended."""
        raise NotImplementedError

    def tasks(self) -> int:
        """Processes of one job."""
        return 1

    def check(self) -> None:
        """Raise :class:`ConfigError` if this launcher cannot start jobs here."""
        if (world := world_size()) > 1:
            raise ConfigError(
                "start a launcher of jobs once, not under torch.distributed.run; for several processes in each job set "
                "hydra.launcher.tasks_per_node (submitit), or ask for more jobs. If an earlier shell left "
                f"WORLD_SIZE={world} in the environment: unset WORLD_SIZE"
            )

    def run(
        self, configurations: Sequence[DictConfig], overrides: Sequence[Sequence[str]], first: int
    ) -> None:
        """See :class:`~stsimdiff.launchers.base.BatchLauncher`.

        Raises:
            UserError: before any job is started.
            RunFailed: when samples have no answer; what was answered is scored and tabulated.
        """
        from stsimdiff.evaluate.run import conclude, withdraw_stored

        passes = passes_of(configurations)
        if planned(passes):
            return
        self.check()
        for run_pass in passes:
            if run_pass.settings.model.device_map and self.tasks() > 1:
                raise ConfigError(
                    f"model.device_map={run_pass.settings.model.device_map} spreads one model over the devices of a "
                    f"job, which {self.tasks()} processes would each do: set hydra.launcher.tasks_per_node=1"
                )
        check_presence(configurations, passes)
        from stsimdiff.kit.rehearsal import rehearse

        rehearse(passes)
        prepared = [_prepare_pass(run_pass) for run_pass in passes]
        jobs, words = [], []
        for run_pass, task, questions, unusable in prepared:
            withdraw_stored(run_pass.settings, task, list(run_pass.arms.values()), questions)
            for job in _missing(run_pass, questions, unusable, self.tasks()):
                jobs.append(job)
                words.append(_words(overrides[run_pass.first], job.settings))
        failures, died = [], []
        if jobs:
            self.task_function = Jobs(jobs, first, self.engine)
            for number, job in enumerate(jobs):
                log.info("job %d: %s", number, job)
            for number, ended in enumerate(self.start(words, first)):
                died += [
                    f"job {number} ({jobs[number]}): {run_pass.error}" for run_pass in ended if run_pass.error
                ]
        last = last_of_folders([run_pass for run_pass, *_ in prepared])
        for run_pass, task, questions, _ in prepared:
            try:
                report = make_report if run_pass in last else None
                conclude(run_pass.settings, task, list(run_pass.arms.values()), questions, report=report)
            except RunFailed as failure:
                failures.append(str(failure))
        if failures:
            raise RunFailed("\n".join([*died, *failures]))
        for reason in died:
            log.warning("%s; other jobs answered the rest", reason)


def _prepare_pass(run_pass: Pass) -> tuple[Pass, Any, list[Question], dict[str, str]]:
    """The pass with all of its paths absolute, its task, questions and unusable videos."""
    from stsimdiff.evaluate.run import prepare

    settings, task, questions, unusable = prepare(_absolute(run_pass.settings))
    return dataclasses.replace(run_pass, settings=settings), task, questions, unusable


def _absolute(settings: Settings) -> Settings:
    """Settings whose paths mean the same in another working folder."""

    def absolute(group: Any, *keys: str) -> Any:
        paths = {key: str(Path(getattr(group, key)).absolute()) for key in keys if getattr(group, key)}
        return dataclasses.replace(group, **paths)

    return dataclasses.replace(
        settings,
        folder=settings.folder.absolute(),
        benchmark=absolute(settings.benchmark, "data", "root", "moments"),
        cache=absolute(settings.cache, "folder"),
    )


def _missing(
    run_pass: Pass, questions: Sequence[Question], unusable: Mapping[str, str], tasks: int
) -> Iterator[Job]:
    """The jobs of a pass that have something to answer."""
    settings, arms = run_pass.settings, tuple(run_pass.arms.values())
    done = [done_ids(settings.folder / arm.folder, settings.retry_failed) for arm in arms]
    videos = {question.video for question in questions if any(question.id not in ids for ids in done)}
    # A job more than there are videos would find nothing to do.
    count = min(settings.jobs, -(-len(videos) // tasks))
    for number in range(count):
        yield Job(settings, arms, unusable, number, count)


def _words(overrides: Sequence[str], settings: Settings) -> list[str]:
    """What Hydra composes for a job: the words that its arms share, and the run's folder wherever the job runs."""
    per_arm = ("compressor", "budget", "results", "run")
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    kept = [str(word.input_line) for word in parsed if word.key_or_group.partition(".")[0] not in per_arm]
    results = str(settings.folder.parent).replace("'", r"\'")
    return [*kept, f"results='{results}'", f"run={settings.run}"]
