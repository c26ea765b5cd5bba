"""A video that is a part of a file, or a folder of pictures, named by one text: ``clip.mp4#t=2.5,7``, ``frames#fps=3``.

Everything that names a video by its path takes such a text as well. The frames of a part count from its first one, as
if it were a file of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stsimdiff.errors import VideoError

PICTURES = (".jpg", ".jpeg", ".png")
_NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"
_PART = re.compile(
    rf"(?P<file>.+)#(?:t=(?P<start>{_NUMBER}),(?P<end>{_NUMBER}))?(?:&?fps=(?P<fps>{_NUMBER}))?", re.DOTALL
)


def _part(name: str) -> re.Match[str] | None:
    found = _PART.fullmatch(name)
    return found if found and (found["start"] or found["fps"]) else None


def file_of(name: str) -> str:
    """What a name has before the part that it names; the name itself where it names none. No file is looked at."""
    match = _part(name)
    return match["file"] if match else name


@dataclass(frozen=True)
class Part:
    """Where a video lies, and which part of it is meant.

    Attributes:
        file: the file, or a folder of pictures.
        start, end: seconds; ``None`` for the whole.
        fps: pictures a second of a folder; ``None`` for a file, which says so itself.
    """

    file: Path
    start: float | None = None
    end: float | None = None
    fps: float | None = None

    @classmethod
    def of(cls, path: str | Path) -> Part:
        """What a text names; a file whose name only looks like a part is the file."""
        found = _part(str(path))
        if found is None or Path(path).exists():
            return cls(Path(path))
        start, end, fps = (float(found[name]) if found[name] else None for name in ("start", "end", "fps"))
        return cls(Path(found["file"]), start, end, fps)

    def __str__(self) -> str:
        parts = [f"t={self.start!r},{self.end!r}"] if self.start is not None else []
        parts += [f"fps={self.fps!r}"] if self.fps is not None else []
        return f"{self.file}#{'&'.join(parts)}" if parts else str(self.file)

    def frames(self, total: int, rate: float) -> tuple[int, int]:
        """The first frame of the part and how many it has, of ``total`` with ``rate`` a second.

        As MVBench's authors count them: from ``round(start * rate)`` to ``round(end * rate)``, both among them, and in
        a folder, whose pictures are numbered from 1, the pictures of these numbers.

        Raises:
            VideoError: where the part lies behind the end of the file.
        """
        if self.start is None or self.end is None:
            return 0, total
        before = 1 if self.fps is not None else 0
        first = max(before, round(self.start * rate)) - before
        last = min(round(self.end * rate) - before, total - 1)
        if last < first:
            raise VideoError(
                f"video {self}: of {total} frames with {rate:.4g} a second none lies from {self.start:g} to "
                f"{self.end:g} s"
            )
        return first, last - first + 1


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in their order: by number where their names are numbers."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name[0] != "."]
    counted = all(path.stem.isdigit() for path in found)
    return sorted(found, key=lambda path: (int(path.stem) if counted else 0, path.name))


def picture_size(folder: Path) -> tuple[int, int]:
    """Height and width of a folder's first picture; raises :class:`OSError` where it is none."""
    from PIL import Image

    with Image.open(pictures(folder)[0]) as picture:
        return picture.height, picture.width


def read_pictures(
    part: Part, choose: Callable[[int, float], tuple[int, ...]]
) -> tuple[np.ndarray, tuple[int, ...], int, float, str]:
    """Pictures of a folder, as a decoder gives the frames of a file.

    Raises:
        VideoError: naming the picture that cannot be read, or is of another size than the first.
    """
    from PIL import Image

    names = pictures(part.file)
    if part.fps is None:
        raise VideoError(f"video {part.file} is a folder of pictures, and how many a second is not known")
    indices, found = choose(len(names), part.fps), []
    for number in indices:
        try:
            with Image.open(names[number]) as picture:
                found.append(np.asarray(picture.convert("RGB")))
        except (OSError, SyntaxError) as error:
            raise VideoError(f"picture {names[number]} cannot be decoded: {error}") from error
        if found[-1].shape != found[0].shape:
            raise VideoError(f"picture {names[number]} has another size than {names[indices[0]]}")
    return np.stack(found), indices, len(names), part.fps, ""
