"""What a task's files say, read without lmms-eval: its version, and how long its answers may be.

YAML is parsed and code is read by :mod:`stsimdiff.source`: comments and layout change nothing.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from stsimdiff.errors import ConfigError
from stsimdiff.files import fingerprint
from stsimdiff.resources import folder
from stsimdiff.schema import suggestion
from stsimdiff.source import version_of

DEFAULT_TOKENS = 16
"""New tokens of an answer where the task does not say how many."""
ASKED = ("max_new_tokens", "until")
GREEDY = {
    "do_sample": (False, None),
    "temperature": (0, None),
    "num_beams": (1, None),
    "num_return_sequences": (1, None),
    "use_cache": (True, None),
}
"""What other generation settings may say."""
MEANINGLESS = ("top_p", "top_k", "min_p", "typical_p", "seed", "image_aspect_ratio")


NAMED = re.compile(r"^task:[ \t]*[\"']?([\w.-]+)", re.MULTILINE)


def task_file(name: str, user_folder: str | None) -> Path:
    """The YAML of a task, of ours or in a user's own folder.

    Args:
        name: as the YAML's key ``task`` says it.
        user_folder: ``benchmark.tasks``.

    Raises:
        ConfigError: when there is no such task, or lmms-eval has another one of the same name: it would run its own.
    """
    place = Path(user_folder) if user_folder else folder("tasks")
    if not place.is_dir():
        raise ConfigError(f"benchmark.tasks={user_folder} is no folder")
    files = _named(place)
    if user_folder and not files:
        raise ConfigError(f"benchmark.tasks={user_folder} holds no YAML file with a line `task: NAME`")
    if name not in files:
        where = (
            f"benchmark.tasks={user_folder} has no task {name!r}"
            if user_folder
            else f"benchmark.task={name!r} is unknown"
        )
        hint = "" if user_folder else "; benchmark.tasks=DIR names a folder with tasks of your own"
        raise ConfigError(f"{where}; allowed: {', '.join(sorted(files))}{suggestion(name, files)}{hint}")
    if user_folder and name in {**_stock(), **_named(folder("tasks"))}:
        raise ConfigError(
            f"{files[name]}: task: {name} is also the name of a task of lmms-eval or of stsimdiff, which would "
            f"silently run instead; choose another name, such as my_{name}"
        )
    return files[name]


def _named(place: Path) -> dict[str, Path]:
    """The tasks below a folder by name."""
    files: dict[str, Path] = {}
    for file in sorted(place.rglob("*.yaml")):
        for name in NAMED.findall(file.read_text(encoding="utf-8", errors="replace")):
            if name in files:
                raise ConfigError(
                    f"{files[name]} and {file} both say task: {name}; a name stands for one task"
                )
            files[name] = file
    return files


@cache
def _stock() -> dict[str, Path]:
    """The built-in tasks of lmms-eval, found without importing it."""
    package = importlib.util.find_spec("lmms_eval")
    places = package.submodule_search_locations if package else None
    files = Path(places[0], "tasks").rglob("*.yaml") if places else ()
    texts = ((file, file.read_text(encoding="utf-8", errors="replace")) for file in files)
    return {name: file for file, text in texts for name in NAMED.findall(text)}


def read_task(file: Path) -> tuple[dict[str, Any], set[Path]]:
    """A task's YAML with what it includes, and the Python files that it takes functions from.

    Raises:
        ConfigError: when a file cannot be read.
    """
    import yaml

    sources: set[Path] = set()

    class Loader(yaml.SafeLoader):
        """Keeps ``!function`` as the name that stands there."""

    def function(loader: Loader, node: yaml.ScalarNode) -> str:
        named = loader.construct_scalar(node)
        sources.add(file.parent.joinpath(*named.split(".")[:-1]).with_suffix(".py"))
        return f"!function {named}"

    Loader.add_constructor("!function", function)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"the task's file {file} cannot be read: {error}") from error
    included = content.pop("include", [])
    whole: dict[str, Any] = {}
    for name in reversed([included] if isinstance(included, str) else included):
        config, more = read_task(file.parent / name)
        whole |= config
        sources |= more
    return whole | content, {path for path in sources if path.is_file()}


def task_version(config: Mapping[str, Any], sources: set[Path]) -> str:
    """12 hex digits of a task as :func:`read_task` gives it; how long answers may be does not count."""
    counted = {key: value for key, value in config.items() if key not in ("generation_kwargs", "metadata")}
    return fingerprint(json.dumps(counted, sort_keys=True, default=str), version_of(*sorted(sources)))


def asked_generation(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """``max_new_tokens`` and ``until`` of generation settings as lmms-eval's tasks and its command give them.

    Answers are greedy: settings that ask for anything else are refused, since they would be ignored.

    Args:
        settings: what the task says, changed by ``--gen_kwargs``.
        name: whose settings they are, for the message.

    Raises:
        ConfigError: naming the setting.
    """
    for key, value in settings.items():
        # Of sampling's other settings none has a meaning where nothing is sampled.
        if key not in (*ASKED, *MEANINGLESS) and value not in GREEDY.get(key, ()):
            right = f"{key}={GREEDY[key][0]}" if key in GREEDY else ", ".join(ASKED)
            raise ConfigError(
                f"{name}: {key}={value!r} is not supported, as answers are greedy; allowed: {right}"
            )
    tokens = settings.get("max_new_tokens", DEFAULT_TOKENS)
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ConfigError(
            f"{name}: max_new_tokens={tokens!r} is out of range; allowed: a whole number from 1"
        )
    until = settings.get("until") or []
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list) or not all(isinstance(text, str) for text in until):
        raise ConfigError(f"{name}: until={until!r} is out of range; allowed: a text, or a list of texts")
    return {"max_new_tokens": tokens, "until": [text for text in until if text]}
