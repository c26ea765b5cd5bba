"""Protocols: a named choice of frames, sampling, pooling, limits, prompts and dtype (``configs/protocol``).

A protocol's file sets values of the model; whatever the command line or an experiment then changes of them is named
with it, since a published number counts in its own protocol only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, cast

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from stsimdiff.config.benchmark import BenchmarkSettings
from stsimdiff.config.checks import group
from stsimdiff.errors import ConfigError
from stsimdiff.resources import folder
from stsimdiff.schema import build, one_of


def names() -> list[str]:
    """The protocols that there are."""
    return sorted(file.stem for file in (folder("configs") / "protocol").glob("*.yaml"))


def check_protocol(cfg: DictConfig) -> None:
    """Look at the node ``protocol`` first of all: a protocol of another family sets what that one lacks.

    Raises:
        ConfigError: for a protocol that is unknown, changed, or of another family.
    """
    node = group(cfg, "protocol")
    one_of("protocol", node.get("name"), names())
    stored = _file(node["name"])["protocol"]
    for key in {**stored, **node}:
        if key not in node or key not in stored or node[key] != stored[key]:
            raise ConfigError(
                f"protocol.{key}={node.get(key)!r} is not what protocol={node['name']} says; choose another "
                "protocol=NAME, or change the model's settings: the table names what differs from the protocol"
            )
    family = cfg.model.family
    if stored["family"] not in (None, family):
        fitting = [name for name in names() if _file(name)["protocol"]["family"] in (None, family)]
        raise ConfigError(
            f"protocol={node['name']} is one of model.family={stored['family']}, not of {family}; allowed: "
            f"{', '.join(fitting)}"
        )


@dataclass(frozen=True)
class ProtocolSettings:
    """A protocol for one benchmark.

    Attributes:
        name: of its file.
        source: where it is published.
        unknown: why there is no gate.
        changed: what the command line set otherwise, as ``model.frames=32``.
        all_tokens: the published accuracy of all tokens in percent; ``None`` where there is none.
        remeasured: what others measured.
        tolerance: points that ours may be away.
    """

    name: str
    source: str | None
    unknown: str | None
    changed: list[str]
    all_tokens: Annotated[float, Field(ge=0, le=100)] | None
    remeasured: Annotated[float, Field(ge=0, le=100)] | None
    tolerance: Annotated[float, Field(ge=0)]


def protocol_settings(cfg: DictConfig, benchmark: BenchmarkSettings) -> ProtocolSettings:
    """The protocol of a configuration that :func:`check_protocol` lets pass, for a benchmark whose prompt is chosen."""
    file = _file(cfg.protocol.name)
    # The default's file says what every key is where another leaves it out.
    about = {**_file("default")["protocol"], **file["protocol"]}
    here = {key: about[key].get(benchmark.name) for key in ("all_tokens", "remeasured")}
    here["changed"] = _changed(cfg, file.get("model", {}), benchmark)
    about.pop("family")
    return build(ProtocolSettings, {**about, **here}, "protocol")


@cache
def _file(name: str) -> dict[str, Any]:
    loaded = OmegaConf.load(folder("configs") / "protocol" / f"{name}.yaml")
    return cast(dict[str, Any], OmegaConf.to_container(loaded))


def _changed(cfg: DictConfig, model: Mapping[str, Any], benchmark: BenchmarkSettings) -> list[str]:
    """What a configuration says otherwise than the protocol of the model, as words of the command line."""
    changed = []
    for key, value in model.items():
        configured = cfg.model.get(key)
        if key == "prompts":
            prompt = value.get(benchmark.name)
            if prompt not in (None, benchmark.prompt):
                changed.append(f"benchmark.prompt={benchmark.prompt}")
        elif configured != value:
            changed.append(f"model.{key}={'null' if configured is None else configured}")
    return changed
