"""Token overlays read back from a run's folder: questions, frames, and for each arm why every token stayed.

What was stored is shown, and what is lacking is said. How it is drawn stands in the page's own script.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from stsimdiff import schema
from stsimdiff.errors import DataError
from stsimdiff.report.arm import StoredArm
from stsimdiff.report.rows import StoredRun
from stsimdiff.report.section import Section, TableRow

FRAMES = "frames"
"""Folder of the frames within a run's folder."""
MOST_TOKENS = 10**7
"""No video has as many; a stored text that unpacks to more is damaged."""

FRAME_BYTES = 2_500_000
"""Of all frames on the page of a run as JPEG files; base64 makes a third more of them."""
LEAST_SIDE = 96
"""Pixels of the longer side that a frame keeps, however many there are."""


@dataclass(frozen=True)
class Film:
    """The frames that a model was given of one video.

    Attributes:
        video: name of the file.
        jpegs: the frames as JPEG files; empty where they are not in the run's folder.
        seconds: when each is shown in the video.
        numbers: of each in the file; empty where they are not known.
    """

    video: str
    jpegs: list[bytes]
    seconds: list[float]
    numbers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class OverlayArm:
    """One arm's answer to the question of an overlay, and its tokens where they were stored.

    Attributes:
        arm: its id.
        name: label and retention.
        model: name of the model.
        answer: as given; None where there is none.
        correct: None where there is no answer.
        lacking: why there are no tokens to show; empty where there are.
        film: key of the frames.
        grid: ``frames, height, width`` of the tokens.
        picture: ``frames, height, width, stride``: where in the frames they lie, as ``stsimdiff.tokens.Picture``.
        codes: names of the reasons by code.
        colours: ``#RRGGBB`` of the method's own reasons, by name.
        reason: ``N`` codes.
        packed: the same as it was stored, base64 of zlib.
        evidence: left, top, right and bottom of what the question asks for, as shares of the frame's sides, by the
            frame's number in the file; empty where that is not known.
        proposed: whether the run is about the arm's method.
    """

    arm: str
    name: str
    model: str
    answer: str | None
    correct: bool | None
    lacking: str = ""
    film: str = ""
    grid: Mapping[str, int] = field(default_factory=dict)
    picture: Mapping[str, int] = field(default_factory=dict)
    codes: Mapping[str, str] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)
    reason: bytes = b""
    packed: str = ""
    evidence: Mapping[int, Sequence[float]] = field(default_factory=dict)
    proposed: bool = False

    def counts(self) -> dict[str, int]:
        """Tokens by the name of their reason."""
        return {name: self.reason.count(int(code)) for code, name in self.codes.items()}


@dataclass(frozen=True)
class Overlay:
    """One question with what every arm made of it.

    Attributes:
        anchor: name of its place on the page, ``overlay-<question id>``.
        question: as the model read it, options included.
        target: the right option; None for a question that has none.
    """

    anchor: str
    id: str
    benchmark: str
    category: str
    video: str
    question: str
    target: str | None
    taken: list[OverlayArm]


def anchors(samples: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The place on the page of every question with a stored overlay, by benchmark and question."""
    names: dict[tuple[str, str], str] = {}
    having = samples[samples["overlay"].notna()]
    for benchmark, id_ in dict.fromkeys(zip(having["benchmark"], having["id"], strict=True)):
        anchor = f"overlay-{id_}"
        if anchor in names.values():
            anchor = f"overlay-{benchmark}-{id_}"
        names[str(benchmark), str(id_)] = anchor
    return names


def read_overlays(stored: StoredRun, sections: Sequence[Section]) -> list[Overlay]:
    """The overlays of a run in the order in which its questions were first stored.

    Args:
        stored: the run's rows.
        sections: of its table; the arms of an overlay stand in their order and under their labels.

    Raises:
        DataError: for a stored overlay that is damaged, naming arm and question.
    """
    samples = stored.samples
    having = samples[samples["overlay"].notna()]
    arms = {arm.id: arm for arm in stored.arms}
    rows = {row.arm: row for section in sections for row in section.rows}
    ordered = [*rows, *(id_ for id_ in arms if id_ not in rows)]
    overlays: list[Overlay] = []
    places = anchors(samples)
    for (benchmark, id_), kept in having.groupby(["benchmark", "id"], sort=False):
        same = samples[(samples["benchmark"] == benchmark) & (samples["id"] == id_)].set_index("arm")
        shown = [
            _overlay_arm(
                arms[arm], stored.models[arm], rows.get(arm), same.loc[arm] if arm in same.index else None
            )
            for arm in ordered
            if stored.benchmarks[arm] == benchmark
        ]
        shown = [replace(item, proposed=arms[item.arm].proposed) for item in shown]
        first = kept.iloc[0]
        question = str(first["overlay"].get("question", ""))
        about = (str(first["category"]), str(first["video"]), question, _text(first["target"]))
        overlays.append(Overlay(places[str(benchmark), str(id_)], str(id_), str(benchmark), *about, shown))
    return overlays


def read_films(run_dir: Path, overlays: Iterable[Overlay]) -> tuple[dict[str, Film], list[str]]:
    """The frames that the overlays need, and a note for each video whose frames are not there.

    Raises:
        DataError: for a damaged description of frames.
    """
    films, notes = {}, []
    for overlay in overlays:
        for arm in overlay.taken:
            if arm.film and arm.film not in films:
                films[arm.film] = film = _film(run_dir / FRAMES / arm.film, overlay.video)
                if not film.jpegs:
                    notes.append(f"The frames of {overlay.video} are not in {FRAMES}/{arm.film}.")
    return films, notes


def fitted(films: Mapping[str, Film], most: int = FRAME_BYTES) -> tuple[dict[str, Film], list[str]]:
    """The frames made so small that all files together have at most so many bytes, and a note if they were not.

    Frames that fit stay the files that are stored. Those of very many videos may have more bytes at :data:`LEAST_SIDE`.
    """
    smaller = dict(films)
    stored = side = max(
        (max(_opened(film.jpegs[0]).size) for film in films.values() if film.jpegs), default=0
    )
    while (
        size := sum(len(jpeg) for film in smaller.values() for jpeg in film.jpegs)
    ) > most and side > LEAST_SIDE:
        # Smaller frames have more bytes a pixel: the bytes grow with about the power 1.5 of the side.
        side = max(LEAST_SIDE, int(0.97 * side * (most / size) ** (1 / 1.5)))
        for name, film in films.items():
            smaller[name] = replace(film, jpegs=[_shrunk(jpeg, side) for jpeg in film.jpegs])
    if side == stored:
        return smaller, []
    return smaller, [
        f"The frames have at most {side} pixels a side here, which keeps the page small; "
        f"those that are stored, in {FRAMES}/, have up to {stored}."
    ]


def notes_on(overlays: Sequence[Overlay]) -> list[str]:
    """What a reader must be told of overlays that were not stored."""
    if not overlays:
        return [
            "No overlays are stored in this run: it ran with overlays=0, or its answers are older than overlays. "
            "Another run=NAME with overlays=8 stores some."
        ]
    absent = {(arm.name, arm.lacking) for overlay in overlays for arm in overlay.taken if arm.lacking}
    if not absent:
        return []
    names = sorted({name for name, _ in absent})
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return [f"Some arms lack the tokens of some of these questions: {shown}. The answers below say why."]


def _overlay_arm(arm: StoredArm, model: str, row: TableRow | None, sample: pd.Series | None) -> OverlayArm:
    label = row.label if row else arm.label
    name = label if arm.reference else f"{label} at {100 * arm.retention:.4g} % ({arm.kind})"
    if sample is None:
        return OverlayArm(arm.id, name, model, None, None, "not answered yet")
    if sample["failed"]:
        why = f"failed: {sample['error_type']}: {sample['error_message']}"
        return OverlayArm(arm.id, name, model, None, None, why)
    answer = (_text(sample["answer"]), None if pd.isna(sample["correct"]) else bool(sample["correct"]))
    overlay = sample["overlay"]
    if not isinstance(overlay, Mapping):
        return OverlayArm(arm.id, name, model, *answer, "answered without storing its tokens")
    try:
        return OverlayArm(arm.id, name, model, *answer, "", str(overlay["frames"]), **unpacked(overlay))
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as cause:
        raise DataError(
            f"{arm.folder}: the overlay of question {sample['id']!r} is damaged: {cause!r}"
        ) from None


def unpacked(overlay: Mapping[str, Any]) -> dict[str, Any]:
    """The fields ``grid`` to ``evidence`` of a :class:`OverlayArm`, from what ``evaluate.overlays`` packed.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, zlib.error: for anything that was not packed there.
    """
    stream, packed = zlib.decompressobj(), str(overlay["reason"])
    reason = stream.decompress(base64.b64decode(packed, validate=True), MOST_TOKENS)
    if not stream.eof or stream.unused_data:  # a browser would not inflate it
        raise ValueError("the reasons have no end, or something behind it")
    grid = {key: int(overlay["grid"][key]) for key in ("frames", "height", "width")}
    picture = {key: int(overlay["picture"][key]) for key in ("frames", "height", "width", "stride")}
    codes = {str(int(code)): str(name) for code, name in overlay["codes"].items()}
    colours = {str(name): str(colour) for name, colour in overlay.get("colours", {}).items()}
    if any(not schema.COLOUR.fullmatch(colour) for colour in colours.values()):
        raise ValueError(f"{colours} are no colours")
    per_frame = grid["height"] * grid["width"]
    if len(reason) != grid["frames"] * per_frame or {*reason} != {*map(int, codes)}:
        raise ValueError(f"{len(reason)} tokens with the codes {sorted({*reason})} for {grid} and {codes}")
    if (
        min(picture.values()) < 1
        or (picture["height"] - 1) * picture["stride"] + picture["width"] > per_frame
    ):
        raise ValueError(f"{picture} does not fit {grid}")
    evidence = {int(n): [float(side) for side in box] for n, box in overlay.get("evidence", {}).items()}
    for left, top, right, bottom in evidence.values():
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"{evidence} has a box outside its frame")
    return {
        **{"grid": grid, "picture": picture, "codes": codes, "colours": colours},
        **{"reason": reason, "packed": packed, "evidence": evidence},
    }


def _film(folder: Path, video: str) -> Film:
    if not (folder / "frames.json").is_file():
        return Film(video, [], [])
    try:
        about = json.loads((folder / "frames.json").read_text(encoding="utf-8"))
        numbers = [int(index) for index in about["indices"]]
        seconds = [index / about["fps"] for index in numbers]
        jpegs = [(folder / f"{number:03d}.jpg").read_bytes() for number in range(len(seconds))]
    except (ValueError, KeyError, TypeError, OSError) as cause:
        raise DataError(
            f"{folder} holds no frames that can be read: {cause}; remove it to go without"
        ) from None
    return Film(str(about.get("video", video)), jpegs, seconds, numbers)


def _opened(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg))


def _shrunk(jpeg: bytes, side: int) -> bytes:
    image, stream = _opened(jpeg), io.BytesIO()
    image.thumbnail((side, side))
    image.save(stream, "JPEG", quality=75, optimize=True)
    return stream.getvalue()


def _text(value: Any) -> str | None:
    return None if value is None or value != value else str(value)
