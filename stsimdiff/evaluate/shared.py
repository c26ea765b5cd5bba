"""What the passes of one command share: the loaded model, and vision features held in memory."""

from __future__ import annotations

import json
from collections.abc import Callable

from stsimdiff.config.settings import Settings
from stsimdiff.evaluate.failures import free_memory
from stsimdiff.evaluate.features import FeatureMemory
from stsimdiff.models.base import Family

FRAMES = ("frames", "sampling", "fps")
"""Settings of the model that say which frames it is given, which do not change it."""


def model_key(settings: Settings) -> str:
    """Equal for settings that load the same model."""
    model = {key: value for key, value in settings.model.stored().items() if key not in FRAMES}
    return json.dumps([model, settings.seed], sort_keys=True)


class SharedModel:
    """Benchmarks after one another answer with one loaded model; another model takes its place.

    Attributes:
        memory: vision features that later passes may use.
    """

    def __init__(self) -> None:
        self.memory = FeatureMemory()
        self._key: str | None = None
        self._family: Family | None = None

    def family(self, settings: Settings, load: Callable[[Settings], Family]) -> Family:
        """The model of these settings; it is loaded unless the pass before had the same."""
        key = model_key(settings)
        if self._family is None or key != self._key:
            if self._family is not None:
                # Two may not fit.
                self._family = None
                free_memory()
            self._family, self._key = load(settings), key
        return self._family
