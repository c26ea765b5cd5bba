"""What the user is told: the log, and errors of Hydra and OmegaConf in the user's words (what was written, what is
allowed, what to write instead)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from stsimdiff.compressors import RENAMED
from stsimdiff.config.words import groups
from stsimdiff.errors import UserError
from stsimdiff.schema import RENAMED_KEYS, suggestion

EXAMPLE = "write key=value, for example budget.retention=0.3 or compressor=random,st_simdiff with -m"
ADVICE = {
    r"Sweep parameters '([^']+)' requires": "{0}: a sweep needs -m",
    r"Multiple values for (\S+)\.": "{0} is given twice; write it once, without a plus",
    r"Could not append to config\. An item is already at '([^']+)'": (
        "{0} is there already; write it without a plus: {0}=VALUE"
    ),
    r"Could not delete (?:from config\. )?'([^']+)'": "~{0} takes out what is not there; leave it out",
}
"""What Hydra says of a key, as a pattern, and what the user is told of it."""


def explain(error: Exception, arguments: Sequence[str], top: Sequence[str]) -> str:
    """One message for an error of composing the configuration.

    Args:
        error: what Hydra or OmegaConf raised.
        arguments: the overrides as the user wrote them.
        top: names of all groups and top-level keys, for suggestions.
    """
    inner = error.__cause__
    while inner is not None and not isinstance(inner, UserError):
        inner = inner.__cause__
    if inner is not None:
        return str(inner)
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: {_unreadable(str(error.override))}; {EXAMPLE}"
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    cause = _omegaconf(error)
    if cause is not None and cause.full_key:
        return _bad_key(cause, arguments, top)
    return _composition(str(error), top)


def raised_by_hydra(error: BaseException) -> bool:
    """Whether the error comes from Hydra's work on the command line, and not from running what it composed."""
    trace = error.__traceback__
    modules = []
    while trace is not None:
        modules.append(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    ours = {name for name in modules if name.startswith("stsimdiff.")}
    return ours <= {"stsimdiff.commands.cli", "stsimdiff.__main__"} and any(
        name.startswith("hydra.") for name in modules
    )


def one_line(message: str) -> str:
    """A message of several lines on one."""
    return " ".join(line.strip() for line in message.splitlines() if line.strip()) or "wrong configuration"


def _omegaconf(error: BaseException | None) -> OmegaConfBaseException | None:
    while error is not None and not isinstance(error, OmegaConfBaseException):
        error = error.__cause__
    return error


def _unknown_option(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    # A dotted path that this command line names is offered too, and is no option of others.
    options = sorted(option for option in error.options or () if "." not in option)
    if not group or not options:
        return _first_line(str(error))
    if group == "compressor" and name in RENAMED:
        return f"{group}={name} is now called {group}={RENAMED[name]}"
    return f"{group}={name} is unknown; allowed: {', '.join(options)}{suggestion(name, options)}"


def _bad_key(cause: OmegaConfBaseException, arguments: Sequence[str], top: Sequence[str]) -> str:
    key, reason = str(cause.full_key), _first_line(str(cause))
    parent, _, name = key.rpartition(".")
    if not re.search(r"is not in struct|^Key '.*' not in ", reason):
        if type(cause).__name__ == "MissingMandatoryValue":
            return f"{key} must be given; write {key}=VALUE"
        reason_of_key = f"{key}: {reason[0].lower()}{reason[1:]}"
        # ${NAME} is another key of the configuration; whoever writes capitals means the environment.
        variable = re.match(r"Interpolation key '([A-Z_0-9]+)' not found", reason)
        return (
            f"{reason_of_key}; an environment variable is written ${variable[1]}"
            if variable
            else reason_of_key
        )
    if key in RENAMED_KEYS:
        return f"{key} is now called {RENAMED_KEYS[key]}"
    if key in top:
        return f"{key} is missing from the configuration; leave out ~{key}"
    if not parent:
        return _unknown_key(key, top)
    allowed = _keys(cause.parent_node)
    known = f"it has {', '.join(allowed)}" if allowed else "it has no parameters"
    if parent != "compressor":
        return f"{key} is unknown: {known}{suggestion(name, allowed)}"
    method = _method(cause.parent_node)
    if method == "custom":
        written = next((word for word in arguments if word.startswith(f"{key}=")), f"{key}=VALUE")
        return f"{key}: parameters of your own class are written with a plus: +{written}"
    unknown = f"{key} is unknown to compressor={method}: {known}{suggestion(name, allowed)}"
    return unknown + _one_line_each(key, arguments)


def _one_line_each(key: str, arguments: Sequence[str]) -> str:
    """What to write when a sweep over compressors gives one of them a parameter that another lacks."""
    swept = next((word for word in arguments if re.match(r"compressor=.*,", word)), None)
    if swept is None:
        return ""
    written = next((word for word in arguments if re.match(rf"\+*{re.escape(key)}=", word)), f"{key}=...")
    first, *rest = swept.partition("=")[2].split(",")
    return (
        f". A sweep gives each parameter to each of its compressors ({first}, {', '.join(rest)}); write one sweep for "
        "each kind of method, in one command:\n"
        f'  \'arms=["compressor=METHODS_WITHOUT_IT","compressor=METHOD_WITH_IT {written}"]\'\n'
        "or as two commands with the same run=NAME, whose answers are joined"
    )


def _composition(message: str, top: Sequence[str]) -> str:
    for pattern, advice in ADVICE.items():
        if match := re.search(pattern, message):
            return advice.format(*match.groups())
    if match := re.search(r"Could not override '([^']+)'", message):
        return _unknown_key(match[1], top)
    if match := re.search(r"Override (\S+) looks like a config group .* config group '([^']+)'", message):
        return f"{match[1]}: {_unknown_key(match[2], top)}"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", message):
        key, _, value = match[1].partition("=")
        if key in groups():
            return f"{match[1]}: several values need -m, which runs one after the other: -m {match[1]}"
        return (
            f"{match[1]}: several values need -m (a sweep over them); a list is written {key}=[{value}], text with a "
            f"comma '{key}=\"{value}\"'"
        )
    return one_line(message)


def _unknown_key(key: str, top: Sequence[str]) -> str:
    return f"{key} is unknown; allowed: {', '.join(top)}{suggestion(key, top)}"


def _unreadable(word: str) -> str:
    """Why Hydra's parser cannot read a setting, in one clause."""
    value = word.partition("=")[2]
    if "=" not in word:
        return "it has no value"
    if re.search(r"(^|[,(\[{])\s*,|,\s*$", value):
        return "a value is missing beside a comma"
    if value.count("'") % 2 or value.count('"') % 2:
        return "a quote is not closed"
    if any(value.count(a) != value.count(b) for a, b in ("()", "[]", "{}")):
        return "a bracket has no partner"
    return "text with one of , ( ) [ ] { } = : or a quote in it is itself quoted, 'key=\"text\"'"


def _keys(node: Any) -> list[str]:
    return [str(key) for key in node if not str(key).startswith("_")] if isinstance(node, DictConfig) else []


def _method(node: Any) -> str:
    """Name of the method that a ``compressor`` node is for; ``custom`` for a class that no name stands for."""
    from stsimdiff.compressors import BUILTIN

    target = node._get_node("_target_") if isinstance(node, DictConfig) else None
    written = None if target is None or target._is_missing() else target._value()
    return next((name for name, path in BUILTIN.items() if path == written), "custom")


def _first_line(message: str) -> str:
    return next((line.strip() for line in message.splitlines() if line.strip()), "wrong configuration")


HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
