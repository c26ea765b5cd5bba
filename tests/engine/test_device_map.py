"""Layers on several devices: the engine and the families follow, with accelerate's hooks and on pretended devices."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module
from torch.utils._pytree import tree_map

from helpers.pretended_devices import Pretended, pretended
from stsimdiff import models
from stsimdiff.budget import Budget
from stsimdiff.compressors.chain import Chain
from stsimdiff.compressors.dart import DART
from stsimdiff.compressors.dycoke import DyCoke
from stsimdiff.compressors.fastv import FastV
from stsimdiff.compressors.framefusion import FrameFusion
from stsimdiff.compressors.pyramiddrop import PyramidDrop
from stsimdiff.compressors.sparsevlm import SparseVLM
from stsimdiff.compressors.st_simdiff import STSimDiff
from stsimdiff.compressors.visionzip import VisionZip
from stsimdiff.engine import compression
from stsimdiff.errors import ConfigError
from stsimdiff.models.base import Family, LoadOptions, execution_device
from stsimdiff.models.kit import checks, running

FIRST, SECOND = "meta:0", "meta:1"
MAP = {"model.visual": "cpu", "model.language_model": "cpu", "lm_head": "cpu"}


def load(miniature, name: str = "qwen3_vl", **options) -> Family:
    return models.resolve(name).load(str(miniature(name)), LoadOptions(dtype="float32", **options))


@torch.no_grad()
@pytest.mark.parametrize("check", ["keep-all is bit-identical", "nothing is left behind"])
@pytest.mark.parametrize("offload", [False, True])
def test_with_the_hooks_of_accelerate(miniature, offload, check) -> None:
    family = load(miniature)
    if offload:
        # Weights are away (on the meta device) but for the time in which a module computes.
        cpu_offload(family.model, "cpu")
        assert family.model.get_input_embeddings().weight.device.type == "meta"
        assert family.device == torch.device("cpu")
    else:
        layers = {f"model.language_model.layers.{n}": "cpu" for n in range(4)}
        rest = ("embed_tokens", "norm", "rotary_emb")
        device_map = {**MAP, **layers, **{f"model.language_model.{name}": "cpu" for name in rest}}
        del device_map["model.language_model"]
        dispatch_model(family.model, device_map, main_device="cpu", force_hooks=True)
    checks.CHECKS[check](running.FamilyCase.of(family))


@torch.no_grad()
@pytest.mark.parametrize("name", ["at four places", "inside layer 1"])
def test_dropping_with_offloaded_weights_equals_dropping_without(miniature, name) -> None:
    family = load(miniature)
    case = running.FamilyCase.of(family)
    drops = {(place, at % 4): set(range(5, 20)) for place, at in checks.DROPS[name]}
    plain, _, _ = running.generate(case, running.ScriptedRun(drops))
    cpu_offload(family.model, "cpu")
    assert torch.equal(running.generate(case, running.ScriptedRun(drops))[0], plain)


class Aligning(ModelHook):
    """What accelerate does where layers lie on several devices: a module's arguments come to its own."""

    def __init__(self, device: str) -> None:
        self.execution_device = device

    def pre_forward(self, module, *args, **kwargs):
        def moved(value):
            return value.to(self.execution_device) if isinstance(value, torch.Tensor) else value

        return tree_map(moved, args), {
            key: value if key == "past_key_values" else tree_map(moved, value)
            for key, value in kwargs.items()
        }


def spread(model: torch.nn.Module) -> None:
    """The first two layers on one pretended device, the other two and the head on a second."""
    for name, module in model.named_modules():
        late = name.startswith(("model.language_model.layers.2", "model.language_model.layers.3", "lm_head"))
        device = SECOND if late or name == "model.language_model.norm" else FIRST
        if not list(module.children()):
            module.to(device)
        if name not in ("", "model"):
            add_hook_to_module(module, Aligning(device))


def asked(miniature) -> running.FamilyCase:
    """A prompt with the tower's signals, made on the CPU; so its positions, which stock code reads singly."""
    family, frames = load(miniature, device="cpu"), running.synthetic_frames(6)
    video = family.encode(frames, signals=True)
    prompt = family.prompt(video, running.TEXT, sample="kit")
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw")
    given = {name: prompt.inputs[name] for name in names}
    prompt.inputs["position_ids"] = family.model.model.get_rope_index(**given)[0]
    return running.FamilyCase(family, frames, video, prompt)


def move(case: running.FamilyCase) -> None:
    """Its model's layers, and its inputs, to the pretended devices."""
    spread(case.family.model)
    encoded = case.prompt.inputs["mm_encoder_outputs"]["video"]
    for name in ("pooler_output", "deepstack_features"):
        encoded[name] = tree_map(lambda value: value.to(FIRST), encoded[name])
    for name, value in case.prompt.inputs.items():
        if isinstance(value, torch.Tensor):
            case.prompt.inputs[name] = value.to(FIRST)


@pytest.fixture
def unsynchronised(monkeypatch):
    monkeypatch.setattr(compression, "synchronise", lambda device: None)


def held(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.held if isinstance(tensor, Pretended) else tensor


@torch.no_grad()
@pytest.mark.parametrize(
    "method",
    [
        *(
            STSimDiff(layer=2),
            STSimDiff(layer=2, similarity=False),
            FastV(layer=3),
            FrameFusion(),
            VisionZip(),
        ),
        *(PyramidDrop(stages=2, layers=[1, 3]), DART(layer=3), DyCoke(), Chain(["evs", "dart"])),
        *(SparseVLM(), SparseVLM(version="v2")),
    ],
    ids=lambda method: f"{type(method).__name__}",
)
def test_layers_on_two_devices_answer_as_on_one(miniature, unsynchronised, method) -> None:
    budget, one = Budget(retention=0.4), asked(miniature)
    expected, tokens, trace = running.generate(one, method.start(one.prompt.layout, budget))
    assert trace.final < one.video.grid.tokens
    with pretended():
        two = asked(miniature)
        move(two)
        logits, same, again = running.generate(two, method.start(two.prompt.layout, budget))
    # Another kernel computes the attention there.
    assert torch.allclose(held(logits), expected, atol=1e-5) and torch.equal(held(same), tokens)
    assert again.entering == trace.entering and torch.equal(held(again.reason), trace.reason)


@torch.no_grad()
def test_pretended_devices_do_not_mix() -> None:
    with pretended():
        first, second = torch.arange(3, device=FIRST), torch.ones(3).to(SECOND)
        with pytest.raises(RuntimeError, match="on tensors of .'meta:0', 'meta:1'."):
            first + second
        with pytest.raises(RuntimeError, match="on tensors of"):
            second[first]
        assert (first.to(SECOND) + second).device == torch.device(SECOND)
        assert held(second[torch.tensor([0, 2])]).tolist() == [1, 1]


def test_maps_of_a_checkpoint(miniature) -> None:
    family = load(miniature, device_map=MAP)
    assert json.loads(family.describe()["device_map"]) == {"": "cpu"}
    family.model.hf_device_map = {"model": 0, "lm_head": torch.device("cuda:1")}
    assert json.loads(family.describe()["device_map"]) == {"model": "0", "lm_head": "cuda:1"}
    nvila = load(miniature, "nvila", device_map="auto")
    assert {p.device.type for p in nvila.tower.parameters()} == {nvila.device.type}
    case = running.FamilyCase.of(nvila)
    checks.CHECKS["keep-all is bit-identical"](case)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": {"model": "cuda:77"}}, "model.device_map: 'model' on 'cuda:77' cannot be used here"),
        (
            {"device_map": {"model.visual": "cpu"}},
            "does not fit Qwen3VLForConditionalGeneration: it gives no device for lm_head.weight|model.lang",
        ),
        (
            {"device_map": {"": "cpu", "model.vision": "cpu"}},
            "there is no module model.vision; .* are lm_head, model,",
        ),
        ({"device_map": "nowhere"}, "cannot be loaded with these settings"),
    ],
)
def test_maps_that_cannot_be_used(miniature, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load(miniature, **options)


def test_a_map_and_several_processes(miniature, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match="spreads one model over the devices, and 2 processes each want one"
    ):
        load(miniature, device_map="auto")


def test_where_a_module_computes() -> None:
    module = torch.nn.Linear(2, 2)
    assert execution_device(module) == torch.device("cpu")
    add_hook_to_module(module, ModelHook())
    assert execution_device(module) == torch.device("cpu")
    add_hook_to_module(module, Aligning("meta:1"), append=True)
    assert execution_device(module) == torch.device("meta:1")
