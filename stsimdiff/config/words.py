"""The settings of a command line, ``key=value`` each, before Hydra composes them.

Hydra would silently read some of them as something else: a list of compressors runs the last
one, of a key that is given twice the last value counts, a run named ``2024_11_25`` is the number 20241125. Here such
words are refused with what to write instead, or written so that Hydra reads what they say.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    ValueType,
)
from omegaconf import OmegaConf
from yaml import YAMLError

from stsimdiff.config.checks import expanded
from stsimdiff.errors import ConfigError
from stsimdiff.registry import DOTTED
from stsimdiff.resources import folder
from stsimdiff.schema import suggestion

TEXT = (
    "run",
    "results",
    "data",
    "benchmark.data",
    "benchmark.tasks",
    "model.path",
    "cache.folder",
    "logger.project",
)
"""Keys whose value is text even where it reads as a number."""
LAUNCHER = "hydra/launcher"


def with_own_class(words: Iterable[str]) -> list[str]:
    """Choose ``compressor=custom`` where a line names a class of its own and no compressor.

    Otherwise the parameters of the default compressor would be handed to the user's class.
    """
    words = list(words)
    names = any(word.startswith("compressor._target_=") for word in words)
    if names and not any(word.startswith("compressor=") for word in words):
        return ["compressor=custom", *words]
    return words


def settled(words: Sequence[str], sweep: str = "-m ") -> list[str]:
    """The words of one command line, such that Hydra reads what they say.

    Args:
        words: the settings.
        sweep: what a sweep needs before its settings: nothing, for a command that takes sweeps as they are.

    Raises:
        ConfigError: for a word that cannot mean what it says.
        hydra.errors.OverrideParseException: for one that cannot be read.
    """
    parser = OverridesParser.create()
    known: dict[str, Any] = {}
    settled_words: list[str] = []
    for word in words:
        if word.startswith("benchmark.tasks="):
            (override,) = parser.parse_overrides([_with_home(word)])
            value = override.value()
            offer_benchmarks(expanded("benchmark.tasks", getattr(value, "text", str(value))))
    for word in with_own_class(words):
        word = _with_home(word)
        (override,) = parser.parse_overrides([word])
        key = override.key_or_group
        if not key:
            raise ConfigError(f"{word} names no key; write key=value")
        if key in known:
            raise ConfigError(f"{key} is given twice, as {known[key]} and {word}; write it once")
        known[key] = word
        settled_words.append(word if override.is_delete() else _settled(override, sweep))
    return settled_words


def arm_words(line: str) -> list[str]:
    """The words of a line of ``arms``.

    Raises:
        ConfigError: for a line that is no list of settings, or sets what concerns more than an arm.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"the line {line!r} of arms cannot be read: {str(error).lower()}") from error
    if not words:
        raise ConfigError(
            "a line of arms is empty; write settings, such as compressor=random, or leave it out"
        )
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if word.startswith("-"):
            raise ConfigError(f"the line {line!r} of arms holds the flag {word}; settings alone belong there")
        if key in ("arms", "experiment") or key.startswith("hydra"):
            raise ConfigError(f"the line {line!r} of arms sets {key}, which belongs on the command line")
    return settled(words, sweep="")


def groups() -> list[str]:
    """Settings that are chosen among files: the folders of ``configs``, and the launcher."""
    return sorted(path.name for path in folder("configs").iterdir() if path.is_dir() and path.name != "hydra")


def options(group: str) -> list[str]:
    """What can be chosen of a group: its files, and what other packages offer."""
    files = {path.stem for path in (folder("configs") / group).glob("[!_]*.yaml")}
    offered = {name.removesuffix(".yaml") for name in ConfigStore.instance().repo.get(group, {})}
    return sorted(files | {name for name in offered if not DOTTED.fullmatch(name)})


def _settled(override: Override, sweep: str) -> str:
    word, key = str(override.input_line), override.key_or_group
    assigned, _, written = word.partition("=")
    if key in groups() or key == LAUNCHER:
        _check_choice(override, sweep)
    if override.value_type == ValueType.INTERVAL_SWEEP:
        raise ConfigError(f"{word}: only lists of values can be swept, such as {sweep}{key}=1,2,3")
    value = override._value
    if isinstance(value, Glob) or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return f"{assigned}={','.join(_matching(override))}"
    if isinstance(value, RangeSweep):
        # 0.1 + 0.2 is not 0.3 in binary, but it is meant to be.
        numbers = [float(f"{n:.12g}") if isinstance(n, float) else n for n in override.sweep_iterator()]
        if not numbers:
            raise ConfigError(
                f"{word} is an empty range; allowed: range(start, stop, step) with values in it"
            )
        return f"{assigned}={','.join(map(str, numbers))}"
    if key in TEXT:
        if isinstance(value, (bool, int, float)):
            return f"{assigned}={quoted(written)}"
        if override.value_type == ValueType.SIMPLE_CHOICE_SWEEP and not set(written) & set("'\"[{("):
            return f"{assigned}={','.join(quoted(part.strip()) for part in written.split(','))}"
    return word


def _with_home(word: str) -> str:
    """The word with paths from home quoted, which Hydra's grammar does not know: ``results=~/runs``."""
    key, equals, value = word.partition("=")
    if not re.search(r"(^|,)~", value) or set(value) & set("'\"[]{}()"):
        return word
    parts = [quoted(part) if part.startswith("~") else part for part in value.split(",")]
    return f"{key}{equals}{','.join(parts)}"


def quoted(text: str) -> str:
    """Text as a value of the command line."""
    return QuotedString(text=text, quote=Quote.double).with_quotes()


def _check_choice(override: Override, sweep: str) -> None:
    """Raise :class:`ConfigError` unless what is chosen of a group is a name, or a sweep over names."""
    word, key, value = str(override.input_line), override.key_or_group, override.value()
    if override.is_force_add():
        raise ConfigError(f"{word}: {key} is chosen without a plus: {word.lstrip('+')}")
    if isinstance(value, RangeSweep):
        value = word.partition("=")[2]
        raise ConfigError(f"{key}={value} is unknown; allowed: {', '.join(options(key))}")
    for chosen in value.list if isinstance(value, ChoiceSweep) else [value]:
        chosen = chosen.text if isinstance(chosen, QuotedString) else chosen
        if isinstance(chosen, list):
            names = ",".join(name.text if isinstance(name, QuotedString) else str(name) for name in chosen)
            raise ConfigError(
                f"{word}: a list is no choice, {key} takes one; several, one after the other: {sweep}{key}={names}"
            )
        if key == "compressor" and isinstance(chosen, str) and DOTTED.fullmatch(chosen):
            _offer(chosen)
        named = isinstance(chosen, str) and not chosen.startswith("_")
        if not named and not isinstance(chosen, Glob) and not isinstance(value, Glob):
            raise ConfigError(_no_name(key, chosen))


def _offer(path: str) -> None:
    """Make a class of the user's own an option of ``compressor`` under its dotted path; its parameters need no plus."""
    node = OmegaConf.create({"_target_": path}, flags={"struct": False})
    ConfigStore.instance().store(group="compressor", name=path, node=node, provider="command line")


def offer_benchmarks(place: str, names: Collection[str] | None = None) -> None:
    """Make the files ``benchmark/*.yaml`` of a folder options of ``benchmark``; each one's task lies in the folder.

    Args:
        place: the folder, as ``benchmark.tasks``.
        names: of the files that count; ``None``: all.

    Raises:
        ConfigError: for a name that one of ours has, and a file that cannot be read.
    """
    for file in sorted((Path(place) / "benchmark").glob("[!_]*.yaml")):
        if names is not None and file.stem not in names:
            continue
        if (folder("configs") / "benchmark" / file.name).exists():
            raise ConfigError(
                f"{file}: benchmark={file.stem} is one of stsimdiff's; give the file another name"
            )
        try:
            settings = OmegaConf.to_container(OmegaConf.load(file)) or {}
        except (OSError, YAMLError) as error:
            raise ConfigError(f"{file} cannot be read: {error}") from error
        if not isinstance(settings, dict):
            raise ConfigError(f"{file} holds no settings; docs/benchmarks.md shows what belongs there")
        # A key `task` would make lmms-eval's own command take this file for the task.
        defaults = {
            "defaults": ["_base", "_self_"],
            "name": file.stem,
            "task": file.stem,
            "tasks": str(place),
        }
        node = OmegaConf.create(defaults | settings, flags={"struct": False})
        ConfigStore.instance().store(group="benchmark", name=file.stem, node=node, provider=str(file))


def _no_name(key: str, chosen: Any) -> str:
    if chosen is None:
        return f"{key}=null chooses nothing; leave {key} out, or choose one of {', '.join(options(key))}"
    message = f"{key}={chosen} is unknown; allowed: {', '.join(options(key))}{suggestion(str(chosen), options(key))}"
    return f"{message}; the share of tokens is budget.retention={chosen}" if key == "budget" else message


def _matching(override: Override) -> list[str]:
    """The options that ``glob(...)`` fits; ``custom`` has no meaning without a class or a folder of the user's own."""
    key = override.key_or_group
    if key not in groups():
        raise ConfigError(
            f"{override.input_line}: glob fits names of files, which {key} does not choose among"
        )
    named = [name for name in options(key) if name != "custom"]
    glob: Any = override._value
    matches = glob.filter(named)
    if not matches:
        raise ConfigError(f"{override.input_line} fits none of {', '.join(named)}")
    return matches
