"""Frames of video files: which ones, by which decoder, and in a process that may be killed."""

from __future__ import annotations

from stsimdiff.video.frames import (
    CODE,
    DECODERS,
    Decoded,
    Frames,
    Probe,
    Sampling,
    VideoDecoder,
    check_file,
    decoder_of,
    fps_indices,
    probe,
    read,
    rounded_indices,
    say_note,
    uniform_indices,
)

__all__ = [
    "CODE",
    "DECODERS",
    "Decoded",
    "Frames",
    "Probe",
    "Sampling",
    "VideoDecoder",
    "check_file",
    "decoder_of",
    "fps_indices",
    "probe",
    "read",
    "rounded_indices",
    "say_note",
    "uniform_indices",
]
