"""The kit on every built-in family, on families that are broken on purpose, and on a user's own one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.paths import code_blocks
from helpers.processes import python
from stsimdiff import models
from stsimdiff.engine import Decoder
from stsimdiff.errors import ConfigError
from stsimdiff.models.base import EncodedVideo, LoadOptions, Prompt
from stsimdiff.models.kit import checks, miniatures, running
from stsimdiff.models.qwen3_vl import Qwen3VL
from stsimdiff.tokens import Layout, VisionSignals


@pytest.fixture(scope="module", params=sorted(models.FAMILIES))
def loaded(request, miniature) -> running.FamilyCase:
    """As a user's family is checked: of its own, and no signals read."""
    path = str(miniature(request.param))
    return running.FamilyCase.of(running.load(models.resolve(request.param), path, "cpu", "float32", "sdpa"))


@pytest.mark.parametrize("check", checks.CHECKS)
def test_every_built_in_family(loaded, check) -> None:
    checks.CHECKS[check](loaded)


# Broken on purpose: what the kit must see. ---------------------------------------------------------------------


class LosesDeepstack(Qwen3VL):
    """Leaves the features of the first layers to the stock decoder, which knows the full length only."""

    @property
    def decoder(self) -> Decoder:
        return Decoder(super().decoder.module, super().decoder.layers)


class ForgetsDeepstack(Qwen3VL):
    """Takes the features of the first layers away and adds nothing."""

    @property
    def decoder(self) -> Decoder:
        def nothing(kwargs: dict) -> tuple:
            kwargs.update(visual_pos_masks=None, deepstack_visual_embeds=None)
            return ()

        return Decoder(super().decoder.module, super().decoder.layers, added=nothing)


class OneBlock(Qwen3VL):
    """Takes the video tokens for one block, as they are in Qwen2.5-VL."""

    def prompt_from_ids(self, video: EncodedVideo, ids: torch.Tensor, sample: str = "") -> Prompt:
        prompt = super().prompt_from_ids(video, ids, sample)
        given = vars(prompt.layout)
        block = torch.arange(video.grid.tokens) + prompt.layout.video[0]
        return Prompt(prompt.inputs, Layout(**{**given, "video": block}))


class Transposed(Qwen3VL):
    """Features with the last frame first."""

    def encode(self, frames, *, signals=False) -> EncodedVideo:
        encoded = super().encode(frames, signals=signals)
        encoded.features = encoded.features.flip(0)
        encoded.inputs["deepstack"] = encoded.inputs["deepstack"].flip(1)
        return encoded


class Random(Qwen3VL):
    def encode(self, frames, *, signals=False) -> EncodedVideo:
        encoded = super().encode(frames, signals=signals)
        encoded.features = encoded.features + 1e-3 * torch.randn_like(encoded.features)
        return encoded


class TakesAnything(Qwen3VL):
    def refuse_placeholders(self, text: str) -> None:
        pass

    @classmethod
    def load(cls, path: str, options: LoadOptions) -> Qwen3VL:
        return super().load(getattr(cls, "real", path), options)


class ShortSignals(Qwen3VL):
    def encode(self, frames, *, signals=False) -> EncodedVideo:
        encoded = super().encode(frames, signals=signals)
        if signals:
            encoded.signals = VisionSignals(encoded.signals.received[:-1], encoded.signals.keys)
        return encoded


class LeavesAHook(Qwen3VL):
    def encode(self, frames, *, signals=False) -> EncodedVideo:
        self.model.model.visual.register_forward_hook(lambda *given: None)
        return super().encode(frames, signals=signals)


class IgnoresTheQuestion(Qwen3VL):
    def prompt(self, video: EncodedVideo, text: str, sample: str = "") -> Prompt:
        self.refuse_placeholders(text)
        return super().prompt(video, "What?", sample)


BROKEN = [
    (LosesDeepstack, "dropping equals masking: input"),
    (ForgetsDeepstack, "keep-all is bit-identical"),
    (ForgetsDeepstack, "dropping equals masking: before layer 2"),
    (OneBlock, "video places hold video features"),
    (OneBlock, "dropping equals masking: inside layer 1"),
    (Transposed, "later frames are later tokens"),
    (Random, "encoding is deterministic"),
    (TakesAnything, "placeholders in a question are refused"),
    (TakesAnything, "another checkpoint is refused"),
    (ShortSignals, "signals have the grid"),
    (LeavesAHook, "signals have the grid"),
    (IgnoresTheQuestion, "the question is in the prompt"),
]


@pytest.mark.parametrize(("family", "check"), BROKEN)
def test_broken_families_are_seen(miniature, monkeypatch, family, check) -> None:
    qwen3_vl = str(miniature("qwen3_vl"))
    broken = running.FamilyCase.of(running.load(family, qwen3_vl, "cpu", "float32", "sdpa"))
    monkeypatch.setattr(TakesAnything, "real", qwen3_vl, raising=False)
    # The stock decoder itself may refuse what a broken family gives it.
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        checks.CHECKS[check](broken)


def test_an_answer_that_depends_on_the_one_before_is_seen(miniature) -> None:
    family = running.load(Qwen3VL, str(miniature("qwen3_vl")), "cpu", "float32", "sdpa")
    case = running.FamilyCase.of(family)
    encode = family.encode

    def shifts(frames, *, signals=False):
        with torch.no_grad():
            family.model.lm_head.weight += 0.01
        return encode(frames, signals=signals)

    family.encode = shifts
    with pytest.raises(AssertionError, match="depends on the one before"):
        checks.answers_do_not_depend_on_earlier_ones(case)


# As its user meets it ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A folder with the family of docs/families.md, and one that breaks it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_family.py").write_text(code_blocks("families.md")[0])
    (folder / "broken.py").write_text(
        "from dataclasses import replace\n\nfrom my_family import MyFamily\n\n\nclass Broken(MyFamily):\n"
        "    def prompt(self, video, text, sample=''):\n"
        "        return super().prompt(replace(video, features=video.features.flip(0)), text, sample)\n"
    )
    (folder / "test_of_the_user.py").write_text("def test_other():\n    assert False\n")
    return folder


def kit(folder: Path, *words: str) -> subprocess.CompletedProcess:
    plugins = ("-p", "stsimdiff.models.kit", "-p", "no:cacheprovider")
    return python("-m", "pytest", "-q", *plugins, *words, cwd=folder)


def test_the_example_of_the_documentation_passes(own) -> None:
    done = kit(own, "--family", "my_family.MyFamily")
    assert done.returncode == 0, done.stdout
    # The example says no sizes, and that check says so.
    assert f"{len(checks.CHECKS) - 1} passed, 1 skipped" in done.stdout


def test_a_broken_family_of_a_user_fails(own) -> None:
    done = kit(own, "--family", "broken.Broken", "-k", "places or refused")
    assert done.returncode == 1
    assert "the places of layout.video do not hold the video's features in raster order" in done.stdout
    assert "1 failed, 3 passed" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--family qwen33", "model.family='qwen33' is unknown; allowed: internvl"),
        ("--family nowhere.Family", "cannot be imported: ModuleNotFoundError"),
        ("--family my_family.Grid", "is no model family; it must be a class derived from"),
        ("--family stsimdiff.models.base.Family", "lacks decoder, encode, load, placeholders, prompt"),
        ("--family stsimdiff.models.qwen3_vl.Qwen3VL", "needs a checkpoint: give --family-path"),
        ("--family-path x", "--family-path without --family"),
    ],
)
def test_wrong_options_of_the_kit(own, monkeypatch, words, message) -> None:
    from stsimdiff.models import kit as plugin

    monkeypatch.chdir(own)
    monkeypatch.setattr(sys, "path", [str(own), *sys.path])
    config = pytest.Config.fromdictargs({}, ["-p", "stsimdiff.models.kit"])
    config.option.family, config.option.family_path = None, None
    for name, value in zip(words.split()[::2], words.split()[1::2], strict=True):
        setattr(config.option, name[2:].replace("-", "_"), value)
    with pytest.raises(pytest.UsageError, match=re.escape(message)):
        plugin.pytest_configure(config)


def test_a_question_is_answered_by_a_family_of_ones_own(own, forks) -> None:
    (own / "checkpoint").mkdir()
    sys.path.insert(0, str(own))
    try:
        models.resolve("my_family.MyFamily").miniature(own / "checkpoint")
    finally:
        sys.path.remove(str(own))
    words = (
        "model=custom model.name=mine model.family=my_family.MyFamily model.path=checkpoint model.frames=4"
    )
    words += " compressor=st_simdiff budget.retention=0.3 limit=1 logger=none run=x"
    assert forks.at(own).run(words.split(), own / "log") == 0, (own / "log").read_text()
    (record,) = (own / "results" / "x").glob("*/arm.json")
    assert re.search(r'"code": "[0-9a-f]{12}"', record.read_text())


def test_miniatures_refuse(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no miniature of family 'llama'; allowed: internvl"):
        miniatures.make("llama", tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is no empty folder"):
        miniatures.make("nvila", tmp_path)
    assert miniatures.main(["nvila", str(tmp_path)]) == 2
