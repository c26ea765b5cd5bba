"""Draws a `World`: textured places, clutter, objects, bugs and sparks, as RGB frames.

Only numpy and OpenCV primitives without anti-aliasing are used, so frames are the same in every process.
"""

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

from .vocabulary import COLORS, FLASH_SHAPES, STATIC_SHAPES
from .world import BUG_SIZE, FRAMES, SIZE, Clutter, Thing, World

PAD = 16  # pixels of place around the frame, room for the camera's drift
CANVAS = SIZE + 2 * PAD


@cache
def _noise_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """White texture, smooth texture (both unit variance) and sensor noise, shared by all worlds."""
    side = SIZE + 200
    white = np.random.default_rng(1).standard_normal((side, side)).astype(np.float32)
    smooth = cv2.GaussianBlur(white, (0, 0), 2.0)
    sensor = np.random.default_rng(0).standard_normal((SIZE + 64, SIZE + 64, 3)) * 2.5
    return white, smooth / smooth.std(), np.clip(sensor, -8, 8).astype(np.int16)


def _polygon(mask: np.ndarray, points: Sequence[tuple[float, float]]) -> None:
    side = mask.shape[0]
    cv2.fillPoly(mask, [np.array([[int(x * side), int(y * side)] for x, y in points], np.int32)], 255)


def _disc(mask: np.ndarray, x: float, y: float, radius: float, value: int = 255) -> None:
    side = mask.shape[0]
    cv2.circle(mask, (int(x * side), int(y * side)), int(radius * side), value, -1)


_POLYGONS = {
    "square": [(0.08, 0.08), (0.92, 0.08), (0.92, 0.92), (0.08, 0.92)],
    "triangle": [(0.5, 0.04), (0.97, 0.95), (0.03, 0.95)],
    "diamond": [(0.5, 0.02), (0.9, 0.5), (0.5, 0.98), (0.1, 0.5)],
    "bolt": [(0.6, 0.0), (0.15, 0.58), (0.45, 0.58), (0.35, 1.0), (0.85, 0.38), (0.55, 0.38), (0.75, 0.0)],
}


@cache
def shape_mask(shape: str, size: int) -> np.ndarray:
    """Which pixels of a `size` x `size` square a shape covers, bool."""
    mask = np.zeros((size * 8, size * 8), np.uint8)
    if shape in _POLYGONS:
        _polygon(mask, _POLYGONS[shape])
    elif shape in ("circle", "ball", "ring"):
        _disc(mask, 0.5, 0.5, 0.48)
        if shape == "ring":
            _disc(mask, 0.5, 0.5, 0.24, 0)
    elif shape == "cross":
        mask[int(0.34 * size * 8) : int(0.66 * size * 8), :] = 255
        mask[:, int(0.34 * size * 8) : int(0.66 * size * 8)] = 255
    elif shape == "star":
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 0.49, 0.2)
        _polygon(mask, list(zip(0.5 + radii * np.cos(angles), 0.5 + radii * np.sin(angles), strict=True)))
    elif shape == "heart":
        _disc(mask, 0.28, 0.3, 0.24)
        _disc(mask, 0.72, 0.3, 0.24)
        _polygon(mask, [(0.06, 0.4), (0.94, 0.4), (0.5, 0.98)])
    elif shape == "moon":
        _disc(mask, 0.5, 0.5, 0.48)
        _disc(mask, 0.74, 0.42, 0.40, 0)
    else:
        raise ValueError(f"no such shape: {shape!r}; shapes are {(*STATIC_SHAPES, *FLASH_SHAPES, 'ball')}")
    return cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA) > 127


def _place(name: str, rng: np.random.Generator, smooth: np.ndarray) -> np.ndarray:
    """Bare ground of a place, float32 [CANVAS, CANVAS, 3]; `smooth` is a texture of the same sides."""
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) + rng.uniform(0, 60)
    if name == "desert":
        ground = _flat(150, 112, 62) + 17 * np.sin((y + 6 * np.sin(x / 17)) / 4.5)[..., None]
    elif name == "forest":
        trunks = np.sin(x / 4.0 + smooth) > 0.35
        ground = np.where(trunks[..., None], _flat(66, 46, 26), _flat(22, 66, 32))
    elif name == "ocean":
        waves = np.sin(y / 2.6 + 2.0 * np.sin(x / 9)) > 0.55
        ground = np.where(waves[..., None], _flat(70, 120, 160), _flat(22, 58, 112))
    elif name == "city":
        windows = ((x % 11) < 6) & ((y % 13) < 7)
        ground = np.where(windows[..., None], _flat(158, 146, 92), _flat(78, 78, 84))
    elif name == "cave":
        ground = np.where((smooth > 0.25)[..., None], _flat(24, 17, 24), _flat(74, 50, 60))
    elif name == "snow":
        ground = _flat(138, 148, 166) + 12 * smooth[..., None]
    else:
        raise ValueError(f"no such place: {name!r}")
    return ground.astype(np.float32)


def _flat(red: int, green: int, blue: int) -> np.ndarray:
    return np.array((red, green, blue), np.float32)


def _clutter_mask(piece: Clutter, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if piece.shape == "brick":
        return ((y % 7) < 5) & (((x + (y // 7 % 2 * 5)) % 10) < 8)
    if piece.shape == "stripe":
        return ((x + y) % 8) < 4
    if piece.shape == "check":
        return ((x // 5 + y // 5) % 2) == 0
    half_width, half_height = piece.width / 2, piece.height / 2
    if piece.shape == "stone":
        return ((x - half_width) / half_width) ** 2 + ((y - half_height) / half_height) ** 2 < 1
    return abs(x - half_width - 6 * np.sin(y / 4)) < 4


def _canvas(place: str, clutter: Sequence[Clutter], seed: tuple[int, int]) -> np.ndarray:
    """A place with its clutter, uint8 [CANVAS, CANVAS, 3]; the frame is a window that drifts over it."""
    rng = np.random.default_rng(seed)
    white_map, smooth_map, _ = _noise_maps()
    i, j = (int(v) for v in rng.integers(0, 100, 2))
    smooth, white = smooth_map[i : i + CANVAS, j : j + CANVAS], white_map[j : j + CANVAS, i : i + CANVAS]
    light = cv2.resize(
        rng.uniform(-24, 24, (6, 6, 3)).astype(np.float32), (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC
    )
    image = _place(place, rng, smooth) * rng.uniform(0.9, 1.1, 3).astype(np.float32) + light
    image += smooth[..., None] * 8 + white[..., None] * 6
    for piece in clutter:
        left, top = piece.x + PAD, piece.y + PAD
        x0, y0, x1, y1 = (
            max(left, 0),
            max(top, 0),
            min(left + piece.width, CANVAS),
            min(top + piece.height, CANVAS),
        )
        if x1 <= x0 or y1 <= y0:
            continue
        y, x = np.mgrid[y0 - top : y1 - top, x0 - left : x1 - left]
        mask = _clutter_mask(piece, x, y)
        color = np.array(COLORS[piece.color], np.float32) * piece.shade
        if piece.shape == "stone":
            color = color * 0.4 + 45
        image[y0:y1, x0:x1][mask] = color + smooth[y0:y1, x0:x1][mask][:, None] * 6
    return np.clip(image, 0, 255).astype(np.uint8)


def _draw_thing(window: np.ndarray, thing: Thing, frame: int) -> None:
    """Paint a thing into its own `size` x `size` window of a frame."""
    size = thing.size
    if thing.kind == "mark":  # a white plus in a black box
        middle = size // 2
        window[:] = 0
        window[2:-2, middle - 1 : middle + 1] = 255
        window[middle - 1 : middle + 1, 2:-2] = 255
    elif thing.kind == "ball":  # black with a white square
        third = size // 3
        window[shape_mask("ball", size)] = (15, 15, 15)
        window[third : size - third, third : size - third] = 250
    else:
        color = np.array(COLORS[thing.color], np.float32)
        if thing.color_after:
            turned = thing.changed(frame)
            color = color * (1 - turned) + np.array(COLORS[thing.color_after], np.float32) * turned
        window[shape_mask(thing.shape, size)] = color


def _draw_bug(image: np.ndarray, x: int, y: int) -> None:
    half = BUG_SIZE // 2
    cv2.ellipse(image, (x + half, y + half), (7, 5), 0, 0, 360, (25, 20, 15), -1)
    image[y + 5 : y + 9, x + 2 : x + 12 : 4] = (170, 150, 60)


def render(world: World, frames: Sequence[int] = range(FRAMES)) -> np.ndarray:
    """Draw the given frames of a world.

    Returns uint8 [len(frames), 112, 112, 3], RGB. A frame looks the same whichever others are asked for.
    """
    plan, seed = world.plan, world.texture_seed
    main = _canvas(plan.place, world.clutter, (seed, 0))
    insert = (
        _canvas(plan.insert_place, world.insert_clutter, (seed, 1))
        if any(map(world.in_insert, frames))
        else main
    )
    white, _, sensor = _noise_maps()
    images = np.empty((len(frames), SIZE, SIZE, 3), np.uint8)
    for image, frame in zip(images, frames, strict=True):
        dx, dy = world.pan(frame)
        canvas = insert if world.in_insert(frame) else main
        image[:] = canvas[PAD - dy : PAD - dy + SIZE, PAD - dx : PAD - dx + SIZE]
        for bug in world.bugs:
            _draw_bug(image, *bug.position(frame))
        for thing in world.visible_things(frame):
            x, y = world.position(thing, frame)
            _draw_thing(image[y : y + thing.size, x : x + thing.size], thing, frame)
        for spark in world.sparks:
            if spark.frame == frame:
                window = image[spark.y : spark.y + spark.height, spark.x : spark.x + spark.width]
                height, width = window.shape[:2]
                window[white[spark.y : spark.y + height, spark.x : spark.x + width] > 0.6] = COLORS[
                    spark.color
                ]
        i, j = np.random.default_rng((seed, 2, frame)).integers(0, 64, 2)
        np.clip(image + sensor[i : i + SIZE, j : j + SIZE], 0, 255, out=image, casting="unsafe")
    return images
