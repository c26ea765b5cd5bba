"""Other kinds of clips than those that the model was trained on, in miniature: `benchmark.world`.

The same generator with other parameters, 200 questions each: five categories about each of 40 clips. A change of one
that gives other frames or questions raises its version, which is part of an arm's identity.
"""

from dataclasses import dataclass

from .world import WorldStyle


@dataclass(frozen=True)
class Kind:
    """A world of its own: its categories of questions, its layouts, and where its seeds begin."""

    categories: tuple[str, ...]
    style: WorldStyle
    first_block: int
    version: int = 1


VIDEOS = 40
WORLDS = {
    # Surveillance: the camera stands still, nothing is cut, and little happens, on a small part of the frame.
    "static_camera": Kind(
        ("flash", "order", "motion", "change", "mark"),
        WorldStyle(drift=0, cuts=(), bugs=(0, 1), sparks=(0, 2), flash_sizes=(20, 22), ball_grids=(3,)),
        first_block=1_000,
    ),
    # Sports: twice a cut to another place and back, a fast camera, and much that moves.
    "fast_cuts": Kind(
        ("flash", "order", "count", "motion", "scene"),
        WorldStyle(drift=1, inserts=(1, 1), cuts=(2, 5), bugs=(3, 5), sparks=(10, 16), ball_speed=(6, 8)),
        first_block=2_000,
    ),
    # Instruction: nothing flashes; a color turns over nearly the whole clip, a ball creeps, one close shot is cut in.
    "slow_change": Kind(
        ("attr", "motion", "change", "mark", "scene"),
        WorldStyle(
            drift=0.4, bugs=(0, 1), sparks=(0, 2), ball_speed=(3, 4), ball_grids=(5, 6),
            fade_start=(0, 2), fade_end=(13, 14),
        ),
        first_block=3_000,
    ),
}  # fmt: skip
