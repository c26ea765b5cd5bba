"""One line that says with what a section's numbers were made, and where its arms differ in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def provenance(records: Sequence[Mapping[str, Any]], scored: bool = True) -> str:
    """Versions, device, dtype, attention, data and git revision of the arms, and who scored the answers.

    Args:
        records: the arms' ``arm.json``. A value that differs between arms, or between the beginning of an arm
            and its resumption, is given with all its values: such rows are not the same measurement.
        scored: whether the answers were, or only asked for.
    """
    stored = [entry for record in records for entry in (record.get("provenance"), *record.get("resumed", ()))]
    flat = [_flat(entry) for entry in stored if entry]
    parts, differing = [], []
    for name in dict.fromkeys(key for entry in flat for key in entry):
        values = list(dict.fromkeys(entry.get(name, "unknown") for entry in flat))
        parts.append(f"{name} {' | '.join(values)}")
        if len(values) > 1:
            differing.append(name)
    done = "Scored" if scored else "Asked"
    sentence = f"{done} by lmms-eval's task functions. {', '.join(parts) or 'No provenance stored'}."
    return f"{sentence} ROWS DIFFER in {', '.join(differing)}." if differing else sentence


def _flat(stored: Mapping[str, Any]) -> dict[str, str]:
    """Provenance as ordered pairs of text; versions first, each under the name of its package."""
    versions = stored.get("versions") or {}
    rest = {name: value for name, value in stored.items() if name != "versions"}
    return {name: str(value) for name, value in (versions | rest).items() if value is not None}
