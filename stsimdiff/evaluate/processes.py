"""Several processes of one run, as ``torch.distributed.run`` or a launcher of jobs starts them: who am I, and waiting
for the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

PATIENCE = timedelta(days=7)
"""How long a process waits for the slowest one; a process that died is noticed by the launcher, not by waiting."""


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank: its number.
        world: how many there are.
        launch: name of the launch whose job this process runs, the same when the job is started again; ``None`` for a
            process of no job.
        show: whether this process shows its progress.
    """

    rank: int = 0
    world: int = 1
    launch: str | None = None
    show: bool = True

    @property
    def shard(self) -> tuple[int, int]:
        """Rank and number of processes, which name the files of this process."""
        return self.rank, self.world

    def file(self, stem: str, suffix: str) -> str:
        """Name of a file that this process alone writes: ``stem.suffix``, with the shard where there are several."""
        return f"{stem}.{suffix}" if self.world == 1 else f"{stem}.{self.rank}-of-{self.world}.{suffix}"

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.world > 1:
            dist.barrier()

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Processes]:
        """The processes that RANK and WORLD_SIZE tell of, joined (gloo: nothing but waiting goes between them)."""
        world = int(os.environ.get("WORLD_SIZE", 1))
        if world == 1:
            yield cls()
            return
        dist.init_process_group("gloo", timeout=PATIENCE)
        try:
            yield cls(dist.get_rank(), world, show=dist.get_rank() == 0)
        finally:
            dist.destroy_process_group()
