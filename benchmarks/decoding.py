"""What reading frames far apart from a long file costs: PyAV by keyframes, against decord and against decoding it all.

python -m benchmarks.decoding [--quick] [--minutes 120]

Files are made: moving noise with a keyframe every 2 and every 10 seconds, in H.264, HEVC and AV1 as far as PyAV can
encode them. Twenty seconds are encoded and stored again and again, so that two hours take seconds to make. Each way of
reading runs in a process of its own, in turn, so that its peak memory is its own. Ratios are those to PyAV of the same
repeat.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np

from benchmarks.output import save_report

UNIT = 20.0
"""Seconds that are encoded."""
CODECS = {
    "h264": ("libx264", {"preset": "ultrafast"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none"}),
    "av1": ("libsvtav1", {"preset": "12"}),
}
READ = """
import contextlib, json, sys, time
from pathlib import Path
from stsimdiff import video
from stsimdiff.video import decoders, index
way, path, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if way == "all":
    def read():
        def choose(total, rate):
            return video.uniform_indices(total, count)
        return decoders._in_order(path, index.packets_of(path), choose)[1]
else:
    def read():
        return video.read(path, count, way).indices
for name in ("av", "decord", "torchcodec.decoders"):
    if name.startswith({"pyav": "av", "all": "av"}.get(way, way)):
        # What an import costs is no reading; one that fails is said by the reading.
        with contextlib.suppress(ImportError, RuntimeError, OSError):
            __import__(name)
def peak():
    # What getrusage says counts the process that started this one.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
before = peak()
started = time.perf_counter()
try:
    indices = read()
except Exception as error:
    print(json.dumps({"error": str(error)}))
else:
    seconds, more = time.perf_counter() - started, (peak() - before) / 1024
    print(json.dumps({"s": seconds, "mib": more, "indices": list(indices)}))
"""
WAYS = ("pyav", "all", "decord", "torchcodec")
"""``all``: PyAV again, decoding every frame of the file in order."""


def make(path: Path, codec: str, seconds: float, gap: float, rate: int, size: tuple[int, int]) -> None:
    """Write a file of moving noise with a keyframe every ``gap`` seconds."""
    once = path.with_name(f"once-{path.name}")
    encode(once, codec, min(seconds, UNIT), gap, rate, size)
    with av.open(str(once)) as source, av.open(str(path), "w") as container:
        stream = source.streams.video[0]
        copy = container.add_stream_from_template(stream, opaque=True)
        length = stream.frames
        for turn in range(max(1, round(seconds * rate / length))):
            source.seek(0)
            shift = round(turn * length / rate / stream.time_base)
            for packet in source.demux(stream):
                if packet.size:
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                    container.mux(packet)
    once.unlink()


def encode(path: Path, codec: str, seconds: float, gap: float, rate: int, size: tuple[int, int]) -> None:
    """Encode moving noise."""
    encoder, options = CODECS[codec]
    width, height = size
    noise = np.random.default_rng(0).integers(0, 255, (height, width + 256, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = round(gap * rate)
        stream.options = options
        for number in range(round(seconds * rate)):
            shift = number % 256
            frame = np.ascontiguousarray(noise[:, shift : shift + width] // 4 + 96)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def measure(way: str, path: Path, count: int) -> dict:
    """Seconds and MiB of one reading, or why there was none."""
    command = [sys.executable, "-c", READ, way, str(path), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one minute of H.264, three repeats")
    parser.add_argument("--minutes", type=float, default=5, help="length of each file")
    parser.add_argument("--frames", type=int, default=32, help="how many are read")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rate", type=int, default=25, help="frames a second")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 360), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="PyAV is always among them"
    )
    parser.add_argument("--out", type=Path, default=Path("results/decoding.json"))
    options = parser.parse_args()
    minutes, repeats = (1, 3) if options.quick else (options.minutes, options.repeats)
    codecs = ["h264"] if options.quick else options.codecs
    report = []
    with tempfile.TemporaryDirectory() as name:
        for codec in codecs:
            for gap in (2, 10):
                path = Path(name) / f"{codec}-{gap}.mp4"
                make(path, codec, 60 * minutes, gap, options.rate, tuple(options.size))
                report.append(compare(path, codec, gap, options.frames, repeats, options.ways))
                path.unlink()
    settings = {"minutes": minutes, "frames": options.frames, "repeats": repeats, "rate": options.rate}
    save_report(settings | {"size": options.size, "files": report}, options.out)


def compare(path: Path, codec: str, gap: int, count: int, repeats: int, ways: list[str]) -> dict:
    """All ways of reading a file in turn, and a line for each."""
    ways = ["pyav", *(way for way in ways if way != "pyav")]
    found: dict[str, list[dict]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            found[way].append(measure(way, path, count))
    print(f"{codec}, a keyframe every {gap} s, {path.stat().st_size / 2**20:.0f} MiB, {count} frames")
    report = {"codec": codec, "gap": gap, "bytes": path.stat().st_size, "ways": {}}
    plain = found["pyav"]
    for way, runs in found.items():
        failed = [run["error"] for run in runs if "error" in run]
        if failed:
            print(f"  {way}: {failed[0].splitlines()[0][:160]}")
            report["ways"][way] = {"error": failed[0]}
            continue
        if any(run["indices"] != plain[0]["indices"] for run in runs):
            raise SystemExit(f"{way} read other frames than pyav")
        seconds = statistics.median(run["s"] for run in runs)
        ratio = statistics.median(run["s"] / one["s"] for run, one in zip(runs, plain, strict=True))
        memory = statistics.median(run["mib"] for run in runs)
        print(f"  {way}: {seconds:.2f} s, {ratio:.2f} times PyAV's time, {memory:.0f} MiB more at the peak")
        report["ways"][way] = {"s": seconds, "ratio": ratio, "mib": memory}
    return report


if __name__ == "__main__":
    main()
