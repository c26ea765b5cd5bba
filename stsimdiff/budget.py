"""What "retention 30 %" means: two kinds of budget, solved for each method and checked after the fact.

``tokens``  the video tokens left after the method's last drop, over N.
``compute`` the mean over the decoder's layers of the video tokens that enter each, over N; the released
            ST-SimDiff and FrameFusion call it ``cost``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from stsimdiff import schema
from stsimdiff.errors import BudgetError, ConfigError

Kind = Literal["tokens", "compute"]
KINDS = get_args(Kind)
TOLERANCE = 0.02
"""Relative miss of a cell's mean retention from which the cell is marked (docs/design.md)."""


@dataclass(frozen=True)
class Budget:
    """A retention and what it counts.

    Attributes:
        kind: ``tokens`` or ``compute``.
        retention: share in (0, 1].

    Raises:
        ConfigError: for an unknown kind or a retention outside (0, 1].
    """

    kind: Kind = "tokens"
    retention: Annotated[float, Field(gt=0, le=1, examples=[0.3])] = 1.0

    def __post_init__(self) -> None:
        try:
            schema.settle(self, "budget")
        except ConfigError as error:
            raise ConfigError(f"{error}{_share(self.retention)}") from None

    def keep(self, tokens: int, layers: int, entering: Sequence[int] = ()) -> int:
        """Video tokens to keep from here on, so that the budget is met.

        Args:
            tokens: N, video tokens of the whole video.
            layers: decoder layers L.
            entering: video tokens that entered the layers before the drop (empty for a drop before layer 0).

        Returns:
            A count in ``[1, N]``, rounded half up.

        Raises:
            BudgetError: ``compute`` only, when the layers before the drop have used the budget up.
        """
        if self.kind == "tokens":
            share = self.retention * tokens
        else:
            left = self.retention * tokens * layers - sum(entering)
            rest = layers - len(entering)
            if rest <= 0 or left < rest * 0.5:
                raise BudgetError(
                    f"budget.retention={self.retention:g} of kind compute cannot be met: {len(entering)} of {layers} "
                    f"layers have already used {sum(entering) / (tokens * layers):.3f}; drop earlier, allow more, or "
                    "use budget.kind=tokens"
                )
            share = left / rest
        return max(1, min(tokens, math.floor(share + 0.5)))


def share_for(used: Callable[[float], float], wanted: float) -> float:
    """The share in (0, 1) at which ``used``, which grows with it, reaches ``wanted``, to rounding; by bisection."""
    low, high, share = 0.0, 1.0, 0.5
    for _ in range(50):
        share = (low + high) / 2
        low, high = (share, high) if used(share) < wanted else (low, share)
    return share


def _share(value: object) -> str:
    """What to write for a percentage, where the value may be one."""
    try:
        percent = float(str(value).rstrip("% "))
    except ValueError:
        return ""
    return f"; {percent:g} % is {percent / 100:g}" if 1 < percent <= 100 else ""


def achieved(tokens: int, entering: Sequence[int], final: int) -> dict[str, float]:
    """Both kinds of retention that a trace achieved.

    Args:
        tokens: N.
        entering: video tokens entering each decoder layer, length L.
        final: video tokens left after the last drop.
    """
    return {"tokens": final / tokens, "compute": sum(entering) / (tokens * len(entering))}


def missed(budget: Budget, mean_achieved: float) -> bool:
    """Whether a cell's mean retention is off by more than 2 % (relative) from the budget."""
    return abs(mean_achieved - budget.retention) > TOLERANCE * budget.retention
