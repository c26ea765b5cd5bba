"""Whether Weights & Biases is reached online, offline or not at all; known before anything is loaded.

W&B itself is not imported here.
"""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from stsimdiff.errors import ConfigError

MODES = ("offline", "online")
ENVIRONMENT = {"online": "online", "offline": "offline", "dryrun": "offline", "disabled": None}
"""What WANDB_MODE can say, and the mode that it stands for; ``None``: off."""


def wandb_mode(mode: str | None) -> str | None:
    """The mode to log in, or ``None`` where WANDB_MODE switches W&B off.

    Args:
        mode: ``logger.mode``: ``online``, or ``offline``. None is offline too, unless WANDB_MODE says ``disabled``.

    Raises:
        ConfigError: for an unknown mode, or ``online`` without a key.
    """
    if mode not in (None, *MODES):
        raise ConfigError(f"logger.mode={mode} is unknown; allowed: {', '.join(MODES)}, or null for offline")
    variable = os.environ.get("WANDB_MODE")
    if variable and variable not in ENVIRONMENT:
        raise ConfigError(
            f"WANDB_MODE={variable} is unknown; allowed: {', '.join(ENVIRONMENT)}; unset or correct it"
        )
    if mode is None:
        return None if variable and ENVIRONMENT[variable] is None else "offline"
    if mode == "online" and not has_key():
        raise ConfigError(
            "logger.mode=online needs a key of W&B: run `wandb login`, set WANDB_API_KEY, or use logger.mode=offline"
        )
    return mode


def has_key() -> bool:
    """Whether W&B would find a key without asking for one; the key itself is not kept."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            return netrc.netrc(str(path)).authenticators(host) is not None
        except (OSError, netrc.NetrcParseError):
            continue
    return False
