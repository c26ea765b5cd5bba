"""Settings of the model: checked, and completed by the fingerprint of its checkpoint, without loading anything."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, BeforeValidator, Field

from stsimdiff.config.checkpoint_files import checkpoint_version, generation
from stsimdiff.config.checks import Folder
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.resources import embedded_checkpoint
from stsimdiff.schema import FOUND, build, check, checked, one_of, only, settable
from stsimdiff.source import version_of
from stsimdiff.stand_ins import stand_in

DEVICES = ("cpu", "cuda", "hpu", "maia", "mps", "mtia", "xla", "xpu")
"""Kinds of device that torch knows; others, such as ``npu``, come with a package that is named ``torch_npu``."""


def _device(name: str) -> str:
    """The name of a device as torch writes it."""
    kind = re.fullmatch(r"([a-z]+)(?::\d+)?", name)
    if kind is None or not (kind[1] in DEVICES or importlib.util.find_spec(f"torch_{kind[1]}")):
        raise ValueError(f"{name!r} is no device")
    return name


def _not_null(value: Any) -> Any:
    if value is None:
        raise ValueError("null is no number")
    return value


_KINDS = f"{', '.join(DEVICES)}, with a number where there are several (cuda:1)"
Device = Annotated[str, AfterValidator(_device), Field(description=_KINDS)]
# What lies on the disk would be read again for every generated token.
Slot = Annotated[
    Annotated[int, Field(ge=0)] | Device,
    Field(description="the number of an accelerator, or cpu, cuda:1 ..."),
]
DeviceMap = (
    None
    | Literal["auto", "balanced", "balanced_low_0", "sequential"]
    | Annotated[
        dict[str, Slot],
        Field(min_length=1, description="devices by module (model.device has the whole model on one)"),
    ]
)


@dataclass(frozen=True)
class ModelSettings:
    """The group ``model``: the keys of ``configs/model/*.yaml``, and what is found out about the checkpoint.

    Attributes:
        fps: ``None`` where frames are evenly spaced, which do not depend on it.
        path: folder of the checkpoint; once found it is set, to that of the packaged one if none was given. A plan
            without weights leaves what was given.
        prompts: prompts of the model's own, by benchmark.
        options: the keys of its family alone.
        checkpoint: fingerprint of the files that loading reads; ``None`` in a plan without weights.
        layers: decoder layers that ``config.json`` names; ``None`` if it does not.
        generation: what it says of generation that changes greedy answers.
        code: version of the family's source.
    """

    name: Annotated[str, Field(pattern=r"\S", description="a name")]
    family: Annotated[str, Field(pattern=r"^[\w.]+$", description="a name")]
    path: Folder | None
    frames: Annotated[int, Field(ge=1, le=1_000_000)]
    sampling: Literal["uniform", "round", "fps"]
    fps: Annotated[float | None, BeforeValidator(_not_null), Field(gt=0, description="a number above 0")]
    device: Annotated[Literal["auto"] | Device, Field(description=f"auto, {_KINDS}")]
    device_map: DeviceMap
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"]
    threads: Annotated[int, Field(ge=1, le=1024)] | None
    trust_remote_code: bool
    prompts: Annotated[dict[str, str], Field(description="{benchmark: prompt, ...}")] | None
    options: dict[str, Any] = field(default_factory=dict, metadata=FOUND)
    checkpoint: str | None = field(default=None, metadata=FOUND)
    layers: int | None = field(default=None, metadata=FOUND)
    generation: dict[str, Any] | None = field(default=None, metadata=FOUND)
    code: str | None = field(default=None, metadata=FOUND)

    def stored(self) -> dict[str, Any]:
        """As ``arm.json`` holds it: the family's own keys among the others."""
        values = {key: value for key, value in vars(self).items() if key not in ("prompts", "options")}
        return values | self.options


def model_settings(node: dict[str, Any]) -> ModelSettings:
    """The checked group ``model``.

    Raises:
        ConfigError: for a value out of range.
    """
    from stsimdiff import models

    known = settable(ModelSettings)
    if "family" in node:
        checked(ModelSettings, {"family": node["family"]}, "model")
        if models.is_own(node["family"]):
            _own_family(node["family"])
        options = models.options_of(node["family"])
    else:
        options = {}
    only("model", node, (*known, *options))
    family_options = {
        name: check(f"model.{name}", node[name], own_hint(values)) for name, values in options.items()
    }
    model = build(ModelSettings, {name: node[name] for name in known}, "model", options=family_options)
    if model.device_map is not None and model.device != "auto":
        raise ConfigError(
            f"model.device={model.device} and model.device_map={model.device_map} say different things; leave one of "
            "them out"
        )
    if model.trust_remote_code and models.info(model.family).original:
        raise ConfigError(
            f"model.trust_remote_code=true has no meaning for model.family={model.family}, which reads the original "
            "checkpoint by code of its own and runs none of the checkpoint's; leave it false"
        )
    return model if model.sampling == "fps" else replace(model, fps=None)


def with_checkpoint(model: ModelSettings, needs_weights: bool = True) -> ModelSettings:
    """The settings with what is found out about the checkpoint, as far as a plan without weights can know it.

    Raises:
        DataError: for a checkpoint that is not there, unless a plan can do without it.
    """
    from stsimdiff import models
    from stsimdiff.models.presence import fetching, instead

    if not needs_weights and model.name != "embedded":
        folder = Path(model.path) if model.path else None
        if folder is None or not (folder / "config.json").is_file():
            return model
    path = _checkpoint(model)
    if not (path / "config.json").is_file():
        get = f"{fetching(model.family, str(path))} fetches a released one"
        hint = (
            f"name a folder with config.json and weights; {get}"
            if model.path
            else "make train-embedded makes it"
        )
        raise DataError(f"no checkpoint at model.path={path}; {instead(path) or hint}")
    is_own = models.is_own(model.family)
    return replace(
        model,
        path=str(path.resolve()),
        layers=_layers(path),
        checkpoint=checkpoint_version(path, model.family, model.trust_remote_code, is_own),
        generation=generation(path, model.family),
        code=_family_code(model.family, is_own),
    )


def _family_code(family: str, is_own: bool) -> str:
    """Version of the code that loads, encodes and prompts; a built-in family is not imported for it."""
    from stsimdiff import models

    if is_own:
        return version_of(models.resolve(family))
    module, _, name = models.info(family).cls.partition(".")[2].rpartition(".")
    return version_of(f"{module}:{name}")


def own_hint(values: Sequence[Any]) -> Any:
    """The annotation of a family's own option: words, null, and whole numbers in a range among them."""
    parts: list[Any] = []
    for value in values:
        if isinstance(value, range):
            parts.append(Annotated[int, Field(ge=value.start, lt=value.stop)])
        else:
            parts.append(bool if isinstance(value, bool) else Literal[value])
    return Union[tuple(parts)]  # noqa: UP007


def _own_family(name: Any) -> None:
    """Check a family that is not built in; the message for a misspelt name shows the closest one."""
    from stsimdiff import models

    if not isinstance(name, str) or "." not in name:
        one_of("model.family", name, [*models.names(), "my_module.MyFamily"])
    models.resolve(name)


def _checkpoint(model: ModelSettings) -> Path:
    from stsimdiff.models.presence import fetching

    if model.path:
        return Path(model.path)
    if model.name == "embedded":
        return embedded_checkpoint()
    raise DataError(
        f"model.path is not set, and the weights of model={model.name} do not come with the package: get them "
        f"with {fetching(model.family)}, then give model.path=DIR"
    )


def _layers(checkpoint: Path) -> int | None:
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        reason = stand_in(checkpoint / "config.json") or f"broken: {error}"
        raise DataError(f"{checkpoint / 'config.json'} is {reason}") from error
    if not isinstance(config, dict):
        raise DataError(
            f"{checkpoint / 'config.json'} is broken: a {type(config).__name__} where an object belongs"
        )
    # NVILA's text_config may be null.
    return (config.get("text_config") or config).get("num_hidden_layers")
