"""Named layers of the vision tower, and files that a method brings: what a method of a user's own may read besides."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from helpers.embedded_runs import expanded, stored
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import ScoreCompressor, signals_for
from stsimdiff.compressors.chain import Chain
from stsimdiff.compressors.controls import NoCompression
from stsimdiff.compressors.visionzip import VisionZip
from stsimdiff.engine import lent
from stsimdiff.errors import ConfigError, MethodFault
from stsimdiff.evaluate import run
from stsimdiff.evaluate.features import FeatureMemory, Key
from stsimdiff.evaluate.packing import pack, unpack
from stsimdiff.kit import checks
from stsimdiff.resources import embedded_checkpoint
from stsimdiff.schema import Folder
from stsimdiff.tokens import VideoTokens, covers


@dataclass(frozen=True)
class Shallow(ScoreCompressor):
    """Scores a token by what its frame's vector of a shallow tower layer says of it."""

    needs_vision: ClassVar[bool] = True
    tower_layers: ClassVar[tuple[int, ...]] = (-2, 0)

    def score(self, tokens, layout):
        seen = layout.vision.layer(0)
        frames = seen.frames.repeat_interleave(layout.grid.per_frame, 0)
        return (seen.hidden.float() * frames).sum(1) + layout.vision.layer(-2).received


@dataclass(frozen=True)
class Weighted(ScoreCompressor):
    """Scores a token by a vector in a file."""

    weights: Folder

    def score(self, tokens, layout):
        vector = torch.load(Path(self.weights) / "vector.pt")
        return tokens.features.float() @ vector


def test_layers_are_those_of_the_tower(case, request) -> None:
    """The last layer's own reader says the same; hidden states and vectors are those that a hook sees."""
    name = request.node.callspec.params["case"]
    encoded = case.family.encode(case.frames, signals=(-1, 0))
    signals, grid = encoded.signals, encoded.grid
    plain = case.family.encode(case.frames, signals=True).signals
    assert torch.equal(encoded.features, case.video.features) and not plain.layers
    for field in ("received", "keys"):
        assert torch.equal(getattr(signals, field), getattr(plain, field))
    (last,) = [layer for layer in signals.layers if layer.number == -1]
    first = signals.layer(0)
    if name not in (
        "llava_onevision",
        "internvl",
    ):  # there the features are another layer's output
        assert torch.equal(last.received, plain.received) and torch.equal(last.keys, plain.keys)
    assert not torch.equal(first.hidden, last.hidden)
    for layer in signals.layers:
        assert layer.hidden.shape[0] == grid.tokens and layer.frames.shape == (
            grid.frames,
            layer.hidden.shape[1],
        )
        assert float(layer.received.min()) >= 0
    # Where no class token stands for a frame, its vector is the mean of what its tokens are means of.
    if name in ("qwen2_5_vl", "qwen2_vl", "qwen3_vl"):
        means = first.hidden.float().view(grid.frames, grid.per_frame, -1).mean(1)
        assert torch.allclose(first.frames, means, atol=1e-5)


def test_a_layer_that_the_tower_has_not_is_refused(case) -> None:
    with pytest.raises(ConfigError, match="layer 90; this model's vision tower has the layers 0 to"):
        case.family.encode(case.frames, signals=(90,))
    with pytest.raises(KeyError, match="tower_layers names -1, 0"):
        case.family.encode(case.frames, signals=(-1, 0)).signals.layer(5)


def test_what_methods_read_is_joined() -> None:
    assert signals_for([NoCompression()]) is False
    assert signals_for([NoCompression(), VisionZip()]) is True
    assert signals_for([VisionZip(), Shallow()]) == (-2, 0)
    chain = Chain(methods=(f"{__name__}.Shallow", "fastv"))
    assert chain.needs_vision and chain.tower_layers == (-2, 0)
    assert covers((-2, 0), True) and covers((-2, 0), (0,)) and covers(False, False)
    assert not covers(True, (0,)) and not covers(False, True)
    with pytest.raises(ConfigError, match="needs_vision: ClassVar"):
        type("Blind", (Shallow,), {"needs_vision": False})()


def test_kept_features_have_the_layers_that_were_read() -> None:
    case = checks.miniature("llava_video")
    memory, key = FeatureMemory(), Key("a")
    memory.put(key, pack(case.family.encode(case.frames, signals=(-1, 0))), 1e9)
    assert memory.holds(key.name, (0,)) and memory.holds(key.name, True) and not memory.holds(key.name, (-2,))
    found = unpack(memory.get(key, (0,)), torch.device("cpu")).signals
    again = case.family.encode(case.frames, signals=(-1, 0)).signals
    for mine, own in zip(found.layers, again.layers, strict=True):
        assert mine.number == own.number
        for name in ("received", "keys", "hidden", "frames"):
            assert torch.equal(getattr(mine, name), getattr(own, name))


def test_a_write_into_a_layer_is_an_error_that_names_it() -> None:
    @dataclass(frozen=True)
    class Writes(Shallow):
        def score(self, tokens, layout):
            layout.vision.layer(0).hidden.zero_()
            return tokens.features[:, 0]

    case = checks.miniature("llava_video")
    encoded = case.family.encode(case.frames, signals=(-2, 0))
    layout = case.family.prompt(encoded, "What?", sample="a").layout
    begun = lent.start(Writes(), layout, Budget("tokens", 0.5))
    with pytest.raises(MethodFault, match=r"wrote into layout\.vision\.layers\[1\]\.hidden"):
        begun.at_input(VideoTokens.full(encoded.features, encoded.grid))
    assert bool(layout.vision.layer(0).hidden.any())


def test_they_run_beside_built_in_methods_and_files_are_known_by_their_contents(
    tmp_path: Path, data: Path
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    width = json.loads((embedded_checkpoint() / "config.json").read_text())["text_config"]["hidden_size"]
    torch.save(torch.ones(width), weights / "vector.pt")
    line = f"compressor={__name__}.Weighted +compressor.weights={weights} budget.retention=0.5"
    lines = (
        f"compressor={__name__}.Shallow budget.retention=0.5",
        "compressor=visionzip budget.retention=0.5",
        line,
    )
    settings, arms = expanded(tmp_path, data, 2, *lines)
    assert run.run_arms(settings, arms) == 6
    for arm in arms:
        assert [row["error"] for row in stored(settings, arm)] == [None, None]
    assert arms[2].label.endswith("weights=weights")
    # The same file elsewhere is the same arm; another file in its place is another one.
    moved = weights.rename(tmp_path / "moved")
    (same,) = expanded(tmp_path, data, 2, line.replace(str(weights), str(moved)))[1]
    assert same.id == arms[2].id
    torch.save(torch.zeros(width), moved / "vector.pt")
    (other,) = expanded(tmp_path, data, 2, line.replace(str(weights), str(moved)))[1]
    assert other.id != arms[2].id
    with pytest.raises(ConfigError, match=r"compressor.weights=\S+ is no folder that is there"):
        expanded(tmp_path, data, 2, line)
