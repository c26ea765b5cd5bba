"""Settings of the model: checked, and completed by the fingerprint of its checkpoint, without loading anything."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stsimdiff.config.checkpoint_files import fingerprint, generation
from stsimdiff.config.checks import number_above, one_of, only
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.resources import embedded_checkpoint
from stsimdiff.source import version_of
from stsimdiff.stand_ins import stand_in

ATTENTION = ("sdpa", "eager", "flash_attention_2")
DTYPES = ("auto", "float32", "float16", "bfloat16")
DEVICES = ("cpu", "cuda", "hpu", "maia", "mps", "mtia", "xla", "xpu")
"""Kinds of device that torch knows; others, such as ``npu``, come with a package that is named ``torch_npu``."""
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
MODEL = (
    "name", "family", "path", "frames", "sampling", "fps", "device", "device_map", "dtype",
    "attn_implementation", "threads", "trust_remote_code",
)  # fmt: skip
SAMPLING = ("uniform", "round", "fps")
MOST_THREADS = 1024
MOST_FRAMES = 1_000_000


def model_settings(model: dict[str, Any], needs_weights: bool = True) -> dict[str, Any]:
    """The checked group ``model``, with ``path`` set and ``checkpoint``, ``layers``, ``generation`` and ``code`` added.

    Raises:
        ConfigError: for a value out of range.
        DataError: for a checkpoint that is not there, unless a plan can do without it.
    """
    from stsimdiff import models
    from stsimdiff.models.presence import fetching, instead

    own = "family" in model and models.is_own(model["family"])
    if own:
        _own_family(model["family"])
    options = models.options_of(model["family"]) if "family" in model else {}
    only("model", model, (*MODEL, *options))
    for name, values in options.items():
        _option(f"model.{name}", model[name], values)
    one_of("model.attn_implementation", model["attn_implementation"], ATTENTION)
    one_of("model.dtype", model["dtype"], DTYPES)
    if model["device"] != "auto" and not _device(model["device"]):
        raise ConfigError(
            f"model.device={model['device']!r} is out of range; allowed: auto, {', '.join(DEVICES)}, with a "
            "number where there are several (cuda:1)"
        )
    _device_map(model)
    trusted = model["trust_remote_code"]
    if not isinstance(trusted, bool):
        raise ConfigError(f"model.trust_remote_code={trusted!r} is out of range; allowed: true, false")
    if trusted and model["family"] in models.OWN_READERS:
        raise ConfigError(
            f"model.trust_remote_code=true has no meaning for model.family={model['family']}, which reads the original "
            "checkpoint by code of its own and runs none of the checkpoint's; leave it false"
        )
    frames = model["frames"]
    if isinstance(frames, bool) or not isinstance(frames, int) or not 1 <= frames <= MOST_FRAMES:
        raise ConfigError(
            f"model.frames={frames!r} is out of range; allowed: a whole number from 1 to {MOST_FRAMES}"
        )
    one_of("model.sampling", model["sampling"], SAMPLING)
    fps = number_above("model.fps", model["fps"])
    # Evenly spaced frames do not depend on it.
    model = {**model, "fps": fps if model["sampling"] == "fps" else None}
    threads = model["threads"]
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (whole and 1 <= threads <= MOST_THREADS):
        raise ConfigError(
            f"model.threads={threads!r} is out of range; allowed: a whole number from 1 to {MOST_THREADS}, or null"
        )
    if not needs_weights and model["name"] != "embedded":
        given = Path(model["path"]).expanduser() if model["path"] else None
        if given is None or not (given / "config.json").is_file():
            return {**model, "checkpoint": None, "layers": None, "generation": None}
    path = _checkpoint(model)
    if not (path / "config.json").is_file():
        get = f"{fetching(model['family'], str(path))} fetches a released one"
        hint = (
            f"name a folder with config.json and weights; {get}"
            if model["path"]
            else "make train-embedded makes it"
        )
        raise DataError(f"no checkpoint at model.path={path}; {instead(path) or hint}")
    found = {
        **model,
        "path": str(path.resolve()),
        "layers": _layers(path),
        "checkpoint": fingerprint(path, model["family"], trusted, own),
        "generation": generation(path, model["family"]),
    }
    return {**found, "code": _family_code(model["family"], own)}


def _family_code(family: str, own: bool) -> str:
    """Version of the code that loads, encodes and prompts; a built-in family is not imported for it."""
    from stsimdiff import models

    if own:
        return version_of(models.resolve(family))
    module, _, name = models.FAMILIES[family].partition(".")[2].rpartition(".")
    return version_of(f"{module}:{name}")


def _option(name: str, value: Any, values: Sequence[Any]) -> None:
    """Check a family's own option: one of some values, or a whole number in a range among them."""
    numbers = next((item for item in values if isinstance(item, range)), None)
    words = [_as_written(item) for item in values if not isinstance(item, range)]
    if numbers is None:
        one_of(name, _as_written(value), words)
    elif not (type(value) is int and value in numbers) and _as_written(value) not in words:
        allowed = " or ".join([*words, f"a whole number from {numbers.start} to {numbers.stop - 1}"])
        raise ConfigError(f"{name}={value!r} is out of range; allowed: {allowed}")


def _own_family(name: Any) -> None:
    """Check a family that is not built in; the message for a misspelt name shows the closest one."""
    from stsimdiff import models

    if not isinstance(name, str) or "." not in name:
        one_of("model.family", name, [*models.names(), "my_module.MyFamily"])
    models.resolve(name)


def _device(given: Any) -> bool:
    """Whether this is the name of a device as torch writes it."""
    found = re.fullmatch(r"([a-z]+)(?::\d+)?", given) if isinstance(given, str) else None
    return found is not None and (
        found[1] in DEVICES or importlib.util.find_spec(f"torch_{found[1]}") is not None
    )


def _device_map(model: dict[str, Any]) -> None:
    given = model["device_map"]
    if given is None:
        return
    if isinstance(given, dict):
        if not given:
            raise ConfigError("model.device_map={} names no module; allowed: null, or devices by module")
        for module, device in given.items():
            whole = isinstance(device, int) and not isinstance(device, bool) and device >= 0
            # What lies on the disk would be read again for every generated token.
            named = _device(device)
            if not (isinstance(module, str) and (whole or named)):
                raise ConfigError(
                    f"model.device_map.{module}={device!r} is out of range; allowed: a module's name with the number "
                    "of an accelerator, or cpu, cuda:1 ..."
                )
    elif given not in DEVICE_MAPS:
        raise ConfigError(
            f"model.device_map={given!r} is out of range; allowed: null, {', '.join(DEVICE_MAPS)}, or devices by "
            "module; for the whole model on one device set model.device"
        )
    if model["device"] != "auto":
        raise ConfigError(
            f"model.device={model['device']} and model.device_map={given} say different things; leave one of them out"
        )


def _checkpoint(model: dict[str, Any]) -> Path:
    from stsimdiff.models.presence import fetching

    if model["path"]:
        return Path(model["path"]).expanduser()
    if model["name"] == "embedded":
        return embedded_checkpoint()
    raise DataError(
        f"model.path is not set, and the weights of model={model['name']} do not come with the package: get them "
        f"with {fetching(model['family'])}, then give model.path=DIR"
    )


def _as_written(value: Any) -> str:
    """A value as YAML spells it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _layers(checkpoint: Path) -> int | None:
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        said = stand_in(checkpoint / "config.json") or f"broken: {error}"
        raise DataError(f"{checkpoint / 'config.json'} is {said}") from error
    if not isinstance(config, dict):
        raise DataError(
            f"{checkpoint / 'config.json'} is broken: a {type(config).__name__} where an object belongs"
        )
    # NVILA's text_config may be null.
    return (config.get("text_config") or config).get("num_hidden_layers")
