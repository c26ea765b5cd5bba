"""What the engine writes down of one forward pass, for costs, plans, overlays and the audit of the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stsimdiff.budget import achieved
from stsimdiff.tokens import OWN, Reason


@dataclass
class Stage:
    """One selection: where it acted, which tokens it left, and how long it took.

    Attributes:
        place: ``input``, ``before`` or ``between``.
        layer: decoder layer it belongs to, 0 for ``input``.
        kept: ``(k,)`` int64 on the CPU, raster indices that stayed.
        seconds: time of the selection itself, device synchronised.
    """

    place: str
    layer: int
    kept: Tensor
    seconds: float


@dataclass
class Trace:
    """What one forward pass did with the video tokens.

    Attributes:
        layers: decoder layers L.
        video: N, video tokens of the input.
        text: other tokens of the input.
        entering: video tokens that entered each layer, length L.
        mlp: video tokens in each layer's MLP, length L; fewer than ``entering`` where a drop came between.
        stages: the selections in order.
        asked: place, layer and video tokens present of each time the run was asked, selections of nothing included.
        reads: query rows and keys of each attention that was read for the run.
        projected: tokens whose queries, keys and values were made once more, for a read of what enters a layer.
        reason: ``(N,)`` uint8 on the CPU: the code of each token's reason at the end of the prefill.
        own: the method's own reasons, whose codes begin at :data:`~stsimdiff.tokens.OWN`, and their colours.
        compressor_seconds: time of all selections.
        prefill_seconds: time of the decoder's prefill, selections included.
        decoded: tokens put through the decoder after the prefill.
        visible: video keys that each generated token saw, the mean over the layers, where the run acts while decoding.
        decoding_seconds: time of what the run did then.
    """

    layers: int
    video: int
    text: int
    entering: list[int] = field(default_factory=list)
    mlp: list[int] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)
    projected: list[int] = field(default_factory=list)
    reason: Tensor | None = None
    compressor_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decoded: int = 0
    visible: list[float] = field(default_factory=list)
    decoding_seconds: float = 0.0
    own: Mapping[str, str] = field(default_factory=dict)

    def restart(self, video: int, text: int, own: Mapping[str, str]) -> None:
        """Forget what is written down, for another prompt of so many tokens and a method with such reasons."""
        vars(self).update(vars(Trace(self.layers, video, text, own=dict(own))))

    @property
    def final(self) -> int:
        """Video tokens left after the last drop."""
        return self.stages[-1].kept.shape[0] if self.stages else self.video

    @property
    def kv_kept(self) -> float | None:
        """Share of the video's keys in all layers that generated tokens saw; ``None`` where the run hides none."""
        return sum(self.visible) / len(self.visible) / self.video if self.visible else None

    def retention(self) -> dict[str, float]:
        """Both kinds of achieved retention, ``tokens`` and ``compute``."""
        return achieved(self.video, self.entering, self.final)

    def reasons(self) -> dict[str, int]:
        """How many tokens ended with which reason, by lower-case name."""
        if self.reason is None:
            return {}
        counts = torch.bincount(self.reason.int()).tolist()
        return {self.reason_name(code): count for code, count in enumerate(counts) if count}

    def reason_name(self, code: int) -> str:
        """The lower-case name of a reason."""
        return list(self.own)[code - OWN] if code >= OWN else Reason(code).name.lower()
