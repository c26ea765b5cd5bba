"""Videos read in a process of their own, which may be killed: a decoder cannot be interrupted, and may crash.

One process serves all videos in turn. Frames come back through a pipe (shared memory is often limited to 64 MB in
containers). It is a fresh interpreter and no fork, so it may start after CUDA has, and it imports no torch. What is
read, and how, stands in :mod:`stsimdiff.video`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from stsimdiff import errors, video
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
_LENGTH = struct.Struct("<Q")
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from stsimdiff.video.process import serve; "
    "serve(int(sys.argv[2]))"
)


class VideoProcess:
    """Reads videos in another process, started with the first one and again after each that was killed or crashed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def read(
        self,
        path: str | Path,
        sampling: Sampling | int,
        backend: str = "pyav",
        seconds: float | None = SECONDS,
    ) -> Frames:
        """As :func:`stsimdiff.video.read`, within a time.

        Args:
            path: the file.
            sampling: which frames, as :func:`stsimdiff.video.read` takes it.
            backend: one of :data:`stsimdiff.video.BACKENDS`.
            seconds: time for this video; ``None``: no limit.

        Raises:
            VideoError: also when the time is over, or the decoder crashed; the process is gone then, and the next
                video gets a new one.
            ConfigError: as :func:`stsimdiff.video.read` does.
        """
        return self._ask("read", (str(path), sampling, backend), seconds, f"by {backend} ")

    def probe(self, path: str | Path, seconds: float | None = SECONDS, backend: str = "pyav") -> Probe:
        """As :func:`stsimdiff.video.probe`, within a time; raises as :meth:`read` does."""
        return self._ask("probe", (str(path), backend), seconds, f"by {backend} ")

    def close(self) -> None:
        """End the process; a later call starts another one."""
        with self._lock:
            self._stop()

    def _ask(self, what: str, arguments: tuple[Any, ...], seconds: float | None, decoder: str) -> Any:
        path = arguments[0]
        with self._lock:
            self._start()
            started = time.monotonic()
            until = None if seconds is None else started + seconds
            try:
                self._send((what, arguments, seconds))
                reply = pickle.loads(self._receive(None, until))
                if "shape" in reply:
                    pixels = np.empty(reply["shape"], np.uint8)
                    self._receive(pixels.data.cast("B"), until)
                    indices, total, fps = reply["others"]
                    seconds_taken = time.monotonic() - started
                    frames = Frames(pixels, indices, total, fps, seconds_taken, reply["note"])
                    video.say_note(path, frames)
                    return frames
            except TimeoutError:
                self._stop()
                error = VideoError(
                    f"video {path} could not be read {decoder}within {seconds:g} s; benchmark.video_seconds=N gives "
                    "each video more time, benchmark.decoder=... takes another decoder"
                )
                error.limit = seconds
                raise error from None
            except (EOFError, OSError):
                raise VideoError(
                    f"video {path} made its reader crash ({self._end()}); benchmark.decoder="
                    f"{'torchcodec' if 'pyav' in decoder else 'pyav'} may read it"
                ) from None
            except BaseException:
                # Interrupted between question and reply: the rest would be taken for the next video's.
                self._stop()
                raise
        if "error" in reply:
            kind, message = reply["error"]
            raise getattr(errors, kind)(message)
        return reply["value"]

    def _start(self) -> None:
        if self._owner != os.getpid():
            # A fork's copy of the pipes: the other process keeps them.
            self._process, self._owner = None, os.getpid()
        if self._process and self._process.poll() is None:
            return
        paths = json.dumps([os.path.abspath(part) for part in sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, paths, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self._receive(None, time.monotonic() + START)
        except (TimeoutError, EOFError) as error:
            # No video's fault: it must not be written down as one.
            raise RuntimeError(f"the process that reads videos does not start ({self._end()})") from error

    def _send(self, message: Any) -> None:
        data = pickle.dumps(message)
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(_LENGTH.pack(len(data)) + data)
        self._process.stdin.flush()

    def _receive(self, into: memoryview | None, until: float | None) -> Any:
        """Fill ``into``; or, without it, one message. Raises ``TimeoutError`` at ``until``, ``EOFError`` at the end."""
        if into is None:
            size = memoryview(bytearray(_LENGTH.size))
            self._receive(size, until)
            into = memoryview(bytearray(_LENGTH.unpack(size)[0]))
        assert self._process is not None and self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while into.nbytes:
            left = None if until is None else 1000 * max(0.0, until - time.monotonic())
            if not poll.poll(left):
                raise TimeoutError
            taken = os.readv(pipe, [into])
            if not taken:
                raise EOFError
            into = into[taken:]
        return into.obj

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
        if process and self._owner == os.getpid():
            process.kill()
            # One that waits for a dead file system cannot even be killed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            for pipe in filter(None, (process.stdout, process.stdin)):
                with contextlib.suppress(OSError):
                    pipe.close()


@functools.cache
def shared() -> VideoProcess:
    """The process that this program reads its videos with; it ends with the program."""
    process = VideoProcess()
    atexit.register(process.close)
    return process


def serve(parent: int) -> None:
    """The other side: answers one request after the other until the pipe closes, or its parent is gone."""
    # A decoder that is at work, or hangs, does not see the pipe close.
    end_with(parent)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Decoders print; what they print must not run into the replies.
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # Ctrl-C reaches this process too; the other one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What has to be said of a file is said by the process that asked for it.
    logger.disable("stsimdiff")
    _reply(replies, "ready")
    while head := requests.read(_LENGTH.size):
        what, arguments, seconds = pickle.loads(requests.read(_LENGTH.unpack(head)[0]))
        # Python's handlers run between two of its own steps only; the signal's default ends a hanging decoder too.
        signal.setitimer(signal.ITIMER_REAL, 0 if seconds is None else seconds + GRACE)
        _answer(replies, what, arguments)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(replies: Any, what: str, arguments: tuple[Any, ...]) -> None:
    try:
        found = getattr(reading, what)(*arguments)
    except (VideoError, ConfigError) as error:
        _reply(replies, {"error": (type(error).__name__, str(error))})
    except Exception as error:
        said = f"video {arguments[0]} cannot be read: {type(error).__name__}: {error}"
        _reply(replies, {"error": (VideoError.__name__, said)})
    else:
        if isinstance(found, Frames):
            pixels = np.ascontiguousarray(found.pixels)
            others = found.indices, found.total, found.fps
            _reply(replies, {"shape": pixels.shape, "others": others, "note": found.note})
            replies.write(pixels.data.cast("B"))
            replies.flush()
        else:
            _reply(replies, {"value": found})


def _reply(replies: Any, message: Any) -> None:
    data = pickle.dumps(message)
    replies.write(_LENGTH.pack(len(data)) + data)
    replies.flush()
