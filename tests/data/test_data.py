"""Data sets onto the disk: found, unpacked, checked and indexed, once; and what is said when that cannot be."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
import types
import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from helpers.paths import MINIATURES
from stsimdiff.commands import data as command
from stsimdiff.data import archives, hub
from stsimdiff.data.benchmarks import MLVU, VIDEOMME, default_root
from stsimdiff.data.videos import Index, VideoFolder
from stsimdiff.errors import DataError
from stsimdiff.video.process import VideoProcess


@pytest.fixture
def root(tmp_path: Path) -> Path:
    # An index may lie there from another look at the miniature itself.
    ignored = shutil.ignore_patterns("stsimdiff_index.json")
    return shutil.copytree(MINIATURES / "videomme", tmp_path / "videomme", ignore=ignored)


def test_a_video_is_found_wherever_it_lies(tmp_path: Path) -> None:
    for name in (
        "a/b/one.mp4",
        "two.MP4",
        "c/three.mkv",
        "x/same.mp4",
        "y/same.mp4",
        ".cache/four.mp4",
        "d/.five.mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    folder = VideoFolder(tmp_path)
    assert (
        folder.path("one") == folder.path("one.mp4") == folder.path("b/one.mp4") == tmp_path / "a/b/one.mp4"
    )
    assert folder.path("two") == tmp_path / "two.MP4"
    assert folder.path("three") == tmp_path / "c/three.mkv"
    assert folder.path("y/same.mp4") == tmp_path / "y/same.mp4"
    assert not folder.path("four.mp4").exists() and not folder.path("five").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "linked.mp4").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "videos").symlink_to(tmp_path / "other")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    assert VideoFolder(tmp_path / "root").path("linked.mp4") == tmp_path / "root" / "videos" / "linked.mp4"
    (tmp_path / "y/same.mp4").write_bytes(b"another length")
    with pytest.raises(
        DataError, match=r"several files could be the video 'same.mp4': .*x/same.mp4.*y/same.mp4"
    ):
        VideoFolder(tmp_path).path("same.mp4")


def test_the_index_knows_what_was_opened(root: Path, monkeypatch) -> None:
    assert command.main(["videomme", "--data", str(root)]) == 0
    index = json.loads((root / Index.NAME).read_text())["videos"]
    assert sorted(index) == ["data/mini0.mp4", "data/mini1.mp4", "data/mini2.mp4"]
    entry = index["data/mini1.mp4"]
    assert (entry["frames"], entry["seconds"]) == (16, 4.0)
    assert entry["size"] == (root / "data/mini1.mp4").stat().st_size and len(entry["sha256"]) == 64
    monkeypatch.setattr(
        VideoProcess, "probe", lambda self, path, seconds, backend: pytest.fail(f"{path} was opened again")
    )
    assert command.main(["videomme", "--data", str(root)]) == 0
    (root / "data/mini1.mp4").write_bytes(b"changed")
    monkeypatch.undo()
    assert command.main(["videomme", "--data", str(root)]) == 2


def test_an_index_beside_a_folder_that_cannot_be_written(root: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert Index(root).check([root / "data/mini0.mp4"]) == {}
    assert not (root / Index.NAME).exists()
    assert "data/mini0.mp4" in Index(root).entries


def test_unusable_videos_are_listed(root: Path, capsys) -> None:
    (root / "data/mini0.mp4").unlink()
    (root / "data/mini2.mp4").write_bytes(b"")
    assert command.main(["videomme", "--data", str(root)]) == 2
    said = capsys.readouterr().err
    assert "mini0.mp4 does not exist" in said and "mini2.mp4 is empty" in said
    assert "2 of 3 videos of videomme cannot be used" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["videomm"],
            "benchmark 'videomm' is unknown; allowed: videomme, mlvu, mlvu_test, longvideobench, egoschema, "
            "egoschema_full",
        ),
        (["mlvu", "--data", "/nowhere"], "benchmark.data=/nowhere is no folder"),
        (["mlvu", "--data", str(MINIATURES / "videomme")], "no parquet file with the questions of mlvu"),
        (["mlvu"], "cannot fetch sy1998/MLVU_dev: .*make data BENCHMARK=mlvu DATA=/path"),
    ],
)
def test_what_cannot_be_is_said(words, message, capsys, tmp_path: Path, monkeypatch) -> None:
    # The tests have no network: HF_HUB_OFFLINE is set for all of them.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert command.main(words) == 2
    assert re.search(message, capsys.readouterr().err)


def packed(source: Path, target: Path) -> None:
    """The miniature as a hub repository: the parquet as it is, the videos in a zip, subtitles in a tar of two parts."""
    shutil.copytree(source / "videomme", target / "videomme")
    with zipfile.ZipFile(target / "videos_chunked_01.zip", "w") as archive:
        for path in sorted((source / "data").glob("*.mp4"))[:2]:
            archive.write(path, f"data/{path.name}")
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as archive:
        archive.add(source / "data" / "mini2.mp4", "videos/mini2.mp4")
    data = memory.getvalue()
    (target / "rest.tar.gz.part.aa").write_bytes(data[: len(data) // 2])
    (target / "rest.tar.gz.part.ab").write_bytes(data[len(data) // 2 :])


class Hub:
    """Stands for the hub: hands out a folder, and counts."""

    def __init__(self, monkeypatch, source: Path) -> None:
        self.downloads, self.source, self.failures = 0, source, 0
        files = [path for path in source.rglob("*") if path.is_file()]
        siblings = [
            types.SimpleNamespace(rfilename=path.relative_to(source).as_posix(), size=path.stat().st_size)
            for path in files
        ]
        info = types.SimpleNamespace(sha="0123", siblings=siblings)
        monkeypatch.setattr(hub, "PAUSE", 0.0)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *a, **k: info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def download(self, repo: str, *, repo_type: str, revision: str, local_dir: Path) -> None:
        assert (repo_type, revision) == ("dataset", "0123") and repo in (VIDEOMME.hub, MLVU.hub)
        self.downloads += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the line broke")
        shutil.copytree(self.source, local_dir, dirs_exist_ok=True)


def test_fetched_unpacked_and_checked_once(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    packed(MINIATURES / "videomme", tmp_path / "hub")
    served = Hub(monkeypatch, tmp_path / "hub")
    served.failures = 3
    assert command.main(["videomme"]) == 2
    said = capsys.readouterr()
    assert "the line broke" in said.err and "the hub failed (the line broke); try 3 of 3" in said.out
    served.failures = 2
    assert command.main(["videomme"]) == 0
    assert "3 videos are sound" in capsys.readouterr().out
    root = default_root("videomme")
    for number in range(3):
        (found,) = root.rglob(f"mini{number}.mp4")
        assert found.read_bytes() == (MINIATURES / "videomme" / "data" / f"mini{number}.mp4").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert command.main(["videomme"]) == 0
    assert served.downloads == 6 and "unpacking" not in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_folder_that_is_not_whole_is_not_taken_for_fetched(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    packed(MINIATURES / "videomme", tmp_path / "hub")
    Hub(monkeypatch, tmp_path / "hub")
    # What some versions of the client do without network: they are content with what is there.
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: None)
    assert command.main(["videomme"]) == 2
    assert "4 of 4 files have not come whole" in capsys.readouterr().err
    assert not (default_root("videomme") / hub.FETCHED).exists()


def test_archives_are_removed_once_they_are_unpacked(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    packed(MINIATURES / "videomme", tmp_path / "hub")
    served = Hub(monkeypatch, tmp_path / "hub")
    words = ["benchmark=videomme", "keep_archives=false"]
    unpack_one, calls = archives._unpack_archive, []

    def stopped(*arguments, **options):
        calls.append(arguments[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        unpack_one(*arguments, **options)

    monkeypatch.setattr(archives, "_unpack_archive", stopped)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        command.main(words)
    root = default_root("videomme")
    assert calls == ["rest.tar.gz", "videos_chunked_01.zip"]
    assert sorted(archives.archives(root)) == ["videos_chunked_01.zip"], "the first is unpacked and gone"
    monkeypatch.setattr(archives, "_unpack_archive", unpack_one)
    assert command.main(words) == 0
    assert archives.archives(root) == {} and len(list(root.rglob("mini?.mp4"))) == 3
    assert served.downloads == 1, "nothing that was removed is fetched again"
    capsys.readouterr()
    assert command.main(words) == 0 and command.main(["videomme"]) == 0
    assert served.downloads == 1 and "unpacking" not in capsys.readouterr().out


def test_archives_that_stayed_are_removed_later(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "packed"
    place.mkdir()
    packed(root, place)
    words = ["benchmark=videomme", f"benchmark.data={place}"]
    assert command.main(words) == 0
    assert sorted(archives.archives(place)) == ["rest.tar.gz", "videos_chunked_01.zip"]
    before = {path: path.stat().st_mtime_ns for path in (place / "unpacked").rglob("*.mp4")}
    assert command.main([*words, "keep_archives=false"]) == 0
    assert archives.archives(place) == {}
    assert {path: path.stat().st_mtime_ns for path in (place / "unpacked").rglob("*.mp4")} == before
    with pytest.raises(SystemExit) as caught:
        command.main([*words, "keep_archives=never"])
    assert caught.value.code == 2


def test_a_disk_too_small_is_said_first(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    for name, size in (("a.zip", 2**30), ("b.zip", 2**29), ("test.parquet", 2**20)):
        with (tmp_path / "hub" / name).open("wb") as file:
            file.truncate(size)
    served, free = Hub(monkeypatch, tmp_path / "hub"), [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free[0]))
    assert command.main(["videomme"]) == 2
    said = capsys.readouterr()
    assert "set XDG_CACHE_HOME to a larger disk" in said.err and "keep_archives=false" in said.err
    told = "videomme: 1.5 GiB to fetch, 1.5 GiB of it in 2 archives, about as much again unpacked"
    assert f"{told}; 3.0 GiB more than now on the disk at most, 0.0 GiB free" in said.out
    # Each archive goes before the next is unpacked: all of them and the largest unpacked.
    free[0] = 2.5 * 2**30
    assert command.main(["benchmark=videomme", "keep_archives=false"]) == 2
    said = capsys.readouterr().out
    assert "each archive is removed once it is unpacked; 2.5 GiB more than now" in said
    free[0] = 5 * 2**30
    assert command.main(["benchmark=videomme,mlvu"]) == 2
    assert "videomme, mlvu need 6.0 GiB together, and 5.0 GiB are free" in capsys.readouterr().err
    assert served.downloads == 0 and not default_root("videomme").exists()


def test_unpacking_states_and_checks_the_disk(tmp_path: Path, monkeypatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bin", bytes(2**27))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2**26))
    said: list[str] = []
    with pytest.raises(
        DataError, match=r"needs 0.1 GiB more, and 0.1 GiB are free there: free some; keep_arch"
    ):
        archives.check_space(tmp_path, said.append, keep=True)
    assert "1 archives of 0.0 GiB to unpack" in said[0] and "0.1 GiB, 0.1 GiB more than now" in said[0]


@pytest.mark.parametrize(
    "name", ["../out.mp4", "/tmp/out.mp4", "a/../../out.mp4", "..\\out.mp4", "C:/out.mp4"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_no_file_leaves_the_folder(tmp_path: Path, name: str, kind: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(root / "a.zip", "w") as archive:
            archive.writestr(name, b"x")
    else:
        with tarfile.open(root / "a.tar", "w") as archive:
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(DataError, match="leads out of the folder"):
        archives.unpack(root, print)
    assert not list(tmp_path.rglob("out.mp4")) and not Path("/tmp/out.mp4").exists()


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    with tarfile.open(root / "a.tar", "w") as archive:
        link = tarfile.TarInfo("inner")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        archive.addfile(link)
        info = tarfile.TarInfo("inner/out.mp4")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    archives.unpack(root, print)
    assert not list(outside.iterdir()) and (root / "unpacked/inner/out.mp4").is_file()


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"a\.zip is broken"):
        archives.unpack(tmp_path, print)


def test_the_revision_is_that_of_the_questions(root: Path, tmp_path: Path) -> None:
    before = VIDEOMME.revision(root)
    shutil.move(root / "videomme" / "test-00000-of-00001.parquet", root / "test.parquet")
    assert VIDEOMME.revision(root) == before
    assert MLVU.revision(MINIATURES / "mlvu") != before


def test_settings_of_a_run_are_taken(tmp_path: Path, capsys) -> None:
    shutil.copytree(MINIATURES, tmp_path / "data")
    (tmp_path / "data" / "mlvu" / "video" / "3_ego" / "ego_3.mp4").unlink()
    # What one benchmark lacks keeps no other one from being checked.
    assert command.main(["benchmark=mlvu,egoschema", f"data={tmp_path / 'data'}"]) == 2
    said = capsys.readouterr()
    assert "ego_3.mp4 does not exist" in said.err and "egoschema: 8 videos are sound" in said.out
    assert command.main(["benchmark=egoschema", f"benchmark.data={tmp_path / 'data' / 'egoschema'}"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["benchmark=clips"], "benchmark=clips is no public benchmark; allowed: videomme"),
        (["benchmark=videomm"], "did you mean videomme"),
        (["benchmark=mlvu", "benchmark.video_seconds=soon"], "video_seconds='soon' is out of range"),
    ],
)
def test_wrong_settings_of_a_run(words: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err
