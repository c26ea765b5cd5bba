"""Jobs by joblib: a pool of processes on this machine, one for each device."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from typing import ClassVar

from hydra_plugins.hydra_joblib_launcher import joblib_launcher

from stsimdiff.errors import first_line
from stsimdiff.launchers.jobs import Engine, JobLauncher, JobResult, Slot
from stsimdiff.ranks import end_with


class JoblibEngine(Engine):
    """Asks the pool."""

    watching: ClassVar[set[int]] = set()
    """The processes that watch their parent already."""

    def slot(self, number: int) -> Slot:
        """A worker of the pool keeps one device; workers are numbered from 1."""
        worker = multiprocessing.current_process()._identity
        return Slot(device=worker[0] - 1 if worker else 0, show=number == 0)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """A worker ends with the process that started the pool: nobody would take what it does."""
        if multiprocessing.current_process()._identity and os.getpid() not in self.watching:
            self.watching.add(os.getpid())
            end_with(os.getppid())
        yield


class JoblibLauncher(JobLauncher, joblib_launcher.JoblibLauncher):
    """``hydra/launcher=joblib``."""

    engine = JoblibEngine()

    def start(self, words: Sequence[Sequence[str]], first: int) -> list[list[JobResult]]:
        """See :class:`~stsimdiff.launchers.jobs.JobLauncher`."""
        import torch
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        if self.joblib["n_jobs"] == -1 and torch.accelerator.is_available():
            self.joblib["n_jobs"] = torch.accelerator.device_count()
        try:
            returns = joblib_launcher.JoblibLauncher.launch(self, words, first)
        except TerminatedWorkerError as error:
            # joblib stops the whole pool then, and does not say whose process it was.
            return [[JobResult(error=f"a process of the pool died: {first_line(error)}")]]
        return [[job.return_value] for job in returns]
