"""Frames of video files: which ones, by which decoder, and in a process that may be killed."""

from __future__ import annotations

from stsimdiff.video.frames import (
    BACKENDS,
    Backend,
    Frames,
    Probe,
    Sampling,
    check_file,
    fps_indices,
    probe,
    read,
    rounded_indices,
    say_note,
    uniform_indices,
)

__all__ = [
    "BACKENDS",
    "Backend",
    "Frames",
    "Probe",
    "Sampling",
    "check_file",
    "fps_indices",
    "probe",
    "read",
    "rounded_indices",
    "say_note",
    "uniform_indices",
]
