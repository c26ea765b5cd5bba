"""The command line: Hydra composes, :mod:`stsimdiff.launchers` runs, every wrong input ends as one message.

Exit codes: 0 all answered; 1 samples failed; 2 wrong input, or a disk that refuses it; 130 interrupted; 143 SIGTERM. No
model is loaded before all of the
configuration has been checked. Hydra, which takes as long to import as some commands to run, is imported where a
configuration is composed.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import re
import string
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from stsimdiff import terminal
from stsimdiff.commands import HELP
from stsimdiff.errors import ConfigError, RunFailed, Terminated, UserError
from stsimdiff.resources import folder
from stsimdiff.terminal import CONTROL, say, unwritten

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = {
    "check": "stsimdiff.commands.check",
    "conformance": "stsimdiff.commands.conformance",
    "data": "stsimdiff.commands.data",
    "doctor": "stsimdiff.commands.doctor",
    "forget": "stsimdiff.commands.forget",
    "inspect": "stsimdiff.commands.inspect",
    "profile": "stsimdiff.commands.profile",
    "report": "stsimdiff.commands.report",
}
"""Subcommands: what stands behind ``python -m stsimdiff``, and the module whose ``main(arguments)`` runs it."""
TRACEBACK = "HYDRA_FULL_ERROR"
SETTING = re.compile(r"[+~]*[\w@/.]*=|~")
SHOW_TRACEBACK = os.environ.get(TRACEBACK) == "1"


def task(cfg: DictConfig) -> None:
    """A run without ``-m``."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from stsimdiff.config import sweep
    from stsimdiff.launchers import base, in_process

    def compose(overrides: Sequence[str]) -> DictConfig:
        loader = GlobalHydra.instance().config_loader()
        name = HydraConfig.get().job.config_name
        return sweep.without_hydra(loader.load_configuration(name, list(overrides), RunMode.RUN))

    # Unresolved: an override may hold an interpolation.
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    with errors_as_messages(overrides):
        base.check_single_run(HydraConfig.get().runtime.choices["hydra/launcher"])
        in_process.run_configurations(sweep.expand(cfg, overrides, compose))


def main() -> None:
    """Entry point of ``stsimdiff`` and ``python -m stsimdiff``."""
    # torch, transformers and lmms-eval make half a million objects that stay. To look through them for garbage as often
    # as Python does by itself, and once more at the end, takes as long as some commands run.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    terminal.log_to_stderr()
    with _output_checked():
        with errors_as_messages([]):
            _check_start(sys.argv[1:])
        _dispatch()


def command(name: str) -> NoReturn:
    """Entry point of a subcommand's own module, such as ``python -m stsimdiff.report``."""
    sys.argv[1:] = [name, *sys.argv[1:]]
    main()
    raise SystemExit(0)


@contextmanager
def _output_checked() -> Iterator[None]:
    """Make it a failure when standard output or error did not take what was printed (a full disk)."""
    try:
        yield
    except SystemExit as stop:
        if stop.code not in (None, 0) or not unwritten():
            raise
    if lost := unwritten():
        say(f"{lost}; all else was done", error=True)
        raise SystemExit(1)


def _check_start(words: list[str]) -> None:
    """Raise :class:`ConfigError` for what no part of the program could go on with."""
    for word in words:
        if CONTROL.search(word):
            raise ConfigError(f"{word} holds a control character; nothing here takes one")
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError("the current folder is gone; change to one that exists (cd)") from error


def _dispatch() -> None:
    # A user's module lies in the current folder. Last on the path: a folder named like an installed package
    # must not hide it.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    if sys.argv[1:] and re.fullmatch(r"[a-z_]+", command := sys.argv[1]):
        with errors_as_messages(sys.argv[2:]):
            if command not in COMMANDS:
                from stsimdiff.schema import suggestion

                known = f"{', '.join(COMMANDS)}{suggestion(command, COMMANDS)}"
                raise ConfigError(
                    f"{command} is no command; allowed: {known}; a setting is written key=value, without blanks"
                )
            raise SystemExit(importlib.import_module(COMMANDS[command]).main(sys.argv[2:]))
    import hydra

    from stsimdiff.config.words import settled
    from stsimdiff.launchers import base

    # Behind the flags, since Hydra's parser takes the settings in one piece only: `a=1 -m b=2` is fine here.
    flags = [word for word in sys.argv[1:] if not SETTING.match(word)]
    words = [word for word in sys.argv[1:] if SETTING.match(word)]
    if "--verbose" in flags:
        flags = [flag for flag in flags if flag != "--verbose"]
        words.append("verbose=true")
    with errors_as_messages(words):
        base.register()
        words = settled(words)
        base.check_launcher(words)
        if not HELP.isdisjoint(flags):
            say(_usage(words))
            return
        sys.argv[1:] = [*flags, *words]
        start = hydra.main(version_base="1.3", config_path=str(folder("configs")), config_name="config")
        start(task)()


def _usage(words: list[str]) -> str:
    """What Hydra prints for ``--help``; before that it would look through all its groups, which takes long."""
    import hydra
    from omegaconf import OmegaConf

    from stsimdiff.config.sweep import without_hydra

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder("configs"))):
        cfg = hydra.compose("config", overrides=words, return_hydra_config=True)
    template = string.Template(cfg.hydra.help.template)
    return template.substitute(CONFIG=OmegaConf.to_yaml(without_hydra(cfg)))


@contextmanager
def errors_as_messages(overrides: list[str]) -> Iterator[None]:
    """Turn errors that the user can fix into a message and an exit code; others keep their traceback."""
    before = os.environ.get(TRACEBACK)
    # Without it, Hydra prints errors in its own words and exits before they can be caught here.
    os.environ[TRACEBACK] = "1"
    try:
        yield
    except UserError as error:
        _stop(error, str(error), 2)
    except RunFailed as error:
        _stop(error, str(error), 1)
    except KeyboardInterrupt as error:
        ending, code = ("ended by SIGTERM", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        _stop(error, f"{ending}; start the same command again to go on", code)
    except Exception as error:
        message = _composing(error, overrides)
        if message is None:
            raise
        _stop(error, message, 2)
    finally:
        os.environ.pop(TRACEBACK)
        if before is not None:
            os.environ[TRACEBACK] = before


def _stop(error: BaseException, message: str, code: int) -> NoReturn:
    if SHOW_TRACEBACK:
        say("".join(traceback.format_exception(error)), error=True)
    say(message, error=True)
    raise SystemExit(code)


def _composing(error: Exception, overrides: list[str]) -> str | None:
    """The message about what went wrong while Hydra composed; None where it did not."""
    if "hydra" not in sys.modules:
        return None
    from stsimdiff.commands import messages

    if isinstance(error, messages.HYDRA_ERRORS):
        return messages.explain(error, overrides, _top_level())
    if not isinstance(error, (ValueError, OSError)) or not messages.raised_by_hydra(error):
        return None
    message = messages.one_line(str(error))
    if isinstance(error, OSError):
        message = f"cannot write the run's folder: {message}; free or repair the disk, or choose another results=FOLDER"
    return message


def _top_level() -> list[str]:
    from omegaconf import OmegaConf

    configs = folder("configs")
    groups = {path.name for path in configs.iterdir() if path.is_dir()}
    keys = {str(key) for key in OmegaConf.load(configs / "config.yaml")}
    return sorted((groups | keys) - {"defaults", "hydra"})
