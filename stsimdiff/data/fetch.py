"""A public benchmark onto the disk: fetched from the hub, unpacked, and every video of every question checked.

Each step resumes where it stopped, and a second call finds everything done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from stsimdiff.data.archives import archives, foreign, unpack
from stsimdiff.data.benchmarks import Benchmark, default_root
from stsimdiff.data.rows import read_rows
from stsimdiff.data.videos import Index, VideoFolder, listing
from stsimdiff.errors import DataError

FETCHED = ".fetched.json"
PATIENCE = 5.0
"""Seconds that the hub has for its first answer."""

Say = Callable[[str], None]


def prepare(
    benchmark: Benchmark, data: str | None, say: Say, seconds: float | None, decoder: str = "pyav"
) -> Path:
    """Fetch what is missing, unpack it, check every video and write the index; returns the folder.

    Args:
        benchmark: which one.
        data: a folder that holds it already; ``None`` fetches it into the user's cache.
        say: takes a line for the user.
        seconds: time that opening one video may take; ``None``: no limit.
        decoder: what opens it.

    Raises:
        DataError: when the hub cannot be reached or refuses, or a video is missing or broken.
    """
    if data is None:
        fetch(benchmark, default_root(benchmark.name), say)
    root = benchmark.root(data)
    wanted = asked_videos(benchmark, root)
    if any(not path.exists() for path in wanted) and archives(root):
        unpack(root, say)
        wanted = asked_videos(benchmark, root)
    if any(not path.exists() for path in wanted) and (others := foreign(root)):
        raise DataError(
            "\n".join([*others, f"then start this again: videos of {benchmark.name} are missing"])
        )
    index, opened = Index(root), 0

    def step() -> None:
        nonlocal opened
        opened += 1
        if opened % 100 == 0:
            say(f"{opened} of {len(wanted)} videos checked")

    unusable = index.check(wanted, checksums=True, seconds=seconds, decoder=decoder, step=step)
    if unusable:
        raise DataError(
            f"{listing(unusable.values())}\n{len(unusable)} of {len(wanted)} videos of {benchmark.name} cannot be "
            "used; benchmark.allow_missing=true answers the questions about the others"
        )
    place = f" benchmark.data={root}" if data else ""
    say(
        f"{benchmark.name}: {len(wanted)} videos are sound; use: python -m stsimdiff benchmark={benchmark.name}{place}"
    )
    return root


def asked_videos(benchmark: Benchmark, root: Path) -> list[Path]:
    """The video of every question, each once, whether it exists or not."""
    folder = VideoFolder(root)
    return sorted({folder.path(benchmark.video(row)) for row in read_rows(benchmark, root)})


def fetch(benchmark: Benchmark, root: Path, say: Say) -> None:
    """Fetch the data set into a folder, unless that was done; a fetch that was stopped goes on.

    Raises:
        DataError: when the hub cannot be reached, asks for permission, or the disk is too small.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError

    if (root / FETCHED).is_file():
        say(f"{benchmark.name} was fetched into {root} before")
        return
    elsewhere = f"with its files elsewhere on this machine: make data BENCHMARK={benchmark.name} DATA=/path"
    try:
        info = HfApi().dataset_info(benchmark.hub, files_metadata=True, timeout=PATIENCE)
        size = sum(file.size or 0 for file in info.siblings or ())
        root.mkdir(parents=True, exist_ok=True)
        here = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
        # Archives stay beside what is unpacked from them.
        if 2 * size - here > shutil.disk_usage(root).free:
            raise DataError(
                f"{benchmark.hub} needs {2 * size / 2**30:.0f} GiB to fetch and unpack, and {root} has "
                f"{shutil.disk_usage(root).free / 2**30:.0f}; set XDG_CACHE_HOME to a larger disk, or {elsewhere}"
            )
        say(f"fetching {benchmark.hub}, {size / 2**30:.1f} GiB, into {root}")
        snapshot_download(benchmark.hub, repo_type="dataset", revision=info.sha, local_dir=root)
    except GatedRepoError as error:
        raise DataError(
            f"{benchmark.hub} asks for permission: accept its conditions on its page and log in with "
            f"`hf auth login`; or {elsewhere}"
        ) from error
    except DataError:
        raise
    except Exception as error:
        # The hub's client changes its network library, and so its errors, from version to version.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"cannot fetch {benchmark.hub}: {reason}; {elsewhere}") from error
    (root / FETCHED).write_text(
        json.dumps({"hub": benchmark.hub, "revision": info.sha}) + "\n", encoding="utf-8"
    )
