"""Several processes of one run, as ``torch.distributed.run`` or a launcher of jobs starts them: rank, world size and a
barrier."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from stsimdiff.errors import ConfigError, Stopped, first_line
from stsimdiff.ranks import MEND, ranks

RENDEZVOUS = timedelta(minutes=10)
"""How long a process waits for the others to start: they come once their imports are done, before any work."""
PATIENCE = timedelta(days=7)
"""How long a process that is done waits for the slowest one; of one that died it hears at once."""

SHOWN = 200
"""Characters that a message shows of what another process said."""


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank: its number.
        world: how many there are.
        launch: name of the job that this process runs, the same when it is started again; ``None`` for a process of no
            job.
        show: whether this process shows its progress.
        group: in which those of ``torch.distributed.run`` wait for each other.
    """

    rank: int = 0
    world: int = 1
    launch: str | None = None
    show: bool = True
    group: Any = None

    def file(self, stem: str, suffix: str) -> str:
        """Name of a file that this process alone writes: ``stem.suffix``, with its number where there are several."""
        return f"{stem}.{suffix}" if self.world == 1 else f"{stem}.{self.rank}-of-{self.world}.{suffix}"

    def wait(self) -> None:
        """Wait until all processes of ``torch.distributed.run`` have come here.

        Raises:
            Stopped: when one of them has died.
        """
        if self.world > 1:
            try:
                dist.monitored_barrier(self.group, timeout=PATIENCE)
            except RuntimeError as error:
                raise Stopped(
                    f"process {self.rank} of {self.world} waited for one that has ended "
                    f"({first_line(error)[:SHOWN]}); its own output says why. What was answered is stored: start "
                    "the same command again to go on"
                ) from error

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Processes]:
        """The processes that RANK and WORLD_SIZE tell of, joined (gloo: nothing but waiting goes between them).

        Raises:
            ConfigError: for an environment that tells of others which do not come.
        """
        rank, world = ranks()
        if world == 1:
            yield cls()
            return
        try:
            dist.init_process_group("gloo", timeout=RENDEZVOUS, rank=rank, world_size=world)
        except (RuntimeError, ValueError, OSError) as error:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise ConfigError(
                f"process {rank} of WORLD_SIZE={world} found no others at MASTER_ADDR:MASTER_PORT={place} within "
                f"{RENDEZVOUS.total_seconds():g} s ({first_line(error)[:SHOWN]}): start them all, or {MEND}"
            ) from error
        try:
            # All ranks but the first wait in it as long as its own time limit says, whatever the barrier's is.
            yield cls(rank, world, show=rank == 0, group=dist.new_group(timeout=PATIENCE))
        finally:
            dist.destroy_process_group()
