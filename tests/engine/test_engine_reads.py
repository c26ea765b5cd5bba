"""What a method may ask of the question and of a layer, compared with the stock model's own eager attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.tiny_models import qwen2_5_vl
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Places, Run
from stsimdiff.cost.counting import CountedRun, read_flops
from stsimdiff.cost.decoder import DecoderShape
from stsimdiff.engine import Compression
from stsimdiff.models.kit import running
from stsimdiff.plan.dry_run import dry_run
from stsimdiff.tokens import Grid, Read, Reason, Selection, VideoTokens


class Asking(Run):
    """Drops a third of the tokens at the input, and keeps what it is shown before layer 1 and before layer 2."""

    def __init__(self, queries: str | int | Read = "last", attention: int | None = None, ask=None) -> None:
        layers = frozenset({1, 2})
        self.places = Places(
            input=True,
            before=layers,
            attention=frozenset() if attention is None else frozenset({attention}),
            queries=queries,
            reads=layers if ask else frozenset(),
        )
        self.ask, self.attention, self.asked = ask, {}, {}

    def at_input(self, tokens: VideoTokens) -> Selection:
        return Selection.from_mask(tokens.index % 3 > 0, Reason.RANDOM)

    def before_layer(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection | None:
        self.attention[layer], self.index = attention, tokens.index
        if self.ask:
            self.asked[layer] = self.ask(layer, tokens)
        # What is dropped before layer 2 has no part in what layer 1 was asked.
        return Selection.from_mask(tokens.index % 2 > 0, Reason.RANDOM) if layer == 2 else None


class Stock:
    """The stock attention of a layer: weights of the eager backend, and what entered the layer's attention."""

    def __init__(self, case: running.FamilyCase, layer: int, run: Run) -> None:
        decoder, weights, entering = case.family.decoder, [], []
        output = decoder.layers[layer].self_attn.register_forward_hook(
            lambda module, args, out: weights.append(out[1])
        )
        with torch.no_grad(), Compression(decoder, run, case.prompt.layout) as self.trace:
            # After the engine's own hook, so that it sees what that made of the states.
            last = decoder.layers[layer].register_forward_pre_hook(
                lambda m, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
            case.family.model.generate(**case.prompt.inputs, max_new_tokens=2, do_sample=False)
        output.remove()
        last.remove()
        # The first of each is the prefill's.
        self.entering, self.weights = entering[0], weights[0][0]


def present(case: running.FamilyCase) -> tuple[Tensor, Tensor]:
    """Places in the prompt of the tokens that the input left, and rows of the video among them."""
    layout = case.prompt.layout
    gone = layout.video[torch.arange(layout.grid.tokens) % 3 == 0]
    kept = torch.arange(layout.length)
    kept = kept[~torch.isin(kept, gone)]
    return kept, torch.isin(kept, layout.video).nonzero()[:, 0]


def plain_joined(weights: Tensor, rows: Tensor, video: Tensor, read: Read) -> Tensor:
    """``(heads, q, n)`` weights joined as a read says, in the plainest way."""
    weights = weights[:, rows][..., video]
    joins = {"mean": Tensor.mean, "max": Tensor.amax, None: lambda values, dim: values}
    weights = joins[read.heads](weights, 0)
    return joins[read.over](weights, weights.ndim - 2)


READS = [
    Read(rows, heads, over)
    for rows, heads, over in (
        ("last", None, "mean"),
        ("all", "mean", "mean"),
        ("all", None, "max"),
        ("question", "max", "max"),
        ("question", None, None),
        ("text", "mean", None),
        ("after", None, "max"),
        (3, "mean", "mean"),
    )
]


@pytest.mark.parametrize("read", READS, ids=lambda r: f"{r.rows} heads={r.heads} rows={r.over}")
@pytest.mark.parametrize("coming", [False, True], ids=["as it runs", "coming"])
def test_attention_is_that_of_the_stock_layer(
    eager_case: running.FamilyCase, read: Read, coming: bool
) -> None:
    read = Read(read.rows, read.heads, read.over, coming)
    run = Asking(read, 1)
    stock = Stock(eager_case, 1, run)
    kept, video = present(eager_case)
    layout = eager_case.prompt.layout
    named = {
        "last": kept[-1:],
        3: kept[-3:],
        "all": kept,
        "question": layout.asked,
        "text": kept[~torch.isin(kept, layout.video)],
        "after": torch.arange(int(layout.video[-1]) + 1, layout.length),
    }
    rows = torch.searchsorted(kept, named[read.rows])
    expected = plain_joined(stock.weights, rows, video, read)
    # The attention of layer 1 as it runs is there before layer 2; that of the coming layer before layer 1.
    assert run.attention[1 if coming else 2].shape == expected.shape
    assert torch.allclose(run.attention[1 if coming else 2], expected, atol=1e-6)
    assert coming or run.attention[1] is None
    assert stock.trace.reads == [(len(rows), len(kept))]
    assert stock.trace.projected == ([len(kept)] if coming else [])


def by_hand(case: running.FamilyCase, layer: int, entering: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Query and key heads ``(H, S, d)`` before the rotation, values, and the scaling, from the layer's weights."""
    module = case.family.decoder.layers[layer]
    attention, states = module.self_attn, module.input_layernorm(entering)[0]
    split = lambda values: values.unflatten(-1, (-1, attention.head_dim))  # noqa: E731
    norms = [getattr(attention, name, nn.Identity()) for name in ("q_norm", "k_norm")]
    query, key = norms[0](split(attention.q_proj(states))), norms[1](split(attention.k_proj(states)))
    value = split(attention.v_proj(states))
    return query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), attention.scaling


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_attention_without_rotary_embedding_or_mask(eager_case: running.FamilyCase, causal: bool) -> None:
    read = Read("question", rotary=False, causal=causal)
    run = Asking(read, 1)
    stock = Stock(eager_case, 1, run)
    kept, video = present(eager_case)
    query, key, _, scaling = by_hand(eager_case, 1, stock.entering)
    scores = query @ key.repeat_interleave(len(query) // len(key), 0).transpose(1, 2) * scaling
    if causal:
        scores = scores.masked_fill(torch.ones(len(kept), len(kept)).triu(1).bool(), float("-inf"))
    rows = torch.searchsorted(kept, eager_case.prompt.layout.asked)
    expected = plain_joined(scores.softmax(-1), rows, video, read)
    assert torch.allclose(run.attention[2], expected, atol=1e-6)
    assert not torch.allclose(expected, plain_joined(stock.weights, rows, video, read), atol=1e-4), "blind"


@torch.no_grad()
def test_a_view_shows_states_keys_values_and_attention_of_chosen_rows(eager_case: running.FamilyCase) -> None:
    layout = eager_case.prompt.layout
    chosen = layout.asked[[0, 2]]

    def ask(layer, tokens):
        view = tokens.view
        read = Read(over=None)
        return {
            "states": view.states(chosen),
            "normed": view.normed(view.states(chosen)),
            "video keys": view.keys(1),
            "text values": view.values(1, chosen),
            "attention": view.attention(1, read, chosen),
        }

    run = Asking(ask=ask)
    stock = Stock(eager_case, 1, run)
    kept, video = present(eager_case)
    rows = torch.searchsorted(kept, chosen)
    _, _, value, _ = by_hand(eager_case, 1, stock.entering)
    before = run.asked[1]
    assert torch.equal(before["states"], stock.entering[0, rows])
    assert torch.equal(before["normed"], eager_case.family.decoder.module.norm(stock.entering[0, rows]))
    for found in run.asked.values():  # before the layer runs and after it has
        assert torch.allclose(found["text values"], value.transpose(0, 1)[rows], atol=1e-6)
        assert torch.allclose(
            found["attention"], plain_joined(stock.weights, rows, video, Read(over=None)), atol=1e-6
        )
    cached = stock_keys(eager_case, layout)
    # A third of the tokens is gone from the cache of layer 1 too, which holds rotated keys.
    assert torch.allclose(before["video keys"], cached[video], atol=1e-6)
    assert not torch.equal(run.asked[2]["states"], before["states"])


def stock_keys(case: running.FamilyCase, layout) -> Tensor:
    """``(S, heads, d)`` keys that the cache of layer 1 holds of the prompt."""
    seen = []

    def catch(module, args, kwargs):
        seen.append(kwargs["past_key_values"])

    hook = case.family.decoder.layers[1].self_attn.register_forward_pre_hook(catch, with_kwargs=True)
    with Compression(case.family.decoder, Asking(), layout):
        case.family.model.generate(**case.prompt.inputs, max_new_tokens=1, do_sample=False)
    hook.remove()
    return seen[0].layers[1].keys[0].transpose(0, 1)[: len(present(case)[0])]


@torch.no_grad()
def test_what_was_not_named_or_is_gone_is_refused(eager_case: running.FamilyCase) -> None:
    layout = eager_case.prompt.layout

    def generate(ask):
        run = Asking(ask=ask)
        with Compression(eager_case.family.decoder, run, layout):
            eager_case.family.model.generate(**eager_case.prompt.inputs, max_new_tokens=1, do_sample=False)
        return run

    with pytest.raises(ValueError, match=r"before of layer 1, asks for layer 0, .* reads=frozenset\(\{0\}\)"):
        generate(lambda layer, tokens: tokens.view.keys(0))
    with pytest.raises(ValueError, match="asks for layer 2"):
        generate(lambda layer, tokens: tokens.view.keys(2))
    with pytest.raises(ValueError, match=f"place {int(layout.video[0])} of the prompt .* was dropped"):
        generate(lambda layer, tokens: tokens.view.states(layout.video[:1]))
    run = generate(lambda layer, tokens: tokens.view)
    for ask in (lambda view: view.keys(1), lambda view: view.states(layout.asked)):
        with pytest.raises(RuntimeError, match="was asked after the place"):
            ask(run.asked[1])


@torch.no_grad()
def test_nothing_is_computed_that_nobody_asks_for(eager_case: running.FamilyCase, monkeypatch) -> None:
    def never(*given, **named):
        raise AssertionError("projections were made")

    monkeypatch.setattr("stsimdiff.engine.view.projected", never)
    run = Asking(ask=lambda layer, tokens: tokens.view.states(eager_case.prompt.layout.asked))
    with Compression(eager_case.family.decoder, run, eager_case.prompt.layout) as trace:
        eager_case.family.model.generate(**eager_case.prompt.inputs, max_new_tokens=1, do_sample=False)
    assert (trace.projected, trace.reads) == ([], [])
    assert set(run.asked) == {1, 2}


@torch.no_grad()
def test_reading_changes_no_bit_and_leaves_nothing(eager_case: running.FamilyCase) -> None:
    def ask(layer, tokens):
        tokens.view.attention(1, Read("question"))
        tokens.view.keys(1).zero_()
        tokens.view.states(eager_case.prompt.layout.asked).zero_()

    stock = running.generate(eager_case, Asking())[0]
    assert torch.equal(running.generate(eager_case, Asking(Read("question", coming=True), 1))[0], stock)
    assert torch.equal(running.generate(eager_case, Asking(ask=ask))[0], stock)
    config = eager_case.family.text_config
    assert all(
        layer.self_attn.config._attn_implementation == "eager" for layer in eager_case.family.decoder.layers
    )
    # A method's own arithmetic is counted without what the engine made for it, which the trace says.
    counted = CountedRun(Asking(ask=ask))
    with Compression(eager_case.family.decoder, counted, eager_case.prompt.layout) as trace:
        eager_case.family.model.generate(**eager_case.prompt.inputs, max_new_tokens=1, do_sample=False)
    shape = DecoderShape.from_config(config)
    kept, asked = len(present(eager_case)[0]), len(eager_case.prompt.layout.asked)
    widths = (shape.heads + 2 * shape.key_heads) * shape.head_dim
    each = 2 * kept * shape.hidden * widths
    assert counted.counter.flops == 0
    assert read_flops(trace, shape) == 4 * each + 2 * 2 * asked * kept * shape.heads * shape.head_dim


@torch.no_grad()
def test_the_question_apart_from_template_and_system_prompt(eager_case: running.FamilyCase) -> None:
    text = "assistant\nuser system"
    prompt = eager_case.family.prompt(eager_case.video, text, sample="kit")
    layout = prompt.layout
    assert layout.question == text
    assert set(layout.asked.tolist()).isdisjoint(layout.video.tolist())
    assert int(layout.asked[-1]) < layout.length - 1, "the template ends the prompt"
    if "input_ids" in prompt.inputs:
        ids = prompt.inputs["input_ids"][0]
        assert eager_case.family.tokenizer.decode(ids[layout.asked]).strip() == text


def test_a_read_is_checked_when_it_is_written() -> None:
    for wrong, message in (
        ({"rows": "first"}, "Read.rows='first'"),
        ({"rows": 0}, "Read.rows=0"),
        ({"rows": True}, "Read.rows=True"),
        ({"heads": "sum"}, "Read.heads='sum'"),
        ({"rows": "all", "over": None}, "N x N"),
    ):
        with pytest.raises(ValueError, match=message):
            Read(**wrong)


def test_a_plan_runs_a_method_that_asks_its_view() -> None:
    from dataclasses import dataclass

    from stsimdiff.compressors.base import Compressor

    @dataclass(frozen=True)
    class Pyramid(Compressor):
        def start(self, layout, budget):
            def ask(layer, tokens):
                return tokens.view.keys(layer), tokens.view.normed(tokens.view.states(layout.places("after")))

            return Asking(Read("last", coming=True), 1, ask)

    trace = dry_run(Pyramid(), Budget(retention=0.5), Grid(4, 3, 3), 10, 4)
    assert trace.entering == [24, 24, 12, 12]


def test_the_question_is_not_known_of_a_family_that_does_not_say() -> None:
    with pytest.raises(ValueError, match="gives no layout.asked"):
        qwen2_5_vl(0).layout.places("question")
