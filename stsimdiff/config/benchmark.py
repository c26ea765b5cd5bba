"""Settings of the benchmark: checked, and completed by where its data lies and which code makes its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, ValidationInfo

from stsimdiff.config.checks import Folder, Name, Seconds
from stsimdiff.config.task_files import asked_generation, read_task, task_file, task_version
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.extras import is_installed
from stsimdiff.registry import imported
from stsimdiff.schema import FOUND, build, one_of
from stsimdiff.source import version_of


def _categories(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        raise ConfigError(
            f"{info.context}={value!r} is out of range; allowed: a list of categories, each once, or null for all; one "
            f"category is written {info.context}=[{value}]"
        )
    if isinstance(value, list) and (not value or len({str(category) for category in value}) < len(value)):
        raise ValueError("nothing, or a category twice")
    return value


Categories = Annotated[
    list[str], BeforeValidator(_categories), Field(description="a list of categories, each once,")
]


@dataclass(frozen=True)
class BenchmarkSettings:
    """The group ``benchmark``: the keys of ``configs/benchmark/*.yaml``, and what is found out about data and task.

    Attributes:
        tasks: folder of the task, of a user's own benchmark.
        world: which kind of generated clips; ``None`` for the one that the embedded model was trained on.
        moments: file of the moments that questions are about.
        prompt: set once it is chosen: given, or the one that the model's file names, or ``default``.
        revision: of the data, by its content; ``None`` in a plan without data.
        root: the folder of a public benchmark; ``None`` for another, and in a plan without data.
        source: module that makes or knows the data, as the task's ``metadata`` says it.
        code: version of the task that makes the prompt and scores.
        generation: ``max_new_tokens`` of an answer and ``until``, texts that end it.
        server: the address that scores predictions, where answers are not public.
        missing_questions: how many have no usable video.
        decoder_code: version of a user's own decoder; ``None`` for a built-in one.
    """

    name: Name
    task: Name
    tasks: Folder | None
    categories: Categories | None
    chance: Annotated[int | float, Field(ge=0, le=100, description="a number from 0 to 100")] | None
    macro: bool
    note: Annotated[InstanceOf[str], Field(description="text")] | None
    world: Literal["static_camera", "fast_cuts", "slow_change"] | None
    moments: Annotated[Folder, Field(description="the path of a file")] | None
    data: Folder | None
    prompt: Annotated[str, Field(description="a name")] | None
    decoder: Annotated[str, Field(pattern=r"\S", description="a name")]
    video_seconds: Seconds | None
    allow_missing: bool
    max_new_tokens: Annotated[int, Field(ge=1, le=32768)] | None
    revision: str | None = field(default=None, metadata=FOUND)
    root: str | None = field(default=None, metadata=FOUND)
    code: str | None = field(default=None, metadata=FOUND)
    generation: dict[str, Any] = field(default_factory=dict, metadata=FOUND)
    source: str | None = field(default=None, metadata=FOUND)
    server: str | None = field(default=None, metadata=FOUND)
    missing_questions: int | None = field(default=None, metadata=FOUND)
    decoder_code: str | None = field(default=None, metadata=FOUND)

    def stored(self) -> dict[str, Any]:
        """As ``arm.json`` holds it."""
        rare = ("tasks", "server", "missing_questions", "decoder_code", "world", "moments")
        # Here alone the key has its former name: a resumed arm keeps the record that it was first given.
        values = {{"categories": "families"}.get(key, key): value for key, value in vars(self).items()}
        values.pop("source")
        return {key: value for key, value in values.items() if value is not None or key not in rare}

    def module(self) -> ModuleType | None:
        """The module that :attr:`source` names.

        Raises:
            ConfigError: for one that cannot be imported, or that has the name that its categories had before.
        """
        if not self.source:
            return None
        named = f"metadata.data={self.source} of the task {self.task}"
        data_module = imported(named, self.source)
        if hasattr(data_module, "FAMILIES") and not hasattr(data_module, "CATEGORIES"):
            raise ConfigError(f"{named}: FAMILIES is now called CATEGORIES")
        return data_module


def benchmark_settings(
    node: dict[str, Any], prompts: Mapping[str, str], data: str | None
) -> BenchmarkSettings:
    """The checked group ``benchmark``, its prompt and its folder chosen.

    Args:
        node: the group.
        prompts: those that the model's file names, by benchmark.
        data: the folder with a folder for each public benchmark.

    Raises:
        ConfigError: for a value out of range.
    """
    from stsimdiff.data.benchmarks import BENCHMARKS, by_task, folder_in
    from stsimdiff.video import DECODERS, decoder_of

    benchmark = build(BenchmarkSettings, node, "benchmark")
    if benchmark.decoder not in DECODERS.builtin:
        benchmark = replace(benchmark, decoder_code=version_of(decoder_of(benchmark.decoder)))
    elif not is_installed({"pyav": "av"}.get(benchmark.decoder, benchmark.decoder)):
        raise ConfigError(
            f"benchmark.decoder={benchmark.decoder} is not installed: pip install 'stsimdiff[torchcodec]' brings "
            "torchcodec, decord has wheels for some platforms only; benchmark.decoder=pyav is always there"
        )
    if benchmark.world and (benchmark.task != "clips" or benchmark.data):
        raise ConfigError(
            f"benchmark.world={benchmark.world} is a kind of the clips that are generated here; it goes with "
            "benchmark=clips, without benchmark.data"
        )
    for name in prompts:
        one_of("model.prompts", name, BENCHMARKS)
    public = by_task(benchmark.task)
    prompt = benchmark.prompt
    if prompt is None:
        prompt = prompts.get(public.name, "default") if public else "default"
    one_of("benchmark.prompt", prompt, public.prompts() if public else ("default",))
    place = benchmark.data or (str(folder_in(Path(data), public.name)) if data and public else None)
    return replace(benchmark, prompt=prompt, data=place)


def with_data(benchmark: BenchmarkSettings, needs_data: bool = True) -> BenchmarkSettings:
    """The settings with what is found out about data and task, as far as a plan without data can know it.

    Raises:
        ConfigError: for a category of questions that there is not.
        DataError: for data that is not there, unless a plan can do without it.
    """
    from stsimdiff.data import benchmarks
    from stsimdiff.data.published import PUBLISHED

    public = benchmarks.by_task(benchmark.task)
    if not public and benchmark.data and not Path(benchmark.data).is_dir():
        raise DataError(f"benchmark.data={benchmark.data} is no folder")
    benchmark = replace(benchmark, server=public.server if public else None, **_task(benchmark, public))
    revision, root, categories = None, None, None
    if public:
        categories = public.categories
        with nullcontext() if needs_data or public.name not in PUBLISHED else suppress(DataError):
            root = public.root(benchmark.data)
        revision = public.revision(root) if root else None
    elif module := benchmark.module():
        world = {"world": benchmark.world} if benchmark.world else {}
        categories = None if benchmark.data else module.categories(**world) if world else module.CATEGORIES
        revision = module.revision(benchmark.data, **world)
    for category in benchmark.categories or ():
        if categories:
            one_of("benchmark.categories", category, categories)
    if benchmark.world:
        benchmark = replace(benchmark, name=f"{benchmark.name}_{benchmark.world}")
    return replace(benchmark, revision=revision, root=str(root) if root else None)


def _task(benchmark: BenchmarkSettings, public: Any) -> dict[str, Any]:
    """``code``, the version of what makes the prompts and scores; ``generation``: how answers end; ``source``."""
    parts = [f"lmms_eval {version('lmms_eval')}"]
    generation: dict[str, Any] = {}
    metadata_values: dict[str, Any] = {}
    file = task_file(benchmark.task, benchmark.tasks)
    for task_yaml in (file, public.stock_file) if public else (file,):
        config, sources = read_task(task_yaml)
        generation |= config.get("generation_kwargs") or {}
        metadata = config.get("metadata") if task_yaml == file else None
        for part in metadata if isinstance(metadata, list) else [metadata]:
            metadata_values |= part if isinstance(part, dict) else {}
        parts.append(task_version(config, sources))
    if benchmark.max_new_tokens is not None:
        generation["max_new_tokens"] = benchmark.max_new_tokens
    checked_generation = asked_generation(generation, f"benchmark.task={benchmark.task}")
    return {"code": ", ".join(parts), "generation": checked_generation, "source": metadata_values.get("data")}
