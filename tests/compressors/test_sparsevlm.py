"""SparseVLM's raters, stages, clusters and corrections, by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.fake_engine import drive, layout_for, video
from helpers.paths import GOLDEN
from stsimdiff.budget import Budget
from stsimdiff.compressors.sparsevlm import (
    SparseVLM,
    best_heads,
    choose,
    counts,
    distance_weights,
    rater_scores,
    raters,
    recycled,
)
from stsimdiff.conformance import replay
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.tokens import Grid, Reason, VideoTokens, View


def test_raters_are_the_text_tokens_above_the_mean() -> None:
    # Softmax of (0, ln 2) is (1/3, 2/3), of (ln 2, 0) the reverse.
    embeddings = torch.tensor([[math.log(2), 0.0], [0.0, math.log(2)], [0.0, math.log(2)]])
    score = rater_scores(embeddings, torch.eye(2))
    assert torch.allclose(score, torch.tensor([4 / 9, 5 / 9]))
    assert raters(score).tolist() == [1]
    assert raters(rater_scores(embeddings, torch.eye(2)[:1])).tolist() == []


def test_the_authors_lists_on_their_own_image() -> None:
    layout = layout_for(Grid(1, 24, 24), layers=32)
    method = SparseVLM()
    assert method.at(32) == (2, 6, 15) and method.at(28) == (2, 5, 13)
    # Of fewer layers two places may become one, and none is the last layer.
    assert method.at(6) == (0, 1, 3) and method.at(3) == (0, 1) and method.at(2) == (0,)
    assert counts(layout, Budget("tokens", 110 / 576), (2, 6, 15), (300, 200, 110)) == [300, 200, 110]
    # 3 layers of 576, 4 of 300, 9 of 200, 16 of 110.
    mean = (3 * 576 + 4 * 300 + 9 * 200 + 16 * 110) / (32 * 576)
    assert counts(layout, Budget("compute", mean), (2, 6, 15), (300, 200, 110)) == [300, 200, 110]
    # The recorded stage: of 448 tokens 300 stay and 45 are clustered into 5.
    assert recycled(148) == (45, 5) and method.split(448, 305) == (300, 45, 5)
    assert SparseVLM(version="v2").split(448, 305) == SparseVLM(recycle=0).split(448, 305) == (305, 0, 0)
    assert method.split(500, 1) == (1, 0, 0) and method.split(500, 3) == (1, 150, 2)


@pytest.mark.parametrize("kind", ["tokens", "compute"])
@pytest.mark.parametrize("retention", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("method", [SparseVLM(), SparseVLM(retain_tokens=64), SparseVLM(layers=[4])], ids=str)
def test_both_budgets_are_met(method: SparseVLM, kind: str, retention: float) -> None:
    grid = Grid(8, 7, 8)
    layout = layout_for(grid)
    entering, kept = drive(method.start(layout, Budget(kind, retention)), video("mixed", grid), layout)
    achieved = len(kept) / grid.tokens if kind == "tokens" else sum(entering) / (28 * grid.tokens)
    assert achieved == pytest.approx(retention, rel=0.005)


def test_what_is_passed_over_is_clustered_by_density() -> None:
    features = torch.tensor([[9.0, 9], [0, 0], [0, 2], [8, 0], [8, 2], [1, 1], [5, 5]])
    score = torch.tensor([0.9, 0.5, 0.4, 0.3, 0.2, 0.1, 0.8])
    chosen = choose(features, score, 2, 4, 2)
    assert chosen.keep.tolist() == [0, 6] and chosen.pool.tolist() == [1, 2, 3, 4]
    # All are equally dense, so the lower rows are denser: the first, and what is farthest from it.
    assert chosen.pool[chosen.centre].tolist() == [1, 3] and chosen.label.tolist() == [0, 0, 1, 1]
    assert chosen.means.tolist() == [[0, 1], [8, 1]]


def test_attention_is_divided_by_two_rotated_vectors_of_ones() -> None:
    width, places, text = 4, torch.tensor([3, 7]), torch.tensor([20])
    angles = torch.outer(torch.cat((places, text)).float(), torch.tensor([1.0, 0.01]))
    cos, sin = angles.cos(), angles.sin()
    rotated = torch.cat((cos - sin, cos + sin), 1)
    expected = rotated[2:] @ rotated[:2].T / 2
    assert torch.allclose(distance_weights(text, places, width), expected, atol=1e-5)
    attention = torch.tensor([[[1.0, 2]], [[4, 0]], [[0, 3]]])
    assert best_heads(attention, 2).tolist() == [1, 0]


class _Keys(View):
    """Embeddings of seven text tokens, of which the third is the rater, and heads four wide."""

    def states(self, places):
        return torch.eye(4)[1] * (torch.arange(7) == 2)[:, None] * 50

    def keys(self, layer, places=None):
        return torch.zeros(1, 1, 4)

    normed = values = attention = None


def test_a_stage_puts_recycled_tokens_in_raster_order_and_keeps_their_reason(monkeypatch) -> None:
    monkeypatch.setattr(_Keys, "__abstractmethods__", frozenset())
    grid = Grid(2, 2, 5)
    layout = dataclasses.replace(layout_for(grid, layers=32), vision=None)
    run = SparseVLM(tokens_per_cluster=2, recycle=0.5).start(layout, Budget("tokens", 0.25))
    features = torch.zeros(20, 4)
    features[:, 1] = 1
    tokens = dataclasses.replace(VideoTokens.full(features, grid), view=_Keys())
    assert run.at_input(tokens) is None and run.raters.tolist() == [2]
    rows = torch.zeros(7, 20)
    rows[0], rows[2] = torch.arange(20.0).flip(0), torch.arange(20.0)
    first = run.before_layer(3, tokens, rows)
    # 14 of 20 stay: the best 10, and of the 10 others the best 6 as 4 means, alike, of which the first are the centres.
    assert first.keep.tolist() == list(range(6, 20))
    codes = [Reason(code).name for code in first.reason.tolist()]
    assert codes == ["DROPPED"] * 6 + ["MERGED"] * 4 + ["IMPORTANT"] * 10
    left = VideoTokens(first.features, grid, first.keep, _Keys())
    second = run.before_layer(7, left, rows[:, first.keep])
    # 9 of 14: 6, and 3 means. What stays keeps the reason that it had.
    codes = [Reason(code).name for code in second.reason.tolist()]
    assert codes == ["DROPPED"] * 5 + ["MERGED"] * 3 + ["ALL"] * 6


def test_the_corrected_version_takes_the_best_heads_and_does_not_turn_attention_round(monkeypatch) -> None:
    monkeypatch.setattr(_Keys, "__abstractmethods__", frozenset())
    grid = Grid(1, 1, 4)
    layout = layout_for(grid, layers=32)
    run = SparseVLM(version="v2", heads=1).start(layout, Budget("tokens", 0.5))
    tokens = dataclasses.replace(VideoTokens.full(torch.eye(4), grid), view=_Keys())
    run.at_input(tokens)
    attention = torch.zeros(2, 7, 4)
    attention[0, 2], attention[1, 2] = torch.tensor([0.5, 0, 0, 0]), torch.tensor([0.0, 0.1, 0, 0])
    score = run.score(tokens, attention)
    # The rater stands at place 11, the first token at 5: cos 6 + cos 0.06, over a head of 4.
    weight = math.cos(6) + math.cos(0.06)
    assert torch.allclose(score, torch.tensor([0.5 / weight, 0, 0, 0]), atol=1e-5)
    # Three places away the weight is 0.0095, which is taken for 0.1.
    near = torch.zeros(2, 7, 4)
    near[0, 2, 3] = 0.01
    assert run.score(tokens, near)[3] == pytest.approx(0.01 / max(0.1, math.cos(3) + math.cos(0.03)))


def test_what_a_model_or_budget_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer 27 has no layer behind it in a model of 28.*0 to 26"):
        SparseVLM(layers=[27]).check(Budget(), 28)
    with pytest.raises(ConfigError, match="no layer behind it in a model of 1"):
        SparseVLM().check(Budget(), 1)
    with pytest.raises(BudgetError, match=r"retention=0.1 of kind compute.*first 3 of 28 layers.*0\.107"):
        SparseVLM().check(Budget("compute", 0.1), 28)
    SparseVLM().check(Budget("compute", 0.11), 28)
    grid = Grid(1, 2, 2)
    layout = dataclasses.replace(layout_for(grid), length=9)
    with pytest.raises(ValueError, match="this prompt ends with the video"):
        drive(SparseVLM().start(layout, Budget("tokens", 0.5)), video("mixed", grid), layout)


def changed(name: str, tmp_path: Path, **fields: object) -> Path:
    """A recording with other fields; of its notes, those of ``meta``."""
    with np.load(GOLDEN / f"{name}.npz") as data:
        arrays = {key: data[key] for key in data.files}
    arrays["meta"] = np.array(str(arrays["meta"]).replace(*fields.pop("meta", ("", ""))))
    np.savez(tmp_path / f"{name}.npz", **{**arrays, **fields})
    return tmp_path / f"{name}.npz"


def test_the_replay_raises_where_the_authors_code_does(tmp_path) -> None:
    name = "sparsevlm_07_v2_t8_7x8_retain64"
    few = {"call0_text_attention": np.load(GOLDEN / f"{name}.npz")["call0_text_attention"][:13]}
    assert str(replay(changed(name, tmp_path, **few))["official_error"]).startswith("RuntimeError")
    released = changed("sparsevlm_08_video_t8_7x8_rank_adapted", tmp_path, meta=("_adapted", ""))
    assert str(replay(released)["official_error"]).startswith("TypeError")
