"""Accuracy by the standard path: mp4, decord, `AutoProcessor`, chat template, `generate`, nothing of ours.

`python -m scripts.train_embedded.evaluate MODEL [--videos N]` prints accuracy by category.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import decord
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from stsimdiff.data.clips import CATEGORIES, build
from stsimdiff.data.clips.questions import prompt
from stsimdiff.data.clips.world import FPS, FRAMES


def read_frames(path: Path) -> torch.Tensor:
    """uint8 [frames, 3, height, width]."""
    frames = decord.VideoReader(str(path), num_threads=1).get_batch(range(FRAMES)).asnumpy()
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


class Answerer:
    """A model folder and the one way in which it is asked."""

    def __init__(self, folder: Path):
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def answer(self, frames: torch.Tensor, question: str, options: list[str]) -> str:
        """The generated text, without special tokens."""
        content = [{"type": "video"}, {"type": "text", "text": prompt(question, options)}]
        messages = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # The frame rate matters: with the default of 24 all grids would get time 0.
        metadata = VideoMetadata(total_num_frames=FRAMES, fps=float(FPS), frames_indices=list(range(FRAMES)))
        inputs = self.processor(
            text=[text],
            videos=[frames],
            return_tensors="pt",
            do_sample_frames=False,
            video_metadata=[metadata],
        )
        output = self.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(new, skip_special_tokens=True)


def evaluate(model: Path, root: Path, videos: int | None = None) -> dict[str, tuple[int, int]]:
    """(right, asked) by category, over the questions under `root`, which is built if needed."""
    build(root, videos=videos)
    answerer = Answerer(model)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    frames_of = None
    for line in (root / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if frames_of is None or frames_of[0] != row["video"]:
            frames_of = (row["video"], read_frames(root / "videos" / row["video"]))
        text = answerer.answer(frames_of[1], row["question"], row["options"])
        counts[row["family"]][0] += text.strip() == row["answer"]
        counts[row["family"]][1] += 1
    return {category: tuple(counts[category]) for category in CATEGORIES if category in counts}


def report(counts: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Accuracy in percent by category and of all questions."""
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    return {name: 100 * right / asked for name, (right, asked) in {"all": total, **counts}.items()}


def main() -> None:
    """Print the accuracy of a model by category."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--videos", type=int, help="the first N videos only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        for name, accuracy in report(evaluate(options.model, Path(root), options.videos)).items():
            print(f"{name:8s} {accuracy:5.1f}")


if __name__ == "__main__":
    main()
