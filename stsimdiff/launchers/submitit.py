"""Jobs by submitit: on a Slurm cluster, or as processes of this machine.

The plug-in knows the options and pickles itself as the job; submitit submits (a job array on Slurm), waits, requeues.
What is added: every job is waited for and heard of when one of them dies, a machine's devices are shared out among
local jobs, and a signal of the scheduler is no failed sample.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

from stsimdiff.errors import ConfigError
from stsimdiff.launchers.jobs import Engine, JobLauncher, JobResult, Slot
from stsimdiff.ranks import cores

if TYPE_CHECKING:
    import submitit

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2


class Interrupted(KeyboardInterrupt):
    """The scheduler takes the job away. No ``Exception``, so that it is not written down as a failed sample.

    Args:
        cause: what submitit raised in its signal handler.
    """

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class SubmititEngine(Engine):
    """Asks submitit."""

    def slot(self, number: int) -> Slot:
        """The task of this process within its job."""
        import submitit

        job = submitit.JobEnvironment()
        return Slot(job.global_rank, job.num_tasks, job.local_rank, show=True)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Before a time limit or a preemption submitit's handler has the job requeued, then leaves with ``SystemExit``.

        Raised inside a sample, that would be taken for the sample's failure.
        """
        import submitit

        number = submitit.JobEnvironment()._usr_sig()
        requeue: Any = signal.getsignal(number)

        def interrupt(signum: int, frame: Any) -> None:
            try:
                requeue(signum, frame)
            except (Exception, SystemExit) as cause:
                raise Interrupted(cause) from None

        if callable(requeue):
            signal.signal(number, interrupt)
        try:
            yield
        except Interrupted as interrupted:
            raise interrupted.cause from None
        finally:
            signal.signal(number, requeue)


class SubmititLauncher(JobLauncher):
    """What both executors share."""

    engine = SubmititEngine()
    params: dict[str, Any]

    def tasks(self) -> int:
        """See :class:`~stsimdiff.launchers.jobs.JobLauncher`."""
        return int(self.params["tasks_per_node"]) * int(self.params["nodes"])

    def arguments(self, words: Sequence[Sequence[str]], first: int) -> list[tuple[Any, ...]]:
        """What the plug-in's ``__call__`` is given in each job."""
        state = Singleton.get_state()
        return [
            (list(line), "hydra.sweep.dir", number, f"job_{number}", state)
            for number, line in enumerate(words, start=first)
        ]


class SlurmLauncher(SubmititLauncher, submitit_launcher.SlurmLauncher):
    """``hydra/launcher=submitit_slurm``: one job array."""

    def executor(self) -> submitit.AutoExecutor:
        """submitit's executor with the parameters of ``hydra.launcher``."""
        import submitit

        params = dict(self.params)
        folder, timeouts = params.pop("submitit_folder"), params.pop("max_num_timeout")
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=timeouts)
        shared = BaseQueueConf.__dataclass_fields__
        executor.update_parameters(
            **{key if key in shared else f"slurm_{key}": value for key, value in params.items()}
        )
        return executor

    def check(self) -> None:
        """See :class:`~stsimdiff.launchers.jobs.JobLauncher`."""
        super().check()
        if not shutil.which("sbatch") or not shutil.which("srun"):
            raise ConfigError(
                "hydra/launcher=submitit_slurm needs the commands sbatch and srun of a Slurm cluster, which are not "
                "here; start it on a login node, or use hydra/launcher=submitit_local, joblib or ray"
            )

    def start(self, words: Sequence[Sequence[str]], first: int) -> list[list[JobResult]]:
        """See :class:`~stsimdiff.launchers.jobs.JobLauncher`."""
        jobs = self.executor().map_array(self, *zip(*self.arguments(words, first), strict=True))
        log.info("submitted %s; logs: %s", jobs[0].job_id.partition("_")[0], jobs[0].paths.folder)
        return [_results(job) for job in jobs]


class LocalLauncher(SubmititLauncher, submitit_launcher.LocalLauncher):
    """``hydra/launcher=submitit_local``: processes of this machine, as many at a time as it has devices for."""

    def executor(self) -> submitit.LocalExecutor:
        """submitit's executor with the parameters of ``hydra.launcher`` that mean something on one machine."""
        import submitit

        # submitit starts a job before it makes the folder of the job's own, which the job may notice on a busy machine.
        executor = submitit.LocalExecutor(str(self.params["submitit_folder"]).removesuffix("/%j"))
        used = ("timeout_min", "tasks_per_node", "stderr_to_stdout")
        executor.update_parameters(**{key: self.params[key] for key in used})
        return executor

    def check(self) -> None:
        """See :class:`~stsimdiff.launchers.jobs.JobLauncher`."""
        super().check()
        if self.params["nodes"] != 1:
            raise ConfigError(
                f"hydra.launcher.nodes={self.params['nodes']} is out of range for submitit_local; allowed: 1"
            )
        self.slots()

    def start(self, words: Sequence[Sequence[str]], first: int) -> list[list[JobResult]]:
        """See :class:`~stsimdiff.launchers.jobs.JobLauncher`."""
        executor, arguments = self.executor(), self.arguments(words, first)
        free = self.slots()
        waiting, ended = list(range(len(words))), {}
        running: dict[int, tuple[submitit.Job, list[int]]] = {}
        while waiting or running:
            while waiting and free:
                number, devices = waiting.pop(0), free.pop(0)
                executor.update_parameters(gpus_per_node=len(devices), visible_gpus=devices)
                job = executor.submit(self, *arguments[number])
                log.info("job %d started; logs: %s", number, job.paths.folder)
                running[number] = job, devices
            for number, (job, devices) in list(running.items()):
                if job.done():
                    del running[number]
                    free.append(devices)
                    ended[number] = _results(job)
            time.sleep(POLL_SECONDS)
        return [ended[number] for number in range(len(words))]

    def slots(self) -> list[list[int]]:
        """The devices of each job that may run at the same time; without devices, a slot for as many cores as it asks.

        Raises:
            ConfigError: when one job asks for more devices than there are.
        """
        devices, wanted = _devices(), self.params["gpus_per_node"]
        size = self.tasks() if wanted is None else wanted
        if wanted and wanted > len(devices):
            raise ConfigError(
                f"hydra.launcher.gpus_per_node={wanted}, but this machine shows {len(devices)} devices; ask for fewer"
            )
        if not devices or not size:
            return [[]] * max(1, cores() // (self.tasks() * (self.params["cpus_per_task"] or 1)))
        # Fewer devices than tasks: the tasks share them.
        size = min(size, len(devices))
        return [devices[i : i + size] for i in range(0, len(devices) - size + 1, size)]


def _devices() -> list[int]:
    """The machine's CUDA devices, as CUDA_VISIBLE_DEVICES numbers them for this process.

    Raises:
        ConfigError: when they are not given by number, which is all that submitit can hand on.
    """
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if not count or not visible:
        return list(range(count))
    try:
        return [int(number) for number in visible.split(",")][:count]
    except ValueError as error:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={visible} does not give devices by number; with hydra/launcher=submitit_local write "
            "numbers, such as CUDA_VISIBLE_DEVICES=0,1"
        ) from error


def _results(job: submitit.Job) -> list[JobResult]:
    """How each process of a job ended, waited for; one that died is named with its log."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    job.wait()
    results = []
    for task in range(job.num_tasks):
        process = job.task(task) if job.num_tasks > 1 else job
        try:
            results.append(process.result().return_value)
        except (FailedJobError, UncompletedJobError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            results.append(
                JobResult(
                    error=f"it died: {lines[-1] if lines else error}; its log is {process.paths.stderr}"
                )
            )
    return results
