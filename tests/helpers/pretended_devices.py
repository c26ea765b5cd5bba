"""Tensors on the CPU that say they lie on another device, and refuse to meet one of a third: several devices, tried
on a machine without any.

``with pretended():`` a tensor or module comes to a device with ``.to("meta:1")``, since torch looks for no driver of
that kind, and every operation runs on the CPU; one whose tensors lie on different devices raises, as it would on
accelerators. Exempt is what is exempt there: tensors without dimensions on the CPU, and indices on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CPU = torch.device("cpu")
MOVING = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class Pretended(torch.Tensor):
    """A tensor with its values on the CPU and another device's name."""

    @staticmethod
    def __new__(cls, real: torch.Tensor, device: torch.device):
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), dtype=real.dtype, device=device
        )
        made.held = real
        return made

    def __repr__(self) -> str:
        return f"Pretended({self.held}, {self.device})"

    def tolist(self) -> list:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


@contextmanager
def pretended() -> Iterator[None]:
    """Within it, new tensors may be made on devices that are not there."""
    # ``torch.tensor(values, device=...)`` then makes a CPU tensor first and moves it where this mode sees it.
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Factories():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def _real(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


def _run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    wanted = kwargs.get("device")
    device = torch.device(wanted) if wanted is not None else _meeting(func, given)
    kwargs = {key: CPU if key == "device" else value for key, value in kwargs.items()}
    output = func(*tree_map(_real, args), **tree_map(_real, kwargs))
    if func in (torch.ops.aten._local_scalar_dense.default,):
        return output
    # In-place operations give back the tensor that they were given.
    if func._schema.is_mutable and given and isinstance(args[0], torch.Tensor):
        return args[0]
    return tree_map(
        lambda value: (
            Pretended(value, device)
            if isinstance(value, torch.Tensor) and not isinstance(value, Pretended) and device != CPU
            else value
        ),
        output,
    )


def _meeting(func: Any, given: list[torch.Tensor]) -> torch.device:
    """The one device that the tensors lie on."""
    if func in MOVING:
        return given[0].device
    if func in INDEXING:
        given = [given[0], *(value for value in given[1:] if value.device != CPU)]
    devices = {value.device for value in given if value.ndim or value.device != CPU}
    if len(devices) > 1:
        raise RuntimeError(f"{func} on tensors of {sorted(map(str, devices))}")
    return next(iter(devices), CPU)
