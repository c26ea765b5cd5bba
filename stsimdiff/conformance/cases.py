"""Recorded cases on disk: finding them, and reading their arrays safely."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stsimdiff.config.checks import expanded
from stsimdiff.errors import ConfigError, DataError

Arrays = dict[str, np.ndarray]
INPUT = "input.npz"


class Fields(dict[str, np.ndarray]):
    """The arrays of a case file by name; a name that is missing is a :class:`DataError` that says so.

    Attributes:
        file: where they were read from.
    """

    def __init__(self, file: Path, arrays: dict[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.file = file

    def __missing__(self, name: str) -> np.ndarray:
        raise DataError(
            f"{self.file} lacks the input {name!r}; it has {', '.join(sorted(self)) or 'nothing'}"
        )

    @property
    def meta(self) -> dict:
        """The JSON notes of a file, empty where it has none."""
        return json.loads(str(self["meta"])) if "meta" in self else {}

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, height and width of the recorded video, in tokens."""
        return int(self["n_frames"]), int(self["height"]), int(self["width"])


@dataclass(frozen=True)
class Case:
    """One recorded case.

    Attributes:
        path: the file, or the folder of an end-to-end case.
        run: name of the run in the folder, ``None`` for a file.
    """

    path: Path
    run: str | None = None

    @property
    def name(self) -> str:
        """What a line of the report calls it."""
        return self.path.stem if self.run is None else f"{self.path.name}/{self.run}"

    @property
    def recorded(self) -> Path:
        """The file with the recorded outputs."""
        return self.path if self.run is None else self.path / f"{self.run}.npz"

    def method(self, data: Fields) -> str:
        """The method of a file: its notes say it, else the first word of its name does."""
        return str(data.meta.get("method") or self.path.stem.partition("_")[0])


def read_fields(file: Path) -> Fields:
    """All arrays of a ``.npz`` file, nothing unpickled.

    Raises:
        DataError: when the file is missing or cannot be read.
    """
    try:
        with np.load(file, allow_pickle=False) as data:
            return Fields(file, {name: data[name] for name in data.files})
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{file} cannot be read as a recorded case: {error}") from error


def is_folder_case(folder: Path) -> bool:
    """Whether a folder holds one end-to-end case."""
    return (folder / INPUT).is_file() and (folder / "checkpoint").is_dir()


def locate(path: str | Path, run: str | None = None) -> Case:
    """The case that a path and the name of a run stand for.

    Raises:
        DataError: when there is no such case.
        ConfigError: when a folder is given without a run, or a file with one.
    """
    place = Path(expanded("the case", str(path)))
    if place.is_dir():
        if not is_folder_case(place):
            raise DataError(f"{place} holds no end-to-end case: {INPUT} and checkpoint/ are needed")
        if run is None:
            raise ConfigError(
                f"{place} needs the name of a run; recorded are {', '.join(runs(place)) or 'none'}"
            )
        return Case(place, run.removesuffix(".npz"))
    if not place.is_file():
        raise DataError(f"no recorded case at {place}")
    if run is not None:
        raise ConfigError(f"{place} is a file; a run ({run!r}) is named for folders only")
    return Case(place)


def runs(folder: Path) -> list[str]:
    """Names of the recorded runs in the folder of an end-to-end case, the baseline first."""
    stems = sorted(file.stem for file in folder.glob("*.npz") if file.name != INPUT)
    return sorted(stems, key=lambda stem: stem != "baseline")


def find(path: str | Path) -> list[Case]:
    """All cases at a path: a file, a folder of files, an end-to-end case, or a folder of those.

    Raises:
        DataError: when there is none.
    """
    place = Path(expanded("the case", str(path)))
    if place.is_file():
        return [Case(place)]
    cases: list[Case] = []
    if place.is_dir():
        folders = [place, *sorted(inner for inner in place.iterdir() if inner.is_dir())]
        for folder in folders:
            if is_folder_case(folder):
                cases += [Case(folder, run) for run in runs(folder)]
            elif folder == place:
                cases += [Case(file) for file in sorted(folder.glob("*.npz"))]
    if not cases:
        raise DataError(
            f"no recorded case at {place}: neither a .npz file nor a folder with {INPUT} and checkpoint/"
        )
    return cases
