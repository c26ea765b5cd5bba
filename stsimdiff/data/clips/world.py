"""What happens in a clip (`Plan`) and where and when it happens (`World`).

A plan holds every fact that a question can ask for; `lay_out` finds room and time for it in a cluttered
world with a drifting camera and one short insert shot of another place. Drawing lives in `rendering`.
"""

import math
import random
from dataclasses import dataclass, field

from .vocabulary import (
    CLUTTER_SHAPES,
    COLOR_NAMES,
    CORNERS,
    DIRECTIONS,
    FLASH_SHAPES,
    NUMBERS,
    PLACES,
    STATIC_SHAPES,
)

SIZE = 112  # pixels, both sides of a frame
FRAMES = 16
FPS = 2
GRIDS = 8  # temporal grids: the vision tower takes frames in pairs
CELLS = 8  # visual tokens along one side of a grid, after merging
CELL = SIZE // CELLS  # pixels under one visual token

OBJECT_SIZES = (22, 24, 26)
FLASH_SIZES = (24, 26)
MARK_SIZE = 12
LANE = 28  # height of the free strip in which the ball rolls
BUG_SIZE = 14
MAX_DRIFT = 0.75  # camera, pixels per frame and axis


@dataclass(frozen=True)
class WorldStyle:
    """What the layouts of a world have in common; as it stands, the one that the embedded model was trained on.

    Ranges hold both ends. Sizes are pixels, lengths grids, times frames, speeds pixels a frame.

    drift: of the camera, at most, on each axis.
    inserts: lengths of the insert shots.
    cuts: where they begin; None for one at a random place.
    clutter, bugs, sparks: how many of them.
    flash_sizes: sides of what flashes.
    ball_speed, ball_grids: how fast the ball rolls, and for how long it may.
    fade_start, fade_end: between which a color turns.
    """

    drift: float = MAX_DRIFT
    inserts: tuple[int, int] = (1, 2)
    cuts: tuple[int, ...] | None = None
    clutter: tuple[int, int] = (12, 18)
    bugs: tuple[int, int] = (1, 3)
    sparks: tuple[int, int] = (5, 9)
    flash_sizes: tuple[int, ...] = FLASH_SIZES
    ball_speed: tuple[int, int] = (4, 7)
    ball_grids: tuple[int, ...] = (3, 4, 5)
    fade_start: tuple[int, int] = (2, 5)
    fade_end: tuple[int, int] = (9, 12)


TRAINED = WorldStyle()


@dataclass(frozen=True)
class Plan:
    """The facts of one clip.

    static: (shape, color) of the two objects that never change.
    changing: (shape, color before, color after) of the object that slowly changes color.
    flashes: (shape, color) of every flash in the order of time; a shape always flashes in one color.
    counted: the shape whose flashes are asked to be counted.
    place, insert_place: where the clip plays, and the place of the short insert shot.
    """

    static: tuple[tuple[str, str], tuple[str, str]]
    changing: tuple[str, str, str]
    flashes: tuple[tuple[str, str], ...]
    counted: str
    direction: str
    corner: str
    place: str
    insert_place: str


@dataclass(frozen=True)
class Thing:
    """One object that a question can ask for; pixels, and frames in `first <= frame < last`."""

    kind: str  # "static", "changing", "flash", "ball" or "mark"
    shape: str
    color: str
    size: int
    x: int
    y: int
    first: int = 0
    last: int = FRAMES
    color_after: str | None = None
    fade: tuple[int, int] = (0, 0)
    velocity: tuple[int, int] = (0, 0)

    @property
    def drifts(self) -> bool:
        """Whether it is fixed to the place, so that the camera's motion moves it in the frame."""
        return self.kind in ("static", "changing", "mark")

    def visible(self, frame: int) -> bool:
        """Whether it is shown in a frame."""
        return self.first <= frame < self.last

    def changed(self, frame: float) -> float:
        """How far the color has turned, from 0 to 1."""
        start, end = self.fade
        return min(max((frame - start) / (end - start), 0.0), 1.0) if self.color_after else 0.0


@dataclass(frozen=True)
class Clutter:
    """A shape in the background that no question asks for; pixels."""

    shape: str
    color: str
    shade: float
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Bug:
    """A dot that crosses the frame, in pixels and pixels a frame: motion that no question asks for."""

    x: int
    y: int
    vx: int
    vy: int

    def position(self, frame: int) -> tuple[int, int]:
        """Pixels of the upper left corner; bugs bounce off the frame's edges."""

        def bounce(start: int, speed: int) -> int:
            span = SIZE - BUG_SIZE
            offset = (start + speed * frame) % (2 * span)
            return offset if offset <= span else 2 * span - offset

        return bounce(self.x, self.vx), bounce(self.y, self.vy)


@dataclass(frozen=True)
class Spark:
    """A shape that is shown in one frame alone and that no question asks for; pixels."""

    x: int
    y: int
    width: int
    height: int
    frame: int
    color: str


@dataclass(frozen=True)
class World:
    """A plan with room and time: all that `rendering.render` needs, and nothing random is left."""

    plan: Plan
    camera: tuple[float, float]
    inserts: tuple[tuple[int, int], ...]  # frames of each insert shot: first, last (excluded)
    things: tuple[Thing, ...]
    clutter: tuple[Clutter, ...]
    insert_clutter: tuple[Clutter, ...]
    bugs: tuple[Bug, ...]
    sparks: tuple[Spark, ...]
    texture_seed: int

    def in_insert(self, frame: int) -> bool:
        """Whether a frame belongs to an insert shot."""
        return any(first <= frame < last for first, last in self.inserts)

    def pan(self, frame: int) -> tuple[int, int]:
        """How far the place has moved in the frame since frame 0, pixels."""
        return round(-self.camera[0] * frame), round(-self.camera[1] * frame)

    def position(self, thing: Thing, frame: int) -> tuple[int, int]:
        """Upper left corner of a thing, pixels."""
        dx, dy = self.pan(frame) if thing.drifts else (0, 0)
        age = frame - thing.first
        limit = SIZE - thing.size
        x = thing.x + dx + thing.velocity[0] * age
        y = thing.y + dy + thing.velocity[1] * age
        return min(max(x, 0), limit), min(max(y, 0), limit)

    def visible_things(self, frame: int) -> list[Thing]:
        """The insert shot shows another place, in which none of the things is."""
        return [] if self.in_insert(frame) else [thing for thing in self.things if thing.visible(frame)]


def sample_plan(rng: random.Random) -> Plan:
    """A plan at random, as in training; every answer of every category is equally likely."""
    shapes = rng.sample(STATIC_SHAPES, 3)
    colors = rng.sample(COLOR_NAMES, 4)
    count, others = int(rng.choice(NUMBERS)), rng.randint(1, 2)
    flashing = list(
        zip(rng.sample(FLASH_SHAPES, 1 + others), rng.sample(COLOR_NAMES, 1 + others), strict=True)
    )
    flashes = [flashing[0]] * count + flashing[1:]
    rng.shuffle(flashes)
    place, insert_place = rng.sample(PLACES, 2)
    return Plan(
        static=((shapes[0], colors[0]), (shapes[1], colors[1])),
        changing=(shapes[2], colors[2], colors[3]),
        flashes=tuple(flashes),
        counted=flashing[0][0],
        direction=rng.choice(DIRECTIONS),
        corner=rng.choice(CORNERS),
        place=place,
        insert_place=insert_place,
    )


def sample_world(seed: int) -> World:
    """A random plan in a random layout; the same seed gives the same world in any process."""
    rng = random.Random(seed)
    return lay_out(sample_plan(rng), rng)


def lay_out(plan: Plan, rng: random.Random, style: WorldStyle = TRAINED) -> World:
    """Find room and time for a plan; layouts that run out of room are thrown away."""
    while True:
        try:
            return _Layout(plan, rng, style).world()
        except _NoRoom:
            continue


class _NoRoom(Exception):
    pass


@dataclass
class _Layout:
    """One attempt at placing everything; `taken` are rectangles (x, y, width, height) in pixels."""

    plan: Plan
    rng: random.Random
    style: WorldStyle
    taken: list[tuple[int, int, int, int]] = field(default_factory=list)

    def world(self) -> World:
        rng, drift = self.rng, self.style.drift
        camera = (rng.uniform(-drift, drift), rng.uniform(-drift, drift))
        inserts = self._inserts()
        hidden = {frame // 2 for first, last in inserts for frame in range(first, last)}
        ball = self._ball(hidden)
        fixed = self._fixed(camera)
        flashes = self._flashes(hidden)
        return World(
            plan=self.plan,
            camera=camera,
            inserts=inserts,
            things=(*fixed, *flashes, ball),
            clutter=self._clutter(),
            insert_clutter=self._clutter(),
            bugs=self._bugs(),
            sparks=self._sparks(),
            texture_seed=rng.getrandbits(31),
        )

    def _inserts(self) -> tuple[tuple[int, int], ...]:
        """Never the first grid or the last: both ends of the clip show the main place."""
        rng, starts, inserts = self.rng, self.style.cuts, []
        for start in (None,) if starts is None else starts:
            length = rng.randint(*self.style.inserts)
            if start is None:
                start = rng.randint(1, GRIDS - 1 - length)
            inserts.append((2 * start, 2 * (start + length)))
        return tuple(inserts)

    def _free(self, x: int, y: int, width: int, height: int) -> bool:
        return all(
            x + width < bx or bx + bw < x or y + height < by or by + bh < y for bx, by, bw, bh in self.taken
        )

    def _claim(self, xs: tuple[int, int], ys: tuple[int, int], width: int, height: int) -> tuple[int, int]:
        """A free rectangle whose corner lies in the given ranges (both ends included)."""
        for _ in range(40):
            x, y = self.rng.randint(*xs), self.rng.randint(*ys)
            if self._free(x, y, width, height):
                self.taken.append((x, y, width, height))
                return x, y
        raise _NoRoom

    def _ball(self, hidden: set[int]) -> Thing:
        """The ball rolls along its own lane for 3 to 5 grids, at least 3 of them outside the inserts."""
        rng = self.rng
        spans = [
            (first, count)
            for count in self.style.ball_grids
            for first in range(GRIDS - count + 1)
            if sum(grid not in hidden for grid in range(first, first + count)) >= 3
        ]
        first, count = rng.choice(spans)
        size, speed = rng.choice(OBJECT_SIZES), rng.randint(*self.style.ball_speed)
        travel = min(speed * (2 * count - 1), SIZE - size)
        lane = rng.randint(1, SIZE - LANE - 1)
        across = lane + (LANE - size) // 2
        forward = self.plan.direction in ("right", "down")
        start = rng.randint(0, SIZE - size - travel) + (0 if forward else travel)
        speed = speed if forward else -speed
        if self.plan.direction in ("left", "right"):
            self.taken.append((0, lane, SIZE, LANE))
            x, y, velocity = start, across, (speed, 0)
        else:
            self.taken.append((lane, 0, LANE, SIZE))
            x, y, velocity = across, start, (0, speed)
        first, last = 2 * first, 2 * (first + count)
        return Thing(
            "ball", "ball", self.plan.direction, size, x, y, velocity=velocity, first=first, last=last
        )

    def _fixed(self, camera: tuple[float, float]) -> list[Thing]:
        """The mark, the two static objects and the changing one, with room for the camera's drift."""
        rng, plan = self.rng, self.plan
        drift = [-speed * (FRAMES - 1) for speed in camera]
        room = [math.ceil(abs(way)) for way in drift]
        offset = [extra if way < 0 else 0 for way, extra in zip(drift, room, strict=True)]

        def claim(size: int, xs: tuple[int, int], ys: tuple[int, int]) -> dict:
            x, y = self._claim(
                (xs[0], xs[1] - room[0]), (ys[0], ys[1] - room[1]), size + room[0], size + room[1]
            )
            return {"size": size, "x": x + offset[0], "y": y + offset[1]}

        low, high = (1, 43 - MARK_SIZE), (SIZE - 44, SIZE - MARK_SIZE - 1)
        xs = low if plan.corner.endswith("west") else high
        ys = low if plan.corner.startswith("north") else high
        things = [Thing("mark", "mark", plan.corner, **claim(MARK_SIZE, xs, ys))]
        for shape, color in plan.static:
            size = rng.choice(OBJECT_SIZES)
            things.append(Thing("static", shape, color, **claim(size, (0, SIZE - size), (0, SIZE - size))))
        shape, before, after = plan.changing
        size = rng.choice(OBJECT_SIZES)
        room_for_it = claim(size, (0, SIZE - size), (0, SIZE - size))
        fade = (rng.randint(*self.style.fade_start), rng.randint(*self.style.fade_end))
        things.append(Thing("changing", shape, before, color_after=after, fade=fade, **room_for_it))
        return things

    def _flashes(self, hidden: set[int]) -> list[Thing]:
        """Each flash lasts one grid of its own outside the inserts and covers a 2 x 2 block of tokens."""
        rng = self.rng
        grids = [grid for grid in range(GRIDS) if grid not in hidden]
        things = []
        for grid, (shape, color) in zip(
            sorted(rng.sample(grids, len(self.plan.flashes))), self.plan.flashes, strict=True
        ):
            size = rng.choice(self.style.flash_sizes)
            for _ in range(40):
                x, y = (rng.randint(1, CELLS - 1) * CELL - size // 2 + rng.randint(-2, 2) for _ in "xy")
                if self._free(x, y, size, size):
                    break
            else:
                raise _NoRoom
            x, y = max(x, 0), max(y, 0)
            things.append(Thing("flash", shape, color, size, x, y, first=2 * grid, last=2 * grid + 2))
        return things

    def _clutter(self) -> tuple[Clutter, ...]:
        rng = self.rng
        return tuple(
            Clutter(
                shape=rng.choice(CLUTTER_SHAPES),
                color=rng.choice(COLOR_NAMES),
                shade=rng.uniform(0.45, 0.75),
                x=rng.randint(-20, SIZE),
                y=rng.randint(-20, SIZE),
                width=rng.randint(14, 34),
                height=rng.randint(14, 34),
            )
            for _ in range(rng.randint(*self.style.clutter))
        )

    def _bugs(self) -> tuple[Bug, ...]:
        rng, speeds, edge = self.rng, (-3, -2, 2, 3), SIZE - BUG_SIZE
        return tuple(
            Bug(rng.randint(0, edge), rng.randint(0, edge), rng.choice(speeds), rng.choice(speeds))
            for _ in range(rng.randint(*self.style.bugs))
        )

    def _sparks(self) -> tuple[Spark, ...]:
        rng, edge = self.rng, SIZE - 14
        return tuple(
            Spark(
                x=rng.randint(0, edge),
                y=rng.randint(0, edge),
                width=rng.randint(10, 26),
                height=rng.randint(10, 26),
                frame=rng.randrange(FRAMES),
                color=rng.choice(COLOR_NAMES),
            )
            for _ in range(rng.randint(*self.style.sparks))
        )
