"""Where a sweep runs: in this process, or as jobs of other processes and machines by the stock Hydra plug-ins.

``base`` registers the launchers with Hydra, ``in_process`` runs passes one after the other, ``jobs`` says what a job is
and what a launcher of jobs does before and after; each other module joins that to one plug-in. How the parts of a run
share its videos and files is known in ``stsimdiff.evaluate``.
"""

from __future__ import annotations

CLUSTERS = {
    "submitit_local": (
        "hydra_plugins.hydra_submitit_launcher",
        "stsimdiff.launchers.submitit",
        "LocalLauncher",
    ),
    "submitit_slurm": (
        "hydra_plugins.hydra_submitit_launcher",
        "stsimdiff.launchers.submitit",
        "SlurmLauncher",
    ),
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "stsimdiff.launchers.joblib", "JoblibLauncher"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "stsimdiff.launchers.ray", "RayLauncher"),
}
"""Launchers that start jobs: the Hydra plug-in that each stands on, and its module and class here."""
