"""The formulas of the compressors' FLOPs against what is counted while they run on a stock decoder."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from stsimdiff import compressors
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, ScoreCompressor
from stsimdiff.compressors.fastv import FastV
from stsimdiff.cost import DecoderShape, TowerShape, TowerWork, compressor_flops
from stsimdiff.cost.counting import ArithmeticCounter, CountedRun
from stsimdiff.engine import Compression, Decoder
from stsimdiff.tokens import Grid, Layout, VideoTokens, VisionSignals
from stsimdiff.trace import Stage, Trace

GRID, WIDTH, TEXT, HEADS, HEAD = Grid(6, 6, 7), 256, 12, 4, 64
TOWER = TowerShape(patch=12, width=128, intermediate=8, heads=2, layers=1, projector=(128, WIDTH))
LOAD = TowerWork(sequences={GRID.per_frame: GRID.frames}, embedded=GRID.tokens, rows=GRID.tokens)


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    return Qwen2ForCausalLM(config).eval()


@torch.no_grad()
def run_counted(
    model: Qwen2ForCausalLM, method: Compressor, budget: Budget, frames_alike: bool = True
) -> tuple[Trace, CountedRun]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(GRID.frames, GRID.per_frame, WIDTH, generator=generator)
    if frames_alike:
        features = features[:1] * 0.3 + 1 + 0.02 * features
    signals = VisionSignals(
        torch.rand(GRID.tokens, generator=generator), torch.randn(GRID.tokens, 2, 64, generator=generator)
    )
    length = GRID.tokens + TEXT
    layout = Layout(GRID, torch.arange(5, 5 + GRID.tokens), length, 5, "q", signals)
    embeds = torch.randn(1, length, WIDTH, generator=generator)
    embeds[0, layout.video] = features.flatten(0, 1)
    run = CountedRun(method.start(layout, budget))
    with Compression(Decoder(model.model, model.model.layers), run, layout) as trace:
        model.model(inputs_embeds=embeds)
    return trace, run


@pytest.mark.parametrize("retention", [0.35, 0.6])
@pytest.mark.parametrize("name", compressors.BUILTIN)
def test_the_formula_is_what_runs(model: Qwen2ForCausalLM, name: str, retention: float) -> None:
    method = compressors.resolve(name)()
    trace, run = run_counted(model, method, Budget("tokens", retention))
    shape = DecoderShape.from_config(model.config)
    ours = compressor_flops(method, trace, GRID, shape, TOWER, LOAD)
    counted = run.flops(trace, shape, method.needs_vision, TOWER, LOAD)
    if ours is None:
        assert "flops" not in vars(type(method)) and counted > 0
        return
    # What has one number a token is counted as it runs and is not in the formula, the check for NaN among it.
    assert ours <= counted
    assert counted - ours < 0.03 * ours + 1.1 * GRID.tokens * WIDTH
    if name in ("none", "no_video"):
        assert ours == 0


def test_queries_and_layers_of_attention_count(model: Qwen2ForCausalLM) -> None:
    shape = DecoderShape.from_config(model.config)
    fastv = compressors.resolve("fastv")
    length = GRID.tokens + TEXT
    for queries, rows in (("last", 1), ("all", length)):
        method = fastv(queries=queries)
        trace, _ = run_counted(model, method, Budget("tokens", 0.3))
        assert compressor_flops(method, trace, GRID, shape) == 2 * rows * length * HEADS * HEAD


def test_dart_s_own_arithmetic(model: Qwen2ForCausalLM) -> None:
    """Without the projections to keys that it reads, which are a hundred times as much."""
    method = compressors.resolve("dart")()
    trace, run = run_counted(model, method, Budget("tokens", 0.4))
    ours = method.flops(trace, GRID, WIDTH, None)
    # 4 pivots of the video and 4 of the text; 4 FLOPs a value for the norm, 2 for the length.
    assert ours == WIDTH * (2 * 8 * GRID.tokens + 6 * (GRID.tokens + 8))
    keys = (GRID.tokens + TEXT - 5) * 2 * HEAD
    assert ours <= run.counter.flops - keys < 1.01 * ours + GRID.tokens * WIDTH
    whole, run = run_counted(model, method, Budget("tokens", 1.0))
    assert method.flops(whole, GRID, WIDTH, None) == 0 and run.counter.flops == GRID.tokens * WIDTH


def test_st_simdiff_is_bounded_where_nothing_is_alike(model: Qwen2ForCausalLM) -> None:
    """Tokens outside communities need no centrality: the formula says no less than what runs."""
    method = compressors.resolve("st_simdiff")()
    trace, run = run_counted(model, method, Budget("tokens", 0.3), frames_alike=False)
    shape = DecoderShape.from_config(model.config)
    ours, counted = compressor_flops(method, trace, GRID, shape), run.flops(trace, shape)
    assert 0.5 * ours < counted < 1.02 * ours


@dataclass(frozen=True)
class Mine(ScoreCompressor):
    """A method of a user's own."""

    def score(self, tokens: VideoTokens, layout: Layout) -> torch.Tensor:
        return (tokens.features @ torch.ones(WIDTH, 8)).pow(2).sum(1)


def test_a_method_without_a_formula_is_counted_as_it_runs(model: Qwen2ForCausalLM) -> None:
    trace, run = run_counted(model, Mine(), Budget("tokens", 0.3))
    shape = DecoderShape.from_config(model.config)
    assert compressor_flops(Mine(), trace, GRID, shape) is None
    counted = run.flops(trace, shape)
    product = GRID.tokens * 2 * WIDTH * 8
    assert product <= counted <= product + GRID.tokens * (WIDTH + 32)


class Derived(FastV):
    """Another method than the one whose formula it inherits."""


class Counting(Mine):
    """A method of a user's own that says what it costs."""

    def flops(self, trace: Trace, grid: Grid, width: int, keys: tuple[int, int] | None) -> int:
        return grid.tokens * width


def test_a_formula_holds_for_the_class_that_defines_it() -> None:
    trace = Trace(layers=4, video=6, text=1)
    assert compressor_flops(FastV(), trace, Grid(3, 1, 2), NARROW) == 0
    assert compressor_flops(Derived(), trace, Grid(3, 1, 2), NARROW) is None
    assert compressor_flops(Counting(), trace, Grid(3, 1, 2), NARROW) == 6 * 10


def test_a_method_of_the_vision_place_needs_the_tower(model: Qwen2ForCausalLM) -> None:
    method = compressors.resolve("fastervlm")()
    trace, run = run_counted(model, method, Budget("tokens", 0.3))
    shape = DecoderShape.from_config(model.config)
    assert compressor_flops(method, trace, GRID, shape) is None
    assert run.flops(trace, shape, True) is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_counter_by_hand(mode) -> None:
    x, index = torch.randn(3, 4), torch.tensor([0, 1, 0])
    with mode(), ArithmeticCounter() as counter:
        y = x @ torch.randn(4, 5)  # 2 * 3 * 4 * 5
        y = y * 2 + 1  # 15 + 15
        y.sum(1)  # 15
        torch.linalg.vector_norm(x, dim=1)  # 24
        torch.zeros(2, 4).index_add_(0, index, x)  # 12
        index + 1  # integers are no arithmetic of features
        x @ torch.randn(4)  # 24, a product that torch's counter does not know
        x.sort(1)
    assert counter.flops == 120 + 30 + 15 + 24 + 12 + 24


NARROW = DecoderShape(layers=4, hidden=10, intermediate=1, heads=2, key_heads=1, head_dim=4, vocabulary=1)


@pytest.mark.parametrize(
    ("counts", "final", "parameters", "by_hand"),
    [
        # Of 6 tokens 4 have a predecessor: 6 * 10 * 4 for cosines, and 10 * (6 + 5) for means of 6 into 5; and so on.
        # The last of 4 layers drops nothing and the one before prunes: it computes no cosine.
        ((6, 5, 4, 3), 2, {}, 240 + 110 + 180 + 90 + 120 + 70),
        # A layer that merges less than a tenth is the last one to merge.
        ((6, 5, 5, 5), 2, {}, 240 + 110 + 180),
        ((6, 6, 6, 6), 2, {}, 240),
        # ... or than another bound, which itself is enough.
        ((6, 3, 2, 2), 2, {"ratio_lower_bound": 0.5}, 240 + 90 + 60 + 50),
        # Spread over 3 layers as if the model had so many: the second prunes.
        ((6, 5, 4, 3), 2, {"released_layers": 3}, 240 + 110 + 180 + 90),
    ],
)
def test_framefusion_counts_where_it_merges(
    counts: tuple[int, ...], final: int, parameters: dict, by_hand: int
) -> None:
    places = [("input", 0), ("between", 0), ("between", 1), ("between", 2)]
    trace = Trace(layers=4, video=6, text=1, reads=[(1, 5), (1, 4)])
    trace.asked = [(*place, count) for place, count in zip(places, counts, strict=True)]
    trace.stages = [Stage("between", 2, torch.arange(final), 0.0)]
    # What was read: a query over 5 and over 4 keys, two heads of 4 numbers, a multiply-add each.
    read = 2 * 9 * 2 * 4
    method = compressors.resolve("framefusion")(**parameters)
    assert compressor_flops(method, trace, Grid(3, 1, 2), NARROW) == by_hand + read


def test_signals_are_counted_where_tower_and_load_are_known(model: Qwen2ForCausalLM) -> None:
    method, shape = compressors.resolve("fastervlm")(), DecoderShape.from_config(model.config)
    trace, run = run_counted(model, method, Budget("tokens", 0.3))
    for tower, load in ((TOWER, None), (None, LOAD)):
        assert compressor_flops(method, trace, GRID, shape, tower, load) is None
        assert run.flops(trace, shape, True, tower, load) is None
    # 42 x 42 pairs in each of 6 frames, 128 numbers wide; FasterVLM itself computes nothing with features.
    signals = 2 * 6 * 42 * 42 * 128
    assert compressor_flops(method, trace, GRID, shape, TOWER, LOAD) == signals
    assert run.flops(trace, shape, True, TOWER, LOAD) == run.counter.flops + signals
    assert run.flops(trace, shape, False, TOWER, LOAD) == run.counter.flops


def traced(final: int, video: int) -> Trace:
    trace = Trace(layers=4, video=video, text=1)
    trace.asked = [("input", 0, video)]
    trace.stages = [Stage("input", 0, torch.arange(final), 0.0)]
    return trace


def by_formula(name: str, final: int, grid: Grid, tower: TowerShape | None = None, **parameters) -> int:
    method = compressors.resolve(name)(**parameters)
    load = TowerWork({}, 0, 0) if tower else None
    return compressor_flops(method, traced(final, grid.tokens), grid, NARROW, tower, load)


def test_formulas_of_controls_and_graph_by_hand() -> None:
    grid = Grid(3, 2, 2)
    # Pooling adds up the frames that keep a token, and divides each cell.
    assert by_formula("spatial_pool", 12, grid) == 0
    assert by_formula("spatial_pool", 6, grid) == 10 * (12 + 6)
    assert by_formula("spatial_pool", 2, grid) == 10 * (8 + 2)
    # A cosine for each token of the frames behind the first, once the budget goes beyond that.
    assert by_formula("evs", 4, grid) == 0
    assert by_formula("evs", 5, grid) == 6 * 10 * 8
    # 12 norms and 8 + 6 + 6 products of neighbours, 2 a value each; two passes for the centrality.
    assert by_formula("st_simdiff", 6, grid) == 10 * (24 + 40 + 48)
    assert by_formula("st_simdiff", 6, grid, similarity=False) == 10 * (24 + 40)


def test_formulas_of_the_vision_place_by_hand() -> None:
    tower = TowerShape(patch=1, width=6, intermediate=1, heads=2, layers=1, projector=(6, 10))
    grid = Grid(3, 2, 4)
    # Frames that keep all of their tokens cost nothing.
    assert by_formula("visionzip", 24, grid, tower) == by_formula("prumerge", 24, grid, tower) == 0
    # A frame of 4 of 8: one contextual, and four sources. Keys averaged over two heads of 3, and their norms: 8 * 6 and
    # 8 * 9. Sources against the target, 2 * 4 * 1 * 3. Four rows of 10 added up, divided and added to the target.
    assert by_formula("visionzip", 12, grid, tower, dominant=3, contextual=1) == 3 * (48 + 72 + 24 + 60)
    assert by_formula("visionzip", 12, grid, tower, contextual=0) == 0
    # Three rows and the sum: 8 keys normalised, three compared with all. Each takes in all 8, the sum the other 5.
    assert by_formula("prumerge", 12, grid, tower) == 3 * (8 * 18 + 2 * 3 * 8 * 6 + 10 * 2 * (3 * 8 + 5))
    # One token in one frame only: a sum, and no row.
    assert by_formula("prumerge", 1, grid, tower) == 8 * 18 + 10 * 2 * 8


def test_every_operation_that_is_counted_by_hand() -> None:
    x, y = torch.rand(3, 4) + 1, torch.rand(3, 4) + 1
    vector, square, index = torch.rand(4), torch.rand(4, 4), torch.tensor([0, 2])
    for operation, flops in (
        (lambda: x + y, 12),
        (lambda: x - y, 12),
        (lambda: x * y, 12),
        (lambda: x / y, 12),
        (lambda: torch.addcmul(x, x, y), 12),
        (lambda: torch.addcdiv(x, x, y), 12),
        (lambda: x.square(), 12),
        (lambda: x.pow(3), 12),
        (lambda: x.reciprocal(), 12),
        (lambda: x.rsqrt(), 12),
        (lambda: x.sqrt(), 12),
        (lambda: x.clone().add_(y), 12),
        (lambda: x.sum(), 12),
        (lambda: x.mean(0), 12),
        (lambda: torch.linalg.vector_norm(x), 24),
        (lambda: x.prod(1), 12),
        (lambda: x.cumsum(1), 12),
        (lambda: x.var(1), 36),
        (lambda: x.std(1), 36),
        (lambda: torch.cdist(x, x[:2]), 2 * 3 * 2 * 4),
        (lambda: torch.mv(x, vector), 24),
        (lambda: torch.dot(vector, vector), 8),
        (lambda: torch.vdot(vector, vector), 8),
        (lambda: torch.addmv(vector, square, vector), 32),
        (lambda: x.clone().index_add_(0, index, y[:2]), 8),
        (lambda: x.clone().scatter_add_(0, index[None].expand(1, 2), y[:1, :2]), 2),
        (lambda: x.clone().index_put_((index,), y[:2], accumulate=True), 8),
        (lambda: x.clone().index_put_((index,), y[:2]), 0),
        (lambda: x.exp().sort(1), 0),
    ):
        with torch.no_grad(), ArithmeticCounter() as counter:
            operation()
        assert counter.flops == flops, operation.__code__.co_firstlineno
