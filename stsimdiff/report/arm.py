"""An arm as a report sees it: its folder, and what its ``arm.json`` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stsimdiff.budget import KINDS, Kind
from stsimdiff.compressors import declared
from stsimdiff.evaluate.shown import ShownRecord
from stsimdiff.evaluate.stored import REFERENCES
from stsimdiff.report.text import one_line

PROPOSED = "st_simdiff"
"""What a run that names no other method is about."""


def is_proposed(proposed: str | None, method: str, compressor: Mapping[str, Any]) -> bool:
    """Whether a run is about a method.

    Args:
        proposed: the name or dotted path that the run names; nothing where it names none.
        method: name of the method.
        compressor: its parameters, ``_target_`` among them.
    """
    return (proposed or PROPOSED) in (method, compressor.get("_target_"))


@dataclass(frozen=True)
class StoredArm:
    """One arm's folder, what its ``arm.json`` says, and what its run's ``shown.json`` does."""

    folder: Path
    record: Mapping[str, Any]
    shown: ShownRecord = ShownRecord()

    @property
    def id(self) -> str:
        """What tells the arm from every other."""
        return self.record["arm"]

    @property
    def method(self) -> str:
        """The method's name, on one line."""
        return one_line(self.record["method"])

    @property
    def label(self) -> str:
        """What the run calls the arm, else :attr:`configured`."""
        return one_line(self.shown.arms.get(self.id, "")) or self.configured

    @property
    def configured(self) -> str:
        """Method and parameters on one line; the method's name where nothing of them can be seen."""
        return one_line(self.record["label"]) or self.method

    @property
    def bare(self) -> bool:
        """Whether the method has its own defaults."""
        return self.configured == self.method

    @property
    def proposed(self) -> bool:
        """Whether the run is about its method: the one that it names, or else ``st_simdiff``."""
        return is_proposed(self.shown.proposed, self.method, self.compressor)

    @property
    def version(self) -> tuple[str, ...]:
        """Of the code that answered: of the method, the task, the family, and what lies under them."""
        parts = self.record, self.record["benchmark"], self.record["model"]
        return (*(str(part.get("code")) for part in parts), str(self.record.get("beneath")))

    @property
    def compressor(self) -> Mapping[str, Any]:
        """``_target_`` and every parameter."""
        return self.record.get("compressor") or {}

    @property
    def fidelity(self) -> Mapping[str, str]:
        """What the method declares of its fidelity; of a built-in one also where an earlier version stored nothing."""
        stored = self.record.get("fidelity") or declared(self.method) or {}
        return {name: one_line(str(text)) for name, text in stored.items()}

    @property
    def reference(self) -> bool:
        """Whether the arm has no retention of its own."""
        return self.method in REFERENCES

    @property
    def kind(self) -> Kind:
        """The kind of its budget; ``tokens`` for an arm without one."""
        return (self.record["budget"] or {}).get("kind") or KINDS[0]

    @property
    def retention(self) -> float:
        """The budget as a share in (0, 1]; 1 for a reference, whatever its budget says."""
        return 1.0 if self.reference else float(self.record["budget"]["retention"])

    @property
    def benchmark(self) -> str:
        """The benchmark's name, on one line."""
        return one_line(self.record["benchmark"]["name"])

    @property
    def server(self) -> str | None:
        """The address that scores its predictions; ``None`` where the answers are known."""
        return self.record["benchmark"].get("server")

    @cached_property
    def model(self) -> tuple[str, str, str, str]:
        """Name, checkpoint, frames and protocol: two arms that differ here are never put into one table.

        The checkpoint is its fingerprint, or its path where none is stored: paths differ between machines.
        """
        model = self.record["model"]
        checkpoint = model.get("checkpoint") or model.get("path") or "default"
        frames = f"{model.get('frames', 'default')} frames"
        if model.get("sampling", "uniform") != "uniform":
            rate = f", {model['fps']:g} a second" if model.get("fps") is not None else ""
            frames += f" ({model['sampling']}{rate})"
        return one_line(model["name"]), str(checkpoint), frames, self.protocol_name

    @property
    def protocol(self) -> Mapping[str, Any]:
        """What the record says of its protocol; nothing in those of earlier versions."""
        return self.record.get("protocol") or {}

    @property
    def protocol_name(self) -> str:
        """The protocol's name, with what was changed of it."""
        name, changed = self.protocol.get("name", "unnamed"), self.protocol.get("changed")
        return one_line(f"{name} with {' '.join(changed)}" if changed else name)

    @property
    def by_name(self) -> bool:
        """Whether its lines know a video by the name of its file alone, as those of earlier versions do."""
        return "format" not in self.record
