"""What a checkpoint's folder lacks, said before anything is loaded: weights, shards, the vision tower's configuration.

Looks at names only and imports no torch. Whether every weight is there is checked when the model is loaded.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from stsimdiff.models import RELEASED

SHOWN = 4
"""Missing files that a message lists by name."""
TOWERS = {"llava_video": "google/siglip-so400m-patch14-384"}
"""Where a family's released checkpoint does not hold its vision tower's configuration: whose that is."""


def fetching(family: str, folder: str = "DIR") -> str:
    """The commands that get a released checkpoint of a family, for a message."""
    commands = [f"`hf download {RELEASED.get(family, '<org>/<model>')} --local-dir {folder}`"]
    if family in TOWERS:
        commands.append(f"`hf download {TOWERS[family]} config.json` (its vision tower's configuration)")
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
    found = []
    # NVILA's checkpoint is three checkpoints in folders of their own.
    parts = [folder, *sorted(file.parent for file in folder.glob("*/config.json"))]
    if not any(list(part.glob("*.safetensors*")) for part in parts):
        found.append(f"{folder} holds no safetensors weights: {fetching(family, str(folder))}")
    for part in parts:
        lost = _lost_shards(part)
        if lost:
            shown = ", ".join(lost[:SHOWN]) + (f" and {len(lost) - SHOWN} more" if lost[SHOWN:] else "")
            found.append(
                f"{part} lacks {shown}, which its index names; again: {fetching(family, str(folder))}"
            )
    return found + _tower(family, folder)


def _lost_shards(folder: Path) -> list[str]:
    lost = set()
    for index in folder.glob("*.safetensors.index.json"):
        # A broken index is an error of its own, when it is read for the weights.
        with suppress(OSError, ValueError, AttributeError):
            named = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()
            lost |= {str(name) for name in named if not (folder / str(name)).is_file()}
    return sorted(lost)


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
    if family not in TOWERS:
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
