"""What becomes of a sample that fails: out of memory, caches are freed and it is tried once more; any other error is
recorded.

A failed sample is a line of its own with the reason; nothing is scored for it. Which samples are asked, and when a run
gives up, is decided elsewhere.
"""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from stsimdiff.errors import first_line
from stsimdiff.evaluate.questions import Question
from stsimdiff.source import own_frame

log = logging.getLogger(__name__)

T = TypeVar("T")

SAID_BY_ALLOCATORS = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")
"""How allocators say that memory ran out where they raise a plain ``RuntimeError`` (CPU, cuBLAS, MPS, the driver)."""


def identity(question: Question) -> dict[str, Any]:
    """The first fields of a stored line: whose sample it is, and the short columns of its row."""
    about = {"id": question.id, "video": question.video_name, "category": question.category}
    return about | ({"columns": dict(question.columns)} if question.columns else {})


def failure(question: Question, error: BaseException) -> dict[str, Any]:
    """The stored line of a sample that has no answer, with where in the user's own code it arose; nothing is scored."""
    details = "".join(traceback.format_exception(error))
    return {
        **identity(question),
        "answer": None,
        "parsed": None,
        "correct": None,
        "error": {
            "type": type(error).__name__,
            "message": str(error),
            "where": own_frame(error),
            "traceback": details,
        },
    }


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory of the host or of a device ran out, said by the error itself or by what caused it."""
    if error is None:
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(error).lower()
    if isinstance(error, RuntimeError) and any(words in message for words in SAID_BY_ALLOCATORS):
        return True
    return is_out_of_memory(error.__cause__)


def once_more(attempt: Callable[[], T], free: Callable[[], None]) -> T:
    """What ``attempt`` returns; where it runs out of memory, what can be freed is freed and it is called again.

    Args:
        attempt: may raise anything; only out-of-memory is tried again, and only once.
        free: gives back what the caller holds and can do without.
    """
    try:
        return attempt()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("out of memory (%s); freeing caches and trying once more", first_line(error))
        # The frames of the failed attempt hold its tensors.
        traceback.clear_frames(error.__traceback__)
    free()
    free_memory()
    return attempt()


def free_memory() -> None:
    """Collect what nothing refers to, and give the device's cached blocks back."""
    gc.collect()
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        torch.get_device_module(device).empty_cache()
