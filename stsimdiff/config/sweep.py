"""Lines that sweep: every combination of their values, composed as configurations of their own."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from stsimdiff.config.words import arm_words
from stsimdiff.errors import ConfigError

Compose = Callable[[Sequence[str]], DictConfig]


def expand(cfg: DictConfig, overrides: Sequence[str], compose: Compose) -> list[DictConfig]:
    """The configuration itself, or one for each arm of its ``arms`` lines.

    A line is composed as if its words stood on the command line behind ``overrides``, so a sweep written there gives
    the same arms as one written with ``-m``.

    Raises:
        ConfigError: for a line that is no sweep, or that sets what the command line sets too.
    """
    lines = cfg.get("arms")
    if lines is None:
        return [cfg]
    if not OmegaConf.is_list(lines) or not lines or not all(isinstance(line, str) for line in lines):
        raise ConfigError(
            "arms must be a list of command lines, such as ['compressor=random budget.retention=0.3']"
        )
    parser = OverridesParser.create()
    keys = {override.key_or_group for override in parser.parse_overrides(list(overrides))}
    configurations: list[DictConfig] = []
    for line in lines:
        words = parser.parse_overrides(arm_words(line))
        for word in words:
            if word.key_or_group in keys:
                raise ConfigError(
                    f"{word.key_or_group} is set by the arms of this experiment ({line}); leave it out, or leave the "
                    "experiment out and sweep with -m"
                )
        configurations += composed(
            ([*overrides, *combination] for combination in combinations(words)), compose
        )
    return configurations


def composed(jobs: Iterable[Sequence[str]], compose: Compose) -> Iterator[DictConfig]:
    """The configuration of each list of overrides.

    Hydra takes a tenth of a second for one. Those that differ in plain values alone are composed once, and the others'
    values set as Hydra sets them.
    """
    alike: dict[tuple[str, ...], DictConfig] = {}
    parser = OverridesParser.create()
    for words in jobs:
        values = parser.parse_overrides([word for word in words if re.match(r"(?!hydra\.)\w+\.", word)])
        # Hydra merges a mapping into what is there.
        values = [value for value in values if not isinstance(value.value(), dict)]
        plain = {value.input_line: value.key_or_group for value in values}
        key = tuple(plain.get(word, f"{word}=") for word in words)
        if key not in alike:
            alike[key] = compose(words)
        cfg = copy.deepcopy(alike[key])
        for value in values:
            OmegaConf.update(cfg, value.key_or_group, value.value(), merge=True)
        yield cfg


def combinations(words: Sequence[Override]) -> Iterable[tuple[str, ...]]:
    """Every combination of the values that a line of overrides sweeps over."""
    choices: list[list[str]] = []
    for word in words:
        if not word.is_sweep_override():
            choices.append([str(word.input_line)])
            continue
        choices.append([f"{word.get_key_element()}={value}" for value in word.sweep_string_iterator()])
    return itertools.product(*choices)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A copy of a composed configuration without the ``hydra`` node."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
