"""Protocols: a named choice of frames, sampling, pooling, limits, prompts and dtype (``configs/protocol``).

A protocol's file sets values of the model; whatever the command line or an experiment then changes of them is named
with it, since a published number counts in its own protocol only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stsimdiff.errors import ConfigError
from stsimdiff.evaluate.values import group, one_of
from stsimdiff.resources import folder

DEFAULTS: dict[str, Any] = {
    "name": "default",
    "source": None,
    "family": None,
    "all_tokens": {},
    "tolerance": 1.5,
    "remeasured": {},
    "unknown": None,
}
"""Keys of the node ``protocol`` and what they are where a file leaves them out; ``configs/protocol/default.yaml`` says
what each means."""


def names() -> list[str]:
    """The protocols that there are."""
    return sorted(file.stem for file in (folder("configs") / "protocol").glob("*.yaml"))


def check_protocol(cfg: DictConfig) -> dict[str, Any]:
    """The node ``protocol``, complete; first of all, since a protocol of another family sets what that one lacks.

    Raises:
        ConfigError: for a protocol that is unknown, changed, or of another family.
    """
    given = group(cfg, "protocol")
    one_of("protocol", given.get("name"), names())
    own = OmegaConf.to_container(_file(given["name"]).protocol)
    for key in {**own, **given}:
        if key not in given or key not in own or given[key] != own[key]:
            raise ConfigError(
                f"protocol.{key}={given.get(key)!r} is not what protocol={given['name']} says; choose another "
                "protocol=NAME, or change the model's settings: the table names what differs from the protocol"
            )
    protocol = {**DEFAULTS, **given}
    family = cfg.model.family
    if protocol["family"] not in (None, family):
        fitting = [name for name in names() if _file(name).protocol.get("family") in (None, family)]
        raise ConfigError(
            f"protocol={protocol['name']} is one of model.family={protocol['family']}, not of {family}; allowed: "
            f"{', '.join(fitting)}"
        )
    return protocol


def protocol_settings(cfg: DictConfig, benchmark: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol of a composed configuration, for one benchmark.

    Args:
        cfg: the whole configuration.
        benchmark: the settings of the benchmark, its prompt chosen.

    Returns:
        ``name``, ``source`` and ``unknown`` as its file says, ``changed``: what the command line set otherwise, as
        ``model.frames=32``; and of this benchmark ``all_tokens``, the published accuracy of all tokens in percent,
        ``remeasured`` and ``tolerance``; ``None`` where there is none.

    Raises:
        ConfigError: as :func:`check_protocol`.
    """
    protocol = check_protocol(cfg)
    name = str(benchmark["name"])
    return {
        "name": protocol["name"],
        "source": protocol["source"],
        "unknown": protocol["unknown"],
        "changed": _changed(cfg, _file(protocol["name"]), benchmark),
        "all_tokens": protocol["all_tokens"].get(name),
        "remeasured": protocol["remeasured"].get(name),
        "tolerance": protocol["tolerance"],
    }


def _file(name: str) -> DictConfig:
    return OmegaConf.load(folder("configs") / "protocol" / f"{name}.yaml")


def _changed(cfg: DictConfig, file: DictConfig, benchmark: Mapping[str, Any]) -> list[str]:
    """What a configuration says otherwise than the protocol's file, as words of the command line."""
    changed = []
    for key, value in file.get("model", {}).items():
        found = cfg.model.get(key)
        if key == "prompts":
            asked = value.get(str(benchmark["name"]))
            if asked not in (None, benchmark["prompt"]):
                changed.append(f"benchmark.prompt={benchmark['prompt']}")
        elif found != value:
            changed.append(f"model.{key}={'null' if found is None else found}")
    return changed
