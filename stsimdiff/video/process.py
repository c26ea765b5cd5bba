"""Videos read in a process of their own, which may be killed: a decoder cannot be interrupted, and may crash.

One process serves all videos in turn. Frames come back in memory that both sides share, which has no name and so
needs nobody to remove it; where there is none, or not enough, through :mod:`multiprocessing.connection`. It is a fresh
interpreter and no fork, so it may start after CUDA has, and it imports no torch. What is read, and how, stands in
:mod:`stsimdiff.video`; reading with several processes in :mod:`stsimdiff.video.ahead`.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import json
import math
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from stsimdiff import video
from stsimdiff.errors import ConfigError, VideoError
from stsimdiff.ranks import end_with
from stsimdiff.video import frames as reading
from stsimdiff.video.frames import Frames, Probe, Sampling

SECONDS = 600.0
"""Time that one video has, unless ``benchmark.video_seconds`` says otherwise."""
GRACE = 60.0
"""Seconds after its time at which the process ends itself, should nobody be left to kill it."""
START = 120.0
"""Seconds that the process has to start, on the slowest file system."""
CHUNK = 2**20
"""Bytes of a message with a part of the pixels; longer ones are put together slowly at the other end."""
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from stsimdiff.video.process import serve; "
    "serve(int(sys.argv[2]), int(sys.argv[3]))"
)


class VideoProcess:
    """Reads videos in another process, started with the first one and again after each that was killed or crashed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._there = self._ended = False

    def read(
        self,
        path: str | Path,
        sampling: Sampling | int,
        decoder: str = "pyav",
        seconds: float | None = SECONDS,
    ) -> Frames:
        """As :func:`stsimdiff.video.read`, within a time.

        Args:
            path: the file.
            sampling: which frames, as :func:`stsimdiff.video.read` takes it.
            decoder: name of one of :data:`stsimdiff.video.DECODERS`, or a dotted path.
            seconds: time for this video; ``None``: no limit.

        Raises:
            VideoError: also when the time is over, or the decoder crashed; the process is gone then, and the next
                video gets a new one.
            ConfigError: as :func:`stsimdiff.video.read` does.
        """
        return self._ask("read", (str(path), sampling, decoder), seconds, f"by {decoder} ")

    def probe(self, path: str | Path, seconds: float | None = SECONDS, decoder: str = "pyav") -> Probe:
        """As :func:`stsimdiff.video.probe`, within a time; raises as :meth:`read` does."""
        return self._ask("probe", (str(path), decoder), seconds, f"by {decoder} ")

    def size(self, path: str | Path, sampling: Sampling, seconds: float | None = SECONDS) -> int:
        """As :func:`stsimdiff.video.frames.size`, within a time; raises as :meth:`read` does."""
        return self._ask("size", (str(path), sampling), seconds, "")

    def start(self) -> None:
        """Start the process, and do not wait until it is there; the first video does, and starts it where this was not
        called."""
        with self._lock:
            self._launch()

    def close(self) -> None:
        """End the process; a later call starts another one."""
        with self._lock:
            self._stop()

    def abandon(self) -> None:
        """End the process for good, whatever another thread waits for it to do: that thread gets an error."""
        self._ended = True
        if (process := self._process) and self._owner == os.getpid():
            process.kill()

    def _ask(self, request: str, arguments: tuple[Any, ...], seconds: float | None, by: str) -> Any:
        path = arguments[0]
        with self._lock:
            self._start()
            started = time.monotonic()
            until = None if seconds is None else started + seconds
            try:
                assert self._pipe is not None
                self._pipe.send((request, arguments, seconds))
                reply, shape, shared = self._receive(until)
                if shape:
                    pixels = self._mapped(until, shape) if shared else self._piped(until, shape)
                    seconds_taken = time.monotonic() - started
                    reply = dataclasses.replace(reply, pixels=pixels, seconds=seconds_taken)
            except TimeoutError:
                self._stop()
                error = VideoError(
                    f"video {path} could not be read {by}within {seconds:g} s; benchmark.video_seconds=N gives "
                    "each video more time, benchmark.decoder=... takes another decoder"
                )
                error.limit = seconds
                raise error from None
            except (EOFError, OSError):
                raise VideoError(
                    f"video {path} made its reader crash ({self._end()}); benchmark.decoder="
                    f"{'torchcodec' if 'pyav' in by else 'pyav'} may read it"
                ) from None
            except BaseException:
                # Interrupted between question and reply: the rest would be taken for the next video's.
                self._stop()
                raise
        if isinstance(reply, Exception):
            raise reply
        if shape:
            video.say_note(path, reply)
        return reply

    def _launch(self) -> None:
        if self._owner != os.getpid():
            # A fork's copy of the pipe: the other process keeps it.
            self._process, self._pipe, self._owner = None, None, os.getpid()
        if self._ended:
            raise RuntimeError("no more videos are read")
        if self._process and self._process.poll() is None:
            return
        self._there = False
        paths = json.dumps([os.path.abspath(part) for part in sys.path])
        self._pipe, theirs = Pipe()
        with theirs:
            # Decoders print, and what they print is no output of this program.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, paths, str(os.getpid()), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
            )
        if self._ended:
            self._process.kill()

    def _start(self) -> None:
        self._launch()
        if self._there:
            return
        try:
            self._receive(time.monotonic() + START)
        except (TimeoutError, EOFError, OSError) as error:
            # No video's fault: it must not be written down as one.
            raise RuntimeError(f"the process that reads videos does not start ({self._end()})") from error
        self._there = True

    def _receive(self, until: float | None, into: memoryview | None = None) -> Any:
        """One message, or the bytes of ``into``. Raises ``TimeoutError`` at ``until``, ``EOFError`` at the end."""
        assert self._pipe is not None
        if not self._pipe.poll(None if until is None else max(0.0, until - time.monotonic())):
            raise TimeoutError
        return self._pipe.recv() if into is None else self._pipe.recv_bytes_into(into)

    def _mapped(self, until: float | None, shape: tuple[int, ...]) -> np.ndarray:
        """Pixels in the memory whose descriptor comes next; it goes with the array."""
        assert self._pipe is not None
        if not self._pipe.poll(None if until is None else max(0.0, until - time.monotonic())):
            raise TimeoutError
        descriptor = recv_handle(self._pipe)
        try:
            return np.frombuffer(mmap.mmap(descriptor, math.prod(shape)), np.uint8).reshape(shape)
        except OSError as error:
            raise MemoryError(f"no address space for frames of {math.prod(shape)} bytes") from error
        finally:
            os.close(descriptor)

    def _piped(self, until: float | None, shape: tuple[int, ...]) -> np.ndarray:
        pixels = np.empty(shape, np.uint8)
        for part in _parts(pixels):
            self._receive(until, part)
        return pixels

    def _end(self) -> str:
        """How the process ended, in words."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        self._stop()
        if code is None:
            return "it hangs"
        if code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}: out of memory?" if name == "SIGKILL" else name

    def _stop(self) -> None:
        process, self._process = self._process, None
        pipe, self._pipe = self._pipe, None
        if process and self._owner == os.getpid():
            process.kill()
            # One that waits for a dead file system cannot even be killed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        if pipe:
            pipe.close()


@functools.cache
def shared() -> VideoProcess:
    """The process that this program reads its videos with; it ends with the program."""
    process = VideoProcess()
    atexit.register(process.close)
    return process


def serve(parent: int, pipe: int) -> None:
    """The other side: answers one request after the other until the pipe closes, or its parent is gone."""
    # A decoder that is at work, or hangs, does not see the pipe close.
    end_with(parent)
    # Ctrl-C reaches this process too; the other one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What has to be said of a file is said by the process that asked for it.
    logger.disable("stsimdiff")
    with Connection(pipe) as requests, contextlib.suppress(EOFError):
        requests.send("ready")
        while True:
            request, arguments, seconds = requests.recv()
            # Python's handlers run between two of its own steps only; the signal's default ends a hanging decoder too.
            signal.setitimer(signal.ITIMER_REAL, 0 if seconds is None else seconds + GRACE)
            reply = _answer(request, arguments)
            if isinstance(reply, Frames):
                _send(requests, reply, parent)
            else:
                requests.send((reply, None, False))
            del reply
            signal.setitimer(signal.ITIMER_REAL, 0)


def _send(requests: Connection[Any, Any], frames: Frames, parent: int) -> None:
    memory = _shared(frames.pixels)
    requests.send(
        (dataclasses.replace(frames, pixels=frames.pixels[:0]), frames.pixels.shape, memory is not None)
    )
    if memory is None:
        for part in _parts(frames.pixels):
            requests.send_bytes(part)
        return
    try:
        send_handle(requests, memory, parent)
    finally:
        os.close(memory)


def _shared(pixels: np.ndarray) -> int | None:
    """The descriptor of memory that holds the pixels; ``None`` where the system has none to share, or not enough.

    It is no file of ``/dev/shm``, which containers limit to 64 MB, and it goes when the last process lets go of it.
    """
    try:
        memory = os.memfd_create("frames")
    except (AttributeError, OSError):
        return None
    try:
        # Written and not mapped: memory that runs out is an error here, and a signal there.
        with open(memory, "wb", closefd=False) as file:
            for part in _parts(pixels):
                file.write(part)
    except OSError:
        os.close(memory)
        return None
    return memory


def _answer(request: str, arguments: tuple[Any, ...]) -> Any:
    """What was asked for, or the error."""
    try:
        return getattr(reading, request)(*arguments)
    except (VideoError, ConfigError) as error:
        return error
    except Exception as error:
        return VideoError(f"video {arguments[0]} cannot be read: {type(error).__name__}: {error}")


def _parts(pixels: np.ndarray) -> Iterator[memoryview]:
    view = np.ascontiguousarray(pixels).data.cast("B")
    return (view[start : start + CHUNK] for start in range(0, view.nbytes, CHUNK))
