"""What belongs to the whole process and not to one method: read before its code runs, compared and put back after.

An answer must depend on its sample alone. A method that leaves a default dtype, a random state or a working folder
changed would answer for every method after it.
"""

from __future__ import annotations

import ctypes
import gc
import operator
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils import _python_dispatch as dispatch


@dataclass(frozen=True)
class Setting:
    """One thing that code can change for everybody.

    Attributes:
        name: its name in a message.
        read: its value, comparable by ``==``.
        write: puts a value back.
        hint: how a method does without changing it.
        silent: which change, from one value to another, is put back without a word: what an import in a method may do.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    hint: str = ""
    silent: Callable[[Any, Any], bool] = lambda before, after: False


def read(settings: Sequence[Setting]) -> list[Any]:
    """The values of some settings."""
    return [setting.read() for setting in settings]


def put_back(settings: Sequence[Setting], before: list[Any]) -> list[str]:
    """Put back what differs from an earlier :func:`read`; returns a phrase on each change that is not silent."""
    changed = []
    for setting, value in zip(settings, before, strict=True):
        found = setting.read()
        if found != value:
            setting.write(value)
            if not setting.silent(value, found):
                changed.append(setting.name + _values(value, found) + setting.hint)
    return changed


def _values(before: Any, after: Any) -> str:
    shown = f" ({before!r} became {after!r})"
    return shown if isinstance(before, _SHORT) and len(shown) < 120 else ""


_SHORT = (bool, int, str, torch.dtype)


# Torch ---------------------------------------------------------------------------------------------------------


_GUARDS: list[Any] = []
"""Each is the state of a thread while it lives: one that went would bring back the mode that was wrong."""


def _write_inference_mode(value: bool) -> None:
    _GUARDS.append(torch.inference_mode(value))
    _GUARDS[-1].__enter__()


def _default_device() -> Any:
    # ``torch.get_default_device`` cannot tell the CPU from no default at all.
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)


def _write_default_device(value: Any) -> None:
    torch._GLOBAL_DEVICE_CONTEXT.device_context = value


def _write_function_modes(value: list[Any]) -> None:
    while _get_current_function_mode_stack():
        _pop_mode()
    for mode in value:
        _push_mode(mode)


def _write_dispatch_modes(value: list[Any]) -> None:
    while dispatch._get_current_dispatch_mode_stack():
        dispatch._pop_mode()
    for mode in value:
        dispatch._push_mode(mode)


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


_PRECISIONS = (
    ("generic", "all"),
    ("cuda", "matmul"),
    ("cuda", "conv"),
    ("cuda", "rnn"),
    ("mkldnn", "matmul"),
)


def _matmul_precision() -> tuple[Any, ...]:
    try:
        plain: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:
        # torch refuses to say where its old and its new way of setting it contradict each other.
        plain = None
    each = getattr(torch._C, "_get_fp32_precision_getter", None)
    return (plain, *(each(*which) for which in _PRECISIONS)) if each else (plain,)


def _write_matmul_precision(value: tuple[Any, ...]) -> None:
    plain, *each = value
    if plain is not None:
        torch.set_float32_matmul_precision(plain)
    for which, precision in zip(_PRECISIONS, each, strict=False):
        torch._C._set_fp32_precision_setter(*which, precision)


def _autocast() -> tuple[Any, ...]:
    kinds = ["cpu", *_accelerators()]
    each = tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds)
    return (*each, torch.is_autocast_cache_enabled())


def _write_autocast(value: tuple[Any, ...]) -> None:
    *each, cache = value
    for kind, enabled, dtype in each:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
    torch.set_autocast_cache_enabled(cache)


def _accelerators() -> list[str]:
    found = torch.accelerator.current_accelerator()
    return [] if found is None else [found.type]


def _flag(path: str) -> Setting:
    """A flag that is an attribute somewhere in torch."""
    parent, _, name = path.rpartition(".")
    owner = operator.attrgetter(parent)(torch)
    return Setting(f"torch.{path}", lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _attention_kernel(name: str) -> Setting:
    """Whether ``scaled_dot_product_attention`` may use one of its kernels."""
    kernels: Any = torch.backends.cuda
    reader, writer = getattr(kernels, f"{name}_sdp_enabled"), getattr(kernels, f"enable_{name}_sdp")
    return Setting(f"torch.backends.cuda.{name}_sdp_enabled()", reader, writer)


# Random states -------------------------------------------------------------------------------------------------

_DRAW = "; draw from generator_for(layout.sample, self.seed)"


def _torch_random() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _state(value: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)


def _device_random() -> tuple[bytes, ...]:
    module = _device_module()
    return (
        () if module is None else tuple(state.cpu().numpy().tobytes() for state in module.get_rng_state_all())
    )


def _write_device_random(value: tuple[bytes, ...]) -> None:
    module = _device_module()
    # A device that a method was the first to use had no state before.
    if module is not None and value:
        module.set_rng_state_all([_state(state) for state in value])


def _device_module() -> Any:
    """The module of an accelerator that is in use and has random states of its own."""
    for kind in _accelerators():
        module: Any = torch.get_device_module(kind)
        if hasattr(module, "get_rng_state_all") and getattr(module, "is_initialized", lambda: True)():
            return module
    return None


_RANDOM: Any = np.random
"""Its type stubs leave the bit generator out."""


def _numpy_random() -> tuple[Any, ...]:
    generator = _RANDOM.get_bit_generator()
    if not isinstance(generator, np.random.MT19937):
        return _full_numpy_random()
    # numpy takes 0.1 ms to say the state: only where the generator's memory (624 words and a position) has changed.
    held = ctypes.string_at(generator.ctypes.state_address, 625 * 4)
    return _numpy_random_of(held)


@lru_cache(maxsize=4)
def _numpy_random_of(held: bytes) -> tuple[Any, ...]:
    return _full_numpy_random()


def _full_numpy_random() -> tuple[Any, ...]:
    state = np.random.get_state(legacy=False)
    inner = {name: _bytes(value) for name, value in state["state"].items()}
    return (state["bit_generator"], inner, state["has_gauss"], state["gauss"])


def _bytes(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray) else value


def _write_numpy_random(value: tuple[Any, ...]) -> None:
    kind, inner, has_gauss, gauss = value
    if _RANDOM.get_bit_generator().state["bit_generator"] != kind:
        _RANDOM.set_bit_generator(getattr(np.random, kind)())
    words = {
        name: np.frombuffer(part, dtype=np.uint32) if isinstance(part, bytes) else part
        for name, part in inner.items()
    }
    np.random.set_state({"bit_generator": kind, "state": words, "has_gauss": has_gauss, "gauss": gauss})


# The process ---------------------------------------------------------------------------------------------------


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _write_folder(value: str) -> None:
    if value:
        os.chdir(value)


def _environment() -> dict[bytes, bytes]:
    # As it is kept: to decode each variable takes forty times as long, before and after every call of a method.
    return dict(vars(os.environ)["_data"])


def _write_environment(value: dict[bytes, bytes]) -> None:
    for name in os.environb.keys() - value.keys():
        del os.environb[name]
    os.environb.update(value)


def _only_more(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> bool:
    return before.items() <= after.items()


def _any(before: Any, after: Any) -> bool:
    return True


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in _SIGNALS}


def _write_handlers(value: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in value.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]


def _write_list(target: Any) -> Callable[[list[Any]], None]:
    def write(value: list[Any]) -> None:
        target[:] = value

    return write


TORCH: tuple[Setting, ...] = (
    Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    # Before the modes, one of which it puts up.
    Setting("torch's default device", _default_device, _write_default_device),
    Setting("the stack of torch function modes", _get_current_function_mode_stack, _write_function_modes),
    Setting(
        "the stack of torch dispatch modes", dispatch._get_current_dispatch_mode_stack, _write_dispatch_modes
    ),
    Setting("inference mode", torch.is_inference_mode_enabled, _write_inference_mode),
    Setting("grad mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
    Setting("autocast", _autocast, _write_autocast),
    Setting("the number of torch's threads", torch.get_num_threads, torch.set_num_threads),
    Setting(
        "torch's deterministic algorithms",
        _deterministic,
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    _flag("utils.deterministic.fill_uninitialized_memory"),
    Setting("torch's precision of float32 products", _matmul_precision, _write_matmul_precision),
    _flag("backends.cuda.matmul.allow_fp16_reduced_precision_reduction"),
    _flag("backends.cuda.matmul.allow_bf16_reduced_precision_reduction"),
    _flag("backends.cudnn.enabled"),
    _flag("backends.cudnn.benchmark"),
    _flag("backends.cudnn.deterministic"),
    _flag("backends.mkldnn.enabled"),
    *(_attention_kernel(name) for name in ("flash", "mem_efficient", "math", "cudnn")),
)
"""How torch computes, in the order in which it is put back."""
EVERYTHING: tuple[Setting, ...] = (
    *TORCH,
    Setting("torch's random state", _torch_random, lambda value: torch.set_rng_state(_state(value)), _DRAW),
    Setting("the device's random state", _device_random, _write_device_random, _DRAW),
    Setting("numpy's random state", _numpy_random, _write_numpy_random, _DRAW),
    Setting("Python's random state", random.getstate, random.setstate, _DRAW),
    Setting("numpy's handling of errors", np.geterr, lambda value: np.seterr(**value)),
    Setting("the working folder", _folder, _write_folder),
    Setting("an environment variable", _environment, _write_environment, silent=_only_more),
    Setting("a signal's handler", _handlers, _write_handlers),
    Setting("Python's garbage collector", gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
    Setting(
        "the filters of warnings", lambda: list(warnings.filters), _write_list(warnings.filters), silent=_any
    ),
    Setting("sys.path", lambda: list(sys.path), _write_list(sys.path), silent=_any),
)
"""How torch computes, what random numbers come next, and what code finds around it."""
