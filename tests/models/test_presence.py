"""What a folder of weights is, and what it lacks: said by its cause, before torch is imported."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from helpers.paths import CHECKPOINT
from helpers.processes import python
from stsimdiff.errors import DataError, MissingParts
from stsimdiff.evaluate import run
from stsimdiff.launchers.base import configurations
from stsimdiff.launchers.in_process import run_configurations
from stsimdiff.models import presence
from stsimdiff.models.presence import absent, unready
from stsimdiff.resources import embedded_checkpoint

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.fixture
def model(tmp_path: Path, monkeypatch) -> Path:
    """A copy of the embedded model, a miniature of Qwen2.5-VL."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return shutil.copytree(embedded_checkpoint(), tmp_path / "model")


def config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    kept = {name: value for name, value in (known | changes).items() if value is not None}
    file.write_text(json.dumps(kept))


def test_a_whole_checkpoint_lacks_nothing(model: Path) -> None:
    assert absent("qwen2_5_vl", model) == unready("qwen2_5_vl", model) == []
    assert absent("my_module.MyFamily", model) == unready("my_module.MyFamily", model) == []
    assert absent("llava_video", CHECKPOINT) == []
    (said,) = unready("llava_video", CHECKPOINT)
    assert said.startswith(f"{CHECKPOINT} has no tokenizer (tokenizer.json or vocab.json): `hf download")
    assert not unready("qwen2_5_vl", None) and not unready("qwen2_5_vl", model / "nowhere")


VISION = {"vision_config": {"depth": 1}, "architectures": ["XForConditionalGeneration"]}
ORIGINAL = {"mm_vision_tower": "google/siglip", "vision_config": None}


@pytest.mark.parametrize(
    ("family", "changes", "causes"),
    [
        ("llava_video", {"model_type": "llava_onevision", **VISION},
         ["the converted form (-hf); model.family=llava_video reads the original", "model=llava_onevision reads this",
          "hf download lmms-lab/LLaVA-Video-7B-Qwen2"]),
        ("llava_video", {"model_type": "llava_next_video", **VISION}, ["the converted form (-hf)"]),
        ("llava_video", {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], **ORIGINAL},
         ["'llava' checkpoint (LlavaLlamaForCausalLM); model.family=llava_video reads llava_qwen or llava"]),
        ("nvila", {"model_type": "llava_onevision", **VISION}, ["the converted form (-hf)", "NVILA-8B-Video"]),
        ("llava_onevision", {"model_type": "llava", "architectures": ["LlavaQwenForCausalLM"], **ORIGINAL},
         ["in its original form; model.family=llava_onevision reads the converted one", "llava-onevision-qwen2"]),
        ("internvl", {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"]},
         ["in its original form; model.family=internvl reads the converted one", "InternVL3-8B-hf"]),
        ("qwen2_5_vl", {"model_type": "qwen2_vl"}, ["model.family=qwen2_5_vl reads qwen2_5_vl: model=qwen2_vl reads"]),
        ("qwen2_5_vl", {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vision_config": None},
         ["a language model alone, without a vision tower"]),
        ("qwen2_5_vl", {"model_type": None, "architectures": None}, ["holds a None checkpoint"]),
        ("llava_video", {"model_type": "llava", "architectures": ["LlavaQwenForCausalLM"], **ORIGINAL,
                         "quantization_config": {"quant_method": "awq"}},
         ["is quantised (awq); model.family=llava_video reads unquantised weights"]),
        ("qwen2_5_vl", {"quantization_config": {"quant_method": "gptq"}},
         ["is quantised (gptq), and the package for it is not installed: pip install gptqmodel"]),
        ("qwen2_5_vl", {"quantization_config": {"load_in_4bit": True}}, ["pip install bitsandbytes"]),
    ],
)  # fmt: skip
def test_another_checkpoint_than_the_family_reads(monkeypatch, model: Path, family, changes, causes) -> None:
    config(model, **changes)
    monkeypatch.setattr(presence.importlib.util, "find_spec", lambda name: None)
    said = absent(family, model)[0]
    assert all(cause in said for cause in causes) and str(model) in said, said


def test_a_quantised_one_is_read_where_its_package_is(monkeypatch, model: Path) -> None:
    config(model, quantization_config={"quant_method": "gptq"})
    monkeypatch.setattr(presence.importlib.util, "find_spec", lambda name: name == "auto_gptq")
    assert absent("qwen2_5_vl", model) == []


def test_an_adapter_is_no_checkpoint(model: Path) -> None:
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Base"}')
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (said,) = absent("qwen2_5_vl", model)
    assert "holds an adapter (adapter_config.json) of Qwen/Base" in said and "merge_and_unload" in said
    (model / "config.json").unlink()
    with pytest.raises(
        DataError, match="no checkpoint at model.path=.*holds an adapter .* of Qwen/Base.*merge"
    ):
        run_configurations(configurations([f"model.path={model}", "logger=none"]))


def test_a_folder_around_the_checkpoint(model: Path) -> None:
    with pytest.raises(DataError, match=f"holds the checkpoint in a folder: model.path={model}"):
        run_configurations(configurations([f"model.path={model.parent}", "logger=none"]))
    snapshot = model.parent / "hub" / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(model, snapshot)
    with pytest.raises(DataError, match=f"the hub's cache of a checkpoint: model.path={snapshot}"):
        run_configurations(configurations([f"model.path={snapshot.parent.parent}", "logger=none"]))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_a_pointer_in_place_of_a_file(model: Path, name: str) -> None:
    (model / name).write_text(LFS)
    with pytest.raises(DataError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        run_configurations(configurations([f"model.path={model}", "logger=none"]))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (lambda data: data[:-1], "and its header says .*: it is cut off or damaged"),
        (lambda data: data + b"x", "and its header says .*: it is cut off or damaged"),
        (lambda data: data[:100], "cut off, or another kind of file"),
        (lambda data: b"", r"\(0 bytes\): it is cut off"),
        (lambda data: data[:8] + b"x" + data[9:], "its header is damaged"),
        (lambda data: b"PK\3\4" + data[4:], "cut off, or another kind of file"),
        (lambda data: b"<!DOCTYPE html><html>", "is a web page"),
    ],
)
def test_weights_that_are_cut_or_no_weights(model: Path, content, cause: str) -> None:
    file = model / "model.safetensors"
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(MissingParts, match=f"model.safetensors .*{cause}"):
        run_configurations(configurations([f"model.path={model}", "logger=none"]))
    (said,) = absent("my_module.MyFamily", model)
    assert "model.safetensors" in said


def test_shards_and_their_index(tmp_path: Path) -> None:
    model = shutil.copytree(CHECKPOINT, tmp_path / "model")
    shard, index = model / "model-00002-of-00002.safetensors", model / "model.safetensors.index.json"
    whole = index.read_text()
    index.unlink()
    (said,) = absent("llava_video", model)
    assert "lacks the index of its shards, model.safetensors.index.json" in said
    shard.unlink()
    assert "lacks model-00002-of-00002.safetensors" in absent("llava_video", model)[1]
    for broken in ("{", "[]", "{}"):
        index.write_text(broken)
        assert f"{index} names no weights" in absent("llava_video", model)[0]
    index.write_text(whole)
    shard.write_bytes((CHECKPOINT / shard.name).read_bytes()[:-5])
    (said,) = absent("llava_video", model)
    assert said.startswith(f"{shard} has ") and "cut off" in said
    # What loading does not read does not matter.
    shard.write_bytes((CHECKPOINT / shard.name).read_bytes())
    (model / "other.safetensors").write_bytes(b"x")
    assert absent("llava_video", model) == []


def test_weights_of_another_format(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    (said,) = absent("qwen2_5_vl", model)
    assert "holds no safetensors weights (pytorch_model.bin is not read" in said


@pytest.mark.parametrize(
    ("gone", "cause"),
    [
        (["tokenizer.json"], "has no tokenizer (tokenizer.json or vocab.json)"),
        (["processor_config.json"], "has no preprocessor (processor_config.json or preprocessor_config.json"),
        (["chat_template.jinja"], "has no chat template (chat_template.jinja)"),
    ],
)
def test_what_a_prompt_needs(model: Path, gone: list[str], cause: str) -> None:
    for name in gone:
        (model / name).unlink()
    with pytest.raises(MissingParts) as caught:
        run_configurations(configurations([f"model.path={model}", "logger=none"]))
    assert cause in str(caught.value) and "hf download" in str(caught.value)


@pytest.mark.parametrize(
    "file", ["chat_template.json", "processor_config.json", "additional_chat_templates/default.jinja"]
)
def test_a_template_may_stand_elsewhere(model: Path, file: str) -> None:
    (model / "chat_template.jinja").unlink()
    (model / file).parent.mkdir(exist_ok=True)
    known = json.loads((model / file).read_text()) if file == "processor_config.json" else {}
    (model / file).write_text(json.dumps(known | {"chat_template": "{{ x }}"}))
    assert unready("qwen2_5_vl", model) == []


def test_the_parts_of_nvila(tmp_path: Path) -> None:
    config_of = {"model_type": "llava_llama", "architectures": ["LlavaLlamaModel"]}
    for part in ("", "llm", "vision_tower"):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "config.json").write_text(
            json.dumps(config_of if not part else {"model_type": "x"})
        )
    shutil.copy(embedded_checkpoint() / "model.safetensors", tmp_path / "llm")
    found = absent("nvila", tmp_path)
    assert [said.partition(":")[0] for said in found] == [
        f"{tmp_path} lacks the folder mm_projector",
        f"{tmp_path / 'vision_tower'} holds no safetensors weights",
    ]
    assert [said.partition(" (")[0] for said in unready("nvila", tmp_path)] == [
        f"{tmp_path / 'llm'} has no tokenizer",
        f"{tmp_path / 'llm'} has no chat template",
    ]
    (tmp_path / "llm" / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert len(unready("nvila", tmp_path)) == 1


def test_folders_that_cannot_be_made_are_said_with_the_rest(tmp_path: Path, monkeypatch, model: Path) -> None:
    monkeypatch.setattr(run, "run_arms", lambda *a, **k: pytest.fail("the run began"))
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "x")
    (model / "chat_template.jinja").unlink()
    words = [f"results={tmp_path}/link/results", f"cache.folder={tmp_path}/file/cache", f"model.path={model}"]
    with pytest.raises(MissingParts) as caught:
        run_configurations(configurations(["logger=none", *words]))
    said = str(caught.value)
    assert (
        f"results={tmp_path}/link/results cannot hold the run embedded: {tmp_path}/link is a link to" in said
    )
    assert f"cache.folder={tmp_path}/file/cache cannot be used: {tmp_path}/file is no folder; name a" in said
    assert "has no chat template" in said and "run began" not in said
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["file", "link", "model"], "a check made something"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        MissingParts, match=f"cache.folder={tmp_path}/new cannot be used: {tmp_path} cannot be wri"
    ):
        run_configurations(configurations(["logger=none", f"cache.folder={tmp_path}/new"]))


def test_a_cache_of_ones_own_that_cannot_be_made(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        MissingParts, match=f"the cache folder .* cannot be made: {tmp_path}/file is no folder; set XDG"
    ):
        run_configurations(configurations(["logger=none", f"results={tmp_path}"]))


def test_it_is_said_before_torch_is_imported(model: Path) -> None:
    code = f"""
import sys
from stsimdiff.models.presence import absent, unready
assert absent("llava_video", {str(model)!r}) and not unready("qwen2_5_vl", {str(model)!r})
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    python("-c", code, check=True)
