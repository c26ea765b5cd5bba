"""What a checkpoint's folder lacks, said before anything is loaded: weights, shards, the vision tower's configuration,
what makes a prompt, and whether it is a checkpoint of the family at all.

Looks at names, configurations and the headers of files, and imports no torch. Whether every weight is there is checked
when the model is loaded.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stsimdiff.models.info import FAMILIES, info
from stsimdiff.stand_ins import stand_in

SHOWN = 4
"""Missing files that a message lists by name."""
TOKENIZERS = ("tokenizer.json", "vocab.json")
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
QUANTIZERS = {
    "awq": ("gptqmodel", "awq"),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed_tensors",),
    "gptq": ("gptqmodel", "auto_gptq"),
    "hqq": ("hqq",),
    "torchao": ("torchao",),
}
"""Packages of which one must be installed for a kind of quantised weights."""
MOST_HEADER = 100_000_000
"""Bytes of a safetensors file's header, by the format's own limit."""


def fetching(family: str, folder: str = "DIR") -> str:
    """The commands that get a released checkpoint of a family, for a message."""
    commands = [f"`hf download {info(family).released} --local-dir {folder}`"]
    if tower := info(family).tower:
        commands.append(f"`hf download {tower} config.json` (its vision tower's configuration)")
    return " and ".join(commands)


def absent(family: str, path: str | Path | None) -> list[str]:
    """What the folder of a checkpoint lacks, a sentence each; nothing where there is no such folder at all.

    Args:
        family: a model family.
        path: the folder, as ``model.path`` names it.
    """
    folder = Path(path).expanduser() if path else None
    if folder is None or not (folder / "config.json").is_file():
        return []
    # NVILA's checkpoint is three checkpoints in folders of their own.
    parts = [folder, *sorted(file.parent for file in folder.glob("*/config.json"))]
    problems = [
        f"{file} is {pointer}" for part in parts for file in _texts(part) if (pointer := stand_in(file))
    ]
    config = _read(folder / "config.json")
    if problems or config is None:
        return problems or [
            f"{folder / 'config.json'} holds no configuration: {fetching(family, str(folder))}"
        ]
    if adapter := _adapter(folder):
        return [adapter]
    if other := _mismatch(family, folder, config):
        return [other]
    problems += _quantised(family, folder, parts)
    lost = [name for name in info(family).parts if not (folder / name / "config.json").is_file()]
    if lost:
        problems.append(f"{folder} lacks the folder {', '.join(lost)}: {fetching(family, str(folder))}")
    subfolders = info(family).parts
    holding = [folder / name for name in subfolders if name not in lost] if subfolders else parts
    bare = [part for part in holding if not list(part.glob("*.safetensors*"))]
    if bare and (subfolders or len(bare) == len(holding)):
        named = ", ".join(map(str, bare)) if subfolders else str(folder)
        others = next((file.name for file in bare[0].glob("*.bin")), None)
        why = f" ({others} is not read: it may run code)" if others else ""
        problems.append(f"{named} holds no safetensors weights{why}: {fetching(family, str(folder))}")
    for part in parts:
        problems += _damaged(part, f"again: {fetching(family, str(folder))}")
    return problems + _tower(family, folder)


def unready(family: str, path: str | Path | None) -> list[str]:
    """What a checkpoint lacks to make prompts and frames, a sentence each; nothing for a user's own family.

    Weights alone can be loaded and compared, so :func:`absent` does not ask for these files.
    """
    folder = Path(path).expanduser() if path else None
    row = info(family)
    if folder is None or not row.types or not (folder / "config.json").is_file():
        return []
    texts = folder / "llm" if "llm" in row.parts else folder
    problems = []
    if not any((texts / name).is_file() for name in TOKENIZERS):
        problems.append(f"{texts} has no tokenizer ({' or '.join(TOKENIZERS)})")
    problems += [f"{folder} has no {name}" for name in row.needed if not (folder / name).is_file()]
    if not row.original and not any((folder / name).is_file() for name in PROCESSORS):
        problems.append(f"{folder} has no preprocessor ({' or '.join(PROCESSORS)})")
    if row.templated and not _template(texts, processor=not row.original):
        problems.append(
            f"{texts} has no chat template (chat_template.jinja), without which the model cannot be asked a question"
        )
    return [f"{problem}: {fetching(family, str(folder))}" for problem in problems]


def instead(folder: Path) -> str | None:
    """What a folder without ``config.json`` is, where that can be told, with what to do."""
    if adapter := _adapter(folder):
        return adapter
    if snapshots := sorted(folder.glob("snapshots/*/config.json")):
        return f"{folder} is the hub's cache of a checkpoint: model.path={snapshots[-1].parent}"
    inner = sorted(file.parent for file in folder.glob("*/config.json"))
    if len(inner) == 1:
        return f"{folder} holds the checkpoint in a folder: model.path={inner[0]}"
    return None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _texts(folder: Path) -> list[Path]:
    """The files beside the weights that loading may read."""
    return sorted(
        file for kind in ("*.json", "*.jinja", "*.model", "merges.txt") for file in folder.glob(kind)
    )


def _adapter(folder: Path) -> str | None:
    config = _read(folder / "adapter_config.json")
    if config is None:
        return None
    return (
        f"{folder} holds an adapter (adapter_config.json) of {config.get('base_model_name_or_path')}, no model of its "
        "own: merge it first (peft: model.merge_and_unload().save_pretrained(FOLDER)) and name that folder; beside "
        "merged weights, remove adapter_config.json"
    )


def is_of(family: str, config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is that of a built-in family's checkpoint."""
    kind, named, wanted = config.get("model_type"), architectures(config), info(family).architecture
    return kind in info(family).types and (not wanted or wanted in named or not (named or kind == "llava"))


def architectures(config: Mapping[str, Any]) -> list[str]:
    """The classes that a ``config.json`` names."""
    named = config.get("architectures") or []
    return [str(name) for name in named] if isinstance(named, list) else [str(named)]


def _mismatch(family: str, folder: Path, config: Mapping[str, Any]) -> str | None:
    """Why a checkpoint does not belong to a built-in family; ``None`` where it is one."""
    row = info(family)
    if not row.types or is_of(family, config):
        return None
    kind, named = config.get("model_type"), architectures(config)
    original = kind == "internvl_chat" or "mm_vision_tower" in config or "vision_tower_cfg" in config
    converted = not original and "vision_config" in config
    alone = not original and not converted and any(name.endswith("ForCausalLM") for name in named)
    subject = f"{folder} holds a {kind!r} checkpoint{f' ({named[0]})' if named else ''}"
    if alone:
        problem = f"{subject}, a language model alone, without a vision tower"
    elif converted and row.original:
        problem = f"{subject} in the converted form (-hf); model.family={family} reads the original one"
    elif original and not row.original:
        problem = f"{subject} in its original form; model.family={family} reads the converted one"
    else:
        problem = f"{subject}; model.family={family} reads {' or '.join(row.types)}"
    others = [
        name
        for name, candidate in FAMILIES.items()
        if kind in candidate.types and name != family and kind != "llava"
    ]
    hint = f"model={others[0]} reads this one, or " if others and not alone else ""
    return f"{problem}: {hint}{fetching(family)}"


def _quantised(family: str, folder: Path, parts: list[Path]) -> list[str]:
    for part in parts:
        settings = (_read(part / "config.json") or {}).get("quantization_config")
        if not isinstance(settings, dict):
            continue
        method = str(settings.get("quant_method") or "bitsandbytes")
        if info(family).original:
            return [
                f"{part} is quantised ({method}); model.family={family} reads unquantised weights: {fetching(family)}"
            ]
        packages = QUANTIZERS.get(method, ())
        if packages and not any(importlib.util.find_spec(name) for name in packages):
            return [
                f"{folder} is quantised ({method}), and the package for it is not installed: pip install "
                f"{packages[0]}, or take unquantised weights: {fetching(family)}"
            ]
    return []


def _damaged(folder: Path, again: str) -> list[str]:
    """Shards that are not there, weights that are cut off or no weights, indices that cannot be read."""
    problems, named = [], set()
    for file in sorted(folder.glob("*.safetensors.index.json")):
        index = _read(file)
        weights = index.get("weight_map") if index else None
        if isinstance(weights, dict):
            named |= {str(name) for name in weights.values()}
        else:
            problems.append(f"{file} names no weights; {again}")
    files = {file.name for file in folder.glob("*.safetensors")}
    numbers = [re.fullmatch(r"(.*-)(\d+)-of-(\d+)\.safetensors", name) for name in sorted(files)]
    if not named and "model.safetensors" not in files and any(numbers):
        problems.append(f"{folder} lacks the index of its shards, model.safetensors.index.json; {again}")
        for part in filter(None, numbers):
            width = len(part[2])
            named |= {f"{part[1]}{n:0{width}}-of-{part[3]}.safetensors" for n in range(1, int(part[3]) + 1)}
    lost = sorted(name for name in named if not (folder / name).is_file())
    if lost:
        shown = ", ".join(lost[:SHOWN]) + (f" and {len(lost) - SHOWN} more" if lost[SHOWN:] else "")
        problems.append(f"{folder} lacks {shown}, which its index names; {again}")
    whole = {"model.safetensors"} & files or files
    for name in sorted((named or whole) - set(lost)):
        if damage := _cut(folder / name):
            problems.append(f"{folder / name} {damage}; {again}")
    return problems


def _cut(file: Path) -> str | None:
    """What is wrong with a safetensors file by its header and size; ``None``: nothing."""
    if pointer := stand_in(file):
        return f"is {pointer}"
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(MOST_HEADER, size):
                return f"is not a complete safetensors file ({size} bytes): it is cut off, or another kind of file"
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"is not a complete safetensors file ({size} bytes): its header is damaged"
    whole = 8 + length + max(ends, default=0)
    return (
        None if whole == size else f"has {size} bytes, and its header says {whole}: it is cut off or damaged"
    )


def _template(folder: Path, processor: bool) -> bool:
    """Whether a folder has a chat template: a processor does not take its tokenizer's."""
    places = ["chat_template.jinja", "additional_chat_templates/default.jinja"]
    if any((folder / name).is_file() for name in places):
        return True
    files = ("chat_template.json", "processor_config.json") if processor else ("tokenizer_config.json",)
    return any((_read(folder / name) or {}).get("chat_template") for name in files)


def tower_file(folder: Path, name: str) -> Path | None:
    """The configuration of a vision tower, which the original checkpoint of LLaVA-Video does not hold.

    Args:
        folder: the checkpoint: it may lie there as ``vision_tower_config.json``.
        name: what the checkpoint calls its tower: a folder or a hub id. Of the hub only this machine's cache is asked.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    beside = folder / "vision_tower_config.json"
    places = [beside, Path(name).expanduser() / "config.json", folder / name / "config.json"]
    with suppress(HFValidationError):  # the name of a folder is no id
        cached = try_to_load_from_cache(name, "config.json")
        places += [Path(cached)] if isinstance(cached, str) else []
    return next((file for file in places if file.is_file()), None)


def _tower(family: str, folder: Path) -> list[str]:
    if not info(family).tower:
        return []
    try:
        name = str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("mm_vision_tower"))
    except (OSError, ValueError, AttributeError):
        return []
    if tower_file(folder, name):
        return []
    return [
        f"the configuration of the vision tower {name} is neither {folder / 'vision_tower_config.json'} nor in the "
        f"hub's cache: `hf download {name} config.json`, or put that file there under that name"
    ]
