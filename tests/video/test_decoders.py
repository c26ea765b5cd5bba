"""A video decoder of the user's own: named as methods and families are, tried, and part of an arm's identity."""

from __future__ import annotations

import functools
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from helpers.configured import configured
from helpers.numbered_clips import numbers
from stsimdiff import registry, video
from stsimdiff.config.arms import arm_record
from stsimdiff.data.videos import Index
from stsimdiff.errors import ConfigError, VideoError
from stsimdiff.video import process
from stsimdiff.video.process import VideoProcess

MINE = """
import numpy as np
from stsimdiff.video import Decoded
from stsimdiff.video.decoders import with_pyav

def upside_down(file, choose):
    found = with_pyav(file, choose)
    return found._replace(pixels=found.pixels[:, ::-1], note="upside down")

def floats(file, choose):
    return with_pyav(file, choose)._replace(pixels=np.zeros((2, 4, 4, 3)))

def too_few(file, choose):
    found = with_pyav(file, choose)
    return found._replace(pixels=found.pixels[1:])

def pixels_alone(file, choose):
    return with_pyav(file, choose).pixels

def broken(file, choose):
    raise RuntimeError("no such codec")

def one_argument(file):
    pass

class NoFunction:
    pass
"""


@pytest.fixture
def mine(own_module, monkeypatch):
    """Writes the user's module, imports it anew, and leaves nothing behind."""

    def offer(text: str = MINE) -> None:
        own_module("my_decoders", text)
        video.decoder_of.cache_clear()

    # One that other tests have started looks for modules in another folder.
    monkeypatch.setattr(process, "shared", functools.cache(process.shared.__wrapped__))
    offer()
    yield offer
    process.shared().close()
    video.decoder_of.cache_clear()


def test_a_dotted_path_reads_here_and_in_the_process_that_may_be_killed(
    mine, clip: Path, process: VideoProcess
) -> None:
    theirs = process.read(clip, 4, "my_decoders.upside_down")
    ours, plain = video.read(clip, 4, "my_decoders.upside_down"), video.read(clip, 4)
    assert theirs.indices == ours.indices == plain.indices == (0, 19, 39, 59)
    assert numbers(theirs.pixels[:, ::-1]) == [0, 19, 39, 59] and theirs.note == "upside down"
    assert np.array_equal(theirs.pixels, ours.pixels) and not np.array_equal(ours.pixels, plain.pixels)


def test_a_registered_name_stands_for_the_decoder_of_a_package(mine, clip: Path, monkeypatch) -> None:
    points = [EntryPoint("flipped", "my_decoders:upside_down", "stsimdiff.decoders")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == points[0].group else [])
    assert video.DECODERS.names() == ["pyav", "torchcodec", "decord", "flipped"]
    assert video.read(clip, 2, "flipped").note == "upside down"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pyva", r"benchmark.decoder=pyva is unknown; .*, my_module.my_decoder; did you mean pyav\?"),
        ("my_decoders.absent", "benchmark.decoder=my_decoders.absent cannot be imported: AttributeError"),
        ("my_decoders.NoFunction", r"is no decoder; it must be a function \(file, choose\)"),
        ("my_decoders.one_argument", r"is no decoder; it must be a function \(file, choose\).*too many"),
    ],
)
def test_what_is_no_decoder_is_refused_before_a_video_is_opened(mine, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        video.read("no such file", 2, name)
    with pytest.raises(ConfigError, match=message):
        _arm(f"benchmark.decoder={name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("floats", r"a.mp4: my_decoders.floats gave pixels \(2, 4, 4, 3\) of float64, not \(2, height, width, 3\)"),
        ("too_few", r"a.mp4: my_decoders.too_few gave pixels \(1, 64, 64, 3\) of uint8, not \(2, height, width, 3\)"),
        ("pixels_alone", r"a.mp4: my_decoders.pixels_alone gave ndarray, not video.Decoded"),
        ("broken", r"a.mp4 cannot be read: RuntimeError: no such codec"),
    ],
)  # fmt: skip
def test_what_a_decoder_gives_is_checked(mine, clip: Path, name: str, message: str) -> None:
    process = VideoProcess()
    try:
        with pytest.raises(VideoError, match=message):
            process.read(clip, 2, f"my_decoders.{name}")
    finally:
        process.close()


def _arm(*words: str):
    return configured("logger=none", *words)


def test_its_code_is_part_of_the_identity_and_of_the_index(mine, clip: Path, tmp_path: Path) -> None:
    clip = Path(shutil.copy(clip, tmp_path))
    settings, arm = _arm("benchmark.decoder=my_decoders.upside_down")
    told = arm_record(arm, settings, {})["benchmark"]
    assert told["decoder"] == "my_decoders.upside_down" and len(told["decoder_code"]) == 12
    index = Index(clip.parent)
    assert index.check([clip], decoder="my_decoders.upside_down") == {}
    mine(MINE.replace("upside_down(file, choose):", "upside_down(file, choose):\n    print()"))
    changed = _arm("benchmark.decoder=my_decoders.upside_down")
    assert changed[1].id != arm.id
    assert index._entry(clip, None, index.entries["a.mp4"]["decoder"])
    assert index._entry(clip, None, f"my_decoders.upside_down {changed[0].benchmark.decoder_code}") is None
    settings, built_in = _arm()
    assert "decoder_code" not in arm_record(built_in, settings, {})["benchmark"]
