"""The words everything else speaks: a grid of video tokens, the tokens themselves, and a selection among them.

Nothing here knows a model or a compression method.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor


class Reason(IntEnum):
    """Why a token was kept or dropped; overlays and the attribution table are made from these codes.

    Codes from :data:`OWN` on are a method's own, see ``Compressor.reasons``.
    """

    DROPPED = 0
    ALL = 1
    REPRESENTATIVE = 2
    EVENT = 3
    IMPORTANT = 4
    CONTEXTUAL = 5
    UNIFORM = 6
    RANDOM = 7
    UNGROUPED = 8
    MERGED = 9


OWN = 32
"""The first code of a method's own reasons."""


@dataclass(frozen=True)
class Grid:
    """Layout of the video tokens that enter the language model: ``frames x height x width``, raster order.

    A family whose layout ends each row with a newline token counts it as one more column, as the released
    ST-SimDiff and FrameFusion do.
    """

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1:
            raise ValueError(f"a grid needs at least one frame, row and column, got {self}")

    @property
    def per_frame(self) -> int:
        """Tokens of one frame."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """Tokens of the whole video, N."""
        return self.frames * self.per_frame


@dataclass(frozen=True)
class Picture:
    """Where in the frames the tokens of a grid lie; every family looks at whole frames, resized.

    Of the ``per_frame`` tokens of one row in time, token ``y * stride + x`` covers the cell ``(y, x)`` of a raster of
    ``height x width`` over the frame. What is in no cell (the newline column of LLaVA-Video, the tokens that end a
    group of NVILA) is no part of the picture.

    Attributes:
        frames: frames of the video that one row in time stands for; the last row may stand for fewer.
        height: rows of cells.
        width: columns of cells.
        stride: tokens from a cell to the one below it.
    """

    frames: int
    height: int
    width: int
    stride: int

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1 or self.stride < self.width:
            raise ValueError(f"no picture of a frame: {self}")


ROWS = ("last", "all", "text", "after", "question")
JOINS = ("mean", "max", None)


@dataclass(frozen=True)
class Read:
    """Which rows of a layer's attention are read, and how they are joined.

    Attributes:
        rows: of which tokens of the prompt: the ``last`` one, ``all``, those of the ``text``, the text ``after`` the
            video, those of the ``question`` alone (no system prompt, no template), or a number of last ones.
        heads: how the heads of a row are joined: ``mean``, ``max`` or ``None``, not at all.
        over: how rows are joined after that; ``None`` is not for ``all`` rows, which would make an N x N matrix.
        coming: whether it is read before the layer runs, from what enters it, by the layer's own norm, projections and
            rotary embedding: it reaches the place before this very layer. Else it is that of the layer as it runs.
        rotary: whether queries and keys are rotated.
        causal: whether a row sees the tokens up to its own alone. Without ``rotary`` or ``causal`` it is not the
            model's attention, but some methods are defined by it.
    """

    rows: str | int = "last"
    heads: str | None = None
    over: str | None = "mean"
    coming: bool = False
    rotary: bool = True
    causal: bool = True

    def __post_init__(self) -> None:
        number = isinstance(self.rows, int) and not isinstance(self.rows, bool)
        if not (number and int(self.rows) > 0 or self.rows in ROWS):
            raise ValueError(f"Read.rows={self.rows!r} is unknown; allowed: {', '.join(ROWS)}, or 1, 2, ...")
        for name in ("heads", "over"):
            if getattr(self, name) not in JOINS:
                raise ValueError(f"Read.{name}={getattr(self, name)!r} is unknown; allowed: mean, max, None")
        if self.rows == "all" and self.over is None:
            raise ValueError("Read.over=None of all rows would be an N x N matrix; allowed: mean, max")


class View(ABC):
    """What a place shows besides the video tokens, computed when it is asked for, and a copy of the method's own.

    Places in the prompt are those of the whole prompt, as ``layout.video`` has them; a token that was dropped has
    none any more. Layers other than the coming one are those that the method named in ``Places.reads``. What needs no
    attention of a layer that has run needs no name there.
    """

    @abstractmethod
    def states(self, places: Tensor) -> Tensor:
        """``(q, D)`` hidden states, as they enter this place, of the tokens at ``places`` ``(q,)`` int64."""

    @abstractmethod
    def normed(self, states: Tensor) -> Tensor:
        """``states`` ``(..., D)`` through the decoder's final norm."""

    @abstractmethod
    def keys(self, layer: int, places: Tensor | None = None) -> Tensor:
        """``(q, heads, d)`` keys of a layer, rotated, of the tokens at ``places``, or of the video tokens present."""

    @abstractmethod
    def values(self, layer: int, places: Tensor | None = None) -> Tensor:
        """``(q, heads, d)`` values of a layer; arguments as in :meth:`keys`."""

    @abstractmethod
    def attention(self, layer: int, read: Read, places: Tensor | None = None) -> Tensor:
        """Attention to the video tokens present: ``(heads, q, n)`` float32, less what ``read`` joins.

        ``places``: the rows instead of those that ``read.rows`` names, such as some that the method chose.
        """


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    # A sum is finite only if every term is, save for overflow, so the full mask is made only on suspicion.
    return math.isfinite(float(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all())


@dataclass(frozen=True)
class VideoTokens:
    """Some or all tokens of one video.

    Attributes:
        features: ``(n, D)`` hidden states, any floating dtype and device.
        grid: the grid of the whole video (``N >= n``).
        index: ``(n,)`` int64, ascending: raster position of each row of ``features`` in the grid.
        view: what else the place shows; ``None`` where there is no model.
    """

    features: Tensor
    grid: Grid
    index: Tensor
    view: View | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.index.shape != self.features.shape[:1]:
            raise ValueError(
                f"features {tuple(self.features.shape)} and index {tuple(self.index.shape)} do not fit: "
                "expected (n, D) and (n,)"
            )

    @classmethod
    def full(cls, features: Tensor, grid: Grid) -> VideoTokens:
        """All ``N`` tokens of a video, ``features`` ``(N, D)`` in raster order."""
        if features.shape[0] != grid.tokens:
            raise ValueError(f"{features.shape[0]} tokens do not fill the grid {grid} of {grid.tokens}")
        return cls(features, grid, torch.arange(grid.tokens, device=features.device))

    def __len__(self) -> int:
        return self.features.shape[0]

    def check_finite(self, where: str) -> None:
        """Raise ``ValueError`` when a feature is NaN or infinite; ``where`` names the place in the message."""
        if all_finite(self.features):
            return
        bad = ~torch.isfinite(self.features).all(dim=1)
        first = int(self.index[bad.nonzero()[0, 0]])
        raise ValueError(
            f"{where}: {int(bad.sum())} of {len(self)} video tokens hold NaN or infinite features "
            f"(first: raster index {first} of grid {self.grid})"
        )


@dataclass(frozen=True)
class Selection:
    """What a compressor decided about ``n`` given tokens.

    Attributes:
        keep: ``(k,)`` int64, strictly ascending rows of the given tokens that stay.
        reason: ``(n,)`` uint8, the code of a :class:`Reason`, or of one of the method's own, for every given token,
            dropped ones included.
        features: ``(k, D)`` new features of the kept tokens where the method merged, else ``None``.
    """

    keep: Tensor
    reason: Tensor
    features: Tensor | None = None

    def check(
        self,
        n: int,
        *,
        width: int | None = None,
        dtype: torch.dtype | None = None,
        may_be_empty: bool = False,
        own: Sequence[str] = (),
    ) -> Selection:
        """Return self if valid for ``n`` tokens, else raise ``ValueError``.

        Args:
            n: tokens that were given.
            width: D of their features, where merged features are to be checked against it.
            dtype: what merged features become before they go on, where they must be finite in that too.
            may_be_empty: whether dropping every token is allowed.
            own: the method's own reasons.
        """
        keep = self.keep
        if not isinstance(keep, Tensor) or keep.ndim != 1 or keep.dtype != torch.int64:
            raise ValueError(f"keep is {_said(keep)}; expected a tensor (k,) of torch.int64")
        k = keep.shape[0]
        if k == 0 and not may_be_empty:
            raise ValueError(f"a selection kept none of {n} tokens; at least one must stay")
        if k and (int(keep[0]) < 0 or int(keep[-1]) >= n or bool((keep[1:] <= keep[:-1]).any())):
            raise ValueError(f"keep must be strictly ascending within [0, {n}); got {k} indices that are not")
        if self.features is not None:
            self._check_features(k, width, dtype)
        self._check_reason(n, own)
        return self

    def _check_reason(self, n: int, own: Sequence[str]) -> None:
        reason = self.reason
        if not isinstance(reason, Tensor) or reason.dtype.is_floating_point or reason.dtype == torch.bool:
            raise ValueError(f"reason is {_said(reason)}; expected a tensor ({n},) of torch.uint8")
        if reason.shape != (n,):
            raise ValueError(f"reason has shape {tuple(reason.shape)}, expected ({n},)")
        codes = reason.int()
        ours, theirs = (codes >= 0) & (codes < len(Reason)), (codes >= OWN) & (codes < OWN + len(own))
        unknown = codes[~(ours | theirs)]
        if len(unknown):
            known = [f"{code.value} {code.name}" for code in Reason]
            known += [f"{code} {name}" for code, name in enumerate(own, start=OWN)]
            raise ValueError(
                f"reason holds {int(unknown[0])}, which is no Reason; allowed: {', '.join(known)}; a method names more "
                "in its class: reasons: ClassVar = {'name': '#RRGGBB'}, and takes their codes from code('name')"
            )
        dropped = torch.ones(n, dtype=torch.bool, device=codes.device)
        dropped[self.keep.to(codes.device)] = False
        gone = codes == int(Reason.DROPPED)
        if not torch.equal(gone, dropped):
            raise ValueError(
                f"reason contradicts keep: of {n} tokens {int((dropped & ~gone).sum())} are not in keep and have "
                f"another reason than DROPPED, {int((gone & ~dropped).sum())} are in keep and have the reason DROPPED"
            )

    def _check_features(self, k: int, width: int | None, dtype: torch.dtype | None) -> None:
        if not isinstance(self.features, Tensor):
            raise ValueError(
                f"merged features are {_said(self.features)}; expected a tensor ({k}, {width or 'D'})"
            )
        shape = tuple(self.features.shape)
        if len(shape) != 2 or shape[0] != k or (width is not None and shape[1] != width):
            raise ValueError(f"merged features have shape {shape}, expected ({k}, {width or 'D'})")
        bad = _not_finite(self.features)
        if bad:
            raise ValueError(f"{bad} of {k} merged features hold NaN or infinite values")
        # What goes on is of the model's dtype, in which a sum may be too large.
        bad = 0 if dtype is None else _not_finite(self.features.to(dtype))
        if bad:
            largest = float(self.features.abs().max())
            raise ValueError(
                f"{bad} of {k} merged features become infinite in the model's {dtype}: the largest value is "
                f"{largest:.4g}; merge by a mean, or load the model in a wider dtype, such as bfloat16"
            )

    @classmethod
    def from_mask(
        cls, mask: Tensor, kept: Reason | int | Tensor, features: Tensor | None = None
    ) -> Selection:
        """Selection from a boolean ``(n,)`` mask; ``kept`` is one reason for all kept tokens, or ``(n,)`` codes."""
        codes = kept if isinstance(kept, Tensor) else torch.full_like(mask, int(kept), dtype=torch.uint8)
        reason = torch.where(mask, codes.to(torch.uint8), torch.zeros_like(codes, dtype=torch.uint8))
        return cls(mask.nonzero(as_tuple=True)[0], reason, features)


def _said(value: object) -> str:
    return (
        f"shape {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    )


def _not_finite(features: Tensor) -> int:
    """Rows with a value that is NaN or infinite."""
    return int((~torch.isfinite(features).all(dim=1)).sum())


Signals = bool | tuple[int, ...]
"""Whether the vision tower's signals are read; numbers name layers read besides, negative ones from the end."""


def layers_of(signals: Signals) -> tuple[int, ...]:
    """The layers of the tower that are named."""
    return signals if isinstance(signals, tuple) else ()


def covers(held: Signals, wanted: Signals) -> bool:
    """Whether what was read holds all that is wanted."""
    return not wanted or (bool(held) and {*layers_of(wanted)} <= {*layers_of(held)})


@dataclass(frozen=True)
class TowerLayer:
    """What one layer of the vision tower says of each token of the grid, as :class:`VisionSignals` does of its layer.

    Attributes:
        number: as the method named it.
        received: ``(N,)`` float32.
        keys: ``(N, heads, d)``.
        hidden: ``(N, C)`` hidden states that leave the layer, means over the patches of a token.
        frames: ``(T, C)`` float32, a vector for each row of the grid in time: what leaves the layer at the class token,
            or where there is none, the mean over the patches; the mean over the frames that one row stands for.
    """

    number: int
    received: Tensor
    keys: Tensor
    hidden: Tensor
    frames: Tensor


@dataclass(frozen=True)
class VisionSignals:
    """What the vision tower's attention says of each token of the grid, for methods of the vision place.

    Read in the layer whose output became the features. Where the tower has a class token, a patch's score is the
    attention that this token pays it, averaged over heads. Where it has none, a patch's score is the
    attention that it receives, averaged over heads and over the queries of its frame (of its window, in layers with
    windowed attention); both signals are averaged over the patches that were pooled or merged into a grid token.

    Attributes:
        received: ``(N,)`` float32.
        keys: ``(N, heads, d)`` keys as that layer's attention uses them.
        query: ``(T, heads, d)`` float32: mean query of each row of the grid in time, times the attention's scaling;
            ``None`` where a family does not give it.
        layers: those that the method named in ``tower_layers``.
        head: ``(N,)`` float32: attention that the probe of SigLIP's pooling head pays each token, mean over heads, on
            what becomes the features; ``None`` where the tower has no such head.
        head_frames: ``(T, C)`` float32: what that head gives, the mean over the frames that one row in time stands for.
    """

    received: Tensor
    keys: Tensor
    query: Tensor | None = None
    layers: tuple[TowerLayer, ...] = ()
    head: Tensor | None = None
    head_frames: Tensor | None = None

    def layer(self, number: int) -> TowerLayer:
        """The layer that a method named by this number. Raises ``KeyError`` for one that it did not name."""
        for layer in self.layers:
            if layer.number == number:
                return layer
        named = ", ".join(str(layer.number) for layer in self.layers) or "none"
        raise KeyError(f"layer {number} of the tower was not read; tower_layers names {named}")

    def mean_query(self) -> Tensor | None:
        """``(N,)`` float32: attention that the mean query of a token's frame pays it, mean over heads.

        Over all of its frame, whatever windows the layer has, and over the grid's tokens, whose keys are means of
        their patches'. ``None`` where the queries are not known.
        """
        if self.query is None:
            return None
        keys = self.keys.float().unflatten(0, (len(self.query), -1))
        scores = torch.einsum("thd,tnhd->thn", self.query.to(keys), keys)
        return scores.softmax(-1).mean(1).flatten()


@dataclass(frozen=True)
class Layout:
    """What a compressor may know of the sample besides its features.

    Attributes:
        grid: grid of the video.
        video: ``(N,)`` int64 on the CPU, ascending: places of the video tokens in the input sequence.
        length: tokens of the whole input sequence, text included.
        layers: decoder layers of the model.
        sample: name of the video, the same for all its questions; seeds of random methods derive from it.
        vision: the vision tower's signals, where the method asked for them.
        question: the question's text.
        asked: ``(q,)`` int64 on the CPU, ascending: places of the tokens that hold the question's text, apart from
            system prompt and template; ``None`` where the family does not say them.
        picture: which tokens of the grid are part of the picture; ``None`` where all are.
        frames: ``(T, height, width, 3)`` uint8 RGB on the CPU, where the method asked for them.
        seconds: when each of them is shown in the video.
        memory: what the method kept of this video's earlier questions, where it says that it does: a dictionary of its
            own, empty at the video's first question. What a question puts into it stays only if it is answered.
    """

    grid: Grid
    video: Tensor
    length: int
    layers: int
    sample: str = ""
    vision: VisionSignals | None = None
    question: str = ""
    asked: Tensor | None = None
    picture: Picture | None = None
    frames: Tensor | None = None
    seconds: tuple[float, ...] = ()
    memory: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.video.shape != (self.grid.tokens,):
            raise ValueError(f"{self.video.shape[0]} video places for a grid of {self.grid.tokens} tokens")

    def cells(self) -> Tensor:
        """``(P,)`` int64 on the CPU, ascending: tokens of each frame of the grid that are part of the picture."""
        if self.picture is None:
            return torch.arange(self.grid.per_frame)
        rows, columns = torch.arange(self.picture.height), torch.arange(self.picture.width)
        return (rows[:, None] * self.picture.stride + columns).flatten()

    @property
    def text(self) -> int:
        """Tokens of the sequence that are not video tokens."""
        return self.length - self.grid.tokens

    def places(self, rows: str | int) -> Tensor:
        """``(q,)`` int64 on the CPU, ascending: places in the prompt that :class:`Read` calls ``rows``.

        Raises:
            ValueError: for ``question`` where the family does not say where it is.
        """
        everything = torch.arange(self.length)
        if rows == "question":
            if self.asked is None:
                raise ValueError(
                    "the question's tokens are not known: this model family's prompt() gives no layout.asked"
                )
            return self.asked
        if rows in ("text", "after"):
            text = torch.ones(self.length, dtype=torch.bool)
            text[self.video if rows == "text" else everything[: int(self.video[-1]) + 1]] = False
            return everything[text]
        return everything if rows == "all" else everything[-(1 if rows == "last" else int(rows)) :]
