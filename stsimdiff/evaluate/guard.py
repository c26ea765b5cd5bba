"""After each sample the model and the process are as they were before; what a method left is put back and named.

The engine's own hooks are gone by then. The weights of a model cannot be put back: a run that finds them changed ends.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import random
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from enum import Enum
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stsimdiff.compressors.base import Compressor
from stsimdiff.engine import lent, process_state
from stsimdiff.engine.process_state import Setting
from stsimdiff.errors import MethodFault
from stsimdiff.models.base import Family
from stsimdiff.terminal import say

OF_A_SAMPLE = ("rope_deltas", "inv_freq", "max_seq_len_cached")
"""Attributes that stock modules change as they run: each prefill sets them anew."""
SAMPLED = 16
"""Values of each weight that are compared, evenly spaced: writes through ``.data`` count no version."""
PATIENCE = 0.2
"""Seconds that a thread gets to end by itself once the sample has its answer."""


CALLED = (
    "torch", "torch.nn.functional", "torch._tensor", "transformers.cache_utils", "stsimdiff.budget",
    "stsimdiff.engine.attention", "stsimdiff.engine.compression", "stsimdiff.engine.lent",
    "stsimdiff.engine.prefix", "stsimdiff.engine.slicing", "stsimdiff.tokens", "stsimdiff.trace",
)  # fmt: skip
"""Modules that every answer runs through, beside those of the model's classes."""


class WeightsChanged(MethodFault):
    """A method changed weights or the vocabulary, which nothing can put back: no later answer would be right."""


class Guard:
    """``with guard.sample(compressor): ...`` around one sample.

    Args:
        family: the loaded model, whose modules are listed once.
    """

    def __init__(self, family: Family) -> None:
        self.tokenizer = family.processor and family.tokenizer
        # Of some families the tokenizer is the whole processor: put back under one name, it is as before under both.
        speakers = {"tokenizer": self.tokenizer, "processor": family.processor}
        self.settings = (*process_state.EVERYTHING, *_speaking(speakers))
        roots = {"model": family.model}
        roots |= {name: value for name, value in vars(family).items() if isinstance(value, nn.Module)}
        self.modules: dict[int, tuple[str, nn.Module]] = {}
        for root, value in roots.items():
            for path, module in value.named_modules(prefix=root):
                self.modules.setdefault(id(module), (path, module))
        self.refresh()

    def _list(self) -> None:
        """What is watched: namespaces by label, and the weights."""
        self.spaces: list[tuple[str, Any, Any]] = []
        seen: set[int] = set()

        def add(label: str, space: Any, owner: Any = None) -> None:
            if id(owner if owner is not None else space) not in seen:
                seen.add(id(owner if owner is not None else space))
                self.spaces.append((label, space, owner))

        classes: dict[type, None] = {}
        for path, module in self.modules.values():
            add(path, module.__dict__)
            for name, value in module.__dict__.items():
                # Where accelerate brings a module's weights and takes them away again, they are others each time.
                brought = "_hf_hook" in module.__dict__ and name in ("_parameters", "_buffers")
                if isinstance(value, MutableMapping) and not brought:
                    add(f"{path}.{name}", value)
            for name in ("config", "generation_config"):
                if hasattr(module.__dict__.get(name), "__dict__"):
                    add(f"{path}.{name}", module.__dict__[name].__dict__)
            classes.update(dict.fromkeys(type(module).__mro__[:-1]))
        for cls in classes:
            add(cls.__name__, cls.__dict__, cls)
        for name in {cls.__module__ for cls in classes}.union(CALLED):
            if name in sys.modules:
                add(name, vars(sys.modules[name]), sys.modules[name])
        for name, value in vars(torch_module).items():
            if name.startswith("_global") and isinstance(value, MutableMapping):
                add(f"torch.nn.modules.module.{name}", value)
        for name in ("_local_mapping", "_global_mapping"):
            add(f"ALL_ATTENTION_FUNCTIONS.{name}", getattr(ALL_ATTENTION_FUNCTIONS, name))
        self._maps = [space for _, space, _ in self.spaces]
        self._weights = [
            weight
            for _, module in self.modules.values()
            if "_hf_hook" not in module.__dict__
            for name, weight in chain(module._parameters.items(), module._buffers.items())
            if weight is not None and weight.device.type != "meta" and not _of_a_sample(module, name)
        ]
        self._counted = [weight for weight in self._weights if not weight.is_inference()]
        # Views, made once: what is written into a weight is seen in them.
        self._views: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        self._arrays: dict[torch.dtype, list[np.ndarray]] = {}
        for weight in self._weights:
            detached = weight.detach()
            flat = detached.view(-1) if weight.is_contiguous() else detached[:1].reshape(-1)
            view = flat[:: max(1, len(flat) // SAMPLED)]
            kind = lent.INTEGERS.get(weight.element_size())
            if weight.device.type == "cpu" and kind:
                # numpy joins spaced values five times as fast, after each sample.
                self._arrays.setdefault(kind, []).append(view.view(kind).numpy())
            else:
                self._views.setdefault((weight.device, weight.dtype), []).append(view)

    def catch_up(self) -> None:
        """Take for right what code that is no method's has changed, such as encoding; quick where that is nothing."""
        if not self._as_held() or self._weights_changed():
            self.refresh()

    def refresh(self) -> None:
        """Take what is there now for what belongs there."""
        self._list()
        self._held = [dict(space) for space in self._maps]
        # Most are the empty tables of hooks.
        self._empty = [space for space in self._maps if not space]
        self._full = [space.values() for space in self._maps if space]
        self._flat = list(chain.from_iterable(self._full))
        self._passing = [
            (space, name, space[name]) for space in self._maps for name in OF_A_SAMPLE if name in space
        ]
        self._weighed = self._weigh()

    def forget_sample(self) -> None:
        """Put back what stock modules change as they run."""
        for space, name, value in self._passing:
            space[name] = value

    # Namespaces ------------------------------------------------------------------------------------------------

    def _as_held(self) -> bool:
        """Whether all namespaces are as they were, once what passes with a sample is put back."""
        self.forget_sample()
        if any(self._empty):
            return False
        try:
            # Lists compare by identity first, five times as fast as one by one: thousands of values after each sample.
            return list(chain.from_iterable(self._full)) == self._flat
        except Exception:
            # Something was replaced by what cannot be compared, such as a tensor.
            return False

    def _put_back(self) -> list[str]:
        if self._as_held():
            return []
        changed = []
        for (label, space, owner), held in zip(self.spaces, self._held, strict=True):
            names = [name for name in held if name not in space or space[name] is not held[name]]
            # Modules of Python gain names as they load their parts.
            more = [] if isinstance(owner, type(sys)) else [name for name in space if name not in held]
            for name in dict.fromkeys([*names, *more]):
                if name not in OF_A_SAMPLE:
                    changed.append(_phrase(label, name, added=name not in held))
                if owner is not None:
                    setattr(owner, name, held[name]) if name in held else delattr(owner, name)
                elif name in held:
                    space[name] = held[name]
                else:
                    del space[name]
        self.refresh()
        return changed

    # Weights ---------------------------------------------------------------------------------------------------

    def _weigh(self) -> tuple[list[int], list[int], list[Tensor]]:
        """Versions and addresses of the weights, and some of their values."""
        versions = [weight._version for weight in self._counted]
        addresses = [weight.data_ptr() for weight in self._weights]
        values = [torch.cat(views) for views in self._views.values()]
        values += [torch.from_numpy(np.concatenate(arrays)) for arrays in self._arrays.values()]
        return versions, addresses, values

    def _weights_changed(self) -> bool:
        versions, addresses, values = self._weigh()
        before = self._weighed
        return [versions, addresses] != [*before[:2]] or not all(map(lent.same, values, before[2]))

    def _tokens(self) -> int:
        return 0 if self.tokenizer is None else len(self.tokenizer)

    @contextmanager
    def sample(self, compressor: Compressor, **given: Any) -> Iterator[None]:
        """Watch over one sample of a method.

        Args:
            compressor: the method.
            given: what other methods are asked with too, such as the prompt and the encoded video, by its name in a
                message; its tensors must stay as they are.

        Raises:
            WeightsChanged: when the method changed weights; the model is of no use any more.
            MethodFault: when it changed anything else; that is put back.
        """
        name = type(compressor).__name__
        process, tokens = process_state.read(self.settings), self._tokens()
        threads, kept = set(threading.enumerate()), state_of(compressor)
        held = _held(given)
        failed: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failed = error
            raise
        finally:
            faults = [f"changed {what}" for what in process_state.put_back(self.settings, process)]
            # Before the namespaces, which refresh what is known of the weights.
            spoiled = "weights of the model" if self._weights_changed() else ""
            if self._tokens() != tokens:
                spoiled = spoiled or "the tokenizer's vocabulary"
            faults += self._put_back()
            faults += [f"wrote into {path}" for path in _given_back(held)]
            faults += [f"left the thread {thread.name!r} running; end it" for thread in _left(threads)]
            now = state_of(compressor)
            differ = [what for what in kept if now.get(what) != kept[what]]
            differ += [what for what in now if what not in kept]
            faults += [
                f"changed {what}: what one video needs lies in its run, and a table that is the same for all in "
                "functools.cache"
                for what in differ
            ]
            if isinstance(failed, KeyboardInterrupt):
                faults, spoiled = [], ""  # the run ends anyway
            if spoiled:
                raise WeightsChanged(
                    f"{name} changed {spoiled}, which cannot be put back: the run ends here, and what it "
                    "stored before this sample is right; leave this method out and start the same command again"
                ) from failed
            if faults and (failed is None or not isinstance(failed, MethodFault)):
                message = f"{name} {'; '.join(faults)}. The model and the process were put back as they were"
                raise MethodFault(f"{message}; it had failed: {failed}" if failed else message) from failed


def _of_a_sample(module: nn.Module, name: str) -> bool:
    """Whether the stock module itself writes into this buffer as it runs: of frequencies only those of ``longrope``."""
    return name in OF_A_SAMPLE and (name != "inv_freq" or "longrope" in str(getattr(module, "rope_type", "")))


def _phrase(label: str, name: Any, *, added: bool) -> str:
    if "hooks" in label:
        what = "left a hook on" if added else "took a hook off"
        path, _, kind = label.rpartition(".")
        return f"{what} {path} ({kind.lstrip('_')})"
    return f"{'added' if added else 'replaced'} {label}.{name}"


# What other methods are asked with too -------------------------------------------------------------------------


_LEAVES = (int, float, str, type(None))
"""What holds no tensor, and is most of what is there."""


def _held(given: Mapping[str, Any]) -> list[tuple[str, Tensor, Tensor]]:
    """Name, tensor and copy of every tensor in there; of two views of the same memory one is enough."""
    found = {(tensor.data_ptr(), tensor.shape): (path, tensor) for path, tensor in _tensors("", given)}
    return [(path, tensor, tensor.clone()) for path, tensor in found.values()]


def _tensors(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    if isinstance(value, Mapping):
        parts: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    elif dataclasses.is_dataclass(value):
        parts = vars(value).items()
    else:
        return
    for name, part in parts:
        if not isinstance(part, _LEAVES):
            yield from _tensors(f"{path}.{name}" if path else str(name), part)


def _given_back(held: list[tuple[str, Tensor, Tensor]]) -> list[str]:
    """Names of the tensors that differ from their copies; they are put back."""
    written = []
    for path, tensor, copy in held:
        if not lent.same(tensor, copy):
            written.append(path)
            with torch.inference_mode():
                tensor.copy_(copy) if tensor.shape == copy.shape else tensor.set_(copy)
    return written


# What turns questions into ids and ids into text ---------------------------------------------------------------


def _speaking(speakers: Mapping[str, Any]) -> Iterator[Setting]:
    """The plain settings of processor and tokenizer, such as the chat template."""
    for label, owner in speakers.items():
        for name, value in vars(owner).items() if owner is not None else ():
            # Which warnings were given is no setting.
            if name != "deprecation_warnings" and isinstance(value, (str, int, float, dict, type(None))):
                held = vars(owner)
                yield Setting(f"{label}.{name}", partial(_plain, held, name), partial(held.__setitem__, name))


def _plain(held: Mapping[str, Any], name: str) -> Any:
    value = held.get(name)
    return dict(value) if isinstance(value, dict) else value


# What a compressor keeps ---------------------------------------------------------------------------------------


def state_of(compressor: Compressor) -> dict[str, Any]:
    """What an instance, its classes and their modules hold, by name, comparable: parameters, and nothing that grows."""
    held = {f"self.{name}": _mark(value) for name, value in vars(compressor).items()}
    for cls in type(compressor).__mro__[:-1]:
        if cls.__module__.partition(".")[0] in ("stsimdiff", "abc"):
            continue
        own = {f"{cls.__name__}.{name}": value for name, value in vars(cls).items()}
        own |= {
            f"{cls.__module__}.{name}": value for name, value in vars(sys.modules[cls.__module__]).items()
        }
        held |= {
            name: _mark(value) for name, value in own.items() if _is_data(name.rpartition(".")[2], value)
        }
    return held


def changed_state(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what differs between two of :func:`state_of`."""
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _is_data(name: str, value: Any) -> bool:
    """Whether a value can be what an earlier sample left. A flag may say that a warning was given."""
    data = (int, float, str, bytes, dict, list, set, tuple, Tensor, np.ndarray, *_GENERATORS)
    return not name.startswith("__") and isinstance(value, data) and not isinstance(value, (bool, Enum))


_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def _mark(value: Any, depth: int = 3) -> Any:
    if isinstance(value, Tensor):
        return ("tensor", id(value), None if value.is_inference() else value._version)
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.tobytes() if value.nbytes < 2**16 else id(value))
    if isinstance(value, torch.Generator):
        return value.get_state().cpu().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, dict) and depth:
        return [(repr(key), _mark(inner, depth - 1)) for key, inner in value.items()]
    if isinstance(value, (list, tuple)) and depth:
        return [_mark(inner, depth - 1) for inner in value]
    if isinstance(value, (int, float, str, bytes, bool, type(None), Enum)):
        return value
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    return id(value)


# Threads -------------------------------------------------------------------------------------------------------

_LEFT: list[threading.Thread] = []


def _left(before: set[threading.Thread]) -> list[threading.Thread]:
    """Threads that were started since and that the end of the process would wait for."""
    new = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in new:
        thread.join(PATIENCE)
    alive = [thread for thread in new if thread.is_alive()]
    _LEFT.extend(alive)
    return alive


def _end() -> None:
    """End the process where a thread that a method left would keep it from ending; its sample is a failure."""
    alive = [thread.name for thread in _LEFT if thread.is_alive()]
    if not alive:
        return
    say(f"ended with the threads {alive} still running, which a method left", error=True)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


# Before the interpreter waits for its threads; functions of ``atexit`` come after that.
threading._register_atexit(_end)  # type: ignore[attr-defined]
