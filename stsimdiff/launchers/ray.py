"""Jobs by Ray: tasks on a Ray cluster, or on one that Ray starts on this machine."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence

from hydra_plugins.hydra_ray_launcher import ray_launcher

from stsimdiff.errors import ConfigError
from stsimdiff.launchers.jobs import JobLauncher, JobResult

PATIENCE_SECONDS = 10.0
"""How long a cluster's address may take to answer; Ray itself would try for many minutes."""


class RayLauncher(JobLauncher, ray_launcher.RayLauncher):  # type: ignore[misc]
    """``hydra/launcher=ray``. A task whose process or machine dies is started again by Ray, and resumes."""

    def check(self) -> None:
        """See :class:`~stsimdiff.launchers.jobs.JobLauncher`; the cluster is joined, or started.

        Raises:
            ConfigError: when no cluster answers at ``hydra.launcher.ray.init.address``.
        """
        from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray

        super().check()
        address = self.ray_cfg.init.get("address")
        try:
            if place := re.fullmatch(r"([^/]+):(\d+)", str(address)):
                socket.create_connection((place[1], int(place[2])), timeout=PATIENCE_SECONDS).close()
            start_ray(self.ray_cfg.init)
        except (OSError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise ConfigError(
                f"Ray cannot be used with hydra.launcher.ray.init.address={address}: {error}; allowed: null for a "
                "cluster on this machine, auto for the one that `ray start` joined it to, or HOST:PORT"
            ) from error

    def start(self, words: Sequence[Sequence[str]], first: int) -> list[list[JobResult]]:
        """See :class:`~stsimdiff.launchers.jobs.JobLauncher`."""
        import ray

        if self.ray_cfg.remote.get("num_gpus") is None:
            # Ray hides the devices from a task that asks for none.
            self.ray_cfg.remote["num_gpus"] = 1 if ray.cluster_resources().get("GPU") else 0
        try:
            returns = ray_launcher.RayLauncher.launch(self, words, first)
        except ray.exceptions.RayError as error:
            return [[JobResult(error=f"Ray gave it up: {error}")]]
        finally:
            ray.shutdown()
        return [[job.return_value] for job in returns]
