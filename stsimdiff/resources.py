"""Where the folders that travel with the package are: ``configs``, ``tasks`` and ``results_paper``.

In the repository they stand at the top, where people look for them; the wheel carries them inside the package.
"""

from __future__ import annotations

from pathlib import Path

from stsimdiff.errors import DataError

PACKAGE = Path(__file__).resolve().parent
IN_REPOSITORY = {"configs": "configs", "tasks": "tasks", "results_paper": "results/paper"}


def folder(name: str) -> Path:
    """The folder ``configs``, ``tasks`` or ``results_paper``, installed or in the repository.

    Raises:
        DataError: when the installation lacks it.
    """
    for candidate in (PACKAGE / name, PACKAGE.parent / IN_REPOSITORY[name]):
        if candidate.is_dir():
            return candidate
    raise DataError(
        f"the installation is incomplete: no folder {name!r} in {PACKAGE} or beside it; install again"
    )


def embedded_checkpoint() -> Path:
    """Folder of the packaged checkpoint of the embedded model; it may be absent before ``make train-embedded``."""
    return PACKAGE / "data" / "clips" / "model"
