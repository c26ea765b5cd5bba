"""A token overlay as moving pictures: every frame with its tokens coloured, what the colours mean below it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from stsimdiff.report.overlays import OverlayArm
from stsimdiff.report.palette import COVERS, REASONS, UNKNOWN_REASON

SIDE = 448
"""Pixels of the longer side of a frame."""
PER_SECOND = 2
MARGIN, LINE, TEXT = 8, 20, 14
INK, SOFT, PAPER = "#E6E8EB", "#A2A8B0", "#16181B"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def stills(pixels: np.ndarray, arm: OverlayArm, seconds: Sequence[float]) -> list[Image.Image]:
    """The pictures of a film, all of one size with even sides.

    Args:
        pixels: frames ``(T, height, width, 3)`` uint8.
        arm: its tokens.
        seconds: when each frame is shown in the video.
    """
    height, width = pixels.shape[1:3]
    scale = SIDE / max(height, width)
    size = tuple(max(2, 2 * round(side * scale / 2)) for side in (width, height))
    font = ImageFont.load_default(TEXT)
    # A very narrow video must leave room for the words.
    room = max(size[0], SIDE // 2 * 2)
    most = max(len(_words(arm, number, seconds, font, room)) for number in range(len(pixels)))
    strip = 2 * round((2 * MARGIN + LINE * most) / 2)
    pictures = []
    for number, frame in enumerate(pixels):
        still = Image.new("RGB", (room, size[1] + strip), PAPER)
        image = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
        still.paste(painted(image, arm, number), ((room - size[0]) // 2, 0))
        _write(still, size[1] + MARGIN, _words(arm, number, seconds, font, room), font)
        pictures.append(still)
    return pictures


def painted(frame: Image.Image, arm: OverlayArm, number: int) -> Image.Image:
    """A frame with its tokens coloured.

    Args:
        frame: as an image.
        arm: its tokens.
        number: which frame it is.
    """
    codes = frame_codes(arm, number)
    rows, columns = codes.shape
    width, height = frame.size
    across = np.rint(np.arange(columns + 1) * width / columns).astype(int)
    down = np.rint(np.arange(rows + 1) * height / rows).astype(int)
    image = np.asarray(frame, dtype=np.float32).copy()
    edge = max(1, round(min(width / columns, height / rows) / 14))
    for (y, x), code in np.ndenumerate(codes):
        name = arm.codes[str(code)]
        colour = np.array(ImageColor.getrgb(_colour(arm, name)), dtype=np.float32)
        cell = image[down[y] : down[y + 1], across[x] : across[x + 1]]
        cell += COVERS.get(name, COVERS["others"]) * (colour - cell)
        if name != "dropped":
            for border in (cell[:edge], cell[-edge:], cell[:, :edge], cell[:, -edge:]):
                border[:] = colour if name != "all" else (border + colour) / 2
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def frame_codes(arm: OverlayArm, number: int) -> np.ndarray:
    """``(height, width)`` codes of the cells of one frame; tokens that lie in no frame are not among them."""
    grid, picture = arm.grid, arm.picture
    time = min(number // picture["frames"], grid["frames"] - 1)
    row = np.frombuffer(arm.reason, np.uint8).reshape(grid["frames"], -1)[time]
    places = np.arange(picture["height"])[:, None] * picture["stride"] + np.arange(picture["width"])
    return row[places]


def write_mp4(path: Path, stills: Sequence[Image.Image]) -> None:
    """Encode pictures as H.264, :data:`PER_SECOND` a second, playable everywhere."""
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=PER_SECOND)
        stream.width, stream.height = stills[0].size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20"}
        for still in stills:
            container.mux(stream.encode(av.VideoFrame.from_image(still)))
        container.mux(stream.encode())


def write_gif(path: Path, stills: Sequence[Image.Image]) -> None:
    """Write pictures as a GIF that repeats."""
    reduced = [still.quantize(128, dither=Image.Dither.NONE) for still in stills]
    reduced[0].save(path, save_all=True, append_images=reduced[1:], duration=round(1000 / PER_SECOND), loop=0)


Word = tuple[str, str]
"""A piece of text and the colour of the square before it; no square where that is empty."""


def _words(arm: OverlayArm, number: int, seconds: Sequence[float], font: Font, room: int) -> list[list[Word]]:
    """The lines below a frame: the arm, the frame, and how many of its tokens have which reason."""
    counts = np.bincount(frame_codes(arm, number).ravel(), minlength=256)
    reasons = sorted(arm.codes.items(), key=lambda item: (item[0] == "0", int(item[0])))
    counted = [(f"{name} {counts[int(code)]}", _colour(arm, name)) for code, name in reasons]
    place = f"frame {number + 1} of {len(seconds)}, {seconds[number]:.1f} s"
    lines = [[(word, "")] for word in _wrapped(arm.name, font, room)]
    return lines + [[(place, "")]] + _filled(counted, font, room)


def _wrapped(text: str, font: Font, room: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > room - 2 * MARGIN and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _filled(words: Sequence[Word], font: Font, room: int) -> list[list[Word]]:
    lines: list[list[Word]] = [[]]
    used = 0.0
    for word in words:
        needed = font.getlength(word[0]) + 2 * TEXT
        if lines[-1] and used + needed > room - 2 * MARGIN:
            lines.append([])
            used = 0.0
        lines[-1].append(word)
        used += needed
    return lines


def _write(still: Image.Image, top: int, lines: Sequence[Sequence[Word]], font: Font) -> None:
    draw = ImageDraw.Draw(still)
    for line in lines:
        left = float(MARGIN)
        for text, colour in line:
            if colour:
                draw.rectangle((left, top + 3, left + TEXT - 3, top + TEXT), fill=colour, outline=SOFT)
                left += TEXT + 3
            draw.text((left, top), text, fill=INK, font=font)
            left += font.getlength(text) + TEXT - 3
        top += LINE


def _colour(arm: OverlayArm, name: str) -> str:
    return arm.colours.get(name) or REASONS.get(name, UNKNOWN_REASON)
