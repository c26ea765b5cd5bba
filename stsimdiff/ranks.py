"""What started this process: its number among several of one run, and the end of the one that started it.

Reads the environment alone and imports no torch.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from typing import NamedTuple

from stsimdiff.errors import ConfigError

NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a process needs besides WORLD_SIZE in order to find the others."""
POLL_SECONDS = 0.5
GRACE_SECONDS = 60.0
"""Time that a process has to end by itself once its parent is gone."""
MEND = (
    "`unset WORLD_SIZE` for one process (an earlier shell, or a job's, may have left it there); several are started by "
    "`python -m torch.distributed.run --standalone --nproc_per_node N -m stsimdiff ...`"
)


class Ranks(NamedTuple):
    """This process among those of a run: its number, and how many there are."""

    rank: int = 0
    world: int = 1


def ranks() -> Ranks:
    """What RANK and WORLD_SIZE say, as ``torch.distributed.run`` sets them; one process where there is no WORLD_SIZE.

    Raises:
        ConfigError: for numbers out of range, and for several processes that could not find each other.
    """
    world = world_size()
    if world == 1 and not os.environ.get("RANK"):
        return Ranks()
    if "WORLD_SIZE" not in os.environ:
        return Ranks()
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if world > 1 and missing:
        raise ConfigError(
            f"WORLD_SIZE={world} in the environment says that this is one of {world} processes, but "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: {MEND}"
        )
    rank = _number("RANK", 0, most=world - 1)
    if world > 1:
        _number("MASTER_PORT", 1, most=65535)
    return Ranks(rank, world)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def world_size() -> int:
    """How many processes WORLD_SIZE tells of. Raises :class:`ConfigError` unless it is a number from 1."""
    return _number("WORLD_SIZE", 1) if os.environ.get("WORLD_SIZE", "").strip() else 1


def local_rank() -> int:
    """Which device of its machine this process drives; raises as :func:`world_size` does."""
    return _number("LOCAL_RANK", 0) if os.environ.get("LOCAL_RANK", "").strip() else 0


def sharing(world: int) -> int:
    """How many of a run's processes share the cores that this one sees.

    Args:
        world: all of them; ``torch.distributed.run`` says how many are on this machine, and Slurm gives each its own
            cores.
    """
    if os.environ.get("LOCAL_WORLD_SIZE", "").strip():
        return _number("LOCAL_WORLD_SIZE", 1)
    return 1 if "SLURM_JOB_ID" in os.environ else world


def end_with(parent: int) -> None:
    """End this process once another one is its parent, which means that the given one has died.

    By SIGTERM, so that files are closed and locks go; by SIGKILL where that does not help.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watches the parent", daemon=True).start()


def end_with_launcher() -> None:
    """:func:`end_with` the agent of ``torch.distributed.run``; nothing where another one started this process."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid())


def _number(name: str, least: int, most: int | None = None) -> int:
    text = os.environ[name].strip()
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= (
        int(text) if most is None else most
    ):
        upto = f" to {most}" if most is not None else ""
        raise ConfigError(
            f"{name}={text!r} in the environment is out of range; allowed: a whole number from {least}{upto}; {MEND}"
        )
    return int(text)
