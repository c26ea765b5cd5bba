"""Slips in the code of a method, found before it selects anything, in sentences that say what to write instead.

Nothing here decides an answer. What a method does wrong while it selects is found by the engine.
"""

from __future__ import annotations

import difflib
import inspect
import re
import traceback
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import FunctionType
from typing import Any

from stsimdiff.compressors.base import Compressor, Places, Run, WrappedRun
from stsimdiff.errors import ConfigError
from stsimdiff.source import OURS, place_of
from stsimdiff.tokens import Layout

BASE = "stsimdiff.compressors.base"
OF_A_COMPRESSOR = {
    "start": "layout, budget",
    "score": "tokens, layout",
    "check": "budget, layers",
}
"""What the harness calls, and its arguments."""
OF_A_RUN = {
    "at_input": "tokens",
    "before_layer": "layer, tokens, attention",
    "between": "layer, tokens, attention",
    "at_token": "layer, step, cached, attention",
}
ANNOUNCED = {
    "at_input": "input=True",
    "before_layer": "before=frozenset({2})",
    "between": "between=frozenset({2})",
    "at_token": "decoding=frozenset({2})",
}


def check_class(cls: type[Compressor]) -> None:
    """Raise :class:`~stsimdiff.errors.ConfigError` for a class that cannot work as it is written."""
    if mistake := next(_of_class(cls), None):
        raise ConfigError(f"{cls.__module__}.{cls.__qualname__} ({place_of(cls)}) {mistake}")


def check_run(run: object, name: str) -> None:
    """Raise ``TypeError`` for what a method's ``start`` returned, where that cannot be the run of one video.

    Args:
        run: what it returned.
        name: of the method.
    """
    while isinstance(run, WrappedRun):
        run = run.run
    if mistake := next(_of_run(run, name), None):
        raise TypeError(mistake)


def parameters_of(cls: type) -> str:
    """The class attributes that look like parameters and are none, in a clause for a message; or nothing."""
    plain = [
        name
        for name, value in vars(cls).items()
        if type(value) in (bool, int, float, str)
        and not name.startswith("_")
        and name not in vars(Compressor)
    ]
    annotated = inspect.get_annotations(cls)
    lost = [name for name in plain if name not in annotated and name != "reason"]
    if not lost:
        return ""
    value = vars(cls)[lost[0]]
    return (
        f"; {', '.join(lost)} of {cls.__name__} has no annotation, without which it is no parameter: write "
        f"{lost[0]}: {type(value).__name__} = {value!r}"
    )


def cause_of(error: BaseException, layout: Layout, attention: Any, run: object) -> str:
    """What an error about ``None`` in a method's code comes from, in a sentence; empty where that is not known.

    Args:
        error: what the method raised.
        layout: that it was given.
        attention: that it was given, or ``None``.
        run: of the method, or the method itself where it has not started yet.
    """
    if "None" not in str(error):
        return ""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    users = [
        frame for frame in frames if not str(frame.f_globals.get("__name__")).startswith(f"{OURS}.engine")
    ]
    if layout.vision is None and any("vision" in frame.f_code.co_names for frame in users):
        return (
            "layout.vision is None, since the class does not ask for it: write needs_vision: ClassVar[bool] = True "
            "into the compressor"
        )
    for name, flag in (("frames", "needs_frames"), ("memory", "remembers")):
        named = [frame.f_code.co_names for frame in users if name in frame.f_code.co_names]
        # A grid has frames too.
        if getattr(layout, name) is None and any("grid" not in names for names in named):
            return (
                f"layout.{name} is None, since the class does not ask for it: write {flag}: ClassVar[bool] = True into "
                "the compressor"
            )
    if attention is None and any("attention" in frame.f_code.co_varnames for frame in users):
        places: Any = getattr(run, "places", Places())
        kind = "watched" if any(frame.f_code.co_name == "at_token" for frame in users) else "attention"
        if not getattr(places, kind):
            return (
                f"attention is None, since places names no layer whose attention is read: add {kind}=frozenset({{1}}), "
                "a layer below the place before a layer, or that of a place inside one"
            )
        return (
            f"attention is None, since that of layer {min(getattr(places, kind))}, the first that places names, comes "
            "later: read that of a layer below the place before a layer, or of the layer itself inside it"
        )
    return ""


def _of_class(cls: type[Compressor]) -> Iterator[str]:
    members = vars(cls)
    loose = [name for name, hint in inspect.get_annotations(cls).items() if "ClassVar" not in str(hint)]
    if loose and "__dataclass_params__" not in members:
        yield f"lacks @dataclass(frozen=True), without which {loose[0]} is no parameter; write it above the class"
    abstract = sorted(getattr(cls, "__abstractmethods__", ()))
    for name in abstract:
        close = difflib.get_close_matches(name, [key for key in members if key not in abstract], n=1)
        meant = f"; is {close[0]} meant to be it?" if close else ""
        if name == "start" and any(place in members for place in OF_A_RUN):
            continue
        yield f"lacks {name}: write def {name}(self, {OF_A_COMPRESSOR.get(name, '...')}){meant}"
    for name in (*OF_A_RUN, "places"):
        if name in members:
            yield (
                f"has {name}, which belongs to the run of one video: start(layout, budget) returns that, a class "
                f"derived from {BASE}.Run"
            )
    yield from _signatures(cls, OF_A_COMPRESSOR)


class _Place:
    """A class with its place, which is looked up in its source for a message alone: that takes 20 ms a run."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __str__(self) -> str:
        return f"{self.cls.__name__} ({place_of(self.cls)})"


def _of_run(run: Any, name: str) -> Iterator[str]:
    if not isinstance(run, Run):
        result = "None; is a return missing" if run is None else f"a {type(run).__name__}"
        if isinstance(run, type) and issubclass(run, Run):
            result = f"the class {run.__name__} and not one of it; are its brackets missing"
        yield (
            f"{name}.start returned {result}{'?' if 'missing' in result else ';'} It returns the run of one video: an "
            f"instance of a class derived from {BASE}.Run"
        )
        return
    cls, places = type(run), run.places
    where = _Place(cls)
    acts = [act for act in OF_A_RUN if getattr(cls, act) is not getattr(Run, act)]
    if places is Run.places and acts:
        yield (
            f"{where} has {acts[0]}, but its places are not said, so that it is never asked: write "
            f"places = Places({ANNOUNCED[acts[0]]}) into the class"
        )
    if not isinstance(places, Places):
        yield f"places of {where} is a {type(places).__name__}; write Places({ANNOUNCED['at_input']}) or the like"
        return
    for kind in ("before", "between", "attention", "reads", "decoding", "watched"):
        value: Any = getattr(places, kind)
        if not hasattr(value, "__iter__") or any(type(layer) is not int for layer in value):
            yield f"Places({kind}={value!r}) of {where} is no set of layers; write {kind}=frozenset({{2}})"
            return
    places_of = {"at_input": places.input, "before_layer": places.before, "between": places.between}
    places_of["at_token"] = places.decoding
    for act, announced in places_of.items():
        if announced and act not in acts:
            yield f"{where} announces {act} in its places and lacks it; write def {act}(self, {OF_A_RUN[act]})"
    # That of the coming layer is there before the layer runs.
    coming = getattr(places.queries, "coming", False)
    unread = [
        layer
        for layer in sorted(places.attention)
        if not any(at > layer or (coming and at == layer) for at in places.before)
        and not any(at >= layer for at in places.between)
    ]
    if unread:
        last = max([*places.before, *places.between], default=None)
        yield (
            f"{where} reads the attention of layer {unread[0]} and acts at no place after it"
            + (f": its last place is at layer {last}" if last is not None else "")
            + "; read that of an earlier layer, or act later"
        )
    yield from _signatures(cls, OF_A_RUN)


def _signatures(cls: type, called: dict[str, str]) -> Iterator[str]:
    for name, arguments in called.items():
        function = inspect.getattr_static(cls, name, None)
        if not isinstance(function, FunctionType) or function.__module__.partition(".")[0] == OURS:
            continue
        count = len(arguments.split(", "))
        try:
            inspect.signature(function).bind(None, *[None] * count)
        except TypeError:
            parameters = ", ".join(inspect.signature(function).parameters)
            yield (
                f"{cls.__name__}.{name} ({place_of(function)}) takes ({parameters}) and is called with more or less: "
                f"write def {name}(self, {arguments})"
            )
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            yield f"{cls.__name__}.{name} ({place_of(function)}) must return its result: it has yield or async"


def is_compressor(thing: Any) -> bool:
    """Whether something is a class of compressors whose parameters are its fields."""
    # Arguments of an __init__ of its own would be no fields: they could not be set, nor make another arm.
    return (
        isinstance(thing, type)
        and issubclass(thing, Compressor)
        and is_dataclass(thing)
        and ("__dataclass_params__" in vars(thing) or "__init__" not in vars(thing))
    )


def of_import(error: BaseException) -> str:
    """What to write where a module of the user's cannot be imported, if Python's own words do not say it."""
    message = str(error)
    if re.search(r"cannot inherit (non-frozen|frozen) dataclass from a (frozen|non-frozen)", message):
        return "; write @dataclass(frozen=True) above the class"
    if "mutable default" in message:
        return "; a parameter is a plain value: a number, a text, or a tuple of them"
    if "non-default argument" in message:
        return "; give it a default, or write it above those that have one"
    return ""
