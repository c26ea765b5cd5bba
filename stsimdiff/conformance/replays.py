"""How the recorded selections of each method are replayed and compared: a table by the method's name."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stsimdiff.conformance import methods
from stsimdiff.conformance.cases import Arrays, Case, Fields
from stsimdiff.conformance.selection import METHODS as SELECTIONS
from stsimdiff.conformance.vision import METHODS as VISION
from stsimdiff.errors import ConfigError

SEVEN = (
    "hidden|patch_type|cos|sin|n_frames|height|width|patch_num|image_token_(start_index|end_index|length)"
    "|original_length|cost|similarity_lower_bound|event_upper_bound|ratio_lower_bound|strategy|right|bottom|spatial"
    r"|temporal|num_layers|s2_attn|n_calls|call\d+_(in_hidden|attn)|attention|sys_length|attention_rank|agg_layer"
    "|seq_length|metric|attn_cls|dominant_num|contextual_num|visual_token_num|tile_grid|k|q_cls|if_adaptive"
    "|reduction_ratio|n_neighbours"
)


def refused(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Rule of a recorded error: ours refuses too, and has no other output; its words are our own."""
    others = sorted(set(outputs) - {name})
    return f"ours gives {', '.join(others)}" if others else ""


def same_error(name: str, recorded: Fields, outputs: Arrays) -> str:
    """Rule of a recorded error: of the same type; its words are those of the libraries that it was recorded with."""
    want, have = (str(fields[name]).partition(":")[0] for fields in (recorded, outputs))
    return f"{have}, recorded {want}" if want != have else ""


@dataclass(frozen=True)
class Replay:
    """How the recordings of one method are replayed and compared.

    All names of fields are regular expressions that must match the whole name.

    Attributes:
        run: our outputs under the recorded names, from the inputs alone.
        inputs: the fields that are inputs.
        skipped: fields that are not compared, and why.
        tolerances: absolute and relative tolerance of single fields; float64 otherwise 1e-9, float32 1e-5, all
            others are equal.
        rules: for a field that is compared in another way, what differs, given its name, what was recorded and ours;
            empty where nothing does.
        parts: for files of another part of the method, its replay, by an input that they alone have.
    """

    run: Callable[[Fields], Arrays]
    inputs: str = SEVEN
    skipped: Mapping[str, str] = field(default_factory=dict)
    tolerances: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rules: Mapping[str, Callable[[str, Fields, Arrays], str]] = field(default_factory=dict)
    parts: Mapping[str, Replay] = field(default_factory=dict)

    def is_input(self, name: str) -> bool:
        """Whether a field of a case is an input."""
        return name == "meta" or re.fullmatch(self.inputs, name) is not None


def _modules() -> dict[str, Replay]:
    names = [module.name for module in pkgutil.iter_modules(methods.__path__)]
    return {name: importlib.import_module(f"{methods.__name__}.{name}").REPLAY for name in names}


METHODS: dict[str, Replay] = {
    **{name: Replay(run) for name, run in {**SELECTIONS, **VISION}.items()},
    **_modules(),
}
"""The replay of each method, by the name that its recordings have."""


def replay_of(case: Case, data: Fields) -> Replay:
    """The replay of a file's method.

    Raises:
        ConfigError: for a method that the product does not have.
    """
    method = case.method(data)
    if method not in METHODS:
        raise ConfigError(
            f"{case.path} is a case of {method!r}, which this product does not implement; it has "
            f"{', '.join(sorted(METHODS))}"
        )
    replay = METHODS[method]
    return next((part for name, part in replay.parts.items() if name in data), replay)
