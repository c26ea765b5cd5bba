"""Files are known by their whole content, which is read once; of a checkpoint only what loading reads counts."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from stsimdiff import files
from stsimdiff.config import checkpoint_files
from stsimdiff.config.checkpoint_files import checkpoint_version, files_read, generation
from stsimdiff.data import digests
from stsimdiff.data.digests import file_digest
from stsimdiff.models.base import GREEDY

pytestmark = pytest.mark.usefixtures("digest_memory")


@pytest.fixture
def readings(monkeypatch) -> list[str]:
    found, read = [], digests.sha256
    monkeypatch.setattr(digests, "sha256", lambda path: found.append(path) or read(path))
    return found


def test_a_file_is_read_once_by_all_processes_of_a_machine(tmp_path, readings, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    assert file_digest(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setattr(digests, "_known", {})  # another process
    assert file_digest(str(file)) == file_digest(file)
    assert len(readings) == 1


@pytest.mark.parametrize("how", ["content", "replaced", "same size and time", "another inode"])
def test_what_changes_a_file_has_it_read_again(tmp_path, readings, how):
    file, other = tmp_path / "weights", tmp_path / "other"
    file.write_bytes(b"abc")
    before = file_digest(file)
    state = file.stat()
    if how == "content":
        file.write_bytes(b"abcd")
    elif how == "replaced":
        other.write_bytes(b"abx")
        other.replace(file)
    elif how == "same size and time":
        file.write_bytes(b"abx")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    else:
        other.write_bytes(b"abx")
        os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
        other.replace(file)
    assert file_digest(file) != before and len(readings) == 2


def test_a_file_that_was_just_written_is_not_remembered(tmp_path, readings, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 2_000_000_000)
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    file_digest(file), file_digest(file)
    assert len(readings) == 2


def test_without_a_memory_files_are_read_each_time_and_that_is_said_once(
    tmp_path, digest_memory, readings, caplog, monkeypatch
):
    digest_memory.write_text("a file where the folder should be")
    monkeypatch.setattr(digests, "_said", False)
    file, second = tmp_path / "weights", tmp_path / "second"
    file.write_bytes(b"abc")
    second.write_bytes(b"abc")
    with caplog.at_level(logging.INFO, "stsimdiff"):
        assert file_digest(file) == file_digest(second)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "not remembered" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"state": 1}', b"\xff"])
def test_a_broken_memory_is_made_again(tmp_path, digest_memory, readings, content):
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    before = file_digest(file)
    (entry,) = (digest_memory / "digests").iterdir()
    entry.write_bytes(content)
    digests._known.clear()
    assert file_digest(file) == before
    digests._known.clear()
    assert file_digest(file) == before
    assert len(readings) == 2


def test_a_large_checkpoint_says_that_it_takes_a_while_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(digests, "LARGE", 3)
    file = tmp_path / "weights"
    file.write_bytes(b"abcd")
    digests.say_what_takes_long([file], "the checkpoint here")
    assert "reading the checkpoint here once for its fingerprint" in caplog.text
    caplog.clear()
    file_digest(file)
    digests.say_what_takes_long([file], "the checkpoint here")
    digests._known.clear()
    digests.say_what_takes_long([file], "the checkpoint here")
    assert not caplog.records


def test_a_byte_in_the_middle_of_a_large_file_counts(checkpoint):
    file = checkpoint / "model.safetensors"
    with file.open("wb") as stream:
        stream.truncate(70 * 2**20)
    before = checkpoint_version(checkpoint, "qwen2_vl")
    with file.open("r+b") as stream:
        stream.seek(35 * 2**20)
        stream.write(b"tuned")
    assert checkpoint_version(checkpoint, "qwen2_vl") != before


COUNTED = (
    *(
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ),
    *("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *(
        "chat_template.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "processor_config.json",
    ),
    *("tokenizer.model", "additional_chat_templates/short.jinja"),
)
STRAY = (
    *("nohup.out", "README.md", "LICENSE", ".gitattributes", ".cache/huggingface/download", "optimizer.pt"),
    *(
        "checkpoint-10/config.json",
        "checkpoint-10/model.safetensors",
        "trainer_state.json",
        "training_args.bin",
    ),
    *(
        "rng_state.pth",
        "scheduler.pt",
        "events.out.tfevents.1",
        "pytorch_model.bin",
        "consolidated.safetensors",
    ),
    *("modeling_own.py", "eval.json", "model-00001-of-00002.safetensors", "runs/config.json", "figure.png"),
)


@pytest.mark.parametrize("name", COUNTED)
def test_every_file_that_loading_reads_counts(checkpoint, name):
    before = checkpoint_version(checkpoint, "internvl")
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_text('{"changed": 1}')
    assert checkpoint_version(checkpoint, "internvl") != before


@pytest.mark.parametrize("name", STRAY)
def test_no_other_file_counts(checkpoint, name):
    before = checkpoint_version(checkpoint, "internvl")
    (checkpoint / name).parent.mkdir(exist_ok=True, parents=True)
    (checkpoint / name).write_text("{}")
    assert checkpoint_version(checkpoint, "internvl") == before


def test_shards_are_those_of_the_index(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    before = checkpoint_version(checkpoint, "qwen2_vl")
    for name in index["weight_map"].values():
        (checkpoint / name).write_bytes(b"weights")
        before, last = checkpoint_version(checkpoint, "qwen2_vl"), before
        assert before != last
    (checkpoint / "model-00003-of-00003.safetensors").write_bytes(b"of something else")
    assert checkpoint_version(checkpoint, "qwen2_vl") == before


def test_a_checkpoint_s_code_counts_where_it_runs(checkpoint):
    before = checkpoint_version(checkpoint, "qwen2_vl", trusted=True)
    (checkpoint / "modeling_own.py").write_text("a = 1")
    assert checkpoint_version(checkpoint, "qwen2_vl", trusted=True) != before


def test_the_parts_of_a_checkpoint_count(checkpoint):
    for part in ("llm", "vision_tower", "mm_projector", "checkpoint-10"):
        (checkpoint / part).mkdir()
        (checkpoint / part / "config.json").write_text("{}")
        (checkpoint / part / "model.safetensors").write_bytes(b"weights")
    files = files_read(checkpoint, "nvila")
    assert {name for name in files if name.endswith(".safetensors")} == {
        "model.safetensors",
        *(f"{part}/model.safetensors" for part in ("llm", "vision_tower", "mm_projector")),
    }


def test_the_configuration_of_a_vision_tower_elsewhere_counts(checkpoint, tmp_path):
    tower = tmp_path / "siglip"
    tower.mkdir()
    (tower / "config.json").write_text('{"num_hidden_layers": 27}')
    (checkpoint / "config.json").write_text(json.dumps({"mm_vision_tower": str(tower)}))
    before = checkpoint_version(checkpoint, "llava_video")
    (tower / "config.json").write_text('{"num_hidden_layers": 26}')
    assert checkpoint_version(checkpoint, "llava_video") != before


def test_of_a_user_s_own_family_whatever_is_no_trace_of_training_counts(checkpoint):
    before = checkpoint_version(checkpoint, "mine.Family", is_own=True)
    for name in ("nohup.out", "optimizer.pt", "checkpoint-10/config.json", "trainer_state.json", "README.md"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("{}")
    assert checkpoint_version(checkpoint, "mine.Family", is_own=True) == before
    found = {before}
    for name in ("weights.npz", "pytorch_model.bin", "part/config.json", "params.json"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("{}")
        found.add(checkpoint_version(checkpoint, "mine.Family", is_own=True))
    assert len(found) == 5


def test_where_a_checkpoint_lies_and_when_it_was_written_do_not_count(checkpoint, tmp_path):
    before = checkpoint_version(checkpoint, "qwen2_vl")
    (checkpoint / "model.safetensors").touch()
    shutil.copytree(checkpoint, tmp_path / "copy")
    assert (
        checkpoint_version(checkpoint, "qwen2_vl")
        == checkpoint_version(tmp_path / "copy", "qwen2_vl")
        == before
    )


def test_generation_settings_that_change_greedy_answers_are_named(checkpoint):
    said = {
        **{
            "do_sample": True,
            "temperature": 0.1,
            "top_k": 1,
            "bos_token_id": 1,
            "transformers_version": "4.37.0",
        },
        **{"repetition_penalty": 1.05, "no_repeat_ngram_size": 3, "eos_token_id": [151645, 151643]},
        **{"min_length": 0, "encoder_repetition_penalty": 1.0, "suppress_tokens": []},
    }
    (checkpoint / "generation_config.json").write_text(json.dumps(said))
    named = {"eos_token_id": [151645, 151643], "repetition_penalty": 1.05, "no_repeat_ngram_size": 3}
    assert generation(checkpoint, "qwen2_5_vl") == named
    (checkpoint / "generation_config.json").unlink()
    (checkpoint / "config.json").write_text(
        json.dumps({"text_config": {"eos_token_id": 0}, "min_new_tokens": 1})
    )
    assert generation(checkpoint, "qwen2_5_vl") == {"eos_token_id": 0, "min_new_tokens": 1}
    (checkpoint / "llm").mkdir()
    (checkpoint / "llm" / "generation_config.json").write_text(json.dumps(said))
    assert generation(checkpoint, "nvila") == named
    assert set(checkpoint_files.GENERATION) == set(GREEDY) - {"bos_token_id", "pad_token_id"}


def test_a_fingerprint_is_what_ids_and_names_were_made_of():
    """By hand, with hashlib: a zero byte between things, JSON with sorted keys, half characters as they are."""
    digest = lambda data: hashlib.sha256(data).hexdigest()  # noqa: E731
    assert files.fingerprint("a") == "ca978112ca1b"
    assert files.fingerprint("é\udcff", b"\xff", digits=64) == digest(b"\xc3\xa9\xed\xb3\xbf\0\xff")
    assert files.fingerprint({"b": [1, None], "a": "é"}) == digest(b'{"a": "\\u00e9", "b": [1, null]}')[:12]
    assert files.fingerprint(digits=8) == digest(b"")[:8]


def test_a_file_that_was_not_completed_is_as_it_was(tmp_path):
    file = tmp_path / "video.mp4"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.complete(file) as temporary:
        assert temporary.suffix == ".mp4" and temporary.name.startswith(".")
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("video.mp4", "old")]
    with files.complete(file) as temporary:
        temporary.write_text("new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("video.mp4", "new")]


def test_digests_are_made_in_one_module():
    package = Path(files.__file__).parent
    texts = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert [path for path, text in texts.items() if "hashlib" in text] == [package / "files.py"]
