"""Reading a checkpoint folder into a stock class, with every weight accounted for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoProcessor

from stsimdiff.errors import ConfigError, first_line
from stsimdiff.models.base import LoadOptions

SHOWN = 8
"""Weights that a message lists by name before it says how many more there are."""


def read_config(file: Path) -> dict[str, Any]:
    """A JSON configuration. Raises :class:`ConfigError` if it cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} holds a {type(found).__name__} where a configuration was expected")
    return found


def expect_type(path: str, given: Mapping[str, Any], kind: str, loads: str = "") -> None:
    """Raise :class:`ConfigError` for a configuration of another ``model_type``; ``loads``: what the family loads."""
    found = given.get("model_type")
    if found != kind:
        raise ConfigError(
            f"model.path={path!r} holds a {found!r} checkpoint; this family loads {loads or repr(kind)}"
        )


def refuse_sliding_window(text_config: Any, path: str, file: str = "its config.json") -> None:
    """Raise :class:`ConfigError` for a language model with sliding-window attention: dropping moves the window."""
    if "sliding_attention" in getattr(text_config, "layer_types", ()):
        raise ConfigError(
            f"model.path={path!r} uses sliding-window attention: dropping tokens would move the window; set "
            f"use_sliding_window=false in {file}"
        )


def load_processor(folder: Path, options: LoadOptions) -> Any:
    """The stock processor of a folder. Raises :class:`ConfigError` where its files are missing or broken."""
    try:
        return AutoProcessor.from_pretrained(
            folder, trust_remote_code=options.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ConfigError(
            f"the tokenizer or processor files in {folder} cannot be read: {first_line(error)}; take them "
            "from the released checkpoint"
        ) from error


def load_weights(
    model_class: Any,
    folder: Path,
    options: LoadOptions,
    config: Any = None,
    key_mapping: Mapping[str, str] | None = None,
) -> Any:
    """A stock model with the weights of ``folder`` (one safetensors file, or shards with their index), on its device.

    Args:
        model_class: a class of transformers.
        folder: the checkpoint folder.
        options: device or device map, dtype and attention backend.
        config: configuration of the stock class where the folder's ``config.json`` is of another format.
        key_mapping: regular expressions from the checkpoint's names to those of the stock class.

    Raises:
        ConfigError: when there are no safetensors files, or when weights are missing, unexpected or of another shape.
    """
    # An argument that is not given lets the stock class keep the name conversions of its own.
    given: dict[str, Any] = {"key_mapping": dict(key_mapping)} if key_mapping else {}
    if options.device_map is not None:
        place = options.device_map
        given["device_map"] = place if isinstance(place, str) else dict(place)
    try:
        model, found = model_class.from_pretrained(
            folder,
            config=config,
            dtype=options.resolved_dtype(),
            attn_implementation=options.attn_implementation,
            use_safetensors=True,
            trust_remote_code=options.trust_remote_code,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **given,
        )
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"no safetensors weights can be read from {folder}: {first_line(error)}") from error
    except (ValueError, TypeError, AttributeError, ImportError, StrictDataclassError) as error:
        # A configuration that contradicts itself, or an attention backend that is not installed.
        raise ConfigError(
            f"the checkpoint {folder} cannot be loaded with these settings: {first_line(error)}"
        ) from error
    account(
        folder,
        found["missing_keys"],
        found["unexpected_keys"],
        (entry[0] for entry in found["mismatched_keys"]),
    )
    if isinstance(options.device_map, Mapping):
        _check_map(model, options.device_map)
    return options.place(model)


def weight_names(folder: Path) -> Iterator[str]:
    """Names of the weights in a folder's safetensors files.

    Raises:
        ConfigError: for a file that cannot be read.
    """
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as weights:
                yield from weights.keys()
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"no safetensors weights can be read from {folder}: {first_line(error)}"
            ) from error


def _check_map(model: Any, device_map: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for modules that are not there, and for weights that the map forgets."""
    modules = {name for name, _ in model.named_modules()}
    unknown = sorted(set(device_map) - modules)
    left = [
        name
        for name, _ in model.named_parameters()
        if not any(part == "" or name == part or name.startswith(f"{part}.") for part in device_map)
    ]
    if unknown or left:
        problems = [f"there is no module {_listed(unknown)}"] if unknown else []
        problems += [f"it gives no device for {_listed(left)}"] if left else []
        raise ConfigError(
            f"model.device_map does not fit {type(model).__name__}: {'; '.join(problems)}; the modules at the top are "
            f"{', '.join(name for name in sorted(modules) if name.count('.') < 2 and name)}"
        )


def account(
    folder: Path, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str] = ()
) -> None:
    """Raise a :class:`ConfigError` that lists the weights which the checkpoint and the model do not share."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    problems = [
        f"{len(names)} {kind}: {_listed(names)}" for kind, given in kinds.items() if (names := sorted(given))
    ]
    if problems:
        raise ConfigError(
            f"the weights in {folder} are not those that its configuration asks for; {'; '.join(problems)}"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
