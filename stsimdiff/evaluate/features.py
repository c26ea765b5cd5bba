"""Vision features kept for later, so that another pass or run need not decode and encode a video again.

One pass encodes each video once and needs nothing of this. Off unless ``cache`` is set: in memory for the passes of one
command (seeds, prompts), on disk for later runs (other arms, ``retry_failed``, a run that was stopped). What a file
looks like stands in :mod:`feature_files`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from stsimdiff import video
from stsimdiff.config.settings import Settings
from stsimdiff.data.digests import file_digest
from stsimdiff.evaluate.feature_files import FeatureFiles
from stsimdiff.evaluate.packing import PackedVideo, pack, unpack
from stsimdiff.evaluate.provenance import versions
from stsimdiff.files import fingerprint
from stsimdiff.models.base import EncodedVideo, Family, Stopwatch
from stsimdiff.source import version_of
from stsimdiff.tokens import Signals, covers

GB = 1e9
FORMAT = 1
CODE = (*video.CODE, "models.base:EncodedVideo")
"""Our code that decodes; the settings of the model hold the version of the family's, which encodes."""
READERS = ("torch", "torchvision", "transformers", "numpy", "av", "torchcodec", "decord")
"""Packages whose version can change what is decoded, preprocessed or encoded."""
ELSEWHERE = ("name", "path", "frames", "layers", "prompts")
"""Settings of the model that are no part of the features, or that the key names otherwise."""


@dataclass(frozen=True)
class Key:
    """What features belong to.

    Attributes:
        about: everything that can change them: video, sampling, preprocessing, model, code and device.
    """

    about: str

    @property
    def name(self) -> str:
        """32 hex digits."""
        return fingerprint(self.about, digits=32)


class FeatureMemory:
    """Features in the host's memory, those used longest ago leaving first."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, PackedVideo] = OrderedDict()
        self.bytes = 0

    def get(self, key: Key, signals: Signals) -> PackedVideo | None:
        """The features; ``None`` where they, or the signals asked for, are not held."""
        if not self.holds(key.name, signals):
            return None
        self._held.move_to_end(key.name)
        return self._held[key.name]

    def holds(self, name: str, signals: Signals) -> bool:
        """Whether :meth:`get` would find them."""
        packed = self._held.get(name)
        return packed is not None and covers(packed.signals, signals)

    def put(self, key: Key, packed: PackedVideo, limit: float) -> None:
        """Hold features within ``limit`` bytes over all; a video larger than that is not held."""
        self._drop(key.name)
        if packed.bytes > limit:
            return
        while self.bytes + packed.bytes > limit:
            self._drop(next(iter(self._held)))
        self._held[key.name] = packed
        self.bytes += packed.bytes

    def clear(self) -> None:
        """Hold nothing."""
        self._held.clear()
        self.bytes = 0

    def _drop(self, name: str) -> None:
        if name in self._held:
            self.bytes -= self._held.pop(name).bytes


class FeatureCache:
    """Memory first, then disk; both are off where the settings say so, and then nothing is hashed or copied.

    Args:
        settings: whose ``cache`` says where and how much.
        memory: shared with other sessions; one of its own if not given.

    Raises:
        DataError: when the folder cannot be made or written.
    """

    def __init__(self, settings: Settings, memory: FeatureMemory | None = None) -> None:
        self.settings = settings
        self._limit = settings.cache.max_gb * GB
        self._memory = memory if memory is not None else FeatureMemory()
        folder = settings.cache.folder
        self._files = FeatureFiles(Path(folder), settings.cache.disk_gb * GB) if folder else None

    @property
    def on(self) -> bool:
        """Whether anything is kept."""
        return self._limit > 0 or self._files is not None

    def get(self, family: Family, path: str, signals: Signals) -> EncodedVideo | None:
        """A video's features on the model's device, or ``None``.

        Their ``origin`` says where they come from, and their only time is ``features``, that of getting them: decoding
        and the vision tower took no time in this run.

        Args:
            family: the loaded model.
            path: the video.
            signals: what of the tower's signals is needed too.
        """
        if not self.on:
            return None
        watch = Stopwatch(family.device)
        key, origin = self.key(family, path), "memory"
        packed = self._memory.get(key, signals) if self._limit else None
        if packed is None and self._files is not None:
            packed, origin = self._files.read(key.name, key.about, signals), "disk"
            if packed is not None and self._limit:
                self._memory.put(key, packed, self._limit)
        if packed is None:
            return None
        ready = unpack(packed, family.device)
        ready.origin, ready.seconds = origin, {"features": watch.lap()}
        return ready

    def holds(self, family: Family, path: str, signals: Signals) -> bool:
        """Whether :meth:`get` is likely to find a video's features; nothing is read but the file's digest."""
        if not self.on:
            return False
        name = self.key(family, path).name
        in_memory = bool(self._limit) and self._memory.holds(name, signals)
        return in_memory or (self._files is not None and self._files.holds(name))

    def put(self, family: Family, path: str, encoded: EncodedVideo) -> None:
        """Keep what was encoded, in memory and on disk as far as these are on.

        Raises:
            ConfigError: when the family's encoded videos cannot be kept.
        """
        if not self.on:
            return
        key, packed = self.key(family, path), pack(encoded)
        if self._limit:
            self._memory.put(key, packed, self._limit)
        if self._files is not None:
            self._files.write(key.name, key.about, packed)

    def forget(self) -> None:
        """Give the memory back; what is on disk stays."""
        self._memory.clear()

    def key(self, family: Family, path: str) -> Key:
        """What the features of a video belong to: any difference makes others.

        Raises:
            DataError: when the file cannot be read.
        """
        model = {name: value for name, value in self.settings.model.stored().items() if name not in ELSEWHERE}
        about = {
            "format": FORMAT,
            "video": _checksum(path),
            "sampling": {
                "frames": self.settings.model.frames,
                "decoder": self.settings.benchmark.decoder,
                "decoder_code": self.settings.benchmark.decoder_code,
            },
            "model": model | family.describe() | {"device": _device(family.device)},
            **_software(),
        }
        return Key(json.dumps(about, sort_keys=True))


def _checksum(path: str) -> str:
    from stsimdiff.video import check_file
    from stsimdiff.video.parts import Part

    # A part of a file is another video than the whole.
    file = check_file(path)
    return file_digest(file) + str(Part.of(path)).removeprefix(str(file))


@cache
def _software() -> dict[str, Any]:
    """Our own code's version (12 hex digits), and those of the packages that it stands on."""
    return {"code": version_of(*CODE), "versions": versions(READERS)}


def _device(device: torch.device) -> str:
    """Kind of device: features of another one differ in rounding. Its number does not matter."""
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    module: Any = torch.get_device_module(device)
    name = module.get_device_name(device) if hasattr(module, "get_device_name") else ""
    return f"{device.type} {name}".strip()
