"""Archives: read to their end before a file gets its name, and what is wrong with one said by its cause."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from helpers.paths import MINIATURES
from stsimdiff.commands import data as command
from stsimdiff.data import archives
from stsimdiff.data.benchmarks import VIDEOMME
from stsimdiff.data.videos import Index
from stsimdiff.errors import DataError
from stsimdiff.lock import Lock

NOISE = {f"d/{number}.mp4": random.Random(number).randbytes(30_000) for number in range(3)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def tar(files: dict[str, bytes] | list[tuple[str, bytes]] = NOISE) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        for name, data in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return memory.getvalue()


def zipped(files: dict[str, bytes] = NOISE, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return memory.getvalue()


def unpacked(root: Path) -> dict[str, bytes]:
    place = root / "unpacked"
    files = [path for path in place.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in files}


def refused(root: Path, *causes: str) -> str:
    with pytest.raises(DataError) as caught:
        archives.unpack(root, print)
    said = str(caught.value)
    assert all(cause in said for cause in causes), said
    assert unpacked(root) == {} and not (root / "unpacked" / archives.UNFINISHED).exists()
    return said


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.tar", bytes),
        ("a.TAR.GZ", gzip.compress),
        ("a.tgz", gzip.compress),
        ("a.tar", gzip.compress),
        ("a.tar.bz2", bz2.compress),
        ("a.tbz2", bz2.compress),
        ("a.tar.xz", lzma.compress),
        ("a.txz", lzma.compress),
    ],
)
def test_every_kind_is_unpacked_and_a_flipped_bit_found(tmp_path: Path, name, pack) -> None:
    whole = pack(tar())
    (tmp_path / name).write_bytes(whole)
    archives.unpack(tmp_path, print)
    assert unpacked(tmp_path) == NOISE
    if pack is bytes:
        return  # a plain tar has checksums of its headers alone
    generator = random.Random(0)
    # In the data, and in the checksum behind it, which no member needs.
    places = [generator.randrange(len(whole) // 4, 3 * len(whole) // 4), len(whole) - 6]
    for number, place in enumerate(places):
        root = tmp_path / str(number)
        root.mkdir()
        (root / name).write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        refused(root, f"{name} is broken", "remove it and fetch it again")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_cut_or_damaged_tar_is_no_shorter_one(tmp_path: Path, name: str) -> None:
    whole = tar()
    second = whole.index(b"d/1.mp4")
    damaged = {
        "cut in a file": whole[: second + 5000],
        "cut between files": whole[:second],
        "cut in a header": whole[: second + 100],
        "a damaged header": whole[:second] + b"x" + whole[second + 1 :],
        "a header of zeros": whole[:second] + bytes(1024) + whole[second + 1024 :],
    }
    for kind, data in damaged.items():
        root = tmp_path / kind
        root.mkdir()
        (root / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        refused(root, f"{name} is broken")


def flagged(data: bytes, flags: int | None = None, method: int | None = None) -> bytes:
    """A zip whose members say to be encrypted, or packed by another method."""
    found = bytearray(data)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := found.find(mark, place + 1)) >= 0:
            if flags is not None:
                struct.pack_into("<H", found, place + at, flags)
            if method is not None:
                struct.pack_into("<H", found, place + at + 2, method)
    return bytes(found)


@pytest.mark.parametrize(
    ("data", "causes"),
    [
        (flagged(zipped(), flags=1), ["cannot be unpacked here", "encrypted", "unpack it by hand"]),
        (flagged(zipped(), method=9), ["cannot be unpacked here", "compression method", "unpack it by hand"]),
        (zipped()[:-1000], ["a.zip is broken", "fetch it again"]),
        (zipped()[:40_000], ["a.zip is broken", "fetch it again"]),
        (b"PK nothing", ["a.zip is broken"]),
        (b"", ["a.zip is empty (0 bytes)"]),
        (LFS, ["a.zip is a Git LFS pointer", "git lfs pull"]),
        (b"<!DOCTYPE html><html>Log in</html>", ["a.zip is a web page", "fetch it again"]),
    ],
)
def test_a_zip_that_cannot_be_read_is_one_message(tmp_path: Path, data: bytes, causes: list[str]) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path, *causes)


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_damaged_members_of_a_zip(tmp_path: Path, method: int) -> None:
    whole = zipped(method=method)
    for number, place in enumerate((60, 45_000, 80_000)):
        root = tmp_path / str(number)
        root.mkdir()
        (root / "a.zip").write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        refused(root, "a.zip is broken")


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        (["v.tar.part.aa", "v.tar.part.ac"], "v.tar.part.ab"),
        (["v.tar.part.ab", "v.tar.part.ac"], "v.tar.part.aa"),
        (["v.tar.gz.part1", "v.tar.gz.part3"], "v.tar.gz.part2"),
        (["v.tar.part2", "v.tar.part3"], "v.tar.part1"),
        (["v.tar.000", "v.tar.002"], "v.tar.001"),
        (["v.tar-00000-of-00003", "v.tar-00001-of-00003"], "v.tar-00002-of-00003"),
        (["v.tar-00001-of-00002"], "v.tar-00000-of-00002"),
        (["v.tar-1-of-3", "v.tar-3-of-3"], "v.tar-2-of-3"),
        (["v.tar.part1", "v.tar.part6"], "v.tar.part2, v.tar.part3, v.tar.part4, v.tar.part5"),
        (["v.tar.part1", "v.tar.part8"], "v.tar.part2, v.tar.part3, v.tar.part4, v.tar.part5 and 2 more"),
    ],
)
def test_a_lost_part_is_named(tmp_path: Path, names: list[str], lost: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 600)
    refused(tmp_path, f"lacks its part {lost} in {tmp_path}")


@pytest.mark.parametrize(
    "style", ["{}.part{:d}", "{}.part.{:02d}", "{}.{:03d}", "{}-{:05d}-of-00012", "{}_{}", "{}.part.{}"]
)
@pytest.mark.parametrize("name", ["v.tar", "v.tar.gz"])
def test_parts_are_joined_in_their_order(tmp_path: Path, style: str, name: str) -> None:
    whole = gzip.compress(tar()) if name.endswith("gz") else tar()
    size = -(-len(whole) // 12)
    letters = style.endswith("{}")
    for number in range(12):
        which = f"a{chr(ord('a') + number)}" if letters else number
        (tmp_path / style.format(name, which)).write_bytes(whole[number * size :][:size])
    archives.unpack(tmp_path, print)
    assert unpacked(tmp_path) == NOISE
    # Without its last one only reading finds out.
    shutil.rmtree(tmp_path / "unpacked")
    if "-of-" not in style and name.endswith("gz"):  # a tar's last part may be nothing but its padding
        max(tmp_path.iterdir(), key=lambda path: (len(path.name), path.name)).unlink()
        refused(tmp_path, "is broken, or its last part is missing")


def test_parts_that_somebody_has_joined_are_read_as_the_whole(tmp_path: Path) -> None:
    whole = tar()
    (tmp_path / "v.tar").write_bytes(whole)
    (tmp_path / "v.tar.part.aa").write_bytes(whole[:5000])
    (tmp_path / "v.tar.part.ab").write_bytes(whole[5000:])
    archives.unpack(tmp_path, print)
    assert unpacked(tmp_path) == NOISE


def test_hidden_files_and_what_was_unpacked_are_no_archives(tmp_path: Path) -> None:
    for name in (
        ".cache/a.zip",
        ".b.zip",
        "unpacked/c.zip",
        "x/d.zip",
        "x/unpacked/e.zip",
        "f.zip.txt",
        "g.zip/h",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "i.zip").mkdir()
    assert list(archives.archives(tmp_path)) == ["x/d.zip", "x/unpacked/e.zip"]


def test_archives_in_archives(tmp_path: Path) -> None:
    inner = {"inner/b.tar.gz": gzip.compress(tar({"deep.mp4": b"deep"})), "flat.mp4": b"flat"}
    (tmp_path / "a.zip").write_bytes(zipped({"x/a.zip": zipped(inner)}))
    archives.unpack(tmp_path, print)
    found = unpacked(tmp_path)
    assert (found["deep.mp4"], found["flat.mp4"]) == (b"deep", b"flat")
    said: list[str] = []
    archives.unpack(tmp_path, said.append)
    assert said == []
    data = b""
    for number in range(6):
        data = zipped({f"{number}.zip": data or zipped()})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "deep.zip").write_bytes(data)
    with pytest.raises(DataError, match="archives of archives; unpack it by hand"):
        archives.unpack(tmp_path / "b", print)


def test_one_name_twice(tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    for place, second in ((same, b"one"), (other, b"two")):
        place.mkdir()
        (place / "a.tar").write_bytes(tar([("x.mp4", b"one"), ("x.mp4", second)]))
    archives.unpack(same, print)
    assert unpacked(same) == {"x.mp4": b"one"}
    refused(other, "holds 'x.mp4' twice, with different contents")
    for name, data in (("a.zip", b"one"), ("b.zip", b"two")):
        (tmp_path / name).write_bytes(zipped({"x.mp4": data}))
    shutil.rmtree(same)
    shutil.rmtree(other)
    with pytest.raises(DataError, match=r"archive b\.zip holds x\.mp4, and .* is there with other contents"):
        archives.unpack(tmp_path, print)
    assert unpacked(tmp_path) == {"x.mp4": b"one"}
    # An archive that was fetched anew replaces what it gave.
    (tmp_path / "b.zip").unlink()
    (tmp_path / "a.zip").write_bytes(zipped({"x.mp4": b"three"}))
    archives.unpack(tmp_path, print)
    assert unpacked(tmp_path) == {"x.mp4": b"three"}


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("x")
        info.pax_headers = {"path": "a\0b.mp4"}
        archive.addfile(info)
    (tmp_path / "a.tar").write_bytes(memory.getvalue())
    refused(tmp_path, "a.tar", "null")


@pytest.mark.parametrize("content", ['{"a.zip": [[', "", "[]", "null", "7", '{"a.zip": 3}', "\xff"])
def test_damaged_notes_are_no_end(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.zip").write_bytes(zipped())
    (tmp_path / "unpacked").mkdir()
    notes = tmp_path / "unpacked" / ".done.json"
    notes.write_bytes(content.encode("latin-1"))
    said: list[str] = []
    archives.unpack(tmp_path, said.append)
    assert unpacked(tmp_path) == NOISE and "unpacking a.zip" in said[-1]
    assert len(said) == 1 or f"{notes} is damaged" in said[0]
    state = (tmp_path / "a.zip").stat()
    assert json.loads(notes.read_text(encoding="utf-8")) == {"a.zip": [[state.st_size, state.st_mtime_ns]]}
    said.clear()
    archives.unpack(tmp_path, said.append)
    assert said == []


def test_only_one_process_unpacks(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped())
    (tmp_path / "unpacked").mkdir()
    other = Lock(tmp_path / "unpacked" / ".lock")
    other.take()
    refused(tmp_path, "is being written by process", "wait for it")
    other.release()
    archives.unpack(tmp_path, print)
    assert unpacked(tmp_path) == NOISE and not (tmp_path / "unpacked" / ".lock").exists()


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped())
    (tmp_path / "unpacked").write_text("")
    with pytest.raises(DataError, match="cannot make the folder .*unpacked"):
        archives.unpack(tmp_path, print)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("videos.7z", "videos.7z is unpacked by hand: 7z x videos.7z"),
        ("videos.7z.001", "videos.7z.001 is unpacked by hand: 7z x videos.7z.001"),
        ("videos.part1.rar", "videos.part1.rar is unpacked by hand: 7z x videos.part1.rar"),
        ("videos.tar.zst", "videos.tar.zst is unpacked by hand: tar -xf videos.tar.zst"),
        ("videos.z01", "videos.z01 is a part of videos.zip, a zip of several: zip -s 0 videos.zip"),
    ],
)
def test_archives_that_are_not_read_here_are_named(tmp_path: Path, capsys, name: str, message: str) -> None:
    root = shutil.copytree(MINIATURES / "videomme", tmp_path / "videomme")
    (root / name).write_bytes(b"7z")
    assert command.main(["videomme", "--data", str(root)]) == 0, "nothing is missing"
    (root / "data" / "mini0.mp4").unlink()
    capsys.readouterr()
    assert command.main(["videomme", "--data", str(root)]) == 2
    said = capsys.readouterr().err
    assert message in said and "videos of videomme are missing" in said


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"videos": 3}', '{"videos": {"data/mini0.mp4": 3}}']
)
def test_a_damaged_index_is_made_again(tmp_path: Path, content: str) -> None:
    root = shutil.copytree(MINIATURES / "videomme", tmp_path / "videomme")
    (root / Index.NAME).write_text(content)
    assert Index(root).check([root / "data" / "mini0.mp4"]) == {}
    assert list(Index(root).entries) == ["data/mini0.mp4"]


def test_a_pointer_in_place_of_a_video(tmp_path: Path, capsys) -> None:
    root = shutil.copytree(MINIATURES / "videomme", tmp_path / "videomme")
    (root / "data" / "mini0.mp4").write_bytes(LFS)
    assert command.main(["videomme", "--data", str(root)]) == 2
    said = capsys.readouterr().err
    assert "mini0.mp4 is a Git LFS pointer" in said and "git lfs pull" in said


def shards(root: Path, count: int) -> list[Path]:
    """The miniature's questions in several files."""
    import pyarrow.parquet

    whole = root / "videomme" / "test-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(whole)
    whole.unlink()
    size, files = -(-len(table) // count), []
    for number in range(count):
        files.append(whole.with_name(f"test-{number:05d}-of-{count:05d}.parquet"))
        pyarrow.parquet.write_table(table.slice(number * size, size), files[-1])
    return files


def test_a_lost_file_of_the_questions_is_named(tmp_path: Path) -> None:
    root = shutil.copytree(MINIATURES / "videomme", tmp_path / "videomme")
    first, second = shards(root, 2)
    assert VIDEOMME.question_files(root) == [first, second]
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(
        DataError,
        match="one of 2 files .*, and test-00001-of-00002.parquet beside it is missing",
    ):
        VIDEOMME.question_files(root)
    second.write_bytes(LFS)
    with pytest.raises(DataError, match=f"{second} is a Git LFS pointer"):
        VIDEOMME.question_files(root)
    second.write_bytes(content)
    first.unlink()
    with pytest.raises(DataError, match="test-00000-of-00002.parquet beside it is missing"):
        VIDEOMME.question_files(root)
