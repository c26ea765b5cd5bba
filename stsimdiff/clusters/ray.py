"""Jobs by Ray: tasks on a Ray cluster, or on one that Ray starts on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from hydra_plugins.hydra_ray_launcher import ray_launcher

from stsimdiff.clusters.jobs import Ended, JobLauncher
from stsimdiff.errors import ConfigError


class RayLauncher(JobLauncher, ray_launcher.RayLauncher):
    """``hydra/launcher=ray``. A task whose process or machine dies is started again by Ray, and resumes."""

    def start(self, words: Sequence[Sequence[str]], first: int) -> list[list[Ended]]:
        """See :class:`~stsimdiff.clusters.jobs.JobLauncher`.

        Raises:
            ConfigError: when no cluster answers at ``hydra.launcher.ray.init.address``.
        """
        import ray
        from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray

        try:
            start_ray(self.ray_cfg.init)
        except (ConnectionError, ValueError) as error:
            address = self.ray_cfg.init.get("address")
            raise ConfigError(
                f"Ray cannot be used at hydra.launcher.ray.init.address={address}: {error}"
            ) from error
        if self.ray_cfg.remote.get("num_gpus") is None:
            # Ray hides the devices from a task that asks for none.
            self.ray_cfg.remote["num_gpus"] = 1 if ray.cluster_resources().get("GPU") else 0
        try:
            returns = ray_launcher.RayLauncher.launch(self, words, first)
        except ray.exceptions.RayError as error:
            return [[Ended(error=f"Ray gave it up: {error}")]]
        finally:
            ray.shutdown()
        return [[one.return_value] for one in returns]
