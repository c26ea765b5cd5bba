"""What prefilling a video once for all its questions saves, calculated from the model's sizes; nothing is measured.

python scripts/prefix_cost.py [experiment=table1 benchmark=videomme] [plan_tflops=150]

The arms are those of an experiment on one benchmark, at its published size; their token counts are those of `plan`, and
FLOPs are counted as for a stored answer. A continued prompt costs, in each layer that is shared, what its text adds to
what is held there. All of its text counts, although a part stands before the video, so the saving is a lower bound.
"""

from __future__ import annotations

import sys

from stsimdiff.cost.decoder import attention_flops, head_flops, mlp_flops
from stsimdiff.engine import lent
from stsimdiff.engine.prefix import shared_layers
from stsimdiff.evaluate.passes import passes_of
from stsimdiff.launchers.base import configurations
from stsimdiff.plan.dry_run import with_frames
from stsimdiff.plan.estimate import ArmPlan, PassPlan, plan_pass
from stsimdiff.tokens import Layout, VisionSignals

TFLOPS = 150.0


def layers_shared(plan: PassPlan, arm: ArmPlan) -> int:
    """The first layers of the decoder that an arm prefills once for all questions about a video."""
    compressor = arm.arm.build()
    if compressor.reads_question or compressor.remembers:
        return 0
    import torch

    grid, layers = plan.typical, plan.shape.decoder.layers
    signals = VisionSignals(torch.ones(grid.tokens), torch.ones(grid.tokens, 1, 4))
    layout = Layout(grid, torch.arange(grid.tokens), grid.tokens + plan.text, layers, "plan", signals)
    return shared_layers(lent.start(compressor, with_frames(layout), arm.arm.budget), layers)


def continued_flops(plan: PassPlan, arm: ArmPlan, shared: int) -> int:
    """FLOPs of the prefill of a further question about a video."""
    assert arm.trace is not None
    shape, text, found = plan.shape.decoder, plan.text, head_flops(plan.shape.decoder)
    for layer, (video, mlp) in enumerate(zip(arm.trace.entering, arm.trace.mlp, strict=True)):
        held = layer < shared
        found += attention_flops(shape, video + text) - held * attention_flops(shape, video)
        found += mlp_flops(shape, text + (0 if held else mlp))
    return found


def main() -> None:
    """Print a line for each arm, then the sums and hours."""
    words = sys.argv[1:] or ["experiment=table1"]
    benchmark = next((word.split("=")[1] for word in words if word.startswith("benchmark=")), "videomme")
    words = [word for word in words if not word.startswith("benchmark=")]
    if not any(word.startswith("plan_tflops=") for word in words):
        words.append(f"plan_tflops={TFLOPS:g}")
    passes = passes_of(configurations([*words, "logger=none", "plan=true"]))
    (one,) = [one for one in passes if one.settings.benchmark.name == benchmark]
    plan = plan_pass(one.settings, list(one.arms.values()))
    layers, questions, videos = plan.shape.decoder.layers, plan.questions, plan.videos
    print(
        f"{plan.settings.model.name} on {benchmark}: {questions} questions about {videos} videos, "
        f"{plan.typical.tokens} video tokens, {plan.text} of text, {layers} layers\n\n"
        "| arm | layers shared | before, PFLOPs | after, PFLOPs | ratio |\n| --- | --- | --- | --- | --- |"
    )
    before = after = 0
    for arm in plan.arms:
        shared = layers_shared(plan, arm)
        each = questions * arm.each
        less = videos * arm.each + (questions - videos) * continued_flops(plan, arm, shared)
        before, after = before + each, after + less
        kept = "" if arm.arm.method in ("none", "no_video") else f" at {100 * arm.arm.budget.retention:g} %"
        print(
            f"| {arm.arm.label}{kept} | {shared} | {each / 1e15:.0f} | {less / 1e15:.0f} | {each / less:.2f} |"
        )
    hours = [flops / plan.throughput / 3600 for flops in (before, after)]
    print(
        f"| all {len(plan.arms)} arms | | {before / 1e15:.0f} | {after / 1e15:.0f} | {before / after:.2f} |\n\n"
        f"At {plan.throughput / 1e12:g} TFLOP/s: {hours[0]:.2f} h before, {hours[1]:.2f} h after. The vision tower, "
        f"once a video in both: {plan.vision / 1e15:.0f} PFLOPs, {plan.vision / plan.throughput / 3600:.2f} h."
    )


if __name__ == "__main__":
    main()
