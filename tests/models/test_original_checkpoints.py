"""LLaVA-Video and NVILA from their original checkpoints: what is refused, and the prompts that are made."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from helpers.configured import composed
from helpers.paths import CHECKPOINT
from stsimdiff.config.model import model_settings, with_checkpoint
from stsimdiff.errors import ConfigError
from stsimdiff.models import resolve
from stsimdiff.models.base import LoadOptions
from stsimdiff.models.kit.running import synthetic_frames
from stsimdiff.models.nvila import NVILA, Projector
from stsimdiff.resources import folder as resource

CONFIGS = resource("configs")
FIRST = "model-00001-of-00002.safetensors"
OPTIONS = LoadOptions(device="cpu", dtype="float32")
SPECIAL = ["<|im_start|>", "<|im_end|>", "<vila/video>"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A LLaVA-Video checkpoint to be changed."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "llava"))


def letters(folder: Path, **config: str) -> None:
    """Write a tokenizer of single bytes, all ids below the tiny vocabularies."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **config}))


def load(folder: Path, **options):
    return resolve("llava_video").load(
        str(folder), LoadOptions(device="cpu", dtype="float32", family=options)
    )


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


class TestLlavaVideo:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                {"model_type": "llama"},
                "holds a 'llama' checkpoint .*; this family loads LlavaQwenForCausalLM",
            ),
            ({"architectures": ["LlavaLlamaForCausalLM"]}, r"architectures=\['LlavaLlamaForCausalLM'\]"),
            ({"architectures": None}, "holds a 'llava' checkpoint with architectures=None"),
            (
                {"mm_newline_position": "frame"},
                "mm_newline_position='frame' in its config.json; .* 'grid' only",
            ),
            ({"mm_projector_type": "linear"}, "mm_projector_type='linear'"),
            ({"add_faster_video": True}, "add_faster_video=True"),
            ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type='flat'"),
            ({"mm_spatial_pool_mode": "max"}, "pooling='max' is unknown; allowed: bilinear, average"),
            ({"use_sliding_window": True, "max_window_layers": 0}, "uses sliding-window attention"),
        ],
    )
    def test_settings_that_are_not_implemented(self, folder, values, message) -> None:
        edit(folder / "config.json", **values)
        with pytest.raises(ConfigError, match=message):
            load(folder)

    @pytest.mark.parametrize(
        "values",
        [
            {"model_type": "llava"},
            {"model_type": "llava_qwen"},
            {"model_type": "llava_qwen", "architectures": None},
        ],
    )
    def test_the_architecture_decides_and_not_the_model_type(self, folder, values) -> None:
        edit(folder / "config.json", **values)
        assert load(folder).pooling == "bilinear"

    def test_every_weight_is_accounted_for(self, folder) -> None:
        weights = load_file(folder / FIRST)
        stray = {"model.mystery.weight": torch.zeros(2), **weights}
        index = folder / "model.safetensors.index.json"
        listed = json.loads(index.read_text())["weight_map"]
        edit(index, weight_map={**listed, "model.mystery.weight": FIRST})
        save_file(stray, folder / FIRST, metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=r"1 unexpected: model\.mystery\.weight"):
            load(folder)
        newline = weights.pop("model.image_newline")
        edit(index, weight_map={k: v for k, v in listed.items() if k != "model.image_newline"})
        save_file(weights, folder / FIRST, metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=r"1 missing: model\.image_newline"):
            load(folder)
        save_file({**weights, "model.image_newline": newline[1:]}, folder / FIRST, metadata={"format": "pt"})
        edit(index, weight_map=listed)
        with pytest.raises(ConfigError, match=r"1 of another shape: model\.image_newline"):
            load(folder)

    def test_weights_of_another_format(self, folder) -> None:
        for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
            file.unlink()
        torch.save({}, folder / "pytorch_model.bin")
        with pytest.raises(ConfigError, match="no safetensors weights can be read from"):
            load(folder)

    def test_the_tower_s_configuration(self, folder, tmp_path) -> None:
        config = folder / "vision_tower_config.json"
        local = tmp_path / "siglip"
        local.mkdir()
        (local / "config.json").write_text(json.dumps({"vision_config": json.loads(config.read_text())}))
        config.unlink()
        with pytest.raises(ConfigError, match=r"vision_tower_config\.json .*hf download google/siglip"):
            load(folder)
        edit(folder / "config.json", mm_vision_tower=str(local))
        assert len(load(folder).model.model.vision_tower.encoder.layers) == 2

    def test_the_tower_s_configuration_from_the_hub_s_cache(self, folder, tmp_path, monkeypatch) -> None:
        name = json.loads((folder / "config.json").read_text())["mm_vision_tower"]
        snapshot = tmp_path / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (folder / "vision_tower_config.json").rename(snapshot / "config.json")
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("abc")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        assert len(load(folder).model.model.vision_tower.encoder.layers) == 2

    def test_prompt(self, folder) -> None:
        letters(folder)
        family = load(folder, time_instruction=True)
        video = family.encode(synthetic_frames(3))
        assert (video.grid.frames, video.grid.height, video.grid.width) == (3, 5, 6)
        prompt = family.prompt(video, "Why?\nA. so", "q7")
        before, after = family._ids("<|im_start|>"), family._ids("<|im_end|>")
        assert len(before) == len(after) == 1
        assert prompt.layout.sample == "q7"
        start = int(prompt.layout.video[0])
        embeds, table = prompt.inputs["inputs_embeds"][0], family.model.get_input_embeddings().weight
        text = torch.cat((embeds[:start], embeds[start + 90 :]))
        ids = torch.cdist(text, table).argmin(1)
        assert torch.equal(table[ids], text)
        expected = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n\n"
            "The video lasts for 1.50 seconds, and 3 frames are uniformly sampled from it. These frames are located at "
            "0.00s,0.50s,1.00s.Please answer the following questions related to this video.\nWhy?\nA. so<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        assert family.tokenizer.decode(ids) == expected
        assert load(folder).prompt(video, "Why?").layout.length < prompt.layout.length
        with pytest.raises(ValueError, match="holds the model's video token '<image>'"):
            family.prompt(video, "what is <image>?")
        ids = family.model.generate(**prompt.inputs, max_new_tokens=2, do_sample=False)
        assert family.answer(prompt, 2) == family.tokenizer.decode(ids[0], skip_special_tokens=True).strip()

    def test_without_a_tokenizer_there_is_no_text_prompt(self, folder) -> None:
        family = load(folder, pooling="average")
        video = family.encode(synthetic_frames(2), signals=True)
        assert (video.grid.height, video.grid.width) == (4, 5)
        assert video.signals.received.shape == (40,)
        with pytest.raises(ConfigError, match="has no tokenizer files"):
            family.prompt(video, "Why?")


@pytest.fixture
def nvila(own_miniature) -> Path:
    """An NVILA checkpoint to be changed: seven by seven patches, groups of two frames, a token a letter."""
    folder = own_miniature("nvila")
    (folder / "llm" / "chat_template.jinja").unlink()
    message = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    letters(folder / "llm", chat_template="{% for m in messages %}" + message + "{% endfor %}<|im_start|>")
    return folder


class TestNVILA:
    def test_video_and_prompt(self, nvila) -> None:
        family = NVILA.load(str(nvila), OPTIONS)
        video = family.encode(synthetic_frames(3), signals=True)
        assert (video.grid.frames, video.grid.height, video.grid.width) == (2, 1, 17)
        assert video.signals.received.shape == (34,)
        assert len(family.tower.encoder.layers) == 2, "features are those of the last layer but one"
        newline = family.model.get_input_embeddings()(family._ids("\n"))[0]
        assert torch.equal(video.features[16], newline) and torch.equal(video.features[33], newline)
        prompt = family.prompt(video, "Why?")
        assert prompt.layout.text == len("_user_") + len("Why?") + len("__") + 1
        ids = family.model.generate(**prompt.inputs, max_new_tokens=2, do_sample=False)
        assert family.answer(prompt, 2) == family.tokenizer.decode(ids[0], skip_special_tokens=True).strip()

    @pytest.mark.parametrize(
        ("values", "pool"),
        [
            ({"s2": None, "dynamic_s2": None, "text_config": None}, 2),
            ({"s2": False, "dynamic_s2": False}, 2),
            (
                {
                    "video_encoder": '{"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[4, 1, 1]]}'
                },
                4,
            ),
            ({"video_encoder": '{"_target_": "llava.model.encoders.BasicVideoEncoder"}'}, 1),
            (
                {
                    "video_encoder": {
                        "_target_": "x.BasicVideoEncoder",
                        "pool_sizes": None,
                        "start_tokens": None,
                    }
                },
                1,
            ),
            ({"video_encoder": None}, 1),
        ],
    )
    def test_forms_of_the_released_configuration(self, nvila, values, pool) -> None:
        edit(nvila / "config.json", **values)
        assert NVILA.load(str(nvila), OPTIONS).pool_size[0] == pool
        cfg = composed("model=nvila", f"model.path={nvila}")
        found = with_checkpoint(model_settings(OmegaConf.to_container(cfg.model)))
        assert found.layers is None and found.checkpoint, "said by llm/config.json, and checked when loaded"

    def test_both_names_of_the_projector_compute_the_same(self, nvila) -> None:
        file, features = nvila / "mm_projector" / "config.json", torch.randn(2, 16, 16)
        out = []
        for name in ("mlp_downsample", "mlp_downsample_2x2_fix"):
            file.write_text(json.dumps({"mm_projector_type": name}))
            with torch.inference_mode():
                out.append(NVILA.load(str(nvila), OPTIONS).projector(features))
        assert torch.equal(*out)
        file.write_text('{"mm_projector_type": "mlp_downsample_3x3_fix"}')
        with pytest.raises(
            ConfigError, match="projector 'mlp_downsample_3x3_fix'; .* implements mlp_downsample"
        ):
            NVILA.load(str(nvila), OPTIONS)

    def test_an_odd_side_is_filled_up_at_its_end(self) -> None:
        projector = Projector(1, 4)
        projector.layers = torch.nn.Identity()
        cells = projector(torch.arange(1.0, 10.0).view(1, 9, 1))
        assert cells.tolist() == [[[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"model_type": "llama"}, "holds a 'llama' checkpoint; this family loads NVILA"),
            ({"s2": True}, "has s2=True in its config.json, which this family does not implement"),
            ({"dynamic_s2": True}, "has dynamic_s2=True in its config.json"),
            ({"video_encoder": "{"}, "video_encoder in config.json is no JSON"),
            ({"video_encoder": "3"}, "video_encoder=3 in config.json; expected an object"),
            ({"video_encoder": {"_target_": "x.Other"}}, r"video_encoder\._target_"),
            (
                {"video_encoder": {"_target_": "x.TSPVideoEncoder", "pool_sizes": [[1, 1, 1], [2, 1, 1]]}},
                "pool_sizes",
            ),
        ],
    )
    def test_settings_that_are_not_implemented(self, nvila, values, message) -> None:
        edit(nvila / "config.json", **values)
        with pytest.raises(ConfigError, match=message):
            NVILA.load(str(nvila), OPTIONS)

    def test_weights_of_the_projector(self, nvila) -> None:
        file = nvila / "mm_projector" / "model.safetensors"
        weights = load_file(file)
        save_file({**{k: v for k, v in weights.items() if k != "layers.4.bias"}, "x": torch.zeros(1)}, file)
        with pytest.raises(ConfigError, match=re.escape("1 missing: layers.4.bias; 1 unexpected: x")):
            NVILA.load(str(nvila), OPTIONS)

    def test_missing_folders(self, nvila) -> None:
        shutil.rmtree(nvila / "mm_projector")
        with pytest.raises(ConfigError, match=r"lacks mm_projector/config\.json"):
            NVILA.load(str(nvila), OPTIONS)
