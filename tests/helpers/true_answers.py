"""The true answers of the embedded benchmark, found again in the worlds' objects and not in their plans."""

from __future__ import annotations

from stsimdiff.data.clips.world import FRAMES, SIZE, World


def shown(world: World, kind: str) -> list:
    """Objects of a kind that at least one frame outside the insert shot shows."""
    visible = [thing for frame in range(FRAMES) for thing in world.visible_things(frame)]
    return [thing for thing in world.things if thing.kind == kind and thing in visible]


def named(world: World, question: str, kind: str):
    (found,) = {(t.shape, t.color, t.color_after) for t in shown(world, kind) if t.shape in question.split()}
    return found


def true_answer(world: World, row: dict) -> str:
    question, category = row["question"].rstrip("?"), row["family"]
    flashes = sorted(shown(world, "flash"), key=lambda thing: thing.first)
    if category == "attr":
        return named(world, question, "static")[1]
    if category == "flash":
        return named(world, question, "flash")[1]
    if category == "order":
        return flashes[0 if question.endswith("first") else -1].shape
    if category == "count":
        return str(sum(thing.shape in question.split() for thing in flashes))
    if category == "change":
        return named(world, question, "changing")[2 if question.endswith("become") else 1]
    if category == "motion":
        (ball,) = shown(world, "ball")
        (x0, y0), (x1, y1) = world.position(ball, ball.first), world.position(ball, ball.last - 1)
        horizontal = abs(x1 - x0) > abs(y1 - y0)
        return ("left", "right")[x1 > x0] if horizontal else ("up", "down")[y1 > y0]
    if category == "mark":
        (mark,) = shown(world, "mark")
        places = {world.position(mark, frame) for frame in range(FRAMES)}
        middle = SIZE // 2
        (north,) = {y + mark.size <= middle for _, y in places}
        (west,) = {x + mark.size <= middle for x, _ in places}
        return ("south", "north")[north] + ("east", "west")[west]
    assert category == "scene"
    brief = [frame for frame in range(FRAMES) if world.in_insert(frame)]
    assert 0 < len(brief) < FRAMES / 2 and 0 not in brief and FRAMES - 1 not in brief
    return world.plan.insert_place if "briefly" in question else world.plan.place
