"""An encoded video as named tensors and a description in JSON, and back: what is kept of it in memory and in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stsimdiff.errors import ConfigError
from stsimdiff.models.base import EncodedVideo
from stsimdiff.tokens import Grid, Signals, TowerLayer, VisionSignals

SIGNALS = "signals."
"""How the names of the vision tower's signals begin; they are read only where they are needed."""

Tree = dict[str, Any]


@dataclass
class PackedVideo:
    """An encoded video away from the model.

    Attributes:
        tensors: by name, on the CPU, contiguous, each with its own memory.
        tree: where each of them belongs; JSON.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    tree: Tree = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def signals(self) -> Signals:
        """What of the vision tower's signals is among them."""
        tree = self.tree["signals"]
        layers = {} if tree is None else tree["dict"]["layers"]["dict"]
        return tuple(sorted(map(int, layers))) or tree is not None


def pack(encoded: EncodedVideo) -> PackedVideo:
    """Name all tensors of an encoded video and bring them to the CPU; what it took is left behind.

    A tensor that is a part of another (a family may keep its features with and without a newline) is described as that.

    Raises:
        ConfigError: when the family keeps something else than tensors, plain values, and lists and dicts of these.
    """
    packed = PackedVideo()
    seen: dict[Any, Any] = {}
    signals = encoded.signals
    parts = {
        "inputs": encoded.inputs,
        "features": encoded.features,
        "signals": None
        if signals is None
        else {**vars(signals), "layers": {str(layer.number): vars(layer) for layer in signals.layers}},
    }
    packed.tree = {name: _description(name, part, packed.tensors, seen) for name, part in parts.items()}
    if signals is None:
        packed.tree["signals"] = None
    packed.tree["grid"] = [encoded.grid.frames, encoded.grid.height, encoded.grid.width]
    packed.tree["times"] = [*encoded.times]
    return packed


def unpack(packed: PackedVideo, device: torch.device) -> EncodedVideo:
    """The encoded video again, each tensor on the device (or on the CPU) where the family had put it."""
    made: dict[str, Tensor] = {}
    signals = packed.tree["signals"] and _restored(packed.tree["signals"], packed.tensors, device, made)
    return EncodedVideo(
        features=_restored(packed.tree["features"], packed.tensors, device, made),
        grid=Grid(*packed.tree["grid"]),
        inputs=_restored(packed.tree["inputs"], packed.tensors, device, made),
        signals=signals
        and VisionSignals(
            **{**signals, "layers": tuple(TowerLayer(**layer) for layer in signals["layers"].values())}
        ),
        times=tuple(packed.tree["times"]),
    )


def _description(name: str, value: Any, tensors: dict[str, Tensor], seen: dict[str, Tensor]) -> Tree:
    if isinstance(value, Tensor):
        return _tensor(name, value, tensors, seen)
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value) and type(value) is dict:
        return {"dict": {key: _description(f"{name}.{key}", v, tensors, seen) for key, v in value.items()}}
    if type(value) in (list, tuple):
        items = [_description(f"{name}.{i}", v, tensors, seen) for i, v in enumerate(value)]
        return {type(value).__name__: items}
    raise ConfigError(
        f"this model's encoded videos hold a {type(value).__name__} ({name}), which the feature cache cannot keep; "
        "leave cache.max_gb=0 and cache.folder=null"
    )


def _tensor(name: str, value: Tensor, tensors: dict[str, Tensor], seen: dict[str, Tensor]) -> Tree:
    away = value.device.type != "cpu"
    for whole, base in seen.items():
        start = value.storage_offset() - base.storage_offset()
        if _is_part(value, base, start):
            part = [start, list(value.shape), list(value.stride())]
            return {"tensor": whole, "part": part, "device": away}
    # Contiguous ones are kept as they are on the CPU: no second copy in memory.
    seen[name] = value if value.is_contiguous() else value.contiguous()
    tensors[name] = seen[name].detach().cpu()
    return {"tensor": name, "device": away}


def _is_part(value: Tensor, base: Tensor, start: int) -> bool:
    shared = value.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
    same = value.dtype == base.dtype and value.device == base.device
    reach = start + sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    return bool(shared and same and value.numel() and start >= 0 and reach < base.numel())


def _restored(
    tree: Tree, tensors: Mapping[str, Tensor], device: torch.device, made: dict[str, Tensor]
) -> Any:
    if "value" in tree:
        return tree["value"]
    if "dict" in tree:
        return {key: _restored(inner, tensors, device, made) for key, inner in tree["dict"].items()}
    for kind in (list, tuple):
        if kind.__name__ in tree:
            return kind(_restored(inner, tensors, device, made) for inner in tree[kind.__name__])
    name = tree["tensor"]
    if name not in made:
        made[name] = tensors[name].to(device) if tree["device"] else tensors[name]
    whole = made[name]
    return whole.as_strided(tree["part"][1], tree["part"][2], tree["part"][0]) if "part" in tree else whole
