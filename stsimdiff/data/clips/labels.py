"""What each visual token of a world shows, as class indices: the targets that train the embedded model.

A token covers two frames and 14 x 14 pixels. Where several things meet, the largest (weighted) area wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .vocabulary import CLUTTER_SHAPES, COLOR_NAMES, DIRECTIONS, FLASH_SHAPES, PLACES, STATIC_SHAPES
from .world import BUG_SIZE, CELL, CELLS, GRIDS, SIZE, Thing, World

SHAPE_CLASSES = ("none", *STATIC_SHAPES, *FLASH_SHAPES, "ball", "mark", *CLUTTER_SHAPES, "bug", "spark")
COLOR_CLASSES = ("none", *COLOR_NAMES)
DIRECTION_CLASSES = ("none", *DIRECTIONS)
PLACE_CLASSES = ("none", *PLACES)

# Kinds of evidence. Training drops tokens at random, but flashes and the ball survive and the rest is rare.
NO_EVIDENCE, STATIC, BRIEF, MARK = range(4)
EVIDENCE = {"static": STATIC, "changing": STATIC, "flash": BRIEF, "ball": BRIEF, "mark": MARK}


@dataclass(frozen=True)
class TokenLabels:
    """Class indices, int64 [grids, 8, 8] each.

    place is 0 on evidence. nth counts the flashes of the token's own shape up to and including it, and
    is 0 where nothing flashes. insert is 1 in the insert shot.
    """

    shape: np.ndarray
    color: np.ndarray
    direction: np.ndarray
    place: np.ndarray
    evidence: np.ndarray
    nth: np.ndarray
    insert: np.ndarray


class _Painter:
    """Collects the labels of one grid; later and smaller things replace earlier ones by weighted area."""

    def __init__(self) -> None:
        self.area = np.zeros((CELLS, CELLS), np.float32)
        self.layers = {
            name: np.zeros((CELLS, CELLS), np.int64)
            for name in ("shape", "color", "direction", "evidence", "nth")
        }

    def paint(self, box: tuple[int, int, int, int], weight: float, threshold: int, **labels: int) -> None:
        """Label the cells of which a box (x, y, width, height) covers at least `threshold` pixels."""
        x, y, width, height = box
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, SIZE), min(y + height, SIZE)
        evidence = labels.pop("evidence", NO_EVIDENCE)
        for row in range(y0 // CELL, (y1 - 1) // CELL + 1):
            for column in range(x0 // CELL, (x1 - 1) // CELL + 1):
                across = min(x1, (column + 1) * CELL) - max(x0, column * CELL)
                down = min(y1, (row + 1) * CELL) - max(y0, row * CELL)
                if across <= 0 or down <= 0 or across * down < threshold:
                    continue
                cell = (row, column)
                self.layers["evidence"][cell] = max(evidence, self.layers["evidence"][cell])
                if across * down * weight > self.area[cell]:
                    self.area[cell] = across * down * weight
                    for name in ("shape", "color", "direction", "nth"):
                        self.layers[name][cell] = labels.get(name, 0)


def _thing_labels(thing: Thing, grid: int, nth: int) -> dict[str, int]:
    color = thing.color
    if thing.color_after:  # half-way colors have no name
        turned = thing.changed(2 * grid + 0.5)
        color = thing.color if turned < 0.35 else thing.color_after if turned > 0.65 else "none"
    return {
        "shape": SHAPE_CLASSES.index(thing.shape),
        "color": COLOR_CLASSES.index(color) if color in COLOR_CLASSES else 0,
        "direction": DIRECTION_CLASSES.index(thing.color) if thing.kind == "ball" else 0,
        "evidence": EVIDENCE[thing.kind],
        "nth": nth,
    }


def _grid_labels(world: World, grid: int) -> _Painter:
    painter = _Painter()
    dx, dy = world.pan(2 * grid)
    for piece in world.insert_clutter if world.in_insert(2 * grid) else world.clutter:
        box = (piece.x + dx, piece.y + dy, piece.width, piece.height)
        painter.paint(
            box, 0.01, 60, shape=SHAPE_CLASSES.index(piece.shape), color=COLOR_CLASSES.index(piece.color)
        )
    for frame in (2 * grid, 2 * grid + 1):
        for bug in world.bugs:
            painter.paint(
                (*bug.position(frame), BUG_SIZE, BUG_SIZE), 0.1, 40, shape=SHAPE_CLASSES.index("bug")
            )
        for spark in world.sparks:
            if spark.frame == frame:
                box = (spark.x, spark.y, spark.width, spark.height)
                color = COLOR_CLASSES.index(spark.color)
                painter.paint(box, 0.1, 60, shape=SHAPE_CLASSES.index("spark"), color=color)
        for thing in world.visible_things(frame):
            nth = 0
            if thing.kind == "flash":
                nth = sum(
                    t.kind == "flash" and t.shape == thing.shape and t.first <= frame for t in world.things
                )
            box = (*world.position(thing, frame), thing.size, thing.size)
            is_mark = thing.kind == "mark"
            painter.paint(box, 8 if is_mark else 1, 30 if is_mark else 40, **_thing_labels(thing, grid, nth))
    return painter


def token_labels(world: World, grids: Sequence[int] = range(GRIDS)) -> TokenLabels:
    """Labels of the tokens of the given grids."""
    painters = [_grid_labels(world, grid) for grid in grids]
    layers = {name: np.stack([painter.layers[name] for painter in painters]) for name in painters[0].layers}
    insert = np.array([world.in_insert(2 * grid) for grid in grids], np.int64)
    insert = np.broadcast_to(insert[:, None, None], layers["shape"].shape).copy()
    main, other = (PLACE_CLASSES.index(place) for place in (world.plan.place, world.plan.insert_place))
    place = np.where(layers["evidence"] > 0, 0, np.where(insert > 0, other, main))
    return TokenLabels(place=place, insert=insert, **layers)
