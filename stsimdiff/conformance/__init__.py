"""Our code on the inputs of recorded cases of the methods' official code, and the comparison with its outputs.

``python -m stsimdiff.conformance DIR...`` prints a line a case; :func:`replay` gives our outputs of one case under
the names of the recording. Two kinds of case exist: a file with the inputs and outputs of one selection method, and
a folder with a small checkpoint and files of whole runs. Nothing here is needed to answer questions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stsimdiff.conformance.cases import Case, locate, read_fields
from stsimdiff.conformance.end_to_end import replay_run
from stsimdiff.conformance.replays import replay_of
from stsimdiff.models.base import Family

__all__ = ["replay", "replay_case"]


def replay(path: str | Path, run: str | None = None) -> dict[str, np.ndarray]:
    """Our outputs for one recorded case, under the names of the recording.

    Only inputs are read: a case from which every output was removed gives the same arrays. Two exceptions follow
    the recordings' own rule on ties: where ``s1_keep_idx`` (of a file) or ``merge_keep_index`` (of a run) is still
    there, the stages after it start from it; otherwise they start from our own selection.

    Args:
        path: a case file (``.npz``), or the folder of a case with ``checkpoint/`` and ``input.npz``.
        run: for a folder, the name of the run: ``baseline``, ``simdiff_c0.3_s0.8_stablesort``,
            ``framefusion_c0.3_s0.6_r0.1``, ``fastv_k3_r0.5``. Its file need not exist.

    Raises:
        DataError: for a file that is missing or lacks an input.
        ConfigError: for a method, a setting or a model that the product does not have.
    """
    return replay_case(locate(path, run))


def replay_case(case: Case, family: Family | None = None) -> dict[str, np.ndarray]:
    """:func:`replay` of a located case; ``family`` is the loaded checkpoint of a folder, to load it only once."""
    if case.run is not None:
        return replay_run(case.path, case.run, family)
    data = read_fields(case.path)
    return replay_of(case, data).run(data)
