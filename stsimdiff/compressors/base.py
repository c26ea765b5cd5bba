"""The contract of a compressor: a frozen dataclass of parameters whose ``start`` gives the run of one video.

A run acts at up to three places (vision tower, input, decoder layer) and while decoding, and says which in
:class:`Places`. It knows no model: the engine brings it tokens and, where asked for, attention; ``tokens.view`` shows
hidden states of the text, keys and values, and attention of rows that the method chose as it ran. ``layout`` holds the
question, and where its tokens stand. Subclass :class:`ScoreCompressor` when the method is "give each token a score,
keep the best".

An answer depends on its sample alone. So a method reads what it is given (tokens, attention, layout, budget) and does
not write into it; work on a copy where an operation is in place. What one video needs lies in its run, not in the
compressor, its class or its module. Random numbers come from :func:`generator_for`. A method leaves no hook, no changed
weight, no thread, and the state of torch and of the process (default dtype, grad mode, random states, working folder
...) as it found them. Whatever else it does is put back, and the sample fails with
:class:`~stsimdiff.errors.MethodFault`, which names the method and what it changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from stsimdiff import schema
from stsimdiff.budget import Budget
from stsimdiff.errors import ConfigError
from stsimdiff.files import fingerprint
from stsimdiff.tokens import OWN, Grid, Layout, Read, Reason, Selection, Signals, VideoTokens
from stsimdiff.trace import Trace

Positions = Literal["kept", "renumbered"]
POSITIONS = get_args(Positions)
COSINE = 6
"""FLOPs a feature value of a cosine: the product of two features and their squares, each summed up."""


@dataclass(frozen=True)
class Places:
    """Where a run acts.

    Attributes:
        input: selects among the video tokens as they enter layer 0.
        before: layers before whose input it selects.
        between: layers between whose attention and MLP it selects.
        attention: layers whose attention weights it reads; they reach the next place at or after that layer.
        queries: ``last`` for the last prompt token's row, ``all`` for the mean over all rows, a number for the mean
            over the rows of so many last tokens, heads apart; or a :class:`~stsimdiff.tokens.Read`, which says more.
        reads: layers of which it asks ``tokens.view`` for keys, values or attention: at the place before the layer, and
            at every later one. What enters them is held for that; nothing is computed until it is asked for.
        decoding: layers before which it is asked at each generated token, and may hide or remove cached keys.
        watched: layers whose attention it reads there, that of the token being generated.
    """

    input: bool = False
    before: frozenset[int] = frozenset()
    between: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    queries: str | int | Read = "last"
    reads: frozenset[int] = frozenset()
    decoding: frozenset[int] = frozenset()
    watched: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Hidden:
    """Cached keys of the video that a generated token does not see, in the layer that was asked and in later ones.

    Attributes:
        index: ``(k,)`` int64 raster indices of the tokens.
        removed: whether they leave these layers' caches, and so are hidden from every later token too.
    """

    index: Tensor
    removed: bool = False


class Run(ABC):
    """The state of one video in one forward pass. A method returns ``None`` to leave the tokens alone."""

    places = Places()
    may_be_empty = False
    """Only the text-only control may drop every video token."""
    positions = "kept"
    reasons: Mapping[str, str] = {}
    """Those of the compressor hold where it was started by the engine, for both."""
    input_state: ClassVar[tuple[str, ...] | None] = None
    """Attributes that :meth:`at_input` sets, from the video alone, for later places. The run of the next question about
    the video gets copies of them and is not asked at its input again; with ``None`` it is asked."""

    @property
    def finished(self) -> bool:
        """Whether the run is done with this video: it is asked nothing more, and no attention is read for it."""
        return False

    def at_input(self, tokens: VideoTokens) -> Selection | None:
        """Select among the tokens that enter layer 0."""
        raise TypeError(f"{type(self).__name__} announces the input place but does not act there")

    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        """Select before ``layer``.

        ``attention``: ``(heads, n)`` float32 of the latest layer asked for, over the tokens present, or None; of a
        :class:`~stsimdiff.tokens.Read`, ``(heads, q, n)`` less what it joins.
        """
        raise TypeError(
            f"{type(self).__name__} announces a place before layer {layer} but does not act there"
        )

    def between(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        """Select between the attention and the MLP of ``layer``; arguments as in :meth:`before_layer`."""
        raise TypeError(
            f"{type(self).__name__} announces a place inside layer {layer} but does not act there"
        )

    def at_token(self, layer: int, step: int, cached: Tensor, attention: Tensor | None) -> Hidden | None:
        """Hide cached keys of the video before ``layer`` runs on a generated token.

        Args:
            layer: that runs next.
            step: how many tokens were put through the model before, the prompt not counted.
            cached: ``(n,)`` int64 raster indices of the video tokens in this layer's cache, ascending.
            attention: ``(heads, m)`` float32 of this token, of the latest layer watched, to the video tokens in that
                layer's cache; its softmax is over all keys there, the token's own included.
        """
        raise TypeError(
            f"{type(self).__name__} announces a place before layer {layer} while decoding but does not act there"
        )


class WrappedRun(Run):
    """A run that acts where another one does; its subclass says how it asks it.

    Args:
        run: the run of one video.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    @override
    def places(self) -> Places:  # type: ignore[override]
        return self.run.places

    @property
    @override
    def may_be_empty(self) -> bool:  # type: ignore[override]
        return self.run.may_be_empty

    @property
    @override
    def positions(self) -> str:  # type: ignore[override]
        return self.run.positions

    @property
    @override
    def reasons(self) -> Mapping[str, str]:  # type: ignore[override]
        return self.run.reasons

    @property
    @override
    def finished(self) -> bool:
        return self.run.finished


@dataclass(frozen=True)
class Compressor(ABC):
    """A method with its parameters. ``repr`` is its whole configuration; Hydra builds it from YAML.

    A parameter's annotation says which values it takes (:mod:`stsimdiff.schema`); any other raises
    :class:`~stsimdiff.errors.ConfigError`. What lies between two parameters, a subclass checks in ``__post_init__`` of
    its own, after this one's.

    Attributes:
        needs_vision: whether its runs read ``layout.vision``; the vision tower's attention is computed only then,
            once for all arms.
        tower_layers: layers of the vision tower, counted from 0 or from the end as -1, -2, ..., whose attention, keys
            and hidden states its runs read besides, as ``layout.vision.layer(number)``.
        reads_question: whether its runs read anything of the question besides what their places announce (attention,
            ``reads``, ``decoding``): its words or their number, hidden states of the text. A method that says it does
            not is shown no question. All questions of a video share one prefill of the layers below the first one that
            it reads, and of that one where it reads the text behind the video and selects before a later layer, unless
            it also selects inside those.
        needs_frames: whether its runs read ``layout.frames`` and ``layout.seconds``.
        remembers: whether its runs keep something in ``layout.memory`` for the video's later questions. All questions
            of a video then go to one process in their order, also where a run resumes.
        reasons: names of reasons of its own for which tokens stay, and their colours ``#RRGGBB``, for overlays and
            counts; their codes are :meth:`code`'s.
        fidelity: how near it is to its authors' code, one of :data:`stsimdiff.source.FIDELITIES`, with the reason
            in a paragraph ``Fidelity: ...`` of the class's docstring; empty for a method of the user's own. It decides
            no answer, so it is no part of an arm's identity.
        positions: ``kept``: tokens that stay keep their positions, and generated ones continue from the whole prompt's.
            ``renumbered``: after each drop the tokens that are left have the positions 0, 1, ... in the layers from
            there on, and a generated token follows, in each layer, the last one in that layer's cache, as several
            authors' codes do; not for models with M-RoPE. A method may make a parameter of it.
        parts: other methods that it runs, whose code counts as its own.
    """

    needs_vision: ClassVar[bool] = False
    tower_layers: ClassVar[tuple[int, ...]] = ()
    reads_question: ClassVar[bool] = True
    needs_frames: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    reasons: ClassVar[Mapping[str, str]] = {}
    fidelity: ClassVar[str] = ""
    positions = "kept"
    parts: ClassVar[tuple[Compressor, ...]] = ()

    def __post_init__(self) -> None:
        schema.settle(self, "compressor")
        if self.tower_layers and not self.needs_vision:
            raise ConfigError(
                f"{type(self).__name__}.tower_layers={self.tower_layers} are read only where the tower is: write "
                "needs_vision: ClassVar[bool] = True into the class"
            )
        for name, colour in self.reasons.items():
            if (
                name != name.lower()
                or name.upper() in Reason.__members__
                or not schema.COLOUR.fullmatch(colour)
            ):
                raise ConfigError(
                    f"{type(self).__name__}.reasons has {name!r}: {colour!r}; allowed: a name in lower case that is "
                    f"none of {', '.join(reason.name.lower() for reason in Reason)}, and a colour such as '#1F77B4'"
                )

    def code(self, reason: str) -> int:
        """The code of one of its own reasons, for a :class:`~stsimdiff.tokens.Selection`."""
        return OWN + list(self.reasons).index(reason)

    @abstractmethod
    def start(self, layout: Layout, budget: Budget) -> Run:
        """The run of one video under one budget."""

    def check(self, budget: Budget, layers: int | None = None) -> None:
        """Raise :class:`~stsimdiff.errors.BudgetError` for a budget that no video can meet; before loading.

        ``layers`` is ``None`` while the model's depth is not known yet.
        """

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int | None:
        """FLOPs of the selections of one video, without the attention that is read; ``None``: counted as they run.

        A multiply-add is 2 FLOPs, an addition or multiplication alone 1. Operations on features, on keys and on
        attention scores count; what works with one number a token (norms' reciprocals, sums over heads, sorting, the
        graph search on the host) is a thousandth of that and left out. A formula is tested against
        :class:`~stsimdiff.cost.counting.ArithmeticCounter`, and holds for the class that defines it alone.

        Args:
            trace: what the method was shown, and what it left.
            grid: of the video.
            width: D of the features.
            keys: heads and width of a head of the vision tower's keys, for a method that reads them.
        """
        return None

    def no_flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        """:meth:`flops` of methods that compute nothing with features: fixed choices, choices by attention alone."""
        return 0


def signals_for(methods: Iterable[Compressor]) -> Signals:
    """What these methods read of the vision tower."""
    reading = [method for method in methods if method.needs_vision]
    return tuple(sorted({n for method in reading for n in method.tower_layers})) or bool(reading)


def generator_for(video: str, seed: int) -> torch.Generator:
    """A CPU generator whose stream depends on the video (``layout.sample``) and the seed alone, on any machine."""
    digest = bytes.fromhex(fingerprint(f"{seed}:{video}", digits=16))
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def top(scores: Tensor, count: int) -> Tensor:
    """Boolean ``(n,)`` mask of the ``count`` largest scores; the lower index wins a tie, on every device."""
    order = torch.sort(scores, descending=True, stable=True).indices
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[order[:count]] = True
    return mask


@dataclass(frozen=True)
class ScoreCompressor(Compressor):
    """Base of methods that act at the input: implement :meth:`score`, the best tokens stay."""

    reason = Reason.IMPORTANT

    @abstractmethod
    def score(self, tokens: VideoTokens, layout: Layout) -> Tensor:
        """``(N,)`` scores, larger is kept first."""

    @override
    def start(self, layout: Layout, budget: Budget) -> Run:
        return _ScoreRun(self, layout, budget)


class _ScoreRun(Run):
    places = Places(input=True)

    def __init__(self, compressor: ScoreCompressor, layout: Layout, budget: Budget) -> None:
        self.compressor, self.layout, self.budget = compressor, layout, budget

    def at_input(self, tokens: VideoTokens) -> Selection:
        tokens.check_finite(f"{type(self.compressor).__name__}, input of layer 0")
        scores = self.compressor.score(tokens, self.layout)
        if not isinstance(scores, Tensor) or scores.shape != (len(tokens),):
            said = (
                f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            )
            raise ValueError(
                f"{type(self.compressor).__name__}.score returned {said}, expected a tensor ({len(tokens)},), "
                "a score for each token; torch.as_tensor makes one of an array or a list"
            )
        if bool(torch.isnan(scores).any()):
            raise ValueError(f"{type(self.compressor).__name__}.score returned NaN")
        count = self.budget.keep(self.layout.grid.tokens, self.layout.layers)
        return Selection.from_mask(top(scores, count), self.compressor.reason)
