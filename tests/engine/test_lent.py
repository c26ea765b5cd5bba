"""What a method is given is its own copy, and writing into it is an error that names the method and the tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.fake_engine import layout_for, video
from helpers.tiny_models import qwen2_5_vl
from stsimdiff import compressors, models
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Places, Run, ScoreCompressor, top
from stsimdiff.engine import Compression, lent
from stsimdiff.errors import MethodFault
from stsimdiff.models.base import LoadOptions
from stsimdiff.models.kit.running import TEXT, synthetic_frames
from stsimdiff.tokens import Grid, Reason, Selection, VideoTokens

BUDGET = Budget("tokens", 0.5)


def numpy_write(tensor: torch.Tensor) -> None:
    tensor.numpy()[...] = 0


def through_data(tensor: torch.Tensor) -> None:
    tensor.data.zero_()


def in_place(tensor: torch.Tensor) -> None:
    tensor -= 7 if not tensor.is_floating_point() else tensor.mean(0) + 1


def an_element(tensor: torch.Tensor) -> None:
    tensor.view(-1)[-1] = 77


def another_shape(tensor: torch.Tensor) -> None:
    tensor.unsqueeze_(0)


WRITES = (in_place, an_element, numpy_write, through_data, another_shape)


@dataclasses.dataclass(frozen=True)
class Writes(Compressor):
    """Writes into one of the things that it is given, at one of the places."""

    reach: Callable[[dict[str, Any]], Any] = lambda given: None
    place: str = "input"
    needs_vision = True

    def start(self, layout, budget):
        if self.place == "start":
            self.reach({"layout": layout, "budget": budget})
        return WritingRun(self, layout)


class WritingRun(Run):
    places = Places(
        input=True,
        before=frozenset({1}),
        between=frozenset({2}),
        attention=frozenset({0, 1, 2}),
        queries="all",
    )

    def __init__(self, method, layout):
        self.method, self.layout = method, layout

    def _at(self, place, tokens, attention=None):
        if self.method.place == place:
            self.method.reach({"layout": self.layout, "tokens": tokens, "attention": attention})
        return Selection.from_mask(torch.ones(len(tokens), dtype=torch.bool), Reason.ALL)

    def at_input(self, tokens):
        return self._at("input", tokens)

    def before_layer(self, layer, tokens, attention):
        return self._at("before", tokens, attention)

    def between(self, layer, tokens, attention):
        return self._at("between", tokens, attention)


def attempt(reach, place="input"):
    """Run a method that writes; what it was given must be as it was."""
    case = qwen2_5_vl(1)
    grid = case.layout.grid
    layout = dataclasses.replace(case.layout, vision=layout_for(grid).vision)
    before = lent.copy(layout)
    run = lent.start(Writes(reach, place), layout, BUDGET)
    with Compression(case.decoder, run, layout):
        case.model.generate(**case.inputs, max_new_tokens=2, do_sample=False)
    return before, layout


TENSORS = {
    "tokens.features": lambda given: given["tokens"].features,
    "tokens.index": lambda given: given["tokens"].index,
    "layout.video": lambda given: given["layout"].video,
    "layout.vision.received": lambda given: given["layout"].vision.received,
    "layout.vision.keys": lambda given: given["layout"].vision.keys,
    "attention": lambda given: given["attention"],
}


@torch.inference_mode()
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("place", ["start", "input", "before", "between"])
@pytest.mark.parametrize("name", TENSORS)
def test_every_write_is_an_error_that_names_the_tensor(name, place, write) -> None:
    if (place == "start" and not name.startswith("layout")) or (place == "input" and name == "attention"):
        return  # not given there
    where = {"input": "at its input place", "before": "before layer 1", "between": "inside layer 2"}.get(
        place, place
    )
    with pytest.raises(MethodFault, match=rf"Writes, {where}, wrote into {name}: work on a copy"):
        attempt(lambda given: write(TENSORS[name](given)), place)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("layout.length", 3),
        ("layout.sample", "another"),
        ("layout.layers", 1),
        ("layout.grid.frames", 99),
        ("layout.grid", Grid(1, 1, 1)),
        ("layout.vision", None),
        ("layout.video", torch.zeros(1)),
        ("tokens.grid.width", 99),
        ("tokens.features", torch.zeros(2, 2)),
        ("layout.notes", ["a list that a method hangs on"]),
    ],
)
def test_so_is_another_value_of_an_attribute(path, value) -> None:
    def reach(given):
        what, *names, last = path.split(".")
        held = given[what]
        for name in names:
            held = getattr(held, name)
        object.__setattr__(held, last, value)

    with pytest.raises(MethodFault, match=rf"wrote into {path}"):
        attempt(reach)


def test_a_budget_is_lent_too() -> None:
    with pytest.raises(MethodFault, match=r"Writes, start, wrote into budget\.retention"):
        attempt(lambda given: object.__setattr__(given["budget"], "retention", 1.0), "start")
    assert Budget("tokens", 0.5) == BUDGET


@torch.inference_mode()
@pytest.mark.parametrize("write", WRITES)
def test_nothing_written_reaches_the_layout_of_others(write) -> None:
    case = qwen2_5_vl(1)
    layout = dataclasses.replace(case.layout, vision=layout_for(case.layout.grid).vision)
    before = lent.copy(layout)
    for name in ("layout.video", "layout.vision.received", "layout.vision.keys"):
        for place in ("start", "input"):
            method = Writes(lambda given, name=name: write(TENSORS[name](given)), place)
            with pytest.raises(MethodFault):
                run = lent.start(method, layout, BUDGET)
                run.at_input(VideoTokens.full(torch.randn(48, 8), layout.grid))
    assert lent.same(layout.video, before.video)
    assert lent.same(layout.vision.received, before.vision.received)
    assert lent.same(layout.vision.keys, before.vision.keys)


@torch.inference_mode()
def test_a_run_that_was_started_with_the_layout_itself_is_watched_too() -> None:
    case = qwen2_5_vl(1)
    before = lent.copy(case.layout)
    run = WritingRun(Writes(lambda given: in_place(given["layout"].video)), case.layout)
    with (
        Compression(case.decoder, run, case.layout),
        pytest.raises(MethodFault, match=r"WritingRun.*layout\.video"),
    ):
        case.model.generate(**case.inputs, max_new_tokens=2, do_sample=False)
    assert torch.equal(case.layout.video, before.video)


@torch.inference_mode()
def test_nan_that_was_there_before_is_no_write() -> None:
    features = torch.full((4, 3), float("nan"))
    run = lent.start(Writes(), layout_for(Grid(1, 2, 2)), BUDGET)
    assert len(run.at_input(VideoTokens.full(features, Grid(1, 2, 2))).keep) == 4


class Centred(ScoreCompressor):
    """The commonest slip: features centred in place."""

    def score(self, tokens, layout):
        x = tokens.features.float()  # the features themselves where they are float32
        x -= x.mean(0)
        return x.norm(dim=1)


@torch.inference_mode()
@pytest.mark.parametrize("family", models.FAMILIES)
def test_centring_in_place_is_refused_in_every_family(miniature, family) -> None:
    loaded = models.resolve(family).load(str(miniature(family)), LoadOptions(device="cpu", dtype="float32"))
    prompt = loaded.prompt(loaded.encode(synthetic_frames(4)), TEXT, sample="q")
    expected = loaded.generate(prompt, 4)
    run = lent.start(Centred(), prompt.layout, BUDGET)
    with (
        Compression(loaded.decoder, run, prompt.layout),
        pytest.raises(MethodFault, match=r"Centred, at its input place, wrote into tokens\.features"),
    ):
        loaded.generate(prompt, 4)
    assert torch.equal(loaded.generate(prompt, 4), expected)


class Reads(ScoreCompressor):
    """Says whether it was given the vision tower's signals."""

    def score(self, tokens, layout):
        return torch.arange(len(tokens)) * (1 if layout.vision is None else -1)


def test_signals_go_only_to_methods_that_ask_for_them() -> None:
    """Else a method's answers would depend on which others are in the sweep."""
    grid = Grid(2, 2, 2)
    run = lent.start(Reads(), layout_for(grid), BUDGET)
    assert run.at_input(VideoTokens.full(video("mixed", grid), grid)).keep.tolist() == [4, 5, 6, 7]
    asked = compressors.resolve("fastervlm")()
    assert lent.start(asked, layout_for(grid), BUDGET).lent.vision is not None


LEFT = []
"""Guards that a method forgot to leave."""


def entered(guard) -> None:
    LEFT.append(guard)
    guard.__enter__()


CHANGES = {
    "grad mode": lambda: torch.set_grad_enabled(True),
    "inference mode": lambda: entered(torch.inference_mode(False)),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("cpu"),
    "autocast": lambda: entered(torch.autocast("cpu")),
    "the number of torch's threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "torch's precision of float32 products": lambda: torch.set_float32_matmul_precision("medium"),
    "torch.backends.cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
}


@torch.inference_mode()
@pytest.mark.parametrize("place", ["start", "input", "between"])
@pytest.mark.parametrize("what", CHANGES)
def test_how_torch_computes_is_put_back_after_each_call(what, place) -> None:
    before = [setting.read() for setting in lent.process_state.TORCH]
    with pytest.raises(MethodFault, match=rf"Writes, .* changed (.*; changed )*{what}"):
        attempt(lambda given: CHANGES[what](), place)
    assert [setting.read() for setting in lent.process_state.TORCH] == before


@torch.inference_mode()
def test_it_is_put_back_after_an_error_of_the_method() -> None:
    def fails(given):
        torch.set_default_dtype(torch.float64)
        raise RuntimeError("a method that fails")

    with pytest.raises(RuntimeError, match="a method that fails"):
        attempt(fails)
    assert torch.get_default_dtype() == torch.float32


# Selections ----------------------------------------------------------------------------------------------------


def reasons(*codes: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.tensor(codes, dtype=dtype)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (
            reasons(1, 1, 1, 1),
            "of 4 tokens 2 are not in keep and have another reason than DROPPED, 0 are in keep",
        ),
        (reasons(0, 1, 0, 0), "of 4 tokens 0 are not in keep .*, 1 are in keep and have the reason DROPPED"),
        (reasons(1, 9, 0, 0), "of 4 tokens 1 are not in keep .*, 1 are in keep"),
        (reasons(0, 10, 1, 0), "reason holds 10, which is no Reason; allowed: 0 DROPPED, 1 ALL"),
        (reasons(0, -1, 1, 0, dtype=torch.int64), "reason holds -1, which is no Reason"),
        (reasons(0, 1, 1, 0, dtype=torch.float32), r"reason is shape \(4,\) of torch.float32; expected"),
        (reasons(0, 1, 1, 0, dtype=torch.bool), "torch.bool; expected"),
        ([0, 1, 1, 0], "reason is list; expected"),
        (reasons(0, 1, 1), r"reason has shape \(3,\), expected \(4,\)"),
    ],
)
def test_reasons_say_what_keep_says(codes, message) -> None:
    keep = torch.tensor([1, 2])
    with pytest.raises(ValueError, match=message):
        Selection(keep, codes).check(4)
    for dtype in (torch.uint8, torch.int64):
        assert Selection(keep, reasons(0, 3, 9, 0, dtype=dtype)).check(4)


def test_nothing_kept_has_no_reason_to_be_kept() -> None:
    none = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="of 2 tokens 2 are not in keep"):
        Selection(none, reasons(1, 1)).check(2, may_be_empty=True)
    assert Selection(none, reasons(0, 0)).check(2, may_be_empty=True)


def test_merged_features_are_finite_in_the_dtype_that_goes_on() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 70000.0]])
    selection = Selection(torch.tensor([0, 1]), reasons(9, 9), features)
    assert selection.check(2, width=2, dtype=torch.float32)
    assert selection.check(2, width=2, dtype=torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"1 of 2 merged features become infinite in the model's torch.float16.*7e\+04"
    ):
        selection.check(2, width=2, dtype=torch.float16)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_row_of_merged_features_is_counted(value) -> None:
    features = torch.ones(3, 2)
    features[1, 1] = value
    with pytest.raises(ValueError, match="1 of 3 merged features hold NaN or infinite values"):
        Selection(torch.arange(3), reasons(9, 9, 9), features).check(3)


@torch.inference_mode()
def test_a_sum_too_large_for_the_models_dtype_is_refused_by_the_engine() -> None:
    case = qwen2_5_vl(2)
    case.model.to(torch.float16)

    class Sums(Run):
        places = Places(input=True)

        def at_input(self, tokens):
            mask = torch.arange(len(tokens)) < 2
            return Selection.from_mask(mask, Reason.MERGED, tokens.features[:2].float() * 1e6)

    inputs = {"inputs_embeds": torch.randn(1, case.layout.length, 48, dtype=torch.float16)}
    with (
        Compression(case.decoder, Sums(), case.layout),
        pytest.raises(
            ValueError, match="2 of 2 merged features become infinite in the model's torch.float16"
        ),
    ):
        case.decoder.module(**inputs)


@torch.inference_mode()
def test_attention_that_is_nan_chooses_nothing() -> None:
    case = qwen2_5_vl(3)
    run = lent.start(compressors.resolve("fastv")(layer=2), case.layout, BUDGET)
    with Compression(case.decoder, run, case.layout):
        case.decoder.layers[1].self_attn.q_proj.weight.data[0] = float("nan")
        with pytest.raises(ValueError, match="FastV, before of layer 2: the attention read for it is NaN"):
            case.model.generate(**case.inputs, max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize("name", ["received", "keys"])
def test_signals_that_are_not_finite_choose_nothing(name) -> None:
    layout = layout_for(Grid(2, 2, 2))
    getattr(layout.vision, name)[3] = float("nan")
    run = compressors.resolve("visionzip")().start(layout, BUDGET)
    with pytest.raises(ValueError, match=rf"VisionZip: the vision tower's {name} hold NaN"):
        run.at_input(VideoTokens.full(video("mixed", layout.grid), layout.grid))


class Scores(ScoreCompressor):
    given: Any = None

    def score(self, tokens, layout):
        return Scores.given


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.tensor([1.0, float("nan"), 2.0, 3.0]), "Scores.score returned NaN"),
        (torch.ones(3), r"Scores.score returned shape \(3,\), expected a tensor \(4,\)"),
        ([1.0, 2.0, 3.0, 4.0], r"Scores.score returned a list, expected a tensor \(4,\)"),
    ],
)
def test_scores_that_order_nothing_are_refused(monkeypatch, scores, message) -> None:
    monkeypatch.setattr(Scores, "given", scores)
    grid = Grid(1, 2, 2)
    with pytest.raises(ValueError, match=message):
        Scores().start(layout_for(grid), BUDGET).at_input(VideoTokens.full(torch.ones(4, 3), grid))


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([1e300, 2e300, 0.0, -1e300], dtype=torch.float64),
        torch.tensor([2**53, 2**53 + 1, 0, -(2**53)]),
        torch.tensor([1.0, float("inf"), 0.0, -float("inf")]),
    ],
    ids=["float64", "int64", "infinite"],
)
def test_scores_keep_their_precision(scores) -> None:
    assert top(scores, 1).tolist() == [False, True, False, False]
    assert top(scores, 3).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("features", "index"), [((3, 2), (2,)), ((3,), (3,)), ((3, 2), (3, 1)), ((1, 3, 2), (3,))]
)
def test_tokens_need_an_index_each(features: tuple[int, ...], index: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"do not fit: expected \(n, D\) and \(n,\)"):
        VideoTokens(torch.zeros(features), Grid(1, 1, 3), torch.zeros(index, dtype=torch.long))
