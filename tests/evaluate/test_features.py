"""The feature cache: the same answers with and without it, a bounded folder that survives whatever lies in it."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch

from helpers.embedded_runs import prepared, stored
from stsimdiff import models
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.evaluate.feature_files import FeatureFiles
from stsimdiff.evaluate.features import FeatureCache, FeatureMemory, Key
from stsimdiff.evaluate.packing import pack, unpack
from stsimdiff.evaluate.run import run_arms
from stsimdiff.evaluate.shared import SharedModel
from stsimdiff.models.base import EncodedVideo
from stsimdiff.models.kit import running
from stsimdiff.tokens import Grid, VisionSignals
from stsimdiff.video.process import VideoProcess

CPU = torch.device("cpu")
ARMS = (
    "compressor=visionzip budget.retention=0.3",
    "compressor=st_simdiff budget.retention=0.3",
    "compressor=none",
)


def rows(settings, arms) -> list[list[dict]]:
    """All stored lines, without what says where features came from and what that took, and without overlays."""
    return [
        [row | {"times": None, "features": None, "overlay": None} for row in stored(settings, arm)]
        for arm in sorted(arms, key=lambda arm: arm.id)
    ]


def origins(settings, arms) -> set[str]:
    return {row["features"] for arm in arms for row in stored(settings, arm)}


def test_answers_from_disk_and_memory_are_those_without_a_cache(tmp_path, data, monkeypatch):
    plain, arms = prepared(tmp_path / "plain", data, *ARMS)
    run_arms(plain, arms)
    assert origins(plain, arms) == {"encoded"}
    kept = {"cache.folder": tmp_path / "features"}
    filling, _ = prepared(tmp_path / "filling", data, *ARMS, **kept)
    run_arms(filling, arms)
    assert len(list((tmp_path / "features").glob("*.safetensors"))) == 2
    monkeypatch.setattr(VideoProcess, "read", lambda *a: pytest.fail("a video was decoded again"))
    kept |= {"cache.max_gb": 1, "overlays": 0}
    from_disk, _ = prepared(tmp_path / "disk", data, *ARMS, **kept)
    shared = SharedModel()
    run_arms(from_disk, arms, shared)
    from_memory, _ = prepared(tmp_path / "memory", data, *ARMS, **{"cache.max_gb": 1, "overlays": 0})
    run_arms(from_memory, arms, shared)
    for settings, origin in ((filling, "encoded"), (from_disk, "disk"), (from_memory, "memory")):
        assert rows(settings, arms) == rows(plain, arms)
        assert origins(settings, arms) == {origin}
        times = stored(settings, arms[0])[0]["times"]
        taken = {"decode", "preprocess", "vision"}
        assert taken & times.keys() == (taken if origin == "encoded" else set())


def test_the_frames_of_overlays_are_stored_from_cached_features_too(tmp_path, data):
    kept = {"cache.folder": tmp_path / "features", "overlays": 1, "limit": 7}
    for run in ("first", "second"):
        settings, arms = prepared(tmp_path / run, data, ARMS[2], **kept)
        run_arms(settings, arms)
    assert origins(settings, arms) == {"disk"}
    frames = [sorted(p.name for p in (tmp_path / run).rglob("*.jpg")) for run in ("first", "second")]
    assert frames[0] == frames[1] and len(frames[0]) == 16


def test_features_without_the_towers_attention_do_not_serve_a_method_that_reads_it(tmp_path, data):
    kept = {"cache.folder": tmp_path / "features"}
    without, arms = prepared(tmp_path / "a", data, ARMS[2], **kept)
    run_arms(without, arms)
    needing, arms = prepared(tmp_path / "b", data, ARMS[0], **kept)
    run_arms(needing, arms)
    assert origins(needing, arms) == {"encoded"}
    again, arms = prepared(tmp_path / "c", data, *ARMS, **kept)
    run_arms(again, arms)
    assert origins(again, arms) == {"disk"}


@pytest.mark.parametrize(
    "change",
    [
        {"model.frames": 8},
        {"benchmark.decoder": "decord"},
        {"model.dtype": "bfloat16"},
        {"model.attn_implementation": "eager"},
        "video",
        "code",
    ],
)
def test_what_changes_features_changes_their_key(tmp_path, own_data, change, monkeypatch):
    video = str(own_data / "videos" / "clip000.mp4")

    class Loaded:
        device = CPU

        def __init__(self, settings):
            self.settings = settings

        def describe(self):
            return {"dtype": self.settings.model.dtype}

    def key(**overrides):
        settings, _ = prepared(tmp_path, own_data, ARMS[2], **overrides)
        return FeatureCache(settings).key(Loaded(settings), video).name

    before = key()
    assert key(seed=3, limit=4) == before
    if change == "video":
        shutil.copy(own_data / "videos" / "clip001.mp4", video)
        assert key() != before
    elif change == "code":
        from stsimdiff.evaluate import features

        monkeypatch.setattr(features, "CODE", ("video:check_file",))
        features._software.cache_clear()
        assert key() != before
        features._software.cache_clear()
    else:
        assert key(**change) != before


def encoded(size: int = 8, seed: int = 0, signals: bool = True) -> EncodedVideo:
    """Features of ``size`` tokens; ``inputs`` as families have them: a larger tensor that holds them, numbers, text."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(1, size + 1, 16, generator=generator).to(torch.bfloat16)
    return EncodedVideo(
        features=whole[0, :-1],
        grid=Grid(size, 1, 1),
        inputs={
            "features": whole,
            "video_grid_thw": torch.tensor([[size, 2, 2]]),
            "deep": [torch.randn(size, 3, generator=generator).T, None],
            "time_instruction": "lasts 1.00 s",
            "second_per_grid_ts": torch.tensor([0.5]),
        },
        signals=VisionSignals(torch.rand(size, generator=generator), torch.randn(size, 2, 4))
        if signals
        else None,
        seconds={"vision": 1.0},
    )


def same(a: EncodedVideo, b: EncodedVideo) -> bool:
    deep = torch.equal(a.inputs["deep"][0], b.inputs["deep"][0]) and b.inputs["deep"][1] is None
    tensors = all(
        torch.equal(x, y) and x.dtype == y.dtype
        for x, y in [
            (a.features, b.features),
            *[(a.inputs[k], b.inputs[k]) for k in ("features", "video_grid_thw", "second_per_grid_ts")],
        ]
    )
    text = a.inputs["time_instruction"] == b.inputs["time_instruction"]
    return deep and tensors and text and a.grid == b.grid and a.inputs.keys() == b.inputs.keys()


def files(folder: Path, limit: float = 1e9) -> FeatureFiles:
    return FeatureFiles(folder, limit)


def name(number: int) -> str:
    return Key(f"video {number}").name


def test_a_packed_video_comes_back_whole_and_shared_memory_is_kept_once(tmp_path):
    video = encoded()
    packed = pack(video)
    assert "features" not in packed.tensors, "features are a part of inputs.features"
    files(tmp_path).write(name(1), "video 1", packed)
    found = unpack(files(tmp_path).read(name(1), "video 1", True), CPU)
    assert same(video, found)
    assert torch.equal(found.signals.keys, video.signals.keys)
    assert torch.equal(found.signals.received, video.signals.received)
    assert files(tmp_path).read(name(1), "video 1", False).tree["signals"] is None
    assert (tmp_path / f"{name(1)}.safetensors").stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_cannot_be_kept_is_named():
    video = encoded()
    video.inputs["odd"] = {1, 2}
    with pytest.raises(ConfigError, match=r"a set \(inputs\.odd\).*cache\.folder=null"):
        pack(video)


def test_the_folder_never_exceeds_its_limit_and_the_oldest_used_leave_first(tmp_path):
    packed = [pack(encoded(64, seed)) for seed in range(5)]
    files(tmp_path).write(name(0), "video 0", packed[0])
    size = (tmp_path / f"{name(0)}.safetensors").stat().st_size
    (tmp_path / "notes.txt").write_text("not ours" * 10_000)
    store = files(tmp_path, 4 * size - 1)
    for number in range(1, 3):
        store.write(name(number), f"video {number}", packed[number])
    for number in range(3):
        os.utime(tmp_path / f"{name(number)}.safetensors", (number, number))
    assert store.read(name(0), "video 0", True) is not None
    store.write(name(3), "video 3", packed[3])
    left = {path.name for path in tmp_path.glob("*.safetensors")}
    assert left == {f"{name(n)}.safetensors" for n in (0, 2, 3)}, "video 1 was used longest ago"
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) <= store.limit
    assert (tmp_path / "notes.txt").exists()


def test_a_video_larger_than_the_limit_is_said_and_not_kept(tmp_path, caplog):
    store = files(tmp_path, 2000)
    store.write(name(1), "video 1", pack(encoded(64)))
    assert "cache.disk_gb allows less" in caplog.text
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("harm", ["empty", "cut", "bit", "foreign", "text"])
def test_a_broken_or_foreign_file_is_said_and_never_used(tmp_path, caplog, harm):
    store, path = files(tmp_path), tmp_path / f"{name(1)}.safetensors"
    store.write(name(1), "video 1", pack(encoded()))
    content = bytearray(path.read_bytes())
    if harm == "bit":
        content[-5] ^= 1
    elif harm == "foreign":
        store.write(name(2), "video 2", pack(encoded(seed=1)))
        content = (tmp_path / f"{name(2)}.safetensors").read_bytes()
    path.write_bytes({"empty": b"", "cut": content[:-7], "text": b"no tensors" * 20}.get(harm, content))
    assert store.read(name(1), "video 1", True) is None
    assert f"{path} cannot be used" in caplog.text and "encoded again" in caplog.text
    store.write(name(1), "video 1", pack(encoded()))
    assert same(unpack(store.read(name(1), "video 1", True), CPU), encoded())


def test_what_a_killed_writer_left_is_removed(tmp_path):
    store = files(tmp_path)
    (tmp_path / ".unfinished" / "left").write_bytes(b"x" * 1000)
    store.write(name(1), "video 1", pack(encoded()))
    assert not list((tmp_path / ".unfinished").iterdir())


def _write_many(folder: Path, limit: float, first: int) -> None:
    store = files(folder, limit)
    for number in range(first, first + 12):
        store.write(name(number), f"video {number}", pack(encoded(64, number)))
        store.read(name(first), f"video {first}", True)


def test_several_processes_share_a_bounded_folder(tmp_path):
    limit = 40_000
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path, limit, 100 * n)) for n in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        with (tmp_path / ".lock").open("a") as lock:
            # Else files would come and go while they are counted.
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= limit
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    found = list(tmp_path.glob("*.safetensors"))
    assert found
    for path in found:
        number = next(n for n in range(300) if f"{name(n)}.safetensors" == path.name)
        assert same(
            unpack(files(tmp_path).read(name(number), f"video {number}", True), CPU), encoded(64, number)
        )


def test_memory_is_bounded_and_drops_the_oldest():
    memory, packed = FeatureMemory(), [pack(encoded(64, seed)) for seed in range(4)]
    limit = 3 * packed[0].bytes
    for number in range(3):
        memory.put(Key(f"video {number}"), packed[number], limit)
    assert memory.get(Key("video 0"), True) is packed[0]
    memory.put(Key("video 3"), packed[3], limit)
    assert memory.bytes == limit
    assert memory.get(Key("video 1"), True) is None
    assert memory.get(Key("video 0"), True) is packed[0]
    memory.put(Key("large"), pack(encoded(640)), limit)
    assert memory.get(Key("large"), True) is None
    memory.clear()
    assert memory.bytes == 0 and memory.get(Key("video 0"), False) is None


def test_a_folder_that_cannot_be_used_is_said_before_the_model_is_loaded(tmp_path, data, no_model):
    (tmp_path / "file").write_text("")
    settings, arms = prepared(tmp_path, data, ARMS[2], **{"cache.folder": tmp_path / "file" / "features"})
    with pytest.raises(DataError, match=r"cache\.folder=.*file/features cannot be used"):
        run_arms(settings, arms)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cache.max_gb", "-1"),
        ("cache.max_gb", "lots"),
        ("cache.disk_gb", "0"),
        ("cache.disk_gb", ".inf"),
        ("cache.folder", "3"),
        ("cache.folder", "''"),
        ("sample_seconds", "0"),
        ("sample_seconds", "true"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, data, key, value):
    with pytest.raises(ConfigError, match=rf"{key}=.* is out of range; allowed: "):
        prepared(tmp_path, data, ARMS[2], **{key: value})


def test_a_second_arm_on_cached_features_says_so_in_its_rows(tmp_path, data):
    settings, arms = prepared(tmp_path, data, ARMS[2], **{"cache.folder": tmp_path / "features"})
    run_arms(settings, arms)
    settings, more = prepared(tmp_path, data, ARMS[1], **{"cache.folder": tmp_path / "features"})
    run_arms(settings, more)
    assert {json.dumps(row["features"]) for row in stored(settings, more[0])} == {'"disk"'}


@pytest.mark.parametrize("family", sorted(models.FAMILIES))
def test_every_family_answers_the_same_from_kept_features(tmp_path, miniature, family):
    loaded = running.load(models.resolve(family), str(miniature(family)), "cpu", "float32", "sdpa")
    frames = running.synthetic_frames(6)
    video = loaded.encode(frames, signals=True)
    files(tmp_path).write(name(1), "video 1", pack(video))
    kept = unpack(files(tmp_path).read(name(1), "video 1", True), CPU)
    assert torch.equal(kept.signals.received, video.signals.received)
    assert torch.equal(kept.signals.keys, video.signals.keys)
    cases = [
        running.FamilyCase(loaded, frames, v, loaded.prompt(v, "What is it?", "q")) for v in (video, kept)
    ]
    (logits, tokens, _), (again, same_tokens, _) = (running.generate(case) for case in cases)
    assert torch.equal(logits, again) and torch.equal(tokens, same_tokens)
