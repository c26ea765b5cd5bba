"""What a method is given is lent: copies of its own, which it may read and must not write into.

Whatever it does to them reaches neither the hidden states it goes on with nor another method, and a change is an error
that names the method and what it changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff.budget import Budget
from stsimdiff.compressors import mistakes
from stsimdiff.compressors.base import Compressor, Hidden, Run, WrappedRun
from stsimdiff.engine import process_state
from stsimdiff.errors import ConfigError, MethodFault
from stsimdiff.tokens import Layout, Selection, VideoTokens
from stsimdiff.video import Frames

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a value: the dtype in which its bits can be compared."""


def start(
    compressor: Compressor,
    layout: Layout,
    budget: Budget,
    *,
    frames: Frames | None = None,
    memory: dict[str, Any] | None = None,
) -> Run:
    """The run of one video, with a layout of its own; its calls are watched.

    Args:
        compressor: the method. Only one that says ``needs_vision`` gets the vision tower's signals.
        layout, budget: of the sample; they stay as they are, whatever the method does.
        frames: of the video, for a method that says ``needs_frames`` where the layout has none.
        memory: of a method that ``remembers``, and this video; an empty one if not given.

    Raises:
        ConfigError: where the method needs frames and nobody has them.
        MethodFault: when the method writes into what it is given, or changes how torch computes.
    """
    name = type(compressor).__name__
    if layout.vision is not None and not compressor.needs_vision:
        layout = dataclasses.replace(layout, vision=None)
    if not compressor.needs_frames:
        layout = dataclasses.replace(layout, frames=None, seconds=())
    elif frames is not None:
        layout = dataclasses.replace(layout, frames=torch.tensor(frames.pixels), seconds=frames.times)
    elif layout.frames is None:
        raise ConfigError(
            f"{name} reads the video's frames (needs_frames), which are not known here: a stock model's inputs hold "
            "pixels of the processor's alone; load() and a run give them"
        )
    layout = dataclasses.replace(
        layout, memory=({} if memory is None else memory) if compressor.remembers else None
    )
    lent = copy(layout), copy(budget)
    run = _watched(
        name, "start", {"layout": (lent[0], layout), "budget": (lent[1], budget)}, compressor.start, *lent
    )
    mistakes.check_run(run, name)
    return LentRun(run, lent[0], layout, name, compressor.positions, compressor.reasons)


class LentRun(WrappedRun):
    """A run that gets copies, and is looked after in each of its calls.

    Args:
        run: the run of one video.
        lent: the layout that it was started with.
        layout: what this layout must stay; where the run was started elsewhere, a copy made before its first call.
        name: of the method.
        positions, reasons: see :class:`~stsimdiff.compressors.base.Compressor`.
    """

    def __init__(
        self,
        run: Run,
        lent: Layout,
        layout: Layout | None = None,
        name: str | None = None,
        positions: str | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(run)
        self._positions = positions or run.positions
        self._reasons = run.reasons if reasons is None else reasons
        self.lent, self.layout = lent, copy(lent) if layout is None else layout
        self.name = name or type(run).__name__

    @classmethod
    def of(cls, run: Run, layout: Layout) -> LentRun:
        """The run itself where it is looked after already."""
        return run if isinstance(run, LentRun) else cls(run, layout)

    @property
    @override
    def positions(self) -> str:  # type: ignore[override]
        return self._positions

    @property
    @override
    def reasons(self) -> Mapping[str, str]:  # type: ignore[override]
        return self._reasons

    @property
    @override
    def input_state(self) -> tuple[str, ...] | None:  # type: ignore[override]
        return self.run.input_state

    @override
    def at_input(self, tokens: VideoTokens) -> Selection | None:
        return self._ask("at its input place", self.run.at_input, tokens)

    @override
    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        return self._ask(f"before layer {layer}", self.run.before_layer, tokens, attention, layer)

    @override
    def between(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        return self._ask(f"inside layer {layer}", self.run.between, tokens, attention, layer)

    @override
    def at_token(self, layer: int, step: int, cached: Tensor, attention: Tensor | None) -> Hidden | None:
        given, seen = copy(cached), copy(attention)
        lent = {
            "cached": (given, cached),
            "attention": (seen, attention),
            "layout": (self.lent, self.layout),
        }
        where = f"before layer {layer} while decoding"
        return _watched(self.name, where, lent, self.run.at_token, layer, step, given, seen)

    def _ask(
        self,
        where: str,
        method: Callable[..., Selection | None],
        tokens: VideoTokens,
        attention: Tensor | None = None,
        *layer: int,
    ) -> Selection | None:
        given, seen = copy(tokens), copy(attention)
        lent = {"tokens": (given, tokens), "attention": (seen, attention), "layout": (self.lent, self.layout)}
        arguments = (*layer, given, seen) if layer else (given,)
        return _watched(self.name, where, lent, method, *arguments)


def copy(value: Any) -> Any:
    """A copy that shares no memory: of tensors, of dataclasses and tuples, and of what is in them."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is tuple:
        return tuple(copy(part) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{field.name: copy(getattr(value, field.name)) for field in dataclasses.fields(value)}
        )
    return value


def _watched(
    name: str, where: str, lent: dict[str, tuple[Any, Any]], call: Callable[..., Any], *arguments: Any
) -> Any:
    """What the call returns; raises :class:`MethodFault` when it changed what was lent, or how torch computes."""
    before = process_state.read(process_state.TORCH)
    try:
        result = call(*arguments)
    except (AttributeError, TypeError) as error:
        layout, attention = lent["layout"][0], lent.get("attention", (None,))[0]
        if said := mistakes.cause_of(error, layout, attention, getattr(call, "__self__", None)):
            raise TypeError(f"{name}, {where}: {said} ({error})") from error
        raise
    finally:
        changed = process_state.put_back(process_state.TORCH, before)
    written = [path for what, (copied, own) in lent.items() for path in _changed(what, copied, own)]
    faults = (
        [f"wrote into {', '.join(written)}: work on a copy, such as {written[0]}.clone()"] if written else []
    )
    faults += [f"changed {what}" for what in changed]
    if faults:
        raise MethodFault(
            f"{name}, {where}, {'; '.join(faults)}. What a method is given, and the process, are not its own"
        )
    return result


def _changed(path: str, lent: Any, own: Any) -> Iterator[str]:
    """Names of what differs in ``lent`` from what it is a copy of; there it is put back."""
    if isinstance(own, Tensor):
        if not (isinstance(lent, Tensor) and same(lent, own)):
            yield path
    elif dataclasses.is_dataclass(own) and type(lent) is type(own):
        for name in vars(own).keys() | vars(lent).keys():
            before, found = getattr(own, name, None), vars(lent).get(name)
            inner = list(_changed(f"{path}.{name}", found, before))
            if inner:
                object.__setattr__(lent, name, copy(before))
            yield from inner
    elif type(own) is tuple and type(lent) is tuple and len(own) == len(lent):
        for number, (found, before) in enumerate(zip(lent, own, strict=True)):
            yield from _changed(f"{path}[{number}]", found, before)
    elif type(lent) is not type(own) or lent != own:
        yield path


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits, NaN included."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    kind = INTEGERS.get(one.element_size())
    if kind is None or not one.is_floating_point():
        return torch.equal(one, other)
    return torch.equal(one.detach().contiguous().view(kind), other.detach().contiguous().view(kind))
