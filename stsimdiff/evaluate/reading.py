"""The frames of a pass's videos: those of the next ones are read while the model answers about the present one."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from stsimdiff.config.settings import Settings
from stsimdiff.evaluate.changed import video_digest
from stsimdiff.ranks import sharing
from stsimdiff.video import Frames, Sampling, process
from stsimdiff.video.ahead import ReadAhead, Reserve, readers
from stsimdiff.video.process import VideoProcess

GB = 1e9

Asked = TypeVar("Asked")
Read = tuple[str, Frames] | None
"""The digest of a file as it was before its frames were read, and these."""


class Reader:
    """Gives the frames of videos, as the settings say.

    Args:
        settings: of the model, the benchmark, and ``video``.

    Attributes:
        waited: seconds so far for which the frames were waited for.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ready: dict[str, Callable[[], Read]] = {}
        self._started: list[VideoProcess] = []
        self.waited = 0.0

    def start(self, world: int = 1) -> None:
        """Start the processes that read ahead and do not wait for them: they are there once a model is loaded.

        Where features are kept, nothing may have to be read, and nothing is started.

        Args:
            world: processes of the run.
        """
        if self._settings.cache.folder or self._settings.cache.max_gb:
            return
        wanted = min(self._workers(world), self._settings.video.ahead + 1)
        self._started = [VideoProcess() for _ in range(wanted)]
        for started in self._started:
            started.start()

    def close(self) -> None:
        """End the processes that were started and have nothing to read."""
        for started in self._started:
            started.close()

    def over(
        self,
        videos: Iterable[tuple[str, Asked]],
        lacks: Callable[[str], bool],
        world: int = 1,
        most: Callable[[], int] | None = None,
    ) -> Generator[tuple[str, Asked], None, None]:
        """Videos in turn, while those behind the present one are read; what reading one raises :meth:`frames` raises.

        Args:
            videos: each with what is asked about it.
            lacks: whether the frames of a video are needed; asked by other threads.
            world: processes of the run.
            most: videos behind the present one that may be taken just now, where other processes want some too.
        """
        wanted, workers = self._settings.video, self._workers(world)
        if not workers:
            yield from videos
            return

        def read(reader: VideoProcess, video: tuple[str, Asked], reserve: Reserve) -> Read:
            return self._read(reader, video[0], reserve) if lacks(video[0]) else None

        started, self._started = self._started, []
        with ReadAhead(read, workers, wanted.ahead, wanted.ahead_gb * GB, started) as ahead:
            for video, take in ahead.over(videos, most):
                self._ready = {video[0]: take}
                del take
                yield video
            self._ready = {}

    def frames(self, path: str) -> Frames:
        """Frames of a video; raises as :meth:`stsimdiff.video.process.VideoProcess.read` does."""
        started = time.monotonic()
        try:
            ready = self._ready.pop(path)() if path in self._ready else None
            # One that has changed since is read again.
            if ready and ready[0] == video_digest(path):
                return ready[1]
            return self._frames_by(process.shared(), path)
        finally:
            self.waited += time.monotonic() - started

    def _workers(self, world: int) -> int:
        workers = self._settings.video.workers
        return readers(sharing(world)) if workers is None else workers

    def _read(self, reader: VideoProcess, path: str, reserve: Reserve) -> Read:
        digest = video_digest(path)
        reserve(reader.size(path, Sampling.of(self._settings.model), self._settings.benchmark.video_seconds))
        return digest, self._frames_by(reader, path)

    def _frames_by(self, reader: VideoProcess, path: str) -> Frames:
        benchmark = self._settings.benchmark
        return reader.read(
            path, Sampling.of(self._settings.model), benchmark.decoder, benchmark.video_seconds
        )
