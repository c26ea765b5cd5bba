"""A checkpoint's settings of ``generate``: answers are greedy and right whatever they say, and what must hold holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from stsimdiff import models
from stsimdiff.budget import Budget
from stsimdiff.compressors.controls import RandomTokens
from stsimdiff.engine import Compression
from stsimdiff.errors import ConfigError
from stsimdiff.models.base import Family, LoadOptions
from stsimdiff.models.kit.running import TEXT, synthetic_frames
from stsimdiff.resources import embedded_checkpoint

OPTIONS = LoadOptions(device="cpu", dtype="float32")
NAMES = (*models.FAMILIES, "embedded")
SAVED: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "a static cache": {"cache_implementation": "static"},
    "an object is returned": {"return_dict_in_generate": True},
    "everything is returned": {
        "return_dict_in_generate": True,
        "output_attentions": True,
        "output_hidden_states": True,
        "output_scores": True,
        "output_logits": True,
    },
    "three samples": {"do_sample": True, "num_return_sequences": 3, "temperature": 7.0, "top_p": 0.4},
    "beams": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 3.0, "early_stopping": True},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "a prompt looked up": {"prompt_lookup_num_tokens": 3},
    "chunks": {"prefill_chunk_size": 16},
    "guidance": {"guidance_scale": 1.5},
    "a clock": {"max_time": 0.0},
    "a length": {"max_length": 3},
    "layers of the decoder": {"dola_layers": "high"},
    "healed": {"token_healing": True},
    "a watermark": {"watermarking_config": {"greenlist_ratio": 0.5, "bias": 50.0}},
}


class Counted(StoppingCriteria):
    """Counts the tokens of an answer."""

    def __init__(self) -> None:
        self.tokens = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.tokens += 1
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@pytest.fixture
def checkpoint(miniature) -> Callable[[str], Path]:
    return lambda name: embedded_checkpoint() if name == "embedded" else miniature(name)


def load(name: str, folder: Path) -> Family:
    return models.resolve("qwen2_5_vl" if name == "embedded" else name).load(str(folder), OPTIONS)


def answers(family: Family) -> list[str]:
    """Without a method, and with one that drops tokens: what both paths of the engine are used for."""
    prompt = family.prompt(family.encode(synthetic_frames(8)), TEXT, sample="q")
    run = RandomTokens().start(prompt.layout, Budget("tokens", 0.3))
    with Compression(family.decoder, run, prompt.layout):
        compressed = family.answer(prompt, 6)
    return [family.answer(prompt, 6), compressed]


def edited(folder: Path, to: Path, model: dict[str, Any], generation: dict[str, Any]) -> Path:
    """A copy whose configuration, that of its language model too, and generation settings say other things."""
    copy = Path(shutil.copytree(folder, to))
    for file in copy.rglob("config.json"):
        config = json.loads(file.read_text())
        config.update(model)
        for part in ("text_config", "llm_config"):
            if config.get(part):
                config[part].update(model)
        file.write_text(json.dumps(config))
    language = copy / "llm" if (copy / "llm").is_dir() else copy
    file = language / "generation_config.json"
    saved = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**saved, **generation}))
    return copy


@torch.inference_mode()
@pytest.mark.parametrize("name", ["embedded", "nvila"])  # a prompt of ids, and one of embeddings
def test_no_saved_setting_makes_an_answer_less_than_greedy(checkpoint, tmp_path, name) -> None:
    expected = answers(load(name, checkpoint(name)))
    for what, saved in SAVED.items():
        copy = edited(checkpoint(name), tmp_path / what, {}, saved)
        assert answers(load(name, copy)) == expected, what


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_no_family_reads_more_of_them(checkpoint, tmp_path, name) -> None:
    expected = answers(load(name, checkpoint(name)))
    saved = {key: value for settings in SAVED.values() for key, value in settings.items()}
    said = {"use_cache": False, "output_hidden_states": True, "temperature": 0.3, "num_beams": 3}
    assert answers(load(name, edited(checkpoint(name), tmp_path / "copy", said, saved))) == expected


@torch.inference_mode()
@pytest.mark.parametrize("token", [None, "<|endoftext|>"], ids=["tokenizer", "template"])
def test_an_answer_ends_where_the_configuration_names_no_end(checkpoint, tmp_path, token) -> None:
    family = load("embedded", checkpoint("embedded"))
    end = family.model.generation_config.eos_token_id
    copy = edited(checkpoint("embedded"), tmp_path / "copy", {"eos_token_id": None}, {"eos_token_id": None})
    if token is not None:
        # The chat template ends a turn by another token than the tokenizer's end of a text.
        file = copy / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": token}))
    other = load("embedded", copy)
    assert other.model.generation_config.eos_token_id is None
    texts, counts = [], []
    for one in (family, other):
        prompt = one.prompt(one.encode(synthetic_frames(16)), TEXT)
        texts.append(one.answer(prompt, 12))
        counted = Counted()
        one.generate(prompt, 12, stopping_criteria=StoppingCriteriaList([counted]))
        counts.append(counted.tokens)
    assert texts[0] == texts[1] and counts[0] == counts[1] < 12
    assert end in other._ends


def test_a_checkpoint_that_knows_no_end_is_refused(checkpoint, tmp_path) -> None:
    copy = edited(checkpoint("nvila"), tmp_path / "copy", {"eos_token_id": None}, {"eos_token_id": None})
    family = load("nvila", copy)
    prompt = family.prompt(family.encode(synthetic_frames(4)), TEXT)
    family.tokenizer.eos_token = family.tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="names no token that ends an answer"):
        family.answer(prompt, 4)


@torch.inference_mode()
def test_settings_that_decide_which_token_is_best_still_hold(checkpoint, tmp_path) -> None:
    plain = load("llava_onevision", checkpoint("llava_onevision"))
    prompt = plain.prompt(plain.encode(synthetic_frames(4)), TEXT)
    ids = plain.generate(prompt, 6)[0, prompt.inputs["input_ids"].shape[1] :]
    first = int(ids[0])
    copy = edited(checkpoint("llava_onevision"), tmp_path / "copy", {}, {"suppress_tokens": [first]})
    suppressed = load("llava_onevision", copy).generate(prompt, 6)[0, -6:]
    assert first not in suppressed.tolist()
    expected = plain.model.generate(**prompt.inputs, max_new_tokens=6, suppress_tokens=[first])[0, -6:]
    assert suppressed.tolist() == expected.tolist()
