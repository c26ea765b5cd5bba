"""Before a model is loaded: which prompt is asked, where the data lies, and everything that is missing, at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.configured import composed
from helpers.paths import CHECKPOINT, MINIATURES
from stsimdiff.config.arms import arm_from_config
from stsimdiff.config.settings import settings_from_config
from stsimdiff.errors import ConfigError, MissingParts
from stsimdiff.evaluate import run
from stsimdiff.evaluate.preflight import check_data
from stsimdiff.launchers.base import configurations
from stsimdiff.launchers.in_process import run_configurations
from stsimdiff.models.presence import absent
from stsimdiff.resources import embedded_checkpoint


@pytest.mark.parametrize(
    ("words", "prompt"),
    [
        ((f"model=llava_video model.path={CHECKPOINT}"), "llava_vid"),
        ((f"model=llava_video model.path={CHECKPOINT} benchmark.prompt=default"), "default"),
        ((f"model=llava_video model.path={CHECKPOINT} model.prompts={{videomme:qwen3_vl}}"), "qwen3_vl"),
        ("model=embedded", "default"),
        ("model=embedded +model.prompts.videomme=gpt4v", "gpt4v"),
    ],
)
def test_the_models_file_names_the_prompt(words: str, prompt: str) -> None:
    found = settings_from_config(composed("benchmark=videomme", f"data={MINIATURES}", *words.split()))
    assert found.benchmark.prompt == prompt
    assert "prompts" not in found.model.stored()


def test_a_prompt_said_in_either_place_is_the_same_arm() -> None:
    common = ("benchmark=videomme", f"data={MINIATURES}", "compressor=random")
    ids = [
        arm_from_config(composed(*common, word)).id
        for word in ("benchmark.prompt=gpt4v", "+model.prompts.videomme=gpt4v", "seed=0")
    ]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("+model.prompts.videome=gpt4v", r"model.prompts=videome is unknown; .*did you mean videomme\?"),
        ("model.prompts=gpt4v", "model.prompts='gpt4v' is out of range"),
        ("+model.prompts.videomme=nothing", "benchmark.prompt=nothing is unknown; allowed: default"),
        ("data=7", "data=7 is out of range; allowed: the path of a folder"),
        ("benchmark.macro=yes_please", "benchmark.macro='yes_please' is out of range; allowed: true, false"),
        ("benchmark.video_seconds=0", "benchmark.video_seconds=0 is out of range; allowed: a number above 0"),
        ("benchmark.video_seconds=soon", "benchmark.video_seconds='soon' is out of range"),
    ],
)
def test_wrong_settings(word: str, message: str) -> None:
    words = [f"data={MINIATURES}"] if not word.startswith("data=") else []
    with pytest.raises(ConfigError, match=message):
        settings_from_config(composed("benchmark=videomme", *words, word))


def test_one_folder_holds_all_benchmarks(tmp_path: Path) -> None:
    shutil.copytree(MINIATURES / "videomme", tmp_path / "Video-MME")
    found = settings_from_config(composed("benchmark=videomme", f"data={tmp_path}"))
    assert found.benchmark.root == str(tmp_path / "Video-MME")
    own = settings_from_config(
        composed("benchmark=mlvu", f"data={tmp_path}", f"benchmark.data={MINIATURES / 'mlvu'}")
    )
    assert own.benchmark.root == str(MINIATURES / "mlvu")
    # The packaged benchmark is no public one, and lies where it lies.
    assert settings_from_config(composed(f"data={tmp_path}")).benchmark.data is None


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MissingParts) as caught:
        words = ["model=llava_video", "benchmark=videomme,longvideobench,egoschema", "logger=none"]
        run_configurations(configurations(words))
    said = str(caught.value)
    assert said.startswith("missing on this machine:\n- model.path is not set")
    assert "hf download lmms-lab/LLaVA-Video-7B-Qwen2 --local-dir DIR" in said
    assert "hf download google/siglip-so400m-patch14-384 config.json" in said
    for name in ("videomme", "longvideobench", "egoschema"):
        assert (
            said.count(f"no data of {name} at {tmp_path}") == said.count(f"make data BENCHMARK={name}`") == 1
        )


def test_what_a_checkpoint_lacks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert absent("llava_video", CHECKPOINT) == absent("qwen2_5_vl", embedded_checkpoint()) == []
    assert absent("llava_video", tmp_path / "nowhere") == absent("llava_video", None) == []
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        shutil.copy(CHECKPOINT / name, model)
    shard, tower = absent("llava_video", model)
    assert f"{model} lacks model-00002-of-00002.safetensors, which its index names" in shard
    assert f"hf download lmms-lab/LLaVA-Video-7B-Qwen2 --local-dir {model}" in shard
    name = json.loads((model / "config.json").read_text())["mm_vision_tower"]
    assert f"hf download {name} config.json" in tower and "vision_tower_config.json" in tower
    for file in model.glob("*.safetensors*"):
        file.unlink()
    assert "holds no safetensors weights" in absent("llava_video", model)[0]
    # NVILA's weights lie in folders of their own.
    (model / "config.json").write_text('{"model_type": "llava_llama"}')
    for part in ("llm", "vision_tower", "mm_projector"):
        (model / part).mkdir()
        shutil.copy(CHECKPOINT / "config.json", model / part)
        shutil.copy(embedded_checkpoint() / "model.safetensors", model / part)
    assert absent("nvila", model) == []


def test_weights_that_are_not_there_stop_a_run_before_the_model(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "run_arms", lambda *a: pytest.fail("the run began"))
    shutil.copy(embedded_checkpoint() / "config.json", tmp_path)
    with pytest.raises(MissingParts, match="holds no safetensors weights"):
        run_configurations(configurations([f"model.path={tmp_path}", "logger=none"]))


def test_the_videos_of_all_benchmarks_are_looked_at_first(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "run_arms", lambda *a: pytest.fail("the run began"))
    shutil.copytree(MINIATURES, tmp_path / "data")
    (tmp_path / "data" / "mlvu" / "video" / "3_ego" / "ego_3.mp4").unlink()
    (tmp_path / "data" / "egoschema" / "videos" / "mini-2.mp4").write_bytes(b"")
    words = [
        "benchmark=videomme,mlvu,egoschema",
        f"data={tmp_path / 'data'}",
        "compressor=none",
        "logger=none",
    ]
    with pytest.raises(MissingParts) as caught:
        run_configurations(configurations(words))
    said = str(caught.value)
    assert "mlvu: video" in said and "ego_3.mp4 does not exist" in said and "mini-2.mp4 is empty" in said
    assert said.count("benchmark.allow_missing=true") == 2 and "videomme" not in said
    # The other processes of a run leave it to the first one.
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    check_data([settings_from_config(composed("benchmark=mlvu", f"data={tmp_path / 'data'}"))])
