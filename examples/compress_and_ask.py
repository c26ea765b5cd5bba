"""Compress a video's tokens, ask about it, and see which ones stayed: python examples/compress_and_ask.py"""

from pathlib import Path
from tempfile import TemporaryDirectory

from stsimdiff import FastV, STSimDiff, load
from stsimdiff.data import clips

QUESTION = """How many times does the cross flash?
A. 2
B. 1
C. 4
D. 3
Answer with the option's letter from the given choices directly."""

model = load()  # the embedded model; load("qwen2_5_vl", "/weights/qwen2.5-vl-7b") loads a checkpoint of yours
with TemporaryDirectory() as folder:
    video = clips.build(Path(folder), videos=1) / "videos" / "clip000.mp4"  # or a file of yours
    print("all tokens:", model.answer(video, QUESTION))
    for method in (STSimDiff(), FastV()):
        name = type(method).__name__
        with model.compress(method, retention=0.1) as trace:
            answer = model.answer(video, QUESTION)
        print(f"{name}, {trace.final} of {trace.video} tokens: {answer}; {trace.reasons()}")
        pictures = model.overlay(video, trace, f"{name}: {answer}")
        pictures[0].save(f"{name}.gif", save_all=True, append_images=pictures[1:], duration=500, loop=0)
