"""What prefilling a video once for all its questions saves, calculated from the model's sizes; nothing is measured.

python scripts/prefix_cost.py [experiment=table1 benchmark=videomme] [plan_tflops=150]

The arms are those of an experiment on one benchmark, at its published size; the counts are those of `plan`.
"""

from __future__ import annotations

import sys

from stsimdiff.evaluate.passes import passes_of
from stsimdiff.launchers.base import configurations
from stsimdiff.plan.estimate import plan_pass

TFLOPS = 150.0


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
    print(
        f"{plan.settings.model.name} on {benchmark}: {plan.questions} questions about {plan.videos} videos, "
        f"{plan.typical.tokens} video tokens, {plan.text} of text, {plan.shape.decoder.layers} layers\n\n"
        "| arm | layers shared | before, PFLOPs | after, PFLOPs | ratio |\n| --- | --- | --- | --- | --- |"
    )
    for arm in plan.arms:
        before, after = arm.flops, arm.flops_shared
        kept = "" if arm.arm.method in ("none", "no_video") else f" at {100 * arm.arm.budget.retention:g} %"
        print(
            f"| {arm.arm.label}{kept} | {arm.layers_shared} | {before / 1e15:.0f} | {after / 1e15:.0f} | "
            f"{before / after:.2f} |"
        )
    before, after = (sum(getattr(arm, name) for arm in plan.arms) for name in ("flops", "flops_shared"))
    hours = [flops / plan.throughput / 3600 for flops in (before, after)]
    print(
        f"| all {len(plan.arms)} arms | | {before / 1e15:.0f} | {after / 1e15:.0f} | {before / after:.2f} |\n\n"
        f"At {plan.throughput / 1e12:g} TFLOP/s: {hours[0]:.2f} h before, {hours[1]:.2f} h after. The vision tower, "
        f"once a video in both: {plan.vision / 1e15:.0f} PFLOPs, {plan.vision / plan.throughput / 3600:.2f} h."
    )


if __name__ == "__main__":
    main()
