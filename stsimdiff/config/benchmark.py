"""Settings of the benchmark: checked, and completed by where its data lies and which code makes its prompts."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stsimdiff.config.checks import MOST_NUMBER, one_of, only
from stsimdiff.config.task_files import asked_generation, read_task, task_version
from stsimdiff.data.digests import file_digest, say_what_takes_long
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.extras import is_installed
from stsimdiff.resources import folder

BENCHMARK = (
    "name", "task", "families", "chance", "macro", "note", "data", "prompt", "decoder", "video_seconds",
    "allow_missing", "max_new_tokens",
)  # fmt: skip
MOST_NEW_TOKENS = 32768


def choose_prompt(prompts: Any, benchmark: dict[str, Any]) -> None:
    """Set the benchmark's prompt to the one that the model's file names, unless one is given."""
    from stsimdiff.data.benchmarks import BENCHMARKS, by_task

    if prompts is not None and not isinstance(prompts, dict):
        raise ConfigError(f"model.prompts={prompts!r} is out of range; allowed: {{benchmark: prompt, ...}}")
    for name in prompts or {}:
        one_of("model.prompts", name, BENCHMARKS)
    public = by_task(benchmark.get("task"))
    if "prompt" in benchmark and benchmark["prompt"] is None:
        benchmark["prompt"] = (prompts or {}).get(public.name if public else None, "default")


def choose_data(data: Any, benchmark: dict[str, Any]) -> None:
    """Set ``benchmark.data`` of a public benchmark to its folder in ``data``, unless one is given."""
    from stsimdiff.data.benchmarks import by_task, folder_in

    if data is None:
        return
    if not isinstance(data, str) or not data.strip():
        raise ConfigError(f"data={data!r} is out of range; allowed: the path of a folder, or null")
    public = by_task(benchmark.get("task"))
    if public and "data" in benchmark and benchmark["data"] is None:
        benchmark["data"] = str(folder_in(Path(data).expanduser(), public.name))


def benchmark_settings(benchmark: dict[str, Any], needs_data: bool = True) -> dict[str, Any]:
    """The checked group ``benchmark``, with ``revision``, ``root``, ``code`` and ``generation`` added, and
    ``server``, the address that scores predictions, where answers are not public.

    Raises:
        ConfigError: for a value out of range.
        DataError: for data that is not there, unless a plan can do without it.
    """
    from stsimdiff.data import benchmarks, clips
    from stsimdiff.data.published import PUBLISHED
    from stsimdiff.video import BACKENDS

    only("benchmark", benchmark, BENCHMARK)
    one_of("benchmark.decoder", benchmark["decoder"], BACKENDS)
    if not is_installed({"pyav": "av"}.get(benchmark["decoder"], benchmark["decoder"])):
        raise ConfigError(
            f"benchmark.decoder={benchmark['decoder']} is not installed: pip install 'stsimdiff[torchcodec]' brings "
            "torchcodec, decord has wheels for some platforms only; benchmark.decoder=pyav is always there"
        )
    if not isinstance(benchmark["allow_missing"], bool):
        raise ConfigError(
            f"benchmark.allow_missing={benchmark['allow_missing']!r} is out of range; allowed: true, false"
        )
    if not isinstance(benchmark["macro"], bool):
        raise ConfigError(f"benchmark.macro={benchmark['macro']!r} is out of range; allowed: true, false")
    check_video_seconds(benchmark["video_seconds"])
    tokens = benchmark["max_new_tokens"]
    if tokens is not None and (type(tokens) is not int or not 1 <= tokens <= MOST_NEW_TOKENS):
        raise ConfigError(
            f"benchmark.max_new_tokens={tokens!r} is out of range; allowed: a whole number from 1 to "
            f"{MOST_NEW_TOKENS}, or null"
        )
    public = benchmarks.by_task(benchmark["task"])
    revision, root, families = None, None, None
    if public:
        one_of("benchmark.prompt", benchmark["prompt"], public.prompts())
        families = public.families
        with nullcontext() if needs_data or public.name not in PUBLISHED else suppress(DataError):
            root = public.root(benchmark["data"])
        revision = public.revision(root) if root else None
    else:
        one_of("benchmark.prompt", benchmark["prompt"], ("default",))
        if benchmark["data"] and not Path(benchmark["data"]).expanduser().is_dir():
            raise DataError(f"benchmark.data={benchmark['data']} is no folder")
    if benchmark["task"] in ("clips", "long_clips"):
        families, revision = clips.FAMILIES, clips.GENERATOR_VERSION
        if benchmark["data"]:
            families, revision = None, _data_revision(Path(benchmark["data"]).expanduser())
    for family in benchmark["families"] or ():
        if families:
            one_of("benchmark.families", family, families)
    return {
        **benchmark,
        "revision": revision,
        "root": str(root) if root else None,
        **({"server": public.server} if public and public.server else {}),
        **_task(benchmark, public),
    }


def check_video_seconds(seconds: Any) -> None:
    """Raise :class:`ConfigError` unless the time for a video is a number above 0, or ``None``."""
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if seconds is not None and not (number and 0 < seconds <= MOST_NUMBER):
        raise ConfigError(
            f"benchmark.video_seconds={seconds!r} is out of range; allowed: a number above 0, or null"
        )


def _data_revision(root: Path) -> str | None:
    """12 hex digits of the questions in a user's folder and of their videos' contents; ``None`` without questions.

    Where the folder lies, when it was written, and what else is in it do not matter.
    """
    from stsimdiff.data.clips import rows

    if not (root / rows.FILE).is_file():
        return None
    asked = sorted(rows.read(root), key=lambda row: row["id"])
    videos = {name: root / "videos" / name for name in sorted({row["video"] for row in asked})}
    if not all(path.exists() for path in videos.values()):
        from stsimdiff.data.videos import VideoFolder

        # A row may leave out the suffix, or name another one than the file has.
        found = VideoFolder(root / "videos")
        videos = {name: path if path.exists() else found.path(name) for name, path in videos.items()}
    say_what_takes_long(videos.values(), f"the videos in {root}")
    contents = []
    for name, path in videos.items():
        try:
            contents.append([name, file_digest(path)])
        except OSError:
            contents.append([name, None])  # a missing video is said where the videos are looked at
    return hashlib.sha256(json.dumps([asked, contents]).encode()).hexdigest()[:12]


def _task(benchmark: dict[str, Any], public: Any) -> dict[str, Any]:
    """``code``, the version of what makes the prompts and scores, and ``generation``, how long answers may be."""
    place = f"stock/{public.name}" if public else f"{benchmark['task']}/{benchmark['task']}"
    file = folder("tasks") / f"{place}.yaml"
    parts = [f"lmms_eval {version('lmms_eval')}"]
    given: dict[str, Any] = {}
    # Of a task of another name what there is to know is known when it is built.
    for one in (file, public.stock_file) if public else (file,):
        if one.is_file():
            config, sources = read_task(one)
            given |= config.get("generation_kwargs") or {}
            parts.append(task_version(config, sources))
    if benchmark.get("max_new_tokens") is not None:
        given["max_new_tokens"] = benchmark["max_new_tokens"]
    asked = asked_generation(given, f"benchmark.task={benchmark['task']}")
    return {"code": ", ".join(parts), "generation": asked}
