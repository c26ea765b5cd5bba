"""The rules by which our outputs are compared with recorded ones.

Integers and flags must be equal, floats within a tolerance. Where tokens of a community have equal centrality, the
official result is whatever an unstable sort gave: there the survivors must be equal outside the tie, and inside it
only their number counts. What is not compared is in :data:`SKIPPED`, with the reason; a recorded field that is
neither an input, nor skipped, nor among our outputs is a difference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stsimdiff.conformance.cases import Arrays, Case, Fields
from stsimdiff.conformance.replays import Replay, replay_of
from stsimdiff.errors import DataError

SKIPPED = {
    "s1_ambiguous|tie_index": "says where the tie rule applies",
    "newline_kept": "a part of merge_keep_index",
}
"""Recorded fields that are not compared, and why."""
TIED = {"s1_keep_idx", "s1_patch_type_out", "s1_sparsity_list", "merge_keep_index", "sparsity_after_merge"}
"""Fields that the choice among tied tokens decides."""
RANKED = {"s1_component_order": "s1_component_weight", "component_processed": "component_weight"}
"""Orders of communities, and the weights that they are sorted by: among equal weights any order is right."""
TOLERANCES = {
    "s1_centrality|s1_component_weight": (2e-6, 0.0),
    "attn_mean": (1e-6, 0.0),
    "cls_attn": (0.0, 1e-5),
}
"""Absolute and relative tolerance of single fields. Otherwise float64, which are ratios, are compared to 1e-9, the
float32 of files to 1e-5 and those of runs to 1e-4."""
EQUAL_WEIGHTS = 2e-6


@dataclass
class Comparison:
    """One case compared.

    Attributes:
        compared: names of the fields compared.
        skipped: names of the fields not compared, with the reason.
        differences: a line for each field that differs.
    """

    compared: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)


def compare(case: Case, recorded: Fields, outputs: Arrays) -> Comparison:
    """Compare every recorded output of a case with ours.

    Raises:
        DataError: when the case holds no recorded outputs.
    """
    result = Comparison()
    # The file of a run holds outputs only; its inputs are files of their own.
    replay = None if case.run is not None else replay_of(case, recorded)
    names = [name for name in recorded if replay is None or not replay.is_input(name)]
    if not names:
        raise DataError(f"{case.recorded} holds no recorded outputs to compare with; replay() gives ours")
    for name in names:
        if reason := _matching({**(replay.skipped if replay else {}), **SKIPPED}, name):
            result.skipped[name] = reason
            continue
        result.compared.append(name)
        difference = _difference(name, recorded, outputs, replay)
        if difference:
            result.differences.append(f"{name}: {difference}")
    return result


def _matching(table: Mapping[str, Any], name: str) -> Any:
    return next((value for pattern, value in table.items() if re.fullmatch(pattern, name)), None)


def _difference(name: str, recorded: Fields, outputs: Arrays, replay: Replay | None) -> str:
    if name not in outputs:
        return "recorded, but not among our outputs"
    if replay and (rule := _matching(replay.rules, name)):
        return rule(name, recorded, outputs)
    want, have = recorded[name], np.asarray(outputs[name])
    if name in TIED and len(ties := _ties(recorded)):
        return _tied_difference(name, recorded, outputs, ties)
    if want.shape != have.shape:
        return f"shape {have.shape}, recorded {want.shape}"
    if name in RANKED and not np.array_equal(want, have):
        weight = recorded[RANKED[name]]
        return _close(weight[want], weight[have], EQUAL_WEIGHTS, 0.0)
    if want.dtype.kind != "f":
        wrong = np.flatnonzero(want.ravel() != have.ravel())
        if len(wrong) == 0:
            return ""
        first = int(wrong[0])
        return (
            f"{len(wrong)} of {want.size} differ, first at {first}: {have.ravel()[first]}, "
            f"recorded {want.ravel()[first]}"
        )
    usual = 1e-9 if want.dtype == np.float64 else 1e-5 if replay else 1e-4
    fixed = _matching({**(replay.tolerances if replay else {}), **TOLERANCES}, name)
    return _close(want, have, *(fixed or (usual, 0.0)))


def _close(want: np.ndarray, have: np.ndarray, atol: float, rtol: float) -> str:
    if np.allclose(have, want, atol=atol, rtol=rtol, equal_nan=True):
        return ""
    if not np.array_equal(np.isnan(have), np.isnan(want)):
        return "NaN in other places than recorded"
    worst = float(np.nanmax(np.abs(have.astype(np.float64) - want)))
    allowed = f"{rtol:g} relative" if rtol else f"{atol:g}"
    return f"differs by up to {worst:.3g}, allowed {allowed}"


def _ties(recorded: Fields) -> np.ndarray:
    """Sequence indices of the tied tokens."""
    if "s1_ambiguous" in recorded:
        return np.flatnonzero(recorded["s1_ambiguous"])
    return recorded.get("tie_index", np.array([], dtype=np.int64))


def _tied_difference(name: str, recorded: Fields, outputs: Arrays, ties: np.ndarray) -> str:
    """The survivors outside the ties are equal; inside, each community keeps as many, tied event tokens aside."""
    prefix = "s1_" if name.startswith("s1_") else ""
    keep = "s1_keep_idx" if prefix else "merge_keep_index"
    if keep not in recorded:
        return ""
    want, have = set(recorded[keep].tolist()), set(np.asarray(outputs[keep]).tolist())
    events = set(np.asarray(outputs["s1_event_idx" if prefix else "event_index"]).tolist())
    slack = len(events & set(ties.tolist()))
    if name not in ("s1_keep_idx", "merge_keep_index"):
        # Follow from the survivors; only the number of those can be compared beyond them.
        sizes = recorded[name].size, np.asarray(outputs[name]).size
        if name == "s1_patch_type_out":
            return "" if abs(sizes[0] - sizes[1]) <= slack else f"{sizes[1]} tokens, recorded {sizes[0]}"
        return _close(
            recorded[name], np.asarray(outputs[name]), 1e-9 + slack / _tokens(recorded, outputs), 0.0
        )
    outside = (want ^ have) - set(ties.tolist())
    if outside:
        return f"{len(outside)} tokens outside the ties differ, first {min(outside)}"
    for number, members in enumerate(_communities(outputs)):
        tied = members & set(ties.tolist())
        extra = len(have & members) - len(want & members)
        if tied and abs(extra) > len(events & tied):
            return f"community {number} keeps {extra:+d} tokens more than recorded"
    return ""


def _communities(outputs: Arrays) -> list[set[int]]:
    if "s1_component_of" in outputs:
        label = outputs["s1_component_of"]
        return [set(np.flatnonzero(label == number).tolist()) for number in range(label.max() + 1)]
    return [
        set(part.tolist())
        for part in np.split(outputs["component_members"], outputs["component_offsets"][1:-1])
    ]


def _tokens(recorded: Fields, outputs: Arrays) -> int:
    return int(
        recorded["image_token_length"] if "image_token_length" in recorded else outputs["image_token_length"]
    )
