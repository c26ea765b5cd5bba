"""The frames asked for, or an error: every container and codec, with clips whose frames carry their number."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from loguru import logger

from helpers.numbered_clips import BACKENDS, numbers, picture, remuxed, with_edits, write
from stsimdiff import video
from stsimdiff.data.videos import Index, VideoFolder, unusable_videos
from stsimdiff.errors import VideoError
from stsimdiff.video import decoders, process
from stsimdiff.video import frames as reading
from stsimdiff.video.headers import read_header

H264, HEVC, MPEG4, MPEG2 = "libx264", "libx265", "mpeg4", "mpeg2video"
REORDERING = (H264, HEVC, MPEG4, MPEG2, "mpeg1video")
CONTAINERS = {
    "mp4": (H264, HEVC, MPEG4, MPEG2, "libvpx-vp9", "libaom-av1", "libsvtav1"),
    "mov": (H264, MPEG4, "mjpeg", "prores_ks"),
    "mkv": (H264, HEVC, MPEG4, MPEG2, "libvpx", "libvpx-vp9", "ffv1", "mjpeg"),
    "webm": ("libvpx", "libvpx-vp9", "libaom-av1"),
    "avi": (H264, MPEG4, "msmpeg4", "mjpeg", "ffv1"),
    "ts": (H264, HEVC, MPEG4, MPEG2),
    "mpg": (H264, MPEG2, "mpeg1video"),
    "wmv": (H264, MPEG4, "wmv2"),
    "flv": (H264, "flv"),
    "nut": (H264, MPEG4),
    "h264": (H264,),
}
PIXELS = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}
MATRIX = [
    pytest.param(suffix, codec, bframes, start, id=f"{suffix}-{codec}-{bframes}-{start}")
    for suffix, codecs in CONTAINERS.items()
    for codec in codecs
    for bframes in ((0, 2) if codec in REORDERING else (0,))
    for start in ((0, 37) if bframes or codec not in REORDERING else (0,))
]
ALWAYS = {"mp4": ("torchcodec", "decord"), "mkv": ("torchcodec", "decord")}
"""Containers of H.264 that no decoder may refuse: most videos are such."""


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory):
    """Makes clips, each once."""
    folder, made = tmp_path_factory.mktemp("clips"), {}

    def clip(name: str, codec: str = H264, **options) -> Path:
        if name not in made:
            made[name] = write(folder / name, codec, **options)
        return made[name]

    return clip


def matrix_clip(clips, suffix: str, codec: str, bframes: int, start: int) -> Path:
    rate = {"rate": 25} if codec.startswith(("mpeg1", "mpeg2")) else {}
    name, pixels = f"{codec}-{bframes}-{start}.{suffix}", PIXELS.get(codec, "yuv420p")
    return clips(name, codec, bframes=bframes, start=start, pixels=pixels, **rate)


def decoded(path: Path) -> list[int]:
    """The numbers of all frames, by decoding the whole file."""
    with av.open(str(path)) as container:
        return numbers([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@BACKENDS
@pytest.mark.parametrize(("suffix", "codec", "bframes", "start"), MATRIX)
def test_the_frames_asked_for_or_an_error(
    clips, backend: str, suffix: str, codec: str, bframes: int, start: int
) -> None:
    path = matrix_clip(clips, suffix, codec, bframes, start)
    for count in (1, 5, 17, 60):
        try:
            frames = video.read(path, count, backend)
        except VideoError as error:
            assert backend != "pyav" and (codec != H264 or backend not in ALWAYS.get(suffix, ()))
            assert str(path) in str(error) and "benchmark.decoder=pyav" in str(error)
            continue
        assert frames.total == 60 and frames.indices == video.uniform_indices(60, count)
        assert numbers(frames.pixels) == list(frames.indices)
        rate = 25 if suffix == "h264" or codec.startswith(("mpeg1", "mpeg2")) else 10
        # In AVI the first frame stands until the second one, 37 frames later.
        assert frames.fps == pytest.approx(rate) or (suffix == "avi" and start)


@pytest.mark.parametrize(("suffix", "codec", "bframes", "start"), MATRIX)
def test_a_look_finds_them_sound(clips, suffix: str, codec: str, bframes: int, start: int) -> None:
    path = matrix_clip(clips, suffix, codec, bframes, start)
    # AVI counts the time before the first frame as frames.
    assert video.probe(path).frames in ((60, 95, 96, 97) if suffix == "avi" and start else (60,))
    assert (read_header(path).height, read_header(path).width) == (64, 64)


JUMPING = [
    ("mp4", H264, 2), ("mp4", HEVC, 2), ("mp4", "libaom-av1", 0), ("mkv", MPEG4, 2), ("webm", "libvpx-vp9", 0),
    ("webm", "libvpx", 0), ("ts", H264, 2), ("ts", MPEG2, 2), ("flv", H264, 2), ("avi", MPEG4, 0), ("wmv", "wmv2", 0),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "codec", "bframes"), JUMPING)
def test_frames_far_apart_are_read_without_those_between(
    clips, monkeypatch, suffix: str, codec: str, bframes: int
) -> None:
    path = matrix_clip(clips, suffix, codec, bframes, 0)
    monkeypatch.setattr(decoders, "_in_order", lambda *a: pytest.fail("decoded the whole file"))
    assert numbers(video.read(path, 3).pixels) == [0, 29, 59]


OPEN = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=2"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=12:scenecut=0"}
PYRAMID = {"x264-params": "bframes=8:b-pyramid=normal:keyint=30:scenecut=0:ref=6"}


@BACKENDS
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(
    "options", [OPEN, REFRESH | {"side": 128}, PYRAMID], ids=["open", "refresh", "pyramid"]
)
def test_groups_of_pictures_that_lean_on_others(clips, backend: str, suffix: str, options) -> None:
    """Open groups, and keyframes that are none: a jump to them gives pictures that are not whole."""
    path = clips(f"{hash(str(options))}.{suffix}", bframes=2, shown=range(120), **options)
    for count in (1, 4, 7, 33, 120):
        try:
            frames = video.read(path, count, backend)
        except VideoError as error:
            assert backend != "pyav" and "benchmark.decoder=pyav" in str(error)
            continue
        assert numbers(frames.pixels) == list(video.uniform_indices(120, count)) == list(frames.indices)


def test_a_clip_that_was_written_leaves_the_process_its_priority(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0)
    assert write(tmp_path / "clip.mp4", "libsvtav1").stat().st_size
    assert os.sched_getscheduler(0) == before == os.SCHED_OTHER


EDITS = {
    "one": ([(1.3, 3.0)], range(13, 43)),
    "two": ([(0, 1.5), (3.7, 1.5)], [*range(15), *range(37, 52)]),
    "turned": ([(3, 2), (0.5, 1.5)], [*range(30, 50), *range(5, 20)]),
    "repeated": ([(1, 1), (1, 1), (1, 1)], [*range(10, 20)] * 3),
}


@BACKENDS
@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize(("codec", "bframes"), [(H264, 0), (H264, 2), (HEVC, 2), (MPEG4, 2)])
def test_what_an_edit_list_cuts_is_not_counted(
    tmp_path: Path, backend: str, name: str, codec: str, bframes: int
) -> None:
    parts, shown = EDITS[name]
    path = with_edits(write(tmp_path / "a.mp4", codec, bframes=bframes, gop=15), parts)
    for count in (1, 6, 60):
        try:
            frames = video.read(path, count, backend)
        except VideoError as error:
            assert backend != "pyav" and "benchmark.decoder=pyav" in str(error)
            continue
        assert frames.total == len(shown) and frames.duration == pytest.approx(len(shown) / 10)
        assert numbers(frames.pixels) == [list(shown)[i] for i in frames.indices]


@BACKENDS
def test_a_copy_without_its_beginning(clips, tmp_path: Path, backend: str) -> None:
    """As `ffmpeg -ss 1.3 -c copy` leaves it: the pictures before are there for the others' sake."""
    path = remuxed(clips("gop30.mp4", bframes=2, gop=30), tmp_path / "a.mp4", start=1.3)
    try:
        frames = video.read(path, 7, backend)
    except VideoError:
        assert backend == "decord"
        return
    assert (frames.total, numbers(frames.pixels)) == (47, [13 + i for i in frames.indices])


@pytest.mark.parametrize(
    ("suffix", "codec", "lost"),
    [("mkv", H264, 7), ("ts", H264, 7), ("mp4", MPEG4, 5), ("webm", "libvpx-vp9", 3)],
)
def test_a_file_that_begins_without_a_keyframe(tmp_path: Path, suffix, codec, lost: int) -> None:
    whole = write(tmp_path / f"whole.{suffix}", codec, bframes=2 if codec == H264 else 0, gop=12)
    path = remuxed(whole, tmp_path / f"a.{suffix}", keep=lambda place, packet: place >= lost)
    with av.open(str(whole)) as container:
        stored = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    first = stored.index(True, lost)
    said: list[str] = []
    handler = logger.add(said.append, format="{message}")
    frames = video.read(path, 5)
    logger.remove(handler)
    assert frames.total == 60 - first and numbers(frames.pixels) == [first + i for i in frames.indices]
    assert (
        frames.note
        == f"it begins without a keyframe and is read from its first one; pictures lost before it: {first - lost}"
    )
    assert [line.strip() for line in said] == [f"video {path}: {frames.note}"]
    for backend in ("torchcodec", "decord"):
        with pytest.raises((VideoError, reading.ConfigError)):
            video.read(path, 5, backend)


@pytest.mark.parametrize(("codec", "bit"), [("libvpx", 0x10), ("libvpx-vp9", 0x02)])
def test_pictures_that_are_never_shown(tmp_path: Path, codec: str, bit: int) -> None:
    """Hidden pictures, as encoders make them for others to lean on: there are more packets than frames."""
    whole, path, hidden = write(tmp_path / "whole.webm", codec, gop=12), tmp_path / "a.webm", 0
    with av.open(str(whole)) as source, av.open(str(path), "w") as container:
        copy = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size and packet.is_keyframe and packet.pts:
                data = bytearray(bytes(packet))
                data[0] &= ~bit
                unseen = av.Packet(bytes(data))
                unseen.pts = unseen.dts = packet.pts - 10
                unseen.time_base, unseen.is_keyframe, unseen.stream = packet.time_base, True, copy
                container.mux(unseen)
                hidden += 1
            if packet.size:
                packet.stream = copy
                container.mux(packet)
    assert hidden == 4 and decoded(path) == list(range(60))
    for count in (3, 60):
        frames = video.read(path, count)
        assert frames.total == 60 and numbers(frames.pixels) == list(frames.indices)


@BACKENDS
def test_a_rate_that_varies(tmp_path: Path, backend: str) -> None:
    """Its mean is over the file, in containers too that say another one."""
    times = [i + i // 10 * 7 for i in range(60)]
    for suffix in ("mp4", "mkv"):
        frames = video.read(write(tmp_path / f"a.{suffix}", bframes=2, times=times), 9, backend)
        assert numbers(frames.pixels) == list(frames.indices)
        assert frames.fps == pytest.approx(59 / 9.4, rel=0.02)


def test_streams_joined_end_to_end(clips, tmp_path: Path) -> None:
    data = clips("joined.ts", bframes=2).read_bytes()
    (tmp_path / "a.ts").write_bytes(data + data)
    frames = video.read(tmp_path / "a.ts", 11)
    assert frames.total == 120 and numbers(frames.pixels) == [i % 60 for i in frames.indices]


def test_a_size_that_changes_is_named(tmp_path: Path) -> None:
    small = write(tmp_path / "small.ts", shown=range(30)).read_bytes()
    large = write(tmp_path / "large.ts", shown=range(30, 60), side=128, start=30).read_bytes()
    (tmp_path / "a.ts").write_bytes(small + large)
    with pytest.raises(
        VideoError, match=r"a\.ts changes its size from 64 x 64 to 128 x 128 before frame .*ffmpeg"
    ):
        video.read(tmp_path / "a.ts", 6)


@BACKENDS
def test_a_cover_picture_is_no_video(tmp_path: Path, backend: str) -> None:
    whole, path = write(tmp_path / "whole.mp4"), tmp_path / "a.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 256
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        copy = container.add_stream_from_template(source.streams.video[0])
        frame = av.VideoFrame.from_ndarray(picture(0, 256), format="rgb24")
        container.mux(cover.encode(frame))
        container.mux(cover.encode())
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                container.mux(packet)
    frames = video.read(path, 5, backend)
    assert frames.total == 60 and numbers(frames.pixels) == list(frames.indices)
    assert read_header(path).width == 64 and video.probe(path, backend).frames == 60


CUT = {
    "front.mp4": (H264, dict(bframes=2, muxer={"movflags": "faststart"})),
    "parts.mp4": (H264, dict(bframes=2, muxer={"movflags": "frag_keyframe+empty_moov+default_base_moof+global_sidx"})),
    "sound.mp4": (H264, dict(bframes=2, sound=16, muxer={"movflags": "faststart"})),
    "a.mkv": (H264, dict(bframes=2)),
    "sound.mkv": (H264, dict(bframes=2, sound=16)),
    "a.webm": ("libvpx-vp9", {}),
    "a.avi": (MPEG4, {}),
    "b.avi": (H264, dict(bframes=2)),
    "a.ts": (H264, dict(bframes=2)),
    "a.flv": (H264, dict(bframes=2)),
    "a.wmv": ("wmv2", {}),
}  # fmt: skip


@pytest.mark.parametrize("part", [0.4, 0.55, 0.75])
@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_off_is_refused(clips, tmp_path: Path, name: str, part: float) -> None:
    codec, options = CUT[name]
    whole = clips(f"whole_{name}", codec, shown=range(160), **options)
    assert video.probe(whole).frames == video.read(whole, 2).total == 160
    data = whole.read_bytes()
    path = tmp_path / name
    # An odd place: a transport stream has no length in its header, but its packets have one.
    path.write_bytes(data[: int(part * len(data)) | 1])
    if name in ("a.avi", "b.avi", "a.wmv") and part > 0.7:
        path.write_bytes(data[: int(0.6 * len(data)) | 1])
    for look in (video.probe, lambda path: video.read(path, 2)):
        with pytest.raises(VideoError, match="cannot be decoded") as caught:
            look(path)
        assert str(path) in str(caught.value)


def test_where_a_cut_file_ends_is_said(clips, tmp_path: Path) -> None:
    data = clips("cut.mkv", bframes=2, shown=range(160)).read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2])
    with pytest.raises(
        VideoError, match=r"a\.mkv cannot be decoded whole: it ends after 6\.\d of its 16\.0 s"
    ):
        video.probe(tmp_path / "a.mkv")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "flv"])
def test_sound_that_goes_on_is_no_cut(clips, suffix: str) -> None:
    path = clips(f"long.{suffix}", sound=20)
    assert video.probe(path).frames == {"mp4": 60, "mkv": 60, "flv": 60}[suffix]
    assert video.read(path, 2).total == 60


def test_one_byte_is_missed(clips, tmp_path: Path) -> None:
    data = clips("byte.mp4", muxer={"movflags": "faststart"}).read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[:-1])
    for look in (video.probe, lambda path: video.read(path, 2)):
        with pytest.raises(VideoError, match="cannot be decoded whole"):
            look(tmp_path / "a.mp4")


def test_an_index_cut_off_behind_the_pictures_costs_no_frame(clips, tmp_path: Path) -> None:
    for name, codec in (("tail.mkv", H264), ("tail.avi", MPEG4)):
        data = clips(name, codec).read_bytes()
        (tmp_path / name).write_bytes(data[:-100])
        frames = video.read(tmp_path / name, 4)
        assert frames.total == 60 and numbers(frames.pixels) == list(frames.indices)
        assert video.probe(tmp_path / name).frames == 60


def test_the_whole_list_equals_full_decoding(clips) -> None:
    """Whatever is asked for, a frame's number is its place among all that are decoded."""
    path = clips("full.mp4", HEVC, bframes=2, gop=9)
    assert decoded(path) == list(range(60))
    rng = np.random.default_rng(0)
    for count in rng.integers(1, 60, 8):
        assert numbers(video.read(path, int(count)).pixels) == list(video.uniform_indices(60, int(count)))


@pytest.mark.parametrize("suffix", ["webm", "ts", "wmv", "nut"])
def test_a_video_of_a_user_may_have_any_suffix(tmp_path: Path, suffix: str) -> None:
    codec = {"webm": "libvpx-vp9", "wmv": "wmv2"}.get(suffix, H264)
    path = write(tmp_path / f"one.{suffix}", codec)
    folder = VideoFolder(tmp_path)
    assert folder.path("one") == folder.path("one.mp4") == folder.path(path.name) == path
    other = path.rename(tmp_path / "one.odd")
    assert VideoFolder(tmp_path).path("one.odd") == other
    assert (
        unusable_videos(SimpleNamespace(root=str(tmp_path), video_seconds=60, decoder="pyav"), [str(other)])
        == {}
    )


def test_a_look_is_by_what_reads_later(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", MPEG4, bframes=2)
    assert Index(tmp_path).check([path]) == {}
    assert "decord" in Index(tmp_path).check([path], decoder="decord")[path]


def test_what_an_earlier_check_let_pass_is_looked_at_again(clips, tmp_path: Path) -> None:
    data = clips("earlier.mp4", muxer={"movflags": "faststart"}).read_bytes()
    path = tmp_path / "a.mp4"
    path.write_bytes(data[: len(data) // 2])
    state = path.stat()
    entry = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "frames": 60, "seconds": 6.0}
    (tmp_path / Index.NAME).write_text(json.dumps({"videos": {"a.mp4": entry}}))
    assert "cannot be decoded whole" in Index(tmp_path).check([path])[path]


def test_a_stream_without_a_picture_holds_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    for look in (video.probe, lambda path: video.read(path, 2)):
        with pytest.raises(VideoError, match=r"a\.avi holds no frames"):
            look(path)


@BACKENDS
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (video.Sampling(64, "fps", 1), range(0, 60, 10)),
        (video.Sampling(64, "fps", 3), range(0, 60, 3)),
        (video.Sampling(64, "fps", 4), range(0, 60, 2)),  # 10 / 4 is no whole number, and rounds down to 2
        (video.Sampling(6, "fps", 1), range(0, 60, 10)),
        (video.Sampling(5, "fps", 1), (0, 14, 29, 44, 59)),
        (video.Sampling(5, "round"), (0, 15, 30, 44, 59)),
        (video.Sampling(64, "round"), np.round(np.linspace(0, 59, 64)).astype(int)),
    ],
)
def test_other_samplings(clips, backend: str, sampling: video.Sampling, expected) -> None:
    path = matrix_clip(clips, "mp4", H264, 2, 0)
    frames = video.read(path, sampling, backend)
    assert numbers(frames.pixels) == list(frames.indices) == list(expected)
    assert process.shared().read(path, sampling, backend).indices == frames.indices
