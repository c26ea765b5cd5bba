"""The model card: what the run gave, measured through the standard path, and what it may be used for."""

import json
from pathlib import Path

from stsimdiff.data.clips import CATEGORIES, GENERATOR_VERSION
from stsimdiff.report.text import Cell, Cells, markdown, number

from .evaluate import evaluate, report
from .language import token_drops
from .recipe import LanguageRecipe, Recipe

SHARES = (1.0, 0.5, 0.3, 0.1, 0.0)

CARD = """\
---
library_name: transformers
pipeline_tag: video-text-to-text
---

# A tiny Qwen2.5-VL for the embedded benchmark `clips`

{parameters:.1f} million parameters, stock `transformers` classes, trained from nothing on two CPU cores by
`python -m scripts.train_embedded`. It answers the multiple-choice questions of `stsimdiff.data.clips` with a
letter, and can do nothing else. It exists so that token compression can be compared on real video files with
a real model in minutes, without a download and without a GPU.

## Accuracy
Evaluation set version {version}: {questions} questions, four options each, text alone scores exactly 25 %.
Standard path: mp4, decord, `AutoProcessor`, chat template, `generate`; all 512 visual tokens.

{categories}

## Data
Videos of 16 frames, 112 x 112, 2 frames a second, drawn from seeds below 10,000,000; evaluation starts at
20,000,000. Training used {tower_videos:,} videos for the tower, {symbolic_videos:,} symbolic ones (their token
labels without pixels) and {pool_videos:,} drawn ones for the language model. Frames are not compressed in
training and H.264 in evaluation.

## Recipe
| stage | cores | steps | time |
| --- | --- | --- | --- |
{stages}

Seed {seed}. The tower learns to give each token a fixed code that says what it shows: shape, color, direction,
place. The language model first learns from that code, then from cached features of the frozen tower. Hidden
states are supervised on the way to the answer: letters of options, colors of shapes, where and when a token is,
which shot it belongs to, how many flashes of its shape came before; and two heads of the last layer are taught to
look at the right option (symbolic stage: from step {choice_from} on). These read-outs exist in training only.
Step-based schedules; the curve is in `training_log.jsonl`. Matrices use Muon, the rest AdamW. Times depend on what
else the machine does; they are those of this run.

## Tolerance to dropped tokens
**Training drops visual tokens at random** (down to {fewest_symbolic} of 512 on symbolic videos, to {fewest} on
real ones), keeps tokens of flashes and of the ball, prefers those of other evidence, and now and then shows no
video at all. The model is therefore far more tolerant of
compression than a model that always saw every token, and absolute losses say little about other models.
Accuracy in % on {validation} validation videos when tokens are dropped blindly:

{drops}

## Limits
- It knows the words, questions and videos of `clips` and no others: no images, no free text, no second question.
- The prompt must be that of `stsimdiff.data.clips.questions.prompt`, and `video_metadata` must give 2 frames a
  second: with another rate all grids get wrong times, which `count`, `order`, `change` and `scene` need.
- One training seed. Evaluated with the same generator that made its training data.
"""


def _fewest_tokens(recipe: LanguageRecipe) -> int:
    return min(tokens for _, choices in recipe.sizes for tokens, _ in choices)


def _stage_rows(log: Path) -> str:
    """One table row a stage, from the last line that each has written."""
    last = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        last[entry["stage"]] = entry
    cores = {"tower": "1, beside `symbolic`", "symbolic": "1, beside `tower`", "video": "2"}
    minutes = {stage: f"{last[stage]['seconds'] / 60:.0f} min" for stage in cores}
    return "\n".join(f"| {s} | {cores[s]} | {last[s]['step']} | {minutes[s]} |" for s in cores)


def write(out: Path, work: Path, recipe: Recipe, seed: int, videos: int | None) -> None:
    """Evaluate the model in `out` and write its card there."""
    counts = evaluate(out, work / "benchmark", videos)
    accuracy = report(counts)
    print(json.dumps({"stage": "card", "accuracy": accuracy}), flush=True)
    drops = [
        [Cell(f"{share:.0%}"), *(number(100 * value, ".0f") for value in by_category.values())]
        for share, by_category in token_drops(seed, work, SHARES).items()
    ]
    size = (out / "model.safetensors").stat().st_size
    text = CARD.format(
        parameters=size / 4e6,  # float32
        version=GENERATOR_VERSION,
        questions=sum(asked for _, asked in counts.values()),
        categories=markdown(
            Cells(list(accuracy), [("", [list(map(number, accuracy.values()))])], text_columns=0)
        ),
        tower_videos=recipe.tower.steps * recipe.tower.videos,
        symbolic_videos=recipe.symbolic.steps * 8 + 56,
        pool_videos=recipe.pool_videos,
        stages=_stage_rows(out / "training_log.jsonl"),
        seed=seed,
        choice_from=recipe.symbolic.choice_from,
        fewest_symbolic=_fewest_tokens(recipe.symbolic),
        fewest=_fewest_tokens(recipe.video),
        validation=recipe.video.validation_videos,
        drops=markdown(Cells(["tokens kept", *CATEGORIES], [("", drops)])),
    )
    (out / "README.md").write_text(text, encoding="utf-8")
