"""SigLIP's pooling head as a signal of towers whose checkpoint holds it, and FastVID's choice of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SiglipVisionConfig, SiglipVisionModel

from helpers.fake_engine import at_input
from stsimdiff.compressors.fastvid import FastVID
from stsimdiff.cost.counting import ArithmeticCounter
from stsimdiff.cost.tower import signal_flops
from stsimdiff.errors import ConfigError
from stsimdiff.evaluate.packing import pack, unpack
from stsimdiff.kit import checks
from stsimdiff.models import resolve
from stsimdiff.models.checkpoint import weight_names
from stsimdiff.models.kit import miniatures, running
from stsimdiff.models.siglip_qwen2 import frame_pixels
from stsimdiff.models.tower import pooling_head


@pytest.fixture(scope="module")
def family(miniature, tmp_path_factory):
    """A miniature of LLaVA-Video whose checkpoint holds the head."""
    folder = Path(shutil.copytree(miniature("llava_video"), tmp_path_factory.mktemp("made") / "llava_video"))
    sizes = {**miniatures.TOWER, "image_size": 30, "patch_size": 5}
    head = SiglipVisionModel(SiglipVisionConfig(**sizes)).state_dict()
    given = load_file(folder / "model.safetensors")
    prefix = "model.vision_tower.vision_tower.vision_model."
    given |= {prefix + name: value for name, value in head.items() if name.startswith("head.")}
    save_file(given, folder / "model.safetensors", metadata={"format": "pt"})
    return running.load(resolve("llava_video"), str(folder), "cpu", "float32", "sdpa")


@pytest.fixture(scope="module")
def video(family):
    return family.encode(running.synthetic_frames(6), signals=True)


def test_the_head_is_put_on_what_becomes_the_features(family, video) -> None:
    """Against the softmax written out; newline tokens have the mean of their row."""
    tower = family.model.model.vision_tower
    frames = running.synthetic_frames(6)
    pixels = frame_pixels(frames, 30)
    with torch.inference_mode():
        states = tower.post_layernorm(family.tower_features(pixels))
        head = tower.head.attention
        width = states.shape[2]
        query, key, _ = (
            torch.nn.functional.linear(x, w, b).unflatten(-1, (head.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip(
                (tower.head.probe.expand(6, -1, -1), states, states),
                head.in_proj_weight.split(width),
                head.in_proj_bias.split(width),
                strict=True,
            )
        )
        attention = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).mean(1)[:, 0]
        pooled = family.pool(attention[..., None])[..., 0]
        expected = torch.cat((pooled, pooled.mean(2, keepdim=True)), 2).flatten()
        assert torch.allclose(video.signals.head, expected, atol=1e-6)
        assert torch.allclose(video.signals.head_frames, tower.head(states), atol=1e-6)
    assert not tower.head.attention._forward_hooks and not tower.encoder.layers[-1]._forward_hooks


def test_only_towers_with_a_head_give_it(family, video) -> None:
    plain = checks.miniature("llava_video").video.signals
    assert plain.head is None and plain.head_frames is None
    assert video.signals.head.shape == plain.received.shape
    assert torch.equal(family.encode(running.synthetic_frames(6)).features, video.features)


def test_a_kept_video_has_the_head(video) -> None:
    again = unpack(pack(video), torch.device("cpu")).signals
    assert torch.equal(again.head, video.signals.head)
    assert torch.equal(again.head_frames, video.signals.head_frames)


def test_what_the_head_costs_is_counted(family) -> None:
    shape, load = family.shape, family.shape.tower_work(family.shape.grid(6, 30, 30))
    assert shape.tower.head and not checks.miniature("llava_video").family.shape.tower.head
    tower, hidden = family.model.model.vision_tower, torch.randn(6, 36, 16)
    with torch.inference_mode(), ArithmeticCounter() as counter:
        pooling_head(tower, hidden)
    own = signal_flops(shape.tower, load) - signal_flops(
        checks.miniature("llava_video").family.shape.tower, load
    )
    assert own == pytest.approx(counter.flops, rel=0.05)


def test_fastvid_scores_by_the_head_where_there_is_one(family, video) -> None:
    prompt = family.prompt(video, "what is shown", sample="kit")
    method = FastVID(signal="head")
    assert torch.equal(method.scores(video.signals, prompt.layout.picture), video.signals.head)
    assert torch.equal(FastVID().scores(video.signals, None), video.signals.head)
    assert torch.equal(FastVID(signal="received").scores(video.signals, None), video.signals.received)
    assert torch.equal(FastVID().vectors(video.signals, None), video.signals.head_frames)
    assert FastVID(signal="received").vectors(video.signals, None) is None
    chosen = {}
    for signal in ("auto", "head", "received"):
        chosen[signal] = at_input(FastVID(signal=signal), video.features, prompt.layout, 0.5)
    assert torch.equal(chosen["auto"].keep, chosen["head"].keep)
    assert not torch.equal(chosen["head"].keep, chosen["received"].keep)


def test_fastvid_refuses_a_tower_without_the_head() -> None:
    case = checks.miniature("llava_video")
    with pytest.raises(ConfigError, match=r"signal=head reads SigLIP's pooling head.*auto or received"):
        at_input(FastVID(signal="head"), case.video.features, case.prompt.layout, 0.5)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ConfigError, match="no safetensors weights can be read from"):
        list(weight_names(tmp_path))
