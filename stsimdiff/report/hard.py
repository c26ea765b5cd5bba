"""The hard questions of a block: those that all tokens answer right and plain down-sampling at the same budget wrong.

On the others, fewer frames or a coarser grid do as well as most methods, and the overall accuracy hides what a method
is worth. The choice itself favours nobody but all tokens and disfavours down-sampling, so neither has a number here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stsimdiff.report.section import TableRow
from stsimdiff.report.statistics import Answers

PLAIN = ("uniform_frames", "spatial_pool")


def with_hard(
    rows: Sequence[TableRow],
    right: Mapping[str, NDArray[np.bool_]],
    full: Mapping[str, str],
    videos: NDArray[np.int_],
) -> tuple[list[TableRow], list[str]]:
    """The rows with their accuracy on the hard questions of their block, and which these are.

    Of several down-sampling arms at a budget, each has to be wrong.

    Args:
        rows: of a section.
        right: by arm, ``(n,)`` which of the common questions it answers right; only arms with answers.
        full: by arm, the arm of all tokens with its settings.
        videos: ``(n,)`` the video of each question.
    """
    results: list[TableRow] = []
    notes: dict[str, None] = {}
    for row in rows:
        plain = [
            other
            for other in rows
            if other.method in PLAIN and (other.retention, other.settings) == (row.retention, row.settings)
            if other.bare and other.arm in right
        ]
        everything = right.get(full.get(row.arm, ""))
        unnamed = row.reference or row.method in PLAIN or row.arm not in right
        if unnamed or not plain or everything is None:
            results.append(row)
            continue
        chosen = everything & ~np.any([right[other.arm] for other in plain], axis=0)
        names = " and ".join(dict.fromkeys(other.method for other in plain))
        notes[
            f"Hard questions at {100 * row.retention:.4g} %: {int(chosen.sum())} of {len(videos)}, which all tokens "
            f"answer right and {names} at the same budget wrong. Column hard % is over these alone."
        ] = None
        if chosen.any():
            interval = Answers(right[row.arm][chosen, None], videos[chosen]).accuracy(0)
            hard, low, high = (100 * bound for bound in (interval.value, interval.low, interval.high))
            row = replace(row, hard=hard, hard_low=low, hard_high=high, n_hard=int(chosen.sum()))
        results.append(row)
    return results, list(notes)
