"""A public benchmark onto the disk: fetched from the hub, unpacked, and every video of every question checked.

Each step resumes where it stopped, and a second call finds everything done. How the hub is read stands in
:mod:`stsimdiff.data.hub`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stsimdiff.data.archives import archives, check_space, foreign, gib, unpack
from stsimdiff.data.benchmarks import Benchmark
from stsimdiff.data.hub import FETCHED, Need, Say, fetch, look
from stsimdiff.data.rows import read_rows
from stsimdiff.data.videos import Index, VideoFolder, listing, over, too_many
from stsimdiff.errors import DataError, UserError
from stsimdiff.video.parts import Part


def announce(benchmarks: Iterable[Benchmark], keep: bool, say: Say) -> dict[str, Need | UserError]:
    """Say what each benchmark takes on the disk before anything is fetched; by name what it needs, or an error.

    Args:
        benchmarks: those to fetch.
        keep: whether archives stay once they are unpacked.
        say: takes a line for the user.
    """
    needs_by_name: dict[str, Need | UserError] = {}
    for benchmark in benchmarks:
        try:
            need = look(benchmark, keep, say)
            say(need.summary)
            needs_by_name[benchmark.name] = need if need.fits else DataError(need.too_large())
        except UserError as error:
            needs_by_name[benchmark.name] = error
    needs = [need for need in needs_by_name.values() if isinstance(need, Need)]
    total = sum(need.open for need in needs)
    if len(needs) > 1 and total > needs[0].free:
        names = ", ".join(need.benchmark.name for need in needs)
        refusal = DataError(
            f"{names} need {gib(total)} together, and {gib(needs[0].free)} are free: fetch fewer, or set "
            "XDG_CACHE_HOME to a larger disk"
        )
        needs_by_name |= {need.benchmark.name: refusal for need in needs if need.open}
    return needs_by_name


def prepare(
    benchmark: Benchmark,
    data: str | None,
    say: Say,
    seconds: float | None,
    decoder: str = "pyav",
    *,
    limit: int | str = 0,
    keep: bool = True,
    need: Need | None = None,
) -> Path:
    """Fetch what is missing, unpack it, check every video and write the index; returns the folder.

    Args:
        benchmark: which one.
        data: a folder that holds it already; ``None`` fetches it into the user's cache.
        say: takes a line for the user.
        seconds: time that opening one video may take; ``None``: no limit.
        decoder: what opens it.
        limit: ``max_failures``: how many videos may be unusable.
        keep: whether archives stay once they are unpacked.
        need: what :func:`announce` found, where the benchmark is to be fetched.

    Raises:
        DataError: when the hub cannot be reached or refuses, or too many videos are missing or broken.
    """
    if need is not None:
        fetch(need, say)
    root = benchmark.root(data)
    wanted = asked_videos(benchmark, root)
    if (not keep or any(not path.exists() for path in wanted)) and archives(root):
        check_space(root, say, keep)
        unpack(root, say, keep)
        wanted = asked_videos(benchmark, root)
    if any(not path.exists() for path in wanted) and (others := foreign(root)):
        raise DataError(
            "\n".join([*others, f"then start this command again: videos of {benchmark.name} are missing"])
        )
    index, opened = Index(root), 0

    def step() -> None:
        nonlocal opened
        opened += 1
        if opened % 100 == 0:
            say(f"{opened} of {len(wanted)} videos checked")

    unusable = index.check(wanted, checksums=True, seconds=seconds, decoder=decoder, step=step)
    text = f"{listing(unusable.values())}\n{len(unusable)} of {len(wanted)} videos of {benchmark.name} cannot be used"
    if too_many(unusable, wanted, limit):
        again = "" if data else f"; remove {root / FETCHED} to fetch everything again"
        raise DataError(f"{text}{again}; {over(limit, len(wanted))}")
    if unusable:
        say(f"{text}; max_failures={limit} allows that, so a run leaves them out")
    place = f" benchmark.data={root}" if data else ""
    say(
        f"{benchmark.name}: {len(wanted) - len(unusable)} videos are sound; use: python -m stsimdiff "
        f"benchmark={benchmark.name}{place}"
    )
    return root


def asked_videos(benchmark: Benchmark, root: Path) -> list[Path]:
    """The video of every question, each once, whether it exists or not."""
    folder = VideoFolder(root)
    return sorted({Part.of(benchmark.place(row, folder.path)).file for row in read_rows(benchmark, root)})
