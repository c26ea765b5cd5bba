"""Files that are not what their name says: what a clone without Git LFS, or a failed download, leaves there."""

from __future__ import annotations

from pathlib import Path

LFS = b"version https://git-lfs.github.com/spec/"
HEAD = 512
"""Bytes that tell."""


def stand_in(path: Path) -> str | None:
    """What stands in a file's place, with what to do; ``None`` where nothing seems to, or the file cannot be read."""
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD)
    except OSError:
        return None
    if head.startswith(LFS):
        return "a Git LFS pointer, not the file itself: `git lfs pull` in its repository fetches it, or `hf download`"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not the file itself: the download failed; fetch it again"
    return None
