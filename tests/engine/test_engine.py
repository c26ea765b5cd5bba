"""The engine's promise: dropping equals masking for every later layer, keep-all changes no bit, nothing is left."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers.cache_utils import DynamicCache, StaticLayer

from helpers.scripted import DROPS, Scripted, some
from helpers.tiny_models import masked_reference, qwen2_5_vl
from stsimdiff.compressors.base import Places, Run
from stsimdiff.engine import Compression
from stsimdiff.engine.attention import attention_rows, mean_attention
from stsimdiff.models.kit.running import generate
from stsimdiff.tokens import Reason, Selection
from stsimdiff.trace import Trace


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", DROPS)
def test_dropping_equals_masking(name: str, seed: int, attention: str) -> None:
    case = qwen2_5_vl(seed, attention=attention)
    drops = {place: some(seed * 7 + n, share) for n, (place, share) in enumerate(DROPS[name].items())}
    logits, tokens, trace = generate(case, Scripted(drops))
    expected = masked_reference(case, drops, tokens)
    assert (logits - expected).abs().max() < 1e-5
    if name != "between last":  # nothing reads the video tokens after the last layer's attention
        change = (logits - masked_reference(case, {}, tokens)).abs().max()
        assert change > 1e-3, "the drop changes nothing: the test is blind"
    gone = set().union(*drops.values())
    assert trace.final == case.layout.grid.tokens - len(gone)
    assert int((trace.reason == Reason.DROPPED).sum()) == len(gone)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keep_all_is_bit_identical(attention: str) -> None:
    case = qwen2_5_vl(3, attention=attention)
    stock, _, _ = generate(case, None)
    places = {("input", 0): set(), ("before", 2): set(), ("between", 1): set()}
    logits, _, trace = generate(case, Scripted(places, attention=frozenset({0, 1, 2})))
    assert torch.equal(stock, logits)
    assert trace.entering == trace.mlp == [48] * 4
    assert trace.retention() == {"tokens": 1.0, "compute": 1.0}


@torch.no_grad()
def test_counts_of_each_layer() -> None:
    case = qwen2_5_vl(4)
    drops = {
        ("input", 0): set(range(8)),
        ("between", 1): set(range(8, 20)),
        ("before", 3): set(range(20, 30)),
    }
    _, _, trace = generate(case, Scripted(drops))
    assert trace.entering == [40, 40, 28, 18]
    assert trace.mlp == [40, 28, 28, 18]
    assert trace.retention() == pytest.approx({"tokens": 18 / 48, "compute": (40 + 40 + 28 + 18) / (4 * 48)})
    assert [(s.place, s.layer, len(s.kept)) for s in trace.stages] == [
        ("input", 0, 40),
        ("between", 1, 28),
        ("before", 3, 18),
    ]
    assert trace.prefill_seconds > trace.compressor_seconds > 0


@torch.no_grad()
@pytest.mark.parametrize(("queries", "read"), [("last", [1, 1]), ("all", [54, 42]), ("4", [4, 4])])
def test_reading_attention_is_counted_by_queries_keys_and_seconds(
    queries: str, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock that ticks once each time it is looked at: each part of the compressor's work takes one second.
    ticks = itertools.count(1.0)
    monkeypatch.setattr("stsimdiff.engine.compression._now", lambda device: next(ticks))
    case = qwen2_5_vl(4)
    drops = {("input", 0): set(range(8)), ("between", 1): set(range(8, 20)), ("before", 3): set()}
    _, _, trace = generate(case, Scripted(drops, attention=frozenset({1, 2}), queries=queries))
    assert trace.reads == list(zip(read, [40 + 14, 28 + 14], strict=True))  # the text counts
    assert trace.compressor_seconds == len(drops) + len(read)


@torch.no_grad()
@pytest.mark.parametrize("queries", ["last", "all"])
def test_attention_is_that_of_the_eager_backend(queries: str) -> None:
    drops = {("input", 0): {1, 5, 7}, ("between", 1): set(), ("before", 3): set()}
    seen = {}
    for attention in ("sdpa", "eager"):
        case = qwen2_5_vl(5, attention=attention)
        run = Scripted(drops, attention=frozenset({1, 2}), queries=queries)
        generate(case, run)
        seen[attention] = run.seen
    case = qwen2_5_vl(5, attention="eager")
    recorded = {}

    def record(number):
        def hook(module, args, output):
            recorded.setdefault(number, output[1])

        return hook

    hooks = [layer.self_attn.register_forward_hook(record(n)) for n, layer in enumerate(case.decoder.layers)]
    generate(case, Scripted(drops))
    for hook in hooks:
        hook.remove()
    start = int(case.layout.video[0])
    for key, layer in ((("between", 1), 1), (("before", 3), 2)):
        weights = recorded[layer][0]
        rows = weights[:, -1] if queries == "last" else weights.mean(1)
        expected = rows[:, start : start + 45]
        assert seen["sdpa"][key].shape == (4, 45)
        for attention in ("sdpa", "eager"):
            assert torch.allclose(seen[attention][key], expected, atol=1e-6)


def test_mean_attention_equals_the_dense_form() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 150, 8), torch.randn(1, 2, 150, 8)
    dense = attention_rows(query, key, 0.3, first=0)
    repeated = key.repeat_interleave(2, dim=1)
    scores = (query @ repeated.transpose(-1, -2)) * 0.3
    scores = scores.masked_fill(torch.ones(150, 150).triu(1).bool(), float("-inf"))
    assert torch.allclose(dense, scores.softmax(-1), atol=1e-6)
    assert torch.allclose(mean_attention(query, key, 0.3), dense.mean(2), atol=1e-6)


@torch.no_grad()
def test_nothing_is_left_behind_after_an_exception() -> None:
    case = qwen2_5_vl(6)
    stock, _, _ = generate(case, None)
    state = [(set(layer.__dict__), layer.self_attn.config) for layer in case.decoder.layers]

    class Broken(Scripted):
        def between(self, layer, tokens, attention):
            raise RuntimeError("a method that fails")

    run = Broken({("input", 0): {1}, ("between", 2): set()}, attention=frozenset({2}))
    with pytest.raises(RuntimeError, match="a method that fails"):
        generate(case, run)
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in case.model.modules())
    for layer, (names, config) in zip(case.decoder.layers, state, strict=True):
        assert set(layer.__dict__) == names
        assert layer.self_attn.config is config
    again, _, _ = generate(case, None)
    assert torch.equal(stock, again)


@torch.no_grad()
def test_merged_features_replace_the_kept_ones() -> None:
    case = qwen2_5_vl(7)

    class Merge(Run):
        places = Places(input=True)

        def at_input(self, tokens):
            mask = torch.zeros(len(tokens), dtype=torch.bool)
            mask[::2] = True
            return Selection.from_mask(
                mask, Reason.CONTEXTUAL, (tokens.features[::2] + tokens.features[1::2]) / 2
            )

    logits, tokens, trace = generate(case, Merge())
    features = case.embeds[0, case.layout.video]
    case.embeds[0, case.layout.video[::2]] = (features[::2] + features[1::2]) / 2
    expected = masked_reference(case, {("input", 0): set(range(1, 48, 2))}, tokens)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert trace.reasons() == {"dropped": 24, "contextual": 24}


class TestRefusals:
    def test_invalid_selections(self) -> None:
        case = qwen2_5_vl(8)

        def run_with(keep: torch.Tensor, reasons: int = 48) -> Run:
            class Wrong(Run):
                places = Places(input=True)

                def at_input(self, tokens):
                    return Selection(keep, torch.ones(reasons, dtype=torch.uint8))

            return Wrong()

        for keep in (torch.tensor([3, 2]), torch.tensor([1, 1]), torch.tensor([48]), torch.tensor([-1, 4])):
            with pytest.raises(ValueError, match="strictly ascending"):
                generate(case, run_with(keep))
        with pytest.raises(ValueError, match="kept none of 48 tokens"):
            generate(case, run_with(torch.tensor([], dtype=torch.long)))
        with pytest.raises(ValueError, match="reason has shape"):
            generate(case, run_with(torch.tensor([1]), reasons=3))
        for keep in (torch.tensor([[1]]), torch.tensor([0.5]), [1, 2]):
            with pytest.raises(ValueError, match=r"expected a tensor \(k,\) of torch.int64"):
                generate(case, run_with(keep))

    @pytest.mark.parametrize(
        ("features", "message"),
        [
            (torch.full((2, 48), float("nan")), "2 of 2 merged features hold NaN"),
            (torch.ones(2, 47), r"shape \(2, 47\), expected \(2, 48\)"),
            (torch.ones(3, 48), r"shape \(3, 48\), expected \(2, 48\)"),
        ],
    )
    def test_invalid_merged_features(self, features: torch.Tensor, message: str) -> None:
        case = qwen2_5_vl(8)

        class Wrong(Run):
            places = Places(input=True)

            def at_input(self, tokens):
                return Selection(torch.tensor([1, 2]), torch.ones(48, dtype=torch.uint8), features)

        with pytest.raises(ValueError, match=message):
            generate(case, Wrong())

    def test_a_selection_of_another_type(self) -> None:
        case = qwen2_5_vl(8)

        class Wrong(Run):
            places = Places(input=True)

            def at_input(self, tokens):
                return [1, 2, 3]

        with pytest.raises(TypeError, match="Wrong returned a list at its input place; expected a Selection"):
            generate(case, Wrong())

    def test_places_outside_the_model(self) -> None:
        case = qwen2_5_vl(9)
        with pytest.raises(ValueError, match="layers 0 to 3"):
            Compression(case.decoder, Scripted({("before", 4): set()}), case.layout)

    def test_a_batch_of_two(self) -> None:
        case = qwen2_5_vl(10)
        inputs = {"inputs_embeds": torch.randn(2, case.layout.length, 48)}
        with (
            Compression(case.decoder, Scripted({}), case.layout),
            pytest.raises(ValueError, match="batch of one"),
        ):
            case.decoder.module(**inputs)

    def test_a_prompt_of_another_length(self) -> None:
        case = qwen2_5_vl(11)
        with (
            Compression(case.decoder, Scripted({}), case.layout),
            pytest.raises(ValueError, match="layout says"),
        ):
            case.decoder.module(inputs_embeds=torch.randn(1, 20, 48))

    @torch.no_grad()
    @pytest.mark.parametrize("outside", [True, False])
    def test_a_prompt_in_pieces(self, outside: bool) -> None:
        case, cache = qwen2_5_vl(11), DynamicCache()
        length = case.layout.length
        # A rest of the prompt behind what was prefilled before, and two tokens at once behind the whole.
        first, rest = (length - 1, 1) if outside else (length, 2)

        def prefill(tokens: int) -> None:
            case.decoder.module(inputs_embeds=torch.randn(1, tokens, 48), past_key_values=cache)

        if outside:
            prefill(first)
        with Compression(case.decoder, Scripted({}), case.layout):
            if not outside:
                prefill(first)
            with pytest.raises(ValueError, match=f"{rest} new tokens on a cache of {first}: prefill"):
                prefill(rest)

    def test_a_cache_of_fixed_length(self) -> None:
        case = qwen2_5_vl(12)
        with (
            Compression(case.decoder, Scripted({("input", 0): {1}}), case.layout),
            pytest.raises(ValueError, match="DynamicCache"),
        ):
            case.model.generate(**case.inputs, max_new_tokens=2, cache_implementation="static")

    def test_one_layer_of_fixed_length_is_enough(self) -> None:
        case = qwen2_5_vl(12)
        cache = DynamicCache(config=case.model.config.text_config)
        cache.layers[-1] = StaticLayer(max_cache_len=64)
        with (
            Compression(case.decoder, Scripted({("input", 0): {1}}), case.layout),
            pytest.raises(ValueError, match="DynamicCache"),
        ):
            case.model.generate(**case.inputs, max_new_tokens=2, past_key_values=cache)


def test_a_layers_own_forward_comes_back() -> None:
    case = qwen2_5_vl(13)
    layer = case.decoder.layers[1]
    own = layer.forward = layer.forward  # as a wrapper of somebody else's leaves it
    with Compression(case.decoder, Scripted({("between", 1): {1}}), case.layout):
        assert layer.forward is not own
    assert vars(layer)["forward"] is own


def test_a_trace_of_nothing_took_no_time() -> None:
    trace = Trace(layers=2, video=3, text=4)
    assert (trace.prefill_seconds, trace.compressor_seconds, trace.reads, trace.asked) == (0, 0, [], [])
