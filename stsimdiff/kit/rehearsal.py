"""Methods of the user's own tried on a few synthetic tokens before a model is loaded: most slips show in milliseconds.

What may depend on the sizes of a real model only warns; the run then counts what fails.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor
from stsimdiff.config.arms import Arm
from stsimdiff.engine import lent, process_state
from stsimdiff.errors import ConfigError, UserError
from stsimdiff.evaluate.guard import changed_state, state_of
from stsimdiff.evaluate.passes import Pass
from stsimdiff.kit.running import LAYERS, layout_for, video
from stsimdiff.plan.dry_run import without_model
from stsimdiff.source import OURS, own_frame
from stsimdiff.tokens import Grid

log = logging.getLogger(__name__)

TRIAL = Grid(4, 6, 6)
LONGEST = 60.0
"""Seconds that a method may take for it, the loading of weights of its own included; a longer one is warned of."""
CERTAIN = (AttributeError, NameError, TypeError, ImportError, SyntaxError)
"""Errors in a method's own code that no other model or video would fix."""


def rehearse(passes: Iterable[Pass]) -> None:
    """Raise :class:`~stsimdiff.errors.ConfigError` for the first method of the user's own that cannot work."""
    for run_pass in passes:
        for arm in run_pass.arms.values():
            compressor = arm.build()
            if type(compressor).__module__.partition(".")[0] != OURS:
                _try(compressor, arm, run_pass.settings.model.layers or LAYERS)


def _try(compressor: Compressor, arm: Arm, layers: int) -> None:
    before, kept = process_state.read(process_state.EVERYTHING), state_of(compressor)
    raised: BaseException | None = None
    try:
        with _limited():
            _select(compressor, arm.budget, layers)
    except UserError:
        return  # a budget or a model that it refuses by name; the real ones are checked where they are known
    except (Exception, SystemExit) as error:
        raised = error
    finally:
        left = process_state.put_back(process_state.EVERYTHING, before)
    name = type(compressor).__name__
    if raised is not None:
        where = own_frame(raised)
        message = f"{name} fails on a synthetic video: {type(raised).__name__}: {raised}" + _line(where)
        # What the engine refuses breaks the contract; it was not raised in the user's code.
        if isinstance(raised, CERTAIN) or where is None:
            raise ConfigError(
                f"{message}\npython -m stsimdiff check {arm.compressor['_target_']} says more"
            ) from raised
        log.warning("%s; on the model's own tokens it may not", message)
    changed = [f"changed {state}" for state in left]
    differ = changed_state(kept, state_of(compressor))
    changed += [f"changed {state}: what one video needs lies in its run" for state in differ]
    if changed:
        raise ConfigError(
            f"{name} {'; '.join(changed)}. An answer would depend on the one before; python -m stsimdiff check "
            f"{arm.compressor['_target_']} says more"
        )


@contextmanager
def _limited() -> Iterator[None]:
    """Raise ``TimeoutError`` in what takes longer than :data:`LONGEST` seconds, so that no command waits for ever.

    Only the main thread of a process can be interrupted; another one goes on waiting.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"no selection within {LONGEST:g} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _line(where: str | None) -> str:
    return f"\n  {where}" if where else ""


@torch.no_grad()
def _select(compressor: Compressor, budget: Budget, layers: int) -> None:
    layout, features = layout_for(TRIAL, layers), video("mixed", TRIAL, dim=64)
    without_model(lent.start(compressor, layout, budget), layout, features, torch.Generator().manual_seed(0))
